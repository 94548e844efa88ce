"""Rounding computed weights to the weights' own type, once, and only where the type can hold them."""

from __future__ import annotations

import numpy as np

from rewriter.conv.types import Array, Floats


class NotRepresentable(ValueError):
    """Computed weights do not fit the type; the message is a clause that says why."""


def epsilon(dtype: np.dtype[np.generic]) -> float:
    """Distance from 1 to the next number of a float type (2^-23 for float32, 2^-7 for bfloat16)."""
    one, two = np.ones((), dtype), np.full((), 2, dtype)
    return float(np.nextafter(one, two).astype(np.float64)) - 1.0


def rounded(values: Floats, dtype: np.dtype[np.generic]) -> Array:
    """`values` `[M, ...]` in the type, each row to its precision.

    Raises NotRepresentable where finite values become infinite, or where a row loses precision because its values lie
    below the type's normal numbers: it is then off by more than epsilon times its largest value.
    """
    with np.errstate(over="ignore"):
        narrow: Array = np.ascontiguousarray(values.astype(dtype))
    wide = narrow.astype(np.float64)
    if (np.isinf(wide) & np.isfinite(values)).any():
        raise NotRepresentable(f"its combined weights are too large for {dtype}")
    if not np.isfinite(values).all():
        raise NotRepresentable("its weights are not finite")
    rows, exact = wide.reshape(len(wide), -1), values.reshape(len(values), -1)
    lost = np.abs(rows - exact).max(axis=1, initial=0) > epsilon(narrow.dtype) * np.abs(exact).max(axis=1, initial=0)
    if lost.any():
        raise NotRepresentable(f"its combined weights are too small for {dtype}")
    return narrow
