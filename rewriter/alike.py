"""Nodes that compute the same whatever the rank of their tensors: what may lie between the convolutions of a run."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from rewriter.constants import attribute, constant, is_constant
from rewriter.conv import channel_constant
from rewriter.following import why_other_shape
from rewriter.graph import Graph
from rewriter.lifting import weight_shape

_UNARY = frozenset(
    """Abs BatchNormalization Cast Ceil Celu Clip Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
    LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Swish Tanh
    ThresholdedRelu""".split()  # noqa: SIM905 - readable
)
"""Operators on one tensor that treat its elements, or its channels, alike; their other inputs are constants."""
_NARY = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum"})
_CHANNELS = frozenset({"Concat", "Split"})
"""Operators on whole channels: their axis is 1."""


def data_operands(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """The inputs of a run's node that the layout applies to: of a Conv or unary operator the first one alone."""
    if node.op_type == "Conv" or node.op_type in _UNARY or node.op_type == "Split":
        return [node.input[0]]
    return [name for name in node.input if name and not is_constant(graph.model, name)]


def broadcasts(node: onnx.NodeProto) -> bool:
    """Whether a run's node broadcasts its operands against each other."""
    return node.op_type in _NARY


def is_conv(node: onnx.NodeProto) -> bool:
    """Whether a node is ONNX's own Conv."""
    return node.op_type == "Conv" and node.domain in ("", "ai.onnx")


@dataclass(frozen=True)
class Alike:
    """Looks at nodes on tensors of `rank` axes.

    With `any_shape`, what is broadcast against them may have any shape of that rank; without, tensors must be of one
    shape and constants scalars or per channel.
    """

    graph: Graph
    rank: int
    any_shape: bool

    def works_alike(self, index: int) -> bool:
        """Whether a node that is no Conv computes the same in another layout."""
        model = self.graph.model
        node = model.nodes[index]
        if node.domain not in ("", "ai.onnx") or any(not name for name in node.output[:1]):
            return False
        if node.op_type in _UNARY:
            plain = len([name for name in node.output if name]) == 1 and not _is_special(node)
            rest = all(is_constant(model, name) for name in node.input[1:] if name)
            return plain and rest and self._has_rank(node.input[0])
        if node.op_type in _CHANNELS:
            axis = attribute(node, "axis")
            on_channels = axis is not None and axis.i in (1, 1 - self.rank)
            moving = node.input if node.op_type == "Concat" else node.input[:1]
            rest = all(is_constant(model, name) for name in node.input[len(moving) :] if name)
            plain = rest and not any(is_constant(model, name) for name in moving)
            return on_channels and plain and self._has_rank(moving[0])
        return node.op_type in _NARY and self._can_broadcast(node)

    def _can_broadcast(self, node: onnx.NodeProto) -> bool:
        model = self.graph.model
        moving = data_operands(self.graph, node)
        if not moving or not all(self._has_rank(name) for name in moving):
            return False
        if node.op_type in ("PRelu", "Pow") and node.input[0] not in moving:
            return False
        fixed = [constant(model, name) for name in node.input if name and name not in moving]
        if self.any_shape:
            return all(value is not None and value.ndim <= self.rank for value in fixed)
        if not all(value is not None and channel_constant(value, self.rank) is not None for value in fixed):
            return False
        return all(not why_other_shape(self.graph, moving[0], other) for other in moving[1:])

    def _has_rank(self, tensor: str) -> bool:
        """Whether the tensor has the run's rank for every input: as declared, or because it comes from a Conv."""
        model = self.graph.model
        while True:
            sizes = self.graph.sizes(tensor)
            if sizes is not None:
                return len(sizes) == self.rank
            maker = model.wiring.producer(tensor)
            if maker is None:
                return False
            node = model.nodes[maker]
            if is_conv(node):
                shape = weight_shape(model, maker) if is_constant(model, node.input[1]) else None
                return shape is not None and len(shape) == self.rank
            moving = data_operands(self.graph, node)
            if len(moving) != 1 or node.op_type not in _UNARY | _NARY:
                return False
            tensor = moving[0]


def _is_special(node: onnx.NodeProto) -> bool:
    """Whether a node may be training, or normalizes per position as BatchNormalization could before opset 9."""
    if node.op_type == "Dropout":
        return len(node.input) > 2
    spatial = attribute(node, "spatial")
    if spatial is not None and spatial.i == 0:
        return True
    training = attribute(node, "training_mode")
    return training is not None and training.i != 0
