"""Read nodes as what a convolution can take in: an affine map per channel, or padding with zeros."""

from __future__ import annotations

import numpy as np
import onnx

from rewriter.constants import Array, attribute, constant, is_constant, why_not_constant
from rewriter.conv import Affine, batch_norm, channel_constant
from rewriter.graph import Graph
from rewriter.rule import require

AFFINE = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})
_PADS_AS_INPUT = 11
_PER_POSITION_NORM = 9
"""The first opset whose BatchNormalization is per channel only."""
_EPSILON = 1e-5


def data_operand(graph: Graph, index: int) -> str:
    """The one input of an affine node or Pad that is no constant; declines where there is not one such."""
    node = graph.model.nodes[index]
    where = node.output[0]
    if node.op_type in ("BatchNormalization", "Pad"):
        return node.input[0]
    moving = [name for name in node.input if name and not is_constant(graph.model, name)]
    what = f"{node.op_type} '{where}' has {len(moving)} operands that are no constants, not one"
    require(len(moving) == 1 and len(node.input) == 2, what, where, matched=0)
    return moving[0]


def read_affine(graph: Graph, index: int, channels: int, rank: int, *, made_by_conv: bool) -> Affine:
    """An affine node between tensors `[N, channels, *S]` of that rank; declines where it is none.

    With `made_by_conv`, its data operand is known to be of that shape; else what is declared of it must say so.
    """
    node = graph.model.nodes[index]
    where = node.output[0]
    known = node.op_type in AFFINE and node.domain in ("", "ai.onnx")
    require(known, f"{node.op_type} is not affine", where, matched=0)
    if node.op_type == "BatchNormalization":
        return _finite(_norm(graph, node, channels), node)
    data = data_operand(graph, index)
    first = node.input[1] == data
    name = node.input[0] if first else node.input[1]
    value = constant(graph.model, name)
    assert value is not None
    factor = channel_constant(value, rank)
    what = f"{node.op_type} '{where}' has a constant of shape {list(value.shape)}, which is none per channel"
    require(factor is not None and len(factor) in (1, channels), what, where, name)
    assert factor is not None
    if not made_by_conv and (len(factor) > 1 or value.ndim == rank):
        sizes = graph.sizes(data)
        alike = sizes is not None and len(sizes) == rank and (len(factor) == 1 or sizes[1] == channels)
        require(alike, f"'{data}' is not known to have {rank} axes and {channels} channels", where, data)
    require(not (first and node.op_type == "Div"), f"Div '{where}' divides a constant by it: that is not affine", where)
    return _finite(_arithmetic(node.op_type, factor.astype(np.float64), first), node)


def _arithmetic(op_type: str, value: Array, constant_first: bool) -> Affine:
    one, zero = np.ones(1), np.zeros(1)
    numbers = np.asarray(value, np.float64)
    if op_type == "Mul":
        return Affine(numbers, zero)
    if op_type == "Add":
        return Affine(one, numbers)
    if op_type == "Sub":
        return Affine(-one, numbers) if constant_first else Affine(one, -numbers)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Affine(1.0 / numbers, zero)


def _norm(graph: Graph, node: onnx.NodeProto, channels: int) -> Affine:
    where = node.output[0]
    training = attribute(node, "training_mode")
    outputs = [name for name in node.output if name]
    inferring = len(outputs) == 1 and (training is None or training.i == 0)
    require(inferring, f"BatchNormalization '{where}' is in training mode", where)
    spatial = attribute(node, "spatial")
    per_channel = graph.model.opset >= _PER_POSITION_NORM or spatial is None or spatial.i != 0
    require(per_channel, f"BatchNormalization '{where}' is per position, not per channel", where)
    values: list[Array] = []
    for name in node.input[1:]:
        value = _fixed(graph, node, name)
        require(value.shape == (channels,), f"'{name}' is not of shape [{channels}]", where, name)
        values.append(value)
    epsilon = attribute(node, "epsilon")
    scale, shift, mean, variance = values
    return batch_norm(scale, shift, mean, variance, _EPSILON if epsilon is None else float(epsilon.f))


def _finite(affine: Affine, node: onnx.NodeProto) -> Affine:
    where = node.output[0]
    require(affine.finite, f"{node.op_type} '{where}' scales or shifts by a number that is not finite", where)
    return affine


def read_pad(graph: Graph, index: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros that a Pad puts before and behind each spatial axis of `[N, C, *S]`; declines where it is another Pad."""
    node = graph.model.nodes[index]
    where = node.output[0]
    mode = attribute(node, "mode")
    plain = mode is None or mode.s in (b"", b"constant")
    require(plain, f"Pad '{where}' repeats or reflects what is there", where)
    as_input = graph.model.opset >= _PADS_AS_INPUT
    fill = _padding_input(graph, node, 2) if as_input else None
    value = attribute(node, "value")
    filled = fill if fill is not None else np.asarray(0.0 if value is None else value.f)
    require(not np.any(filled), f"Pad '{where}' does not fill with 0, as a Conv does", where)
    listed = _padding_input(graph, node, 1) if as_input else None
    entry = attribute(node, "pads")
    pads = [int(size) for size in (listed if listed is not None else entry.ints if entry else ())]
    chosen = _padding_input(graph, node, 3)
    axes = list(range(rank)) if chosen is None else [int(axis) % rank for axis in chosen]
    require(len(pads) == 2 * len(axes), f"Pad '{where}' has {len(pads)} numbers for {len(axes)} axes", where)
    begin, end = [0] * rank, [0] * rank
    for at, axis in enumerate(axes):
        begin[axis], end[axis] = pads[at], pads[len(axes) + at]
    spatial = not any(begin[:2] + end[:2])
    require(spatial, f"Pad '{where}' pads the batch or the channels", where)
    require(min(begin + end) >= 0, f"Pad '{where}' crops", where)
    return tuple(begin[2:]), tuple(end[2:])


def _padding_input(graph: Graph, node: onnx.NodeProto, at: int) -> Array | None:
    """A constant input of a Pad, None where it is left out."""
    if len(node.input) <= at or not node.input[at]:
        return None
    return _fixed(graph, node, node.input[at])


def _fixed(graph: Graph, node: onnx.NodeProto, name: str) -> Array:
    """The value of a node's parameter; declines where it is no constant."""
    value = constant(graph.model, name)
    why = "" if value is not None else f": {why_not_constant(graph.model, name)}"
    require(value is not None, f"{node.op_type} '{node.output[0]}' has a parameter that varies{why}", name)
    assert value is not None
    return value
