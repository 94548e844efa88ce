"""Concat(x, depthwise(x)) as one depthwise convolution of x twice: of channels that are repeated by who makes them.

    z = Concat(r, g(D(r))), r = f(A(x))     becomes     z = g(D'(f(A'(x))))

with every row of A's weight twice, and in D' a one among zeros for what is passed on: GhostNet's module without Concat.
"""

from __future__ import annotations

import numpy as np

from rewriter.build import Builder
from rewriter.constants import Array, attribute
from rewriter.graph import Graph
from rewriter.lifting import ConvSite, lift
from rewriter.per_channel import ELEMENTWISE
from rewriter.pieces import Taken
from rewriter.rule import require
from rewriter.windows import strides_of, window_of


def repeat_channels(graph: Graph, index: int, prefix: str) -> Taken:
    """The nodes from a dense convolution to the Concat, with every channel made twice.

    Declines where anybody else reads what is between, and where the depthwise convolution gives another size.
    """
    model = graph.model
    first = lift(model, index)
    require(first.group == 1, "its output goes into no Concat beside a depthwise convolution of it", first.y, matched=0)
    between, r = _activation(graph, first.y)
    readers = [] if model.wiring.escapes(r) else [model.nodes[at].op_type for at in model.wiring.readers(r)]
    beside = sorted(readers) == ["Concat", "Conv"]
    require(beside, "its output goes into no Concat beside a depthwise convolution of it", first.y, matched=0)
    join, inner = sorted(model.wiring.readers(r), key=lambda at: model.nodes[at].op_type)
    second = lift(model, inner)
    depthwise = second.x == r and second.group == second.m == first.m and second.weight.shape[1] == 1
    require(depthwise, f"Conv '{second.y}' beside the Concat is no depthwise convolution of it", second.y)
    behind, s = _activation(graph, second.y)
    alone = not model.wiring.escapes(s) and model.wiring.readers(s) == (join,)
    require(alone, f"'{s}' is read by others than Concat '{model.nodes[join].output[0]}'", s)
    twice = [at is None or model.nodes[at].op_type == "Relu" for at in (between, behind)]
    idempotent = behind is None or (between is not None and all(twice))
    require(idempotent, f"what is passed on would go through the activation '{s}', too", s)
    axis = attribute(model.nodes[join], "axis")
    channels = axis is not None and axis.i % (len(first.kernel) + 2) == 1
    inputs = list(model.nodes[join].input)
    require(channels and sorted(inputs) == sorted([r, s]), "the Concat is of other tensors as well", s)
    kernel = _passing_on(graph, second)
    build = Builder(model, prefix)
    rows = build.constant(np.concatenate([first.weight, first.weight]), "weight")
    bias = None if first.bias is None else build.constant(np.concatenate([first.bias, first.bias]), "bias")
    places = [index] * (len(build.nodes) + 1)
    y = build.conv(first.node, first.x, rows, bias, 1, None)
    if between is not None:
        y = _again(build, graph, between, y)
        places.append(between)
    parts, shifts = [kernel, second.weight], [np.zeros(first.m, kernel.dtype), second.bias]
    order = [inputs.index(r), inputs.index(s)]
    made = len(build.nodes)
    weight = build.constant(np.concatenate([parts[at] for at in np.argsort(order)]), "kernels")
    if second.bias is not None:
        shift = build.constant(np.concatenate([shifts[at] for at in np.argsort(order)]), "shifts")
    y = build.conv(second.node, y, weight, None if second.bias is None else shift, 2 * first.m, None)
    places += [inner] * (len(build.nodes) - made)
    if behind is not None:
        y = _again(build, graph, behind, y)
        places.append(behind)
    build.nodes[-1].output[0] = model.nodes[join].output[0]
    gone = {index, inner, join, *(at for at in (between, behind) if at is not None)}
    return Taken(frozenset(gone), tuple(zip(places, build.nodes, strict=True)), tuple(build.initializers), 2)


def _activation(graph: Graph, tensor: str) -> tuple[int | None, str]:
    """The elementwise node that alone reads a tensor, and what it makes; the tensor itself where there is none."""
    wiring = graph.model.wiring
    readers = wiring.readers(tensor)
    if wiring.escapes(tensor) or len(readers) != 1:
        return None, tensor
    node = graph.model.nodes[readers[0]]
    plain = node.op_type in ELEMENTWISE and node.domain in ("", "ai.onnx") and len(node.input) == len(node.output) == 1
    return (readers[0], node.output[0]) if plain else (None, tensor)


def _passing_on(graph: Graph, conv: ConvSite) -> Array:
    """The depthwise weight `[M, 1, *K]` with which the convolution would give what it reads."""
    window = window_of(conv.node, conv.kernel, (graph.sizes(conv.x) or ())[2:])
    reach = [dilation * (size - 1) for dilation, size in zip(window.dilations, conv.kernel, strict=True)]
    same = all(stride == 1 for stride in strides_of(conv.node, len(conv.kernel))) and all(
        begin + end == far for begin, end, far in zip(window.begin, window.end, reach, strict=True)
    )
    taps = [divmod(pad, dilation) for pad, dilation in zip(window.begin, window.dilations, strict=True)]
    same = same and all(rest == 0 and 0 <= tap < size for (tap, rest), size in zip(taps, conv.kernel, strict=True))
    require(same, f"Conv '{conv.y}' does not keep the positions of what it reads", conv.y)
    kernel = np.zeros_like(conv.weight)
    kernel.reshape(len(kernel), -1)[:, np.ravel_multi_index([tap for tap, _ in taps], conv.kernel)] = 1
    return kernel


def _again(build: Builder, graph: Graph, index: int, x: str) -> str:
    return build.copy(graph.model.nodes[index], x)
