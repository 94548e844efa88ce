"""Conv + residual + Relu, and the same as ONNX Runtime's FusedConv: right, and with one thing spoilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Fused:
    """A block `y = Relu(Conv(x, w, b) + z)` behind a 1×1 conv, with z another 1×1 conv of x; C channels in and out."""

    bias: bool = True
    residual: bool = True
    channels: int = 4
    groups: int = 1
    size: tuple[int, ...] = (6, 7)
    batch: int | str = 2
    stride: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    fused_head: bool = False
    """Whether the original's first convolution is a FusedConv in both models."""

    @property
    def weights(self) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        c, ones = self.channels, (1,) * len(self.size)
        found = {
            "w_head": rng.standard_normal((c, c, *ones)),
            "w_side": rng.standard_normal((c, c, *ones)),
            "w": rng.standard_normal((c, c // self.groups, *[3] * len(self.size))),
        }
        if self.bias:
            found["b"] = rng.standard_normal(c)
        return {name: value.astype(np.float32) for name, value in found.items()}

    @property
    def conv(self) -> dict[str, Any]:
        """The attributes of the convolution under test."""
        rank = len(self.size)
        found: dict[str, Any] = {"group": self.groups, "strides": [self.stride] * rank, **self.attributes}
        if "auto_pad" not in found:
            found.setdefault("pads", [1] * 2 * rank)
        return found

    @property
    def head(self) -> list[onnx.NodeProto]:
        """`a`, what the block reads, and `z`, what it adds, with `other`, what it does not."""
        first = helper.make_node("Conv", ["x", "w_head"], ["a"])
        if self.fused_head:
            first = helper.make_node("FusedConv", ["x", "w_head"], ["a"], domain=MICROSOFT, activation="Relu")
        strides = [self.stride] * len(self.size)
        side = helper.make_node("Conv", ["x", "w_side"], ["z"], strides=strides)
        return [first, side, helper.make_node("Neg", ["z"], ["other"])]

    def plain(self) -> onnx.ModelProto:
        """The block in ONNX's operators."""
        nodes = [helper.make_node("Conv", ["a", "w", *(["b"] if self.bias else [])], ["t"], name="conv", **self.conv)]
        if self.residual:
            nodes.append(helper.make_node("Add", ["t", "z"], ["s"], name="add"))
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["y"], name="relu"))
        return self.model(nodes)

    def fused(self, change: Callable[[onnx.NodeProto], None] | None = None, **weights: Array) -> onnx.ModelProto:
        """The block as one FusedConv, which `change` may spoil, with other `weights`."""
        operands = ["a", "w", "b" if self.bias else "", "z" if self.residual else ""]
        while not operands[-1]:
            operands.pop()
        node = helper.make_node(
            "FusedConv", operands, ["y"], name="conv", domain=MICROSOFT, activation="Relu", **self.conv
        )
        if change is not None:
            change(node)
        return self.model([node], **weights)

    def model(self, block: Sequence[onnx.NodeProto], **weights: Array) -> onnx.ModelProto:
        """The model with these nodes for the block; `y`, `z` and `other` are its outputs."""
        shape = [self.batch, self.channels, *self.size]
        free = [self.batch, self.channels, *(None for _ in self.size)]
        graph = helper.make_graph(
            [*self.head, *block],
            "block",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, free) for name in ("y", "z", "other")],
            [numpy_helper.from_array(value, name) for name, value in {**self.weights, **weights}.items()],
        )
        sets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=sets, ir_version=8)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    """Set an attribute, or with None take it away."""
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
