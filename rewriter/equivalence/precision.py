"""Floating-point types: unit roundoff, the range in which integers are exact, and differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.forms import Floats

_BITS: Final[dict[int, int]] = {
    onnx.TensorProto.FLOAT16: 11,
    onnx.TensorProto.BFLOAT16: 8,
    onnx.TensorProto.FLOAT: 24,
    onnx.TensorProto.DOUBLE: 53,
}
_SMALLEST: Final = {2.0**-11: 2.0**-24, 2.0**-8: 2.0**-133, 2.0**-24: 2.0**-149, 2.0**-53: 2.0**-1074}
_PART: Final = 1 << 16


def significand_bits(elem_type: int) -> int | None:
    """Bits p of the significand, hidden bit included: integers up to 2^p are exact.  None for other types."""
    return _BITS.get(elem_type)


def unit_roundoff(elem_type: int) -> float:
    """u = 2^-p, the largest relative error of one rounding; that of float32 for types that are not floating point."""
    return float(2.0 ** -(_BITS.get(elem_type) or 24))


def smallest_number(unit: float) -> float:
    """The smallest positive number, a subnormal one, of the type with this unit roundoff."""
    return _SMALLEST[unit]


def difference(a: Array, b: Array) -> Floats:
    """|a − b| in float64; 0 where both are the same, infinities included, or where a is not finite."""
    error = a.astype(np.float64)
    with np.errstate(all="ignore"):
        np.subtract(error, wide(b), out=error)
    np.abs(error, out=error)
    if not np.isfinite(error).all():
        error[~(np.isfinite(wide(a)) & np.isfinite(wide(b)))] = 0.0
    return error


def wide(value: Array) -> Array:
    """The values in a type that NumPy computes with itself: 16-bit floats in float64, others as they are."""
    return value.astype(np.float64) if value.dtype.itemsize < 4 else value


def all_finite(value: Array) -> bool:
    """Whether no element is NaN or infinite."""
    return value.dtype.kind in "biu" or bool(np.isfinite(wide(value)).all())


def worst(a: Array, b: Array) -> tuple[float, float]:
    """The largest `difference(a, b)`, and the largest |a − b| / (1 + |a|); a part at a time, to spare memory."""
    largest = needed = 0.0
    for x, y in zip(_parts(a), _parts(b), strict=True):
        error = difference(x, y)
        largest = max(largest, float(error.max(initial=0)))
        if largest:
            size = np.abs(x.astype(np.float64))
            needed = max(needed, float((error / (1 + np.where(np.isfinite(size), size, 0.0))).max(initial=0)))
    return largest, needed


def largest_finite(value: Array) -> float:
    """The largest |value| that is finite; 0 where nothing is."""
    found = 0.0
    for part in _parts(value):
        size = np.abs(wide(part))
        found = max(found, float(size[np.isfinite(size)].max(initial=0)))
    return found


def any_finite(value: Array) -> bool:
    """Whether at least one element is neither NaN nor infinite."""
    return any(bool(np.isfinite(wide(part)).any()) for part in _parts(value))


def _parts(value: Array) -> Iterator[Array]:
    flat = value.reshape(-1)
    for start in range(0, flat.size, _PART):
        yield flat[start : start + _PART]


def relative_error(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Root mean square of the differences over that of the first of each pair; NaN where there is nothing to compare.

    Infinite where a difference is not finite, or the first of each pair is 0 and the second is not.
    """
    wide = [(old.astype(np.float64), new.astype(np.float64)) for old, new in pairs]
    largest = max((float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x, _ in wide), default=0.0)
    off = size = 0.0
    for x, y in wide:
        same = (x == y) | (np.isnan(x) & np.isnan(y))  # infinity minus itself is no number
        change = np.where(same, 0.0, x - y) / (largest or 1.0)  # so that no square overflows
        off += float(np.sum(change * change)) if np.isfinite(change).all() else np.inf
        size += float(np.sum((np.where(np.isfinite(x), x, 0.0) / (largest or 1.0)) ** 2))
    if not size:
        return float("inf") if off else float("nan")
    return float(np.sqrt(off / size))
