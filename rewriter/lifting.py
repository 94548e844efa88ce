"""Lift a Conv node to its conv map: the one place that reads a Conv's operands and attributes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx

from rewriter.constants import Array, constant, is_constant, why_not_constant
from rewriter.model import Model
from rewriter.rule import require

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
"""Element types that weights may have."""


@dataclass(frozen=True)
class ConvSite:
    """A Conv with constant weight `[M, C/G, *K]` and constant or no bias `[M]`; weights are read when asked for."""

    model: Model
    index: int
    node: onnx.NodeProto
    weight_shape: tuple[int, ...]
    group: int

    @property
    def x(self) -> str:
        return self.node.input[0]

    @property
    def y(self) -> str:
        return self.node.output[0]

    @property
    def m(self) -> int:
        """Output channels M."""
        return self.weight_shape[0]

    @property
    def c(self) -> int:
        """Input channels C."""
        return self.weight_shape[1] * self.group

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight_shape[2:]

    @property
    def i_per(self) -> int:
        """Input channels per group, C/G."""
        return self.weight_shape[1]

    @property
    def o_per(self) -> int:
        """Output channels per group, M/G."""
        return self.m // self.group

    @property
    def bias_name(self) -> str | None:
        return self.node.input[2] if len(self.node.input) > 2 and self.node.input[2] else None

    @cached_property
    def weight(self) -> Array:
        value = constant(self.model, self.node.input[1])
        assert value is not None
        return value

    @cached_property
    def bias(self) -> Array | None:
        if self.bias_name is None:
            return None
        value = constant(self.model, self.bias_name)
        assert value is not None
        return value


def lift(model: Model, index: int) -> ConvSite:
    """The conv map at a Conv node; declines when weight or bias are not constant or do not fit together."""
    node = model.nodes[index]
    outputs = len(node.output)
    require(outputs == 1, f"it has {outputs} outputs: a Conv has exactly one, the model is invalid", *node.output)
    where = node.output[0]
    require(node.op_type == "Conv" and node.domain in ("", "ai.onnx"), "not a Conv", where, matched=0)
    require(model.opset >= 7, f"the model's opset {model.opset} is below 7, the oldest one supported", where)
    name = node.input[1]
    require(is_constant(model, name), f"its weight {why_not_constant(model, name)}", where, name)
    shape = weight_shape(model, index)
    assert shape is not None
    group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    require(len(shape) >= 3, f"its weight has {len(shape)} dimensions, not at least 3", where, name)
    require(
        group > 0 and shape[0] % group == 0, f"its {shape[0]} output channels do not divide into {group} groups", where
    )
    require(weight_type(model, name) in FLOATS, "its weight is not a float tensor", where, name)
    site = ConvSite(model, index, node, shape, int(group))
    bias = site.bias_name
    if bias is not None:
        require(is_constant(model, bias), f"its bias {why_not_constant(model, bias)}", where, bias)
        header = model.headers.get(bias)
        require(header is None or list(header.dims) == [site.m], f"its bias is not of shape [{site.m}]", where, bias)
    return site


def weight_shape(model: Model, index: int) -> tuple[int, ...] | None:
    """Shape `[M, C/G, *K]` of a Conv's weight, from the initializer's header where there is one; None when unknown."""
    name = model.nodes[index].input[1]
    header = model.headers.get(name)
    if header is not None:
        return tuple(header.dims)
    value = constant(model, name)
    return None if value is None else tuple(value.shape)


def weight_type(model: Model, name: str) -> int:
    """Element type of a constant tensor."""
    header = model.headers.get(name)
    if header is not None:
        return int(header.data_type)
    value = constant(model, name)
    assert value is not None
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def convs(model: Model) -> list[int]:
    """Positions of the main graph's Conv nodes."""
    return [
        index
        for index, node in enumerate(model.nodes)
        if node.op_type == "Conv" and node.domain in ("", "ai.onnx") and len(node.input) >= 2 and node.output
    ]
