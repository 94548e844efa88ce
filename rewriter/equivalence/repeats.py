"""Resize as data movement: where it repeats every element a whole number of times, and interpolates nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from rewriter.constants import attributes
from rewriter.equivalence import forms
from rewriter.equivalence.forms import Form, Unsupported
from rewriter.shapes import Shape

if TYPE_CHECKING:
    from rewriter.equivalence.linear import Evaluation, Value

_REPEATS = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""How positions are found and rounded such that whole factors repeat: at the last two none is halfway."""


def resize(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    """What a Resize makes of its first operand; raises Unsupported for what interpolates, crops or rounds."""
    data, *others = operands
    assert isinstance(data, Form)
    return forms.take(data, repeated(node, data.shape, run.shape(node.output[0]), others))


def repeated(node: onnx.NodeProto, before: Shape, after: Shape, others: Sequence[object]) -> NDArray[np.int64]:
    """The element, counted from 1, that each element of a Resize's output of shape `after` is.

    `others` are its operands behind the data: scales last up to operator set 10, then region, scales and sizes.
    From a size of 1 any nearest position is the first.  Raises Unsupported for what interpolates, crops or rounds.
    """
    found = attributes(node)
    y = node.output[0]
    if interpolates(node):
        raise Unsupported(f"Resize '{y}' interpolates")
    modern = len(others) != 1
    way = _text(found, "coordinate_transformation_mode", "half_pixel" if modern else "asymmetric")
    rounding = _text(found, "nearest_mode", "round_prefer_floor" if modern else "floor")
    if way == "tf_crop_and_resize":
        raise Unsupported(f"Resize '{y}' crops")
    scales = others[1] if modern and len(others) > 1 else others[0] if others else None
    factors = None if scales is None or not np.size(scales) else np.asarray(scales, np.float64)  # type: ignore[arg-type]
    if factors is not None and factors.size != len(before):
        raise Unsupported(f"Resize '{y}' has scales for some of its axes")
    picks = []
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        exact = old and new % old == 0 and (factors is None or factors[axis] == new // old)
        if old > 1 and not (old == new and exact) and not (exact and (way, rounding) in _REPEATS):
            raise Unsupported(f"Resize '{y}' rounds positions along axis {axis}")
        picks.append(np.arange(new) // (new // old) if old and new else np.arange(0))
    return 1 + np.arange(math.prod(before)).reshape(before)[np.ix_(*picks)]


def interpolates(node: onnx.NodeProto) -> bool:
    """Whether a Resize or Upsample computes values between those that it reads."""
    found = attributes(node) if node.op_type in ("Resize", "Upsample") else {}
    return _text(found, "mode", "nearest") != "nearest" or bool(found.get("antialias", 0))


def _text(found: Mapping[str, object], name: str, default: str) -> str:
    value = found.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)
