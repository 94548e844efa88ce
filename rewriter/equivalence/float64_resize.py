"""Resize and Upsample of the float64 reference: which elements are picked is decided in float32, as ONNX Runtime does.

Coordinates are part of what is computed, not of its rounding: 3 / 0.33333334 is 9.0 in float32, and rounded down in
float64 it would be 8, another element.  Interpolated values are ONNX's reference's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_resize import Resize as PlainResize

_Single = NDArray[np.float32]


class Resize(PlainResize):
    """ONNX's Resize.  Raises ValueError where the output's size itself depends on rounding."""

    op_domain = ""

    def _run(self, x: Any, *operands: Any, **attributes: Any) -> tuple[Any]:  # type: ignore[override]  # by name
        old = len(self.onnx_node.input) == 2  # opset 10: the scales, and nothing else to say
        roi, scales, sizes = (None, operands[0], None) if old else (*operands, None, None, None)[:3]
        scales = scales if scales is not None and np.size(scales) else None
        sizes = sizes if sizes is not None and np.size(sizes) else None
        if old:
            attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
            attributes |= {"extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch", "cubic_coeff_a": -0.75}
        stretched = attributes.get("keep_aspect_ratio_policy") in (None, "stretch")
        cropped = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if attributes.get("mode", "nearest") == "nearest" and stretched and not cropped:
            axes = attributes.get("axes")
            axes = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
            return (_nearest(x, axes, scales, sizes, attributes),)
        if scales is not None:
            _require_sizes(x.shape, scales, attributes.get("axes"))
        found: tuple[Any] = super()._run(x, roi, scales, sizes, **attributes)
        return found


class Upsample(OpRun):
    """ONNX's Upsample (opsets 7 to 9) with the nearest element."""

    op_domain = ""

    def _run(self, x: Any, scales: Any = None, **attributes: Any) -> tuple[Any]:
        given = attributes.get("scales") if scales is None else scales
        if (attributes.get("mode") or "nearest") != "nearest" or given is None:
            raise ValueError("Upsample is covered with mode 'nearest' only")
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
        return (_nearest(x, range(x.ndim), np.asarray(given), None, how),)


def _nearest(x: Any, axes: Any, scales: Any, sizes: Any, attributes: dict[str, Any]) -> Any:
    """The element of X nearest to each output's place, axis by axis."""
    for number, axis in enumerate(axes):
        length = x.shape[axis]
        scale = np.float32(sizes[number]) / np.float32(length) if scales is None else np.float32(scales[number])
        count = int(sizes[number]) if scales is None else int(scale * np.float32(length))
        if count == length and scale == 1:
            continue
        places = _places(length, count, scale, attributes.get("coordinate_transformation_mode") or "half_pixel")
        index = _index(places, attributes.get("nearest_mode") or "round_prefer_floor", bool(scale < 1))
        x = np.take(x, np.clip(index, 0, length - 1), axis=axis)
    return x


def _places(length: int, count: int, scale: np.float32, mode: str) -> _Single:
    """Where in the input each of `count` outputs lies (ONNX, Resize: coordinate_transformation_mode), in float32."""
    at = np.arange(count, dtype=np.float32)
    half = np.float32(0.5)
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_half_pixel_for_nn":
        return (at + half) / scale
    if mode == "align_corners":
        return at * np.float32(length - 1) / np.float32(count - 1) if count > 1 else np.zeros_like(at)
    if mode == "pytorch_half_pixel" and count == 1:
        return np.zeros_like(at)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (at + half) / scale - half
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(count) / (scale * np.float32(length))
        offset = np.float32(length) / np.float32(2) * (1 - adjustment)
        return (offset + (at + 0.5) / np.float64(scale) - 0.5).astype(np.float32)  # ONNX Runtime adds in float64 here
    raise ValueError(f"the coordinate transformation '{mode}' of a Resize is not known")


def _index(places: _Single, mode: str, shrinks: bool) -> NDArray[np.int64]:
    """Which element is nearest (ONNX, Resize: nearest_mode; `simple` is that of opset 10)."""
    down, up = np.floor(places), np.ceil(places)
    rounded = {
        "floor": down,
        "ceil": up,
        "simple": up if shrinks else np.trunc(places),
        "round_prefer_floor": np.where(places == down + np.float32(0.5), down, np.rint(places)),
        "round_prefer_ceil": np.where(places == down + np.float32(0.5), up, np.rint(places)),
    }
    if mode not in rounded:
        raise ValueError(f"the nearest_mode '{mode}' of a Resize is not known")
    return np.asarray(rounded[mode], np.int64)


def _require_sizes(shape: tuple[int, ...], scales: Any, axes: Any) -> None:
    """Raise ValueError where float32 and float64 give the output another size."""
    lengths = np.asarray(shape)[list(axes)] if axes is not None else np.asarray(shape)
    single = (np.float32(scales) * lengths.astype(np.float32)).astype(np.int64)
    if (single != (np.float64(scales) * lengths).astype(np.int64)).any():
        raise ValueError("the output size of a Resize depends on rounding")
