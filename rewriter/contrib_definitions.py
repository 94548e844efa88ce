"""Operators that stand for several of ONNX's: what they compute, as the nodes they stand for.

    QuickGelu(x)              x · Sigmoid(α x)
    Gelu(x), BiasGelu(x, b)   0.5 · x · (1 + Erf(x / √2)), of x + b
    HardSwish(x)              x · HardSigmoid(x), with α = 1/6 and β = 1/2
    FusedMatMul(a, b)         α · a b, each transposed where it says so
    FusedGemm(a, b, c)        activation(Gemm(a, b, c))
    SkipLayerNormalization    LayerNormalization(x + skip + bias), and the sum

All but HardSwish and the plain Gelu are ONNX Runtime's own.
Sources: ONNX Runtime, docs/ContribOperators.md; ONNX, Operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx
from onnx import helper

from rewriter.contrib import DOMAIN

Known = Callable[[str], onnx.TypeProto | None]
"""The type of a tensor, where it is known."""
_FLOAT: Final = onnx.TensorProto.FLOAT
_LAYER_NORMALIZATION: Final = 17  # since when ONNX has it


class _Parts:
    """Nodes with names of their own inside."""

    def __init__(self, node: onnx.NodeProto, known: Known) -> None:
        self.node = node
        self.nodes: list[onnx.NodeProto] = []
        self.known = known
        kind = known(node.input[0])
        self.code = kind.tensor_type.elem_type if kind else _FLOAT
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}

    def add(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node; returns its output, `output` where given."""
        name = output or f"{self.node.output[0]} = {len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def number(self, value: float) -> str:
        """A constant of the operand's type."""
        name = f"{self.node.output[0]} = {len(self.nodes)}"
        tensor = helper.make_tensor(name, self.code or _FLOAT, [], [value])
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def given(self, place: int) -> str:
        """The operand at a place; empty where it is left out."""
        return str(self.node.input[place]) if len(self.node.input) > place else ""

    def swapped(self, name: str) -> str:
        """The tensor with its last two axes exchanged; empty where its rank is not known."""
        kind = self.known(name)
        rank = len(kind.tensor_type.shape.dim) if kind and kind.tensor_type.HasField("shape") else 0
        return self.add("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2]) if rank > 1 else ""

    def float_attribute(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default


def defined(node: onnx.NodeProto, known: Known) -> list[onnx.NodeProto] | None:
    """The nodes that one stands for, their last outputs its own; None where it stands for itself.

    Names inside hold a sign that no tool puts into one, after the output's own name.
    """
    make = _DEFINITIONS.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
    if make is None or not node.input or not node.output or not node.output[0]:
        return None
    parts = _Parts(node, known)
    return parts.nodes if make(parts) else None


def is_defined(domain: str, op_type: str) -> bool:
    """Whether there is a definition of an operator of that name."""
    return (domain, op_type) in _DEFINITIONS


def _quick_gelu(p: _Parts) -> bool:
    x, alpha = p.given(0), p.float_attribute("alpha", 1.702)
    gate = p.add("Sigmoid", [x if alpha == 1 else p.add("Mul", [x, p.number(alpha)])])
    p.add("Mul", [x, gate], p.node.output[0])
    return True


def _gelu(p: _Parts) -> bool:
    if p.attributes.get("approximate", b"none") != b"none":
        return False
    x = p.given(0)
    if p.node.op_type == "BiasGelu":
        x = p.add("Add", [x, p.given(1)])
    turned = p.add("Erf", [p.add("Div", [x, p.number(math.sqrt(2))])])
    whole = p.add("Mul", [x, p.add("Add", [turned, p.number(1.0)])])
    p.add("Mul", [whole, p.number(0.5)], p.node.output[0])
    return True


def _hard_swish(p: _Parts) -> bool:
    gate = p.add("HardSigmoid", [p.given(0)], alpha=1 / 6, beta=0.5)
    p.add("Mul", [p.given(0), gate], p.node.output[0])
    return True


def _fused_matmul(p: _Parts) -> bool:
    if p.attributes.get("transBatchA") or p.attributes.get("transBatchB"):
        return False
    a = p.swapped(p.given(0)) if p.attributes.get("transA") else p.given(0)
    b = p.swapped(p.given(1)) if p.attributes.get("transB") else p.given(1)
    if not a or not b:
        return False
    alpha = p.float_attribute("alpha", 1.0)
    if alpha == 1:
        p.add("MatMul", [a, b], p.node.output[0])
        return True
    p.add("Mul", [p.add("MatMul", [a, b]), p.number(alpha)], p.node.output[0])
    return True


def _fused_gemm(p: _Parts) -> bool:
    name = p.attributes.get("activation", b"")
    activation = name.decode(errors="replace") if isinstance(name, bytes) else ""
    own = {key: value for key, value in p.attributes.items() if not key.startswith("activation")}
    if activation not in ("Relu", "Sigmoid", "Tanh"):
        return False
    p.add(activation, [p.add("Gemm", list(p.node.input), **own)], p.node.output[0])
    return True


def _skip_layer_normalization(p: _Parts) -> bool:
    if any(p.node.output[1:3]):
        return False
    outputs = list(p.node.output)
    bias = p.given(4)
    total = outputs[3] if len(outputs) > 3 else ""
    inner = p.add("Add", [p.given(0), p.given(1)], "" if bias else total)
    whole = p.add("Add", [inner, bias], total) if bias else inner
    weights = [p.given(2), *([p.given(3)] if p.given(3) else [])]
    p.add("LayerNormalization", [whole, *weights], outputs[0], axis=-1, epsilon=p.float_attribute("epsilon", 1e-12))
    return True


_DEFINITIONS: Final[Mapping[tuple[str, str], Callable[[_Parts], bool]]] = {
    (DOMAIN, "QuickGelu"): _quick_gelu,
    (DOMAIN, "Gelu"): _gelu,
    (DOMAIN, "BiasGelu"): _gelu,
    ("", "Gelu"): _gelu,
    ("", "HardSwish"): _hard_swish,
    (DOMAIN, "FusedMatMul"): _fused_matmul,
    (DOMAIN, "FusedGemm"): _fused_gemm,
    (DOMAIN, "SkipLayerNormalization"): _skip_layer_normalization,
}
