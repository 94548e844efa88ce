"""Pooling of the float64 reference: MaxPool, AveragePool and the global ones, one axis after the other.

Maximum and sum over a window are those over its columns of those over its rows, so that a k×k window costs 2k
operations per element and not k².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from rewriter.equivalence.float64_conv import axis_values, with_text
from rewriter.equivalence.forms import Floats
from rewriter.shapes import Shape


class _Axis(NamedTuple):
    """How a window moves along one axis; `overhang` is what it reads beyond the padding (ceil_mode)."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    overhang: int
    size: int
    """Of the output."""

    def slices(self) -> list[slice]:
        """What the window's elements see of the padded axis, one after the other."""
        starts = (tap * self.dilation for tap in range(self.kernel))
        return [slice(first, first + (self.size - 1) * self.stride + 1, self.stride) for first in starts]


def _geometry(attributes: Mapping[str, object], sizes: Shape) -> list[_Axis]:
    """One record per spatial axis.  Raises ValueError where no window fits, or SAME would mean negative padding.

    With SAME the output has ceil(size / stride) elements.  With ceil_mode a last window that is not whole counts,
    unless it begins behind the input and its padding at the beginning (ONNX, MaxPool).
    """
    kernel = axis_values(attributes.get("kernel_shape"), ())
    ones = (1,) * len(sizes)
    if len(kernel) != len(sizes):
        raise ValueError(f"a window {list(kernel)} does not fit {len(sizes)} spatial axes")
    strides, dilations = (axis_values(attributes.get(name), ones) for name in ("strides", "dilations"))
    auto = with_text(attributes)["auto_pad"]
    pads = axis_values(attributes.get("pads"), (0,) * 2 * len(sizes)) if auto == b"NOTSET" else (0,) * 2 * len(sizes)
    found = []
    for axis, (size, k, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        begin, end = pads[axis], pads[len(sizes) + axis]
        span = (k - 1) * dilation + 1
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            count = -(-size // stride)
            total = (count - 1) * stride + span - size
            if total < 0:  # ONNX Runtime then cuts off what is left over, one way for each kind
                raise ValueError(f"strides {list(strides)} beyond the window with auto_pad are not covered")
            begin = total // 2 if auto == b"SAME_UPPER" else total - total // 2
            end = total - begin
        else:
            room = size + begin + end - span
            up = bool(attributes.get("ceil_mode"))
            count = (-(-room // stride) if up else room // stride) + 1
            if up and (count - 1) * stride >= size + begin:
                count -= 1
        if count < 1:
            raise ValueError(f"a window {list(kernel)} does not fit an input {list(sizes)}")
        overhang = max(0, (count - 1) * stride + span - (size + begin + end))
        found.append(_Axis(k, stride, dilation, begin, end, overhang, count))
    return found


def _swept(
    x: NDArray[Any], axes: list[_Axis], fill: float, combine: Callable[..., Any], offset: int = 2
) -> NDArray[Any]:
    """`combine` over each window of X [.., *S], padded with `fill`."""
    for number, axis in enumerate(axes, offset):
        widths = [(0, 0)] * x.ndim
        widths[number] = (axis.begin, axis.end + axis.overhang)
        padded = np.pad(x, widths, constant_values=fill)
        before = (slice(None),) * number
        first, *others = axis.slices()
        x = padded[(*before, first)].copy()
        for window in others:
            combine(x, padded[(*before, window)], out=x)
    return x


class MaxPool(OpRun):
    """ONNX's MaxPool without its second output; padding is −∞.  Raises ValueError where indices are asked for."""

    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any]:
        if len([name for name in self.onnx_node.output if name]) > 1:
            raise ValueError("the indices of a MaxPool are not covered")
        axes = _geometry(attributes, x.shape[2:])
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        return (_swept(x, axes, lowest, np.maximum),)


class AveragePool(OpRun):
    """ONNX's AveragePool: the mean over what lies in the input, or with count_include_pad in the padded input."""

    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> tuple[Floats]:
        axes = _geometry(attributes, x.shape[2:])
        total = _swept(x, axes, 0.0, np.add)
        for number, (axis, size) in enumerate(zip(axes, x.shape[2:], strict=True), 2):
            padding = float(bool(attributes.get("count_include_pad")))
            counted = np.concatenate([np.full(axis.begin, padding), np.ones(size), np.full(axis.end, padding)])
            count = _swept(counted, [axis._replace(begin=0, end=0)], 0.0, np.add, offset=0)
            total = total / count.reshape(-1, *(1,) * (x.ndim - number - 1))
        return (total,)


class GlobalAveragePool(OpRun):
    """ONNX's GlobalAveragePool."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Floats]:
        return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalMaxPool(OpRun):
    """ONNX's GlobalMaxPool."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Any]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)
