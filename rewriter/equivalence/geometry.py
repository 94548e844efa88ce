"""Padding of a convolution, resolved at concrete sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewriter.shapes import Shape


def pads_of(
    attributes: Mapping[str, object], size: Sequence[int], kernel: Sequence[int], strides: Shape, dilations: Shape
) -> tuple[Shape, Shape]:
    """Begin and end padding per spatial axis, auto_pad resolved as ONNX's Conv defines it.

    SAME: output ceil(size / stride), total padding (output − 1)·stride + (kernel − 1)·dilation + 1 − size, the odd one
    at the end (SAME_UPPER) or the beginning (SAME_LOWER).
    """
    axes = len(size)
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        begin, end = [], []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            less, more = total // 2, total - total // 2
            begin.append(less if auto == b"SAME_UPPER" else more)
            end.append(more if auto == b"SAME_UPPER" else less)
        return tuple(begin), tuple(end)
    given = attributes.get("pads")
    if auto == b"VALID" or not isinstance(given, Sequence) or not given:
        return (0,) * axes, (0,) * axes
    pads = tuple(int(pad) for pad in given)
    return pads[:axes], pads[axes:]


def pads_begin(
    attributes: Mapping[str, object], size: Sequence[int], kernel: Sequence[int], strides: Shape, dilations: Shape
) -> Shape:
    """Begin padding per spatial axis (see `pads_of`)."""
    return pads_of(attributes, size, kernel, strides, dilations)[0]
