"""Lift a ConvTranspose node to its map: the one place that reads a ConvTranspose's operands and attributes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx

from rewriter.constants import Array, attribute, constant, is_constant, why_not_constant
from rewriter.lifting import FLOATS, weight_shape, weight_type
from rewriter.model import Model
from rewriter.rule import require


@dataclass(frozen=True)
class TransposedSite:
    """A ConvTranspose with constant weight `[C, M/G, *K]` and constant or no bias `[M]`; weights are read on demand."""

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
    def c(self) -> int:
        """Input channels C."""
        return self.weight_shape[0]

    @property
    def m(self) -> int:
        """Output channels M."""
        return self.weight_shape[1] * self.group

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
        return self.weight_shape[1]

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
        return None if self.bias_name is None else constant(self.model, self.bias_name)


def lift_transposed(model: Model, index: int) -> TransposedSite:
    """The map at a ConvTranspose node; declines when weight or bias are not constant or do not fit together."""
    node = model.nodes[index]
    outputs = len(node.output)
    invalid = f"it has {outputs} outputs: a ConvTranspose has exactly one, the model is invalid"
    require(outputs == 1, invalid, *node.output)
    where = node.output[0]
    is_transposed = node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx")
    require(is_transposed, "not a ConvTranspose", where, matched=0)
    require(model.opset >= 7, f"the model's opset {model.opset} is below 7, the oldest one supported", where)
    require(len(node.input) > 1, "it has no weight: the model is invalid", where)
    name = node.input[1]
    require(is_constant(model, name), f"its weight {why_not_constant(model, name)}", where, name)
    shape = weight_shape(model, index)
    assert shape is not None
    entry = attribute(node, "group")
    group = 1 if entry is None else int(entry.i)
    require(len(shape) >= 3, f"its weight has {len(shape)} dimensions, not at least 3", where, name)
    divides = group > 0 and shape[0] % group == 0
    require(divides, f"its {shape[0]} input channels do not divide into {group} groups", where)
    require(weight_type(model, name) in FLOATS, "its weight is not a float tensor", where, name)
    sizes = attribute(node, "output_shape")
    spatial = len(shape) - 2
    # Some runtimes also take all of the output's sizes there: its channels would change with the groups.
    plain = sizes is None or len(sizes.ints) in (0, spatial)
    require(plain, f"its output_shape does not have one size for each of its {spatial} spatial axes", where)
    site = TransposedSite(model, index, node, shape, group)
    bias = site.bias_name
    if bias is not None:
        require(is_constant(model, bias), f"its bias {why_not_constant(model, bias)}", where, bias)
        value = site.bias
        fits = value is not None and value.shape == (site.m,)
        require(fits, f"its bias is not of shape [{site.m}]", where, bias)
    return site
