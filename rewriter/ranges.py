"""Ranges that the user gives for generated inputs: whether they fit the model, and draws that stay inside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx

from rewriter.errors import BadInput
from rewriter.shapes import Shape

Range = tuple[float, float]
_FLOATS: Final = frozenset(
    {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
)
_SPREAD: Final = 6.0
"""Standard deviations that a normal draw's range is wide."""


def range_of(ranges: Mapping[str, Range], name: str) -> Range | None:
    """The range of an input: its own, or the one for all inputs (""), or None."""
    return ranges.get(name, ranges.get(""))


def check_ranges(values: Sequence[onnx.ValueInfoProto], ranges: Mapping[str, Range]) -> None:
    """Raise BadInput for a range of no input, or one without two numbers of its input's type in it.

    Inputs that are no numbers (booleans, strings) need no range: the one for all inputs is not for them.
    """
    known = [value.name for value in values]
    for name in ranges:
        if name and name not in known:
            listed = ", ".join(f"'{entry}'" for entry in known) or "none"
            raise BadInput(f"--val-range names '{name}', but the model's inputs are: {listed}.")
    for value in values:
        found = range_of(ranges, value.name)
        code = value.type.tensor_type.elem_type
        if found is None or (not takes_range(code) and value.name not in ranges):
            continue
        kind = onnx.TensorProto.DataType.Name(code).lower() if code else "no tensor"
        if not takes_range(code):
            raise BadInput(f"--val-range names '{value.name}', which is {kind}: there is no range of that.")
        if not _has_two(code, found):
            own = "" if value.name in ranges else f", or give it one of its own ({value.name}:LOW,HIGH)"
            raise BadInput(
                f"--val-range {found[0]:g},{found[1]:g} does not fit the input '{value.name}' of type {kind}: it must "
                f"be in the range of that type, with at least two of its values{own}."
            )


def takes_range(elem_type: int) -> bool:
    """Whether values of a type can be drawn from a range: floating-point and whole numbers."""
    return elem_type in _FLOATS or (
        elem_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING, onnx.TensorProto.BOOL)
        and onnx.helper.tensor_dtype_to_np_dtype(elem_type).kind in "iu"
    )


def _has_two(elem_type: int, found: Range) -> bool:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    low, high = found
    if elem_type in _FLOATS:
        with np.errstate(all="ignore"):
            ends = np.array(found).astype(dtype).astype(np.float64)
        return bool(np.isfinite(ends).all() and ends[0] < ends[1])
    limits = np.iinfo(dtype)
    return limits.min <= math.ceil(low) < math.floor(high) <= limits.max


def draw_between(rng: np.random.Generator, shape: Shape, elem_type: int, found: Range, recipe: str) -> np.ndarray:
    """An array [shape] in a range, after one of the recipes that the auditor draws inputs by.

    uniform: all of it alike; normal: about its middle, the range being six standard deviations; integers: its whole
    numbers, where it has two; large: only its two ends.  Whole-number types have all whole numbers in it, both ends
    included.
    """
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    low, high = found
    if recipe == "large":
        ends = np.array(found if elem_type in _FLOATS else (math.ceil(low), math.floor(high))).astype(dtype)
        return np.asarray(ends[rng.integers(0, 2, shape)])
    if elem_type not in _FLOATS:
        kind = np.uint64 if dtype == np.dtype(np.uint64) else np.int64
        return rng.integers(math.ceil(low), math.floor(high), shape, dtype=kind, endpoint=True).astype(dtype)
    if recipe == "normal":
        middle = low / 2 + high / 2
        values = middle + rng.standard_normal(shape) * (high / _SPREAD - low / _SPREAD)
    else:
        share = rng.random(shape)
        values = low * (1 - share) + high * share
    if recipe == "integers" and math.floor(high) > math.ceil(low):
        values = np.clip(np.rint(values), math.ceil(low), math.floor(high))
    return np.asarray(np.clip(values, low, high)).astype(dtype)
