"""Lift a stack of tensors: Concat of Unsqueezes, or a Reshape that splits an axis, as of a Concat, into the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.build import Builder
from rewriter.graph import Graph
from rewriter.rule import Declined, require
from rewriter.shapes import Shape
from rewriter.track import bending


@dataclass(frozen=True)
class Stack:
    """A tensor that has an axis more than its parts, which lie along it; and the nodes that make it alone."""

    tensor: str
    parts: tuple[str, ...]
    axis: int
    rank: int
    """Of the stack; its parts have one axis less."""
    nodes: tuple[int, ...]
    whole: str = ""
    """A tensor whose equal parts along the axis they are, where no node makes them yet: each of `parts` is this one."""

    def split(self, build: Builder, graph: Graph) -> list[str]:
        """The parts; where they are not there yet by a Split of the whole."""
        if not self.whole:
            return list(self.parts)
        sizes = graph.sizes(self.whole)
        size = None if sizes is None else sizes[self.axis]
        assert size is not None
        return build.split(self.whole, [size // len(self.parts)] * len(self.parts), self.axis, "parts")


def stack_before(graph: Graph, index: int) -> str:
    """The tensor that a node reads first; where a Mul makes it, and one of the Mul's factors is a stack, that one."""
    data = graph.model.nodes[index].input[0]
    maker = graph.model.wiring.producer(data)
    if maker is None or graph.model.nodes[maker].op_type != "Mul":
        return data
    return next((name for name in graph.model.nodes[maker].input if _is_stack(graph, name)), data)


def stack_at(graph: Graph, tensor: str) -> Stack:
    """The tensor read as a stack of two parts or more, all proven to be of one shape; declines where it is none."""
    kind, maker = _maker(graph, tensor)
    require(kind in ("Concat", "Reshape"), f"it sums {kind}, no stack of tensors", tensor, matched=0)
    shapes = shapes_of(graph, tensor)
    if kind == "Reshape" and _maker(graph, graph.model.nodes[maker].input[0])[0] != "Concat":
        return _in_parts(graph, maker, shapes)
    axis, parts, nodes = _unsqueezed(graph, maker, shapes) if kind == "Concat" else _split(graph, maker, shapes)
    require(len(parts) > 1, "it stacks one tensor only", tensor, matched=2)
    for name in dict.fromkeys(parts):
        for shape, whole in zip(shapes_of(graph, name), shapes, strict=True):
            require(shape == (*whole[:axis], *whole[axis + 1 :]), f"'{name}' is of another shape", tensor, matched=2)
    return Stack(tensor, tuple(parts), axis, len(shapes[0]), nodes)


def shapes_of(graph: Graph, tensor: str) -> list[Shape]:
    """The tensor's shapes at all bindings; declines where one cannot be derived."""
    found = [binding.bound.shape(tensor) for binding in graph.bindings]
    require(None not in found, f"the shape of '{tensor}' cannot be derived: give --input-shape", tensor)
    return [shape for shape in found if shape is not None]


def axes_of(graph: Graph, index: int, rank: int) -> list[int] | None:
    """The axes that a node names in an attribute or its second input, from the front; None where they are not known.

    `rank` is that of the tensor they are axes of.
    """
    node = graph.model.nodes[index]
    given = next((list(entry.ints) for entry in node.attribute if entry.name == "axes"), None)
    if given is None and len(node.input) > 1 and node.input[1]:
        value = graph.declared.value(node.input[1])
        given = None if value is None else [int(axis) for axis in value.reshape(-1)]
    return None if given is None else sorted(axis % rank for axis in given)


def _is_stack(graph: Graph, name: str) -> bool:
    try:
        stack_at(graph, name)
    except Declined:
        return False
    return True


def _maker(graph: Graph, tensor: str) -> tuple[str, int]:
    """The operator that makes a tensor, and its position; of another domain with the domain."""
    maker = graph.model.wiring.producer(tensor)
    if maker is None:
        return "an input or initializer", -1
    node = graph.model.nodes[maker]
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}", maker


def _unsqueezed(graph: Graph, concat: int, shapes: Sequence[Shape]) -> tuple[int, list[str], tuple[int, ...]]:
    """Axis, parts and nodes of a Concat of Unsqueezes, which go when it goes."""
    node, rank = graph.model.nodes[concat], len(shapes[0])
    axis = _axis(graph, concat, rank)
    parts = []
    for name in node.input:
        kind, maker = _maker(graph, name)
        where = node.output[0]
        require(kind == "Unsqueeze", f"'{name}' in the Concat it sums comes from {kind}, not Unsqueeze", where)
        axes = axes_of(graph, maker, rank)
        require(axes == [axis], f"'{name}' is not stacked along axis {axis}", where, matched=2)
        alone = not graph.model.wiring.escapes(name) and graph.model.wiring.readers(name) == (concat,)
        require(alone, f"'{name}' is read elsewhere, too", where, matched=2)
        parts.append(graph.model.nodes[maker].input[0])
    return axis, parts, (concat,)


def _split(graph: Graph, reshape: int, shapes: Sequence[Shape]) -> tuple[int, list[str], tuple[int, ...]]:
    """The same of a Concat along an axis, which a Reshape splits into the parts and what is in each."""
    model = graph.model
    joined, where = model.nodes[reshape].input[0], model.nodes[reshape].output[0]
    _, concat = _maker(graph, joined)
    alone = not model.wiring.escapes(joined) and model.wiring.readers(joined) == (reshape,)
    require(alone, f"'{joined}' is read elsewhere, too", where, matched=2)
    _require_shape(graph, reshape)
    axis, parts = _axis(graph, concat, len(shapes[0]) - 1), list(model.nodes[concat].input)
    for whole, split in zip(shapes_of(graph, joined), shapes, strict=True):
        wanted = (*whole[:axis], len(parts), whole[axis] // len(parts), *whole[axis + 1 :])
        require(split == wanted, f"Reshape '{where}' does not split the joined axis into its parts", where, matched=2)
    return axis, parts, (concat, reshape)


def _in_parts(graph: Graph, reshape: int, shapes: Sequence[Shape]) -> Stack:
    """One tensor whose axis a Reshape splits in two, the parts and what is in each."""
    whole, where = graph.model.nodes[reshape].input[0], graph.model.nodes[reshape].output[0]
    pairs = list(zip(shapes_of(graph, whole), shapes, strict=True))
    fits = [axis for axis in range(len(pairs[0][0])) if all(_splits(axis, *pair) for pair in pairs)]
    require(fits, f"Reshape '{where}' does not split one axis of '{whole}' into parts", where)
    _require_shape(graph, reshape)
    axis, count = fits[0], pairs[0][1][fits[0]]
    sizes = graph.sizes(whole)
    known = sizes is not None and sizes[axis] is not None and all(split[axis] == count for _, split in pairs)
    require(known, f"how many parts Reshape '{where}' splits '{whole}' into depends on the input", where, matched=2)
    return Stack(where, (whole,) * count, axis, len(shapes[0]), (reshape,), whole)


def _splits(axis: int, whole: Shape, split: Shape) -> bool:
    if len(split) != len(whole) + 1 or split[axis] < 2:
        return False
    return split == (*whole[:axis], split[axis], whole[axis] // split[axis], *whole[axis + 1 :])


def _require_shape(graph: Graph, reshape: int) -> None:
    node = graph.model.nodes[reshape]
    bent = bending(graph.model, graph.declared, node.input[1])
    require(not bent, f"the shape of Reshape '{node.output[0]}' is decided by {bent}", node.output[0], matched=2)


def _axis(graph: Graph, concat: int, rank: int) -> int:
    axis = next((entry.i for entry in graph.model.nodes[concat].attribute if entry.name == "axis"), 1)
    return int(axis) % rank
