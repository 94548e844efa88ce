"""Damages to a file that another tool made: each changes what the model computes, as little as may be.

One thing in one file is changed: a weight by one unit in the last place, an operand for another of its shape, an
attribute to another value.  Which one is drawn by a seed, so that every run damages the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

T = TypeVar("T")
_CONVS: Final = frozenset({"Conv", "FusedConv"})


@dataclass(frozen=True)
class Damage:
    """A damaged model, and what in it was damaged: an initializer, or a node by its first output."""

    model: onnx.ModelProto
    what: str
    tensor: str


def one_ulp(before: onnx.ModelProto, seed: int, original: onnx.ModelProto) -> Damage | None:
    """One weight of a convolution or a matrix product, one unit in the last place further from 0.

    Only of those that the original has bit for bit: in weights that a tool combined, that is rounding.
    """
    model = _copied(before)
    kept = {numpy_helper.to_array(tensor).tobytes() for tensor in original.graph.initializer}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    held = {name: tensor for name, tensor in tensors.items() if numpy_helper.to_array(tensor).tobytes() in kept}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type in _CONVS | {"MatMul", "Gemm"} and len(node.input) > 1 and node.input[1] in held
    ]
    node = _drawn(nodes, seed)
    if node is None:
        return None
    tensor = held[node.input[1]]
    values = numpy_helper.to_array(tensor).copy()
    at = int(np.random.default_rng(seed).integers(values.size))
    flat = values.reshape(-1)
    flat[at] = np.nextafter(flat[at], np.copysign(np.inf, flat[at]), dtype=flat.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return Damage(model, f"a weight of '{tensor.name}' by one unit in the last place", tensor.name)


def other_weight(before: onnx.ModelProto, seed: int, _: onnx.ModelProto) -> Damage | None:
    """A convolution with the weight of another one of the same shape and other values."""
    model = _copied(before)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in _CONVS and node.input[1] in held]
    pairs = [
        (node, other)
        for place, node in enumerate(nodes)
        for other in nodes[place + 1 :]
        if node.input[1] != other.input[1] and _alike(held[node.input[1]], held[other.input[1]])
    ]
    pair = _drawn(pairs, seed)
    if pair is None:
        return None
    node, other = pair
    node.input[1] = other.input[1]
    return Damage(model, f"the weight of {node.op_type} '{node.output[0]}', taken from another", node.output[0])


def other_attribute(before: onnx.ModelProto, seed: int, _: onnx.ModelProto) -> Damage | None:
    """A convolution whose first spatial axis is padded at its other end: the shapes stay as they are."""
    model = _copied(before)
    nodes = [
        (node, entry)
        for node in model.graph.node
        for entry in node.attribute
        if node.op_type in _CONVS and entry.name == "pads" and entry.ints[0] > 0
    ]
    pair = _drawn(nodes, seed)
    if pair is None:
        return None
    node, entry = pair
    half = len(entry.ints) // 2
    pads = list(entry.ints)
    pads[0], pads[half] = pads[0] - 1, pads[half] + 1
    entry.CopyFrom(helper.make_attribute("pads", pads))
    return Damage(model, f"the pads of {node.op_type} '{node.output[0]}'", node.output[0])


DAMAGES: Final[Mapping[str, Callable[[onnx.ModelProto, int, onnx.ModelProto], Damage | None]]] = {
    "a weight by 1 ulp": one_ulp,
    "another's weight": other_weight,
    "pads moved": other_attribute,
}


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _alike(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return list(one.dims) == list(other.dims) and one.raw_data != other.raw_data


def _drawn(choices: Sequence[T], seed: int) -> T | None:
    return choices[int(np.random.default_rng(seed).integers(len(choices)))] if choices else None
