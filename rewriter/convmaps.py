"""Between Conv nodes and conv maps with all their geometry: read one from a node, write its attributes into a copy."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from rewriter.constants import attribute
from rewriter.conv import ConvMap, Window
from rewriter.graph import Graph
from rewriter.lifting import ConvSite
from rewriter.windows import strides_of, window_of, with_window

_OUTSIDE = {"strides": 1, "dilations": 1, "pads": 0}
"""What a Conv's attributes are on axes that it leaves alone; `pads` has two numbers per axis."""


def spatial_sizes(graph: Graph, tensor: str, axes: int) -> tuple[int | None, ...]:
    """The tensor's spatial sizes that hold for every input, None where there is none."""
    sizes = graph.sizes(tensor)
    return (None,) * axes if sizes is None else tuple(sizes[2:])


def full_window(graph: Graph, site: ConvSite) -> Window:
    """The convolution's window; declines where its pads depend on a size that is not fixed."""
    return window_of(site.node, site.kernel, spatial_sizes(graph, site.x, len(site.kernel)))


def conv_map(graph: Graph, site: ConvSite) -> ConvMap:
    """The conv map at a site, bias and pads included; declines as `full_window` does."""
    return ConvMap(
        site.weight, site.bias, site.group, strides_of(site.node, len(site.kernel)), full_window(graph, site)
    )


def with_geometry(node: onnx.NodeProto, conv: ConvMap) -> onnx.NodeProto:
    """A copy of a Conv node with the window and the strides of a conv map."""
    copy = with_window(node, conv.window)
    _set(copy, "strides", conv.strides)
    return copy


def on_axes(node: onnx.NodeProto, kernel: Sequence[int], axes: Sequence[int]) -> onnx.NodeProto:
    """A copy of a Conv node with its stride, dilation and padding on these spatial axes only, of a kernel `kernel`.

    auto_pad stays: where the kernel and the stride are 1 it pads nothing.
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    rank = len(kernel)
    _set(copy, "kernel_shape", kernel)
    for name in ("strides", "dilations", "pads"):
        entry = attribute(node, name)
        if entry is not None and len(entry.ints):
            kept = (value if at % rank in axes else _OUTSIDE[name] for at, value in enumerate(entry.ints))
            _set(copy, name, tuple(kept))
    return copy


def _set(node: onnx.NodeProto, name: str, values: Sequence[int]) -> None:
    entry = attribute(node, name)
    if entry is None:
        node.attribute.append(helper.make_attribute(name, list(values)))
    else:
        entry.ints[:] = values
