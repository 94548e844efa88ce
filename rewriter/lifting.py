"""Lift a Conv node to its conv map; what it shares with lifting a ConvTranspose: operands, attributes, accessors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

import onnx

from rewriter.constants import Array, attribute, constant, is_constant, why_not_constant
from rewriter.model import Model
from rewriter.rule import require

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
"""Element types that weights may have."""


@dataclass(frozen=True)
class Site(ABC):
    """A node that convolves with a constant weight and a constant or no bias `[M]`; they are read when asked for."""

    op_type: ClassVar[str]
    outer: ClassVar[str]
    """Which channels the weight's first axis has: `input` or `output`."""

    model: Model
    index: int
    node: onnx.NodeProto
    weight_shape: tuple[int, ...]
    group: int

    @property
    @abstractmethod
    def c(self) -> int:
        """Input channels C."""

    @property
    @abstractmethod
    def m(self) -> int:
        """Output channels M."""

    @property
    def x(self) -> str:
        return self.node.input[0]

    @property
    def y(self) -> str:
        return self.node.output[0]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight_shape[2:]

    @property
    def i_per(self) -> int:
        """Input channels per group, C/G."""
        return self.c // self.group

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


S = TypeVar("S", bound=Site)


@dataclass(frozen=True)
class ConvSite(Site):
    """A Conv with weight `[M, C/G, *K]`."""

    op_type = "Conv"
    outer = "output"

    @property
    def c(self) -> int:
        """Input channels C."""
        return self.weight_shape[1] * self.group

    @property
    def m(self) -> int:
        """Output channels M."""
        return self.weight_shape[0]


def lift(model: Model, index: int) -> ConvSite:
    """The conv map at a Conv node; declines when weight or bias are not constant or do not fit together."""
    return lift_as(ConvSite, model, index)


def lift_as(kind: type[S], model: Model, index: int) -> S:
    """The map at a node of that kind; declines when weight or bias are not constant or do not fit together."""
    node = model.nodes[index]
    outputs, op_type = len(node.output), kind.op_type
    require(outputs == 1, f"it has {outputs} outputs: a {op_type} has exactly one, the model is invalid", *node.output)
    where = node.output[0]
    require(node.op_type == op_type and node.domain in ("", "ai.onnx"), f"not a {op_type}", where, matched=0)
    require(model.opset >= 7, f"the model's opset {model.opset} is below 7, the oldest one supported", where)
    require(len(node.input) > 1, "it has no weight: the model is invalid", where)
    name = node.input[1]
    require(is_constant(model, name), f"its weight {why_not_constant(model, name)}", where, name)
    shape = _shape(model, name)
    assert shape is not None
    entry = attribute(node, "group")
    group = 1 if entry is None else int(entry.i)
    require(len(shape) >= 3, f"its weight has {len(shape)} dimensions, not at least 3", where, name)
    divides = group > 0 and shape[0] % group == 0
    require(divides, f"its {shape[0]} {kind.outer} channels do not divide into {group} groups", where)
    require(_element_type(model, name) in FLOATS, "its weight is not a float tensor", where, name)
    site = kind(model, index, node, shape, group)
    bias = site.bias_name
    if bias is not None:
        require(is_constant(model, bias), f"its bias {why_not_constant(model, bias)}", where, bias)
        require(_shape(model, bias) == (site.m,), f"its bias is not of shape [{site.m}]", where, bias)
    return site


def weight_shape(model: Model, index: int) -> tuple[int, ...] | None:
    """Shape `[M, C/G, *K]` of a Conv's weight; None when unknown."""
    return _shape(model, model.nodes[index].input[1])


def convs(model: Model) -> list[int]:
    """Positions of the main graph's Conv nodes."""
    return [
        index
        for index, node in enumerate(model.nodes)
        if node.op_type == "Conv" and node.domain in ("", "ai.onnx") and len(node.input) >= 2 and node.output
    ]


def _shape(model: Model, name: str) -> tuple[int, ...] | None:
    """Shape of a constant tensor, from the initializer's header where there is one; None when it is no constant."""
    header = model.headers.get(name)
    if header is not None:
        return tuple(header.dims)
    value = constant(model, name)
    return None if value is None else tuple(value.shape)


def _element_type(model: Model, name: str) -> int:
    """Element type of a constant tensor."""
    header = model.headers.get(name)
    if header is not None:
        return int(header.data_type)
    value = constant(model, name)
    assert value is not None
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
