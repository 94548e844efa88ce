"""Floating-point types: unit roundoff, the range in which integers are exact, and differences."""

from __future__ import annotations

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


def significand_bits(elem_type: int) -> int | None:
    """Bits p of the significand, hidden bit included: integers up to 2^p are exact.  None for other types."""
    return _BITS.get(elem_type)


def unit_roundoff(elem_type: int) -> float:
    """u = 2^-p, the largest relative error of one rounding; that of float32 for types that are not floating point."""
    return float(2.0 ** -(_BITS.get(elem_type) or 24))


def difference(a: Array, b: Array) -> Floats:
    """|a − b| in float64; 0 where both are the same, infinities included, or where a is not finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(x).all():
        keep = np.isfinite(x) & np.isfinite(y)
        x, y = np.where(keep, x, 0.0), np.where(keep, y, 0.0)
    return np.asarray(np.abs(x - y))
