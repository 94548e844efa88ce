"""What a Conv node looks at per output position: its window, read from its attributes and written back."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from rewriter.constants import attribute
from rewriter.conv import Window
from rewriter.rule import require


def window_of(node: onnx.NodeProto, kernel: tuple[int, ...], sizes: Sequence[int | None]) -> Window:
    """The window of a Conv of that kernel, auto_pad resolved; declines where the input's `sizes` are needed but None.

    `sizes` are those of the spatial axes.  SAME pads of a stride other than 1 depend on them.
    """
    rank = len(kernel)
    dilations = _ints(node, "dilations", (1,) * rank)
    mode = attribute(node, "auto_pad")
    how = mode.s.decode() if mode else "NOTSET"
    if how in ("NOTSET", ""):
        pads = _ints(node, "pads", (0,) * 2 * rank)
        return Window(kernel, dilations, pads[:rank], pads[rank:])
    if how == "VALID":
        return Window(kernel, dilations, (0,) * rank, (0,) * rank)
    strides = strides_of(node, rank)
    begin, end = [], []
    for axis in range(rank):
        reach, size = (kernel[axis] - 1) * dilations[axis], sizes[axis] if axis < len(sizes) else None
        total = reach
        if strides[axis] != 1:
            where = f"its pads ({how}) depend on the input's size, which is not fixed"
            require(size is not None, where, node.output[0])
            assert size is not None
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + reach + 1 - size)
        less = total // 2
        begin.append(less if how == "SAME_UPPER" else total - less)
        end.append(total - begin[-1])
    return Window(kernel, dilations, tuple(begin), tuple(end))


def strides_of(node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
    """Strides per spatial axis."""
    return _ints(node, "strides", (1,) * rank)


def same_attributes(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Whether two Convs have the same attributes, group aside."""
    kept = [
        sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute if entry.name != "group")
        for node in (one, other)
    ]
    return kept[0] == kept[1]


def with_window(node: onnx.NodeProto, window: Window) -> onnx.NodeProto:
    """A copy of a Conv node with the attributes that say a window; all others stay."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    wanted = {
        "kernel_shape": list(window.kernel),
        "dilations": list(window.dilations),
        "pads": [*window.begin, *window.end],
    }
    copy.attribute.extend(entry for entry in node.attribute if entry.name not in (*wanted, "auto_pad"))
    copy.attribute.extend(helper.make_attribute(name, values) for name, values in wanted.items())
    return copy


def _ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    entry = attribute(node, name)
    return tuple(entry.ints) if entry is not None and len(entry.ints) else default
