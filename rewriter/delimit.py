"""Delimit a region: which nodes go with it because nobody else needs them, and whose shape others still ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from rewriter.model import Model


def closure(model: Model, nodes: Iterable[int], needed: Collection[str]) -> frozenset[int]:
    """The nodes plus every node before them that only they read: shape arithmetic and constants.

    `needed` are the tensors that the new nodes read (the region's data input among them): their producers stay.
    """
    region = set(nodes)
    todo = sorted(region, reverse=True)
    while todo:
        for name in model.nodes[todo.pop()].input:
            maker = model.wiring.producer(name) if name and name not in needed else None
            if maker is None or maker in region or model.nodes[maker].op_type not in _SHAPE_ARITHMETIC:
                continue
            outputs = [output for output in model.nodes[maker].output if output]
            if any(model.wiring.escapes(output) or output in needed for output in outputs):
                continue
            if all(set(model.wiring.readers(output)) <= region for output in outputs):
                region.add(maker)
                todo.append(maker)
    return frozenset(region)


def closure_of_reads(model: Model, nodes: Iterable[int], added: Iterable[onnx.NodeProto]) -> frozenset[int]:
    """The closure of nodes that others stand for."""
    return closure(model, nodes, frozenset(name for node in added for name in node.input))


def shape_readers(model: Model, tensor: str, region: frozenset[int]) -> list[int]:
    """Shape nodes outside the region that read the tensor."""
    return [index for index in model.wiring.readers(tensor) if index not in region]


_SHAPE_ARITHMETIC = frozenset(
    [
        "Shape",
        "Size",
        "Gather",
        "Slice",
        "Concat",
        "Cast",
        "Squeeze",
        "Unsqueeze",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Min",
        "Max",
        "Neg",
        "Abs",
        "Floor",
        "Ceil",
        "Reshape",
        "ReduceProd",
        "ReduceSum",
        "Identity",
        "Constant",
        "ConstantOfShape",
        "Range",
        "Where",
        "Equal",
        "Split",
    ]
)
