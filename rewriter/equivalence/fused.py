"""Activations, and operators of ONNX Runtime's own that hold one: what they stand for in ONNX's terms.

y = FusedConv(x, w, b, z) of com.microsoft is act(Conv(x, w, b) + z).  The auditor reads it so: L1 compares what is
beneath the activations, the oracle runs the ONNX operators in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx

from rewriter import contrib
from rewriter.constants import attributes, constant
from rewriter.equivalence.forms import Unsupported
from rewriter.model import Model

if TYPE_CHECKING:
    from rewriter.equivalence.regions import Side

_DEFAULTS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Clip": (("min", float(np.finfo(np.float32).min)), ("max", float(np.finfo(np.float32).max))),
}
"""Activations by ONNX operator, their parameters in the order in which FusedConv lists them, and ONNX's defaults."""
_CLIP_HAS_INPUTS = 11


@dataclass(frozen=True)
class Activation:
    """An elementwise function of one tensor: ONNX's operator, and its parameters as float32 numbers."""

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.name + (f"({', '.join(f'{value:g}' for value in self.parameters)})" if self.parameters else "")


def functions(model: Model) -> frozenset[tuple[str, str]]:
    """Domains and names of the model's own functions: they take the place of operators of those names."""
    return frozenset((_named(function.domain), function.name) for function in model.skeleton.functions)


def is_default(node: onnx.NodeProto, own: Collection[tuple[str, str]]) -> bool:
    """Whether the node is an operator of ONNX's default domain: neither another domain's nor the model's function."""
    return node.domain in ("", "ai.onnx") and ("", node.op_type) not in own


def is_fused_conv(node: onnx.NodeProto, own: Collection[tuple[str, str]]) -> bool:
    """Whether the node is ONNX Runtime's FusedConv, and no function of the model's."""
    return contrib.is_fused_conv(node) and (node.domain, node.op_type) not in own


def is_conv(node: onnx.NodeProto, own: Collection[tuple[str, str]] = ()) -> bool:
    """Whether the node is a convolution, by itself or with what FusedConv adds to it."""
    return is_fused_conv(node, own) or (node.op_type == "Conv" and is_default(node, own))


def is_transposed(node: onnx.NodeProto, own: Collection[tuple[str, str]] = ()) -> bool:
    """Whether the node is a transposed convolution."""
    return node.op_type == "ConvTranspose" and is_default(node, own)


def inner_activation(node: onnx.NodeProto) -> Activation | None:
    """The activation in a FusedConv, None where it has none; raises Unsupported for one that is not known."""
    found = attributes(node)
    if "activation" not in found:
        return None
    name, given = found["activation"], found.get("activation_params", [])
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    where = f"the activation of FusedConv '{node.output[0]}'"
    if text not in _DEFAULTS or not isinstance(given, list) or len(given) != len(_DEFAULTS[text]):
        raise Unsupported(f"{where} is '{text}' with the parameters {given}, which is not known")
    return _checked(Activation(text, tuple(float(np.float32(value)) for value in given)), where)


def ending(side: Side, node: onnx.NodeProto) -> Activation | None:
    """The activation that a node is, or ends in; None for any other node.

    Raises Unsupported where there is one that is not known.
    """
    if is_fused_conv(node, side.functions):
        return inner_activation(node)
    if not is_default(node, side.functions) or node.op_type not in _DEFAULTS or len(node.output) != 1:
        return None
    found = attributes(node)
    values = [found.get(key, default) for key, default in _DEFAULTS[node.op_type]]
    if node.op_type == "Clip" and side.model.opset >= _CLIP_HAS_INPUTS:
        for place, name in enumerate(node.input[1:3]):
            bound = constant(side.model, name) if name else values[place]
            if bound is None or np.size(np.asarray(bound)) != 1:
                return None
            values[place] = np.asarray(bound).reshape(-1)[0]
    numbers = tuple(float(np.float32(value)) for value in values)  # type: ignore[arg-type]  # ONNX says they are numbers
    return _checked(Activation(node.op_type, numbers), f"{node.op_type} '{node.output[0]}'")


def _checked(activation: Activation, where: str) -> Activation:
    """The activation, if it grows somewhere and falls nowhere; raises Unsupported for any other."""
    name, numbers = activation.name, activation.parameters
    grows = {
        "Clip": lambda: numbers[0] < numbers[1],
        "LeakyRelu": lambda: numbers[0] >= 0,
        "HardSigmoid": lambda: numbers[0] > 0,
    }
    if not np.isfinite(numbers).all() or not grows.get(name, lambda: True)():
        raise Unsupported(f"{where} has the parameters {list(numbers)}, with which it is not covered")
    return activation


def standing_for(node: onnx.NodeProto, own: Collection[tuple[str, str]]) -> frozenset[str]:
    """The operators of ONNX that a node comes down to; one that is not ONNX's is named with its domain."""
    if is_default(node, own):
        return frozenset({node.op_type})
    if not is_fused_conv(node, own):
        return frozenset({f"{node.domain or 'function'}:{node.op_type}"})
    try:
        activation = inner_activation(node)
    except Unsupported:
        return frozenset({f"{node.domain}:{node.op_type}"})
    added = {"Add"} if residual(node) else set()
    return frozenset({"Conv"} | added | ({activation.name} if activation else set()))


def residual(node: onnx.NodeProto) -> str:
    """The tensor that a FusedConv adds to its convolution; empty where there is none."""
    return str(node.input[3]) if len(node.input) > 3 else ""


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with Conv, Add and Relu in place of each FusedConv; one that holds anything else stays."""
    own = {(_named(function.domain), function.name) for function in model.functions}
    if not any(is_fused_conv(node, own) for node in model.graph.node):
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    del plain.graph.node[:]
    for node in model.graph.node:
        known = standing_for(node, own) <= {"Conv", "Add", "Relu"}
        plain.graph.node.extend(_parts(node, taken) if known and is_fused_conv(node, own) else [node])
    return plain


def _parts(node: onnx.NodeProto, taken: set[str]) -> list[onnx.NodeProto]:
    parts = [contrib.conv_of(node)]
    if residual(node):
        parts.append(onnx.helper.make_node("Add", ["", residual(node)], list(node.output)))
    if inner_activation(node):
        parts.append(onnx.helper.make_node("Relu", [""], list(node.output)))
    for before, after in pairwise(parts):
        after.input[0] = before.output[0] = _fresh(node.output[0], taken)
    return parts


def _fresh(stem: str, taken: set[str]) -> str:
    number = 0
    while (name := f"{stem}/{number}") in taken:
        number += 1
    taken.add(name)
    return name


def _named(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
