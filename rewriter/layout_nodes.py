"""Walk a graph's changes of layout, and the elementwise nodes between them: which tensor is which other one, moved.

Every tensor behind a Transpose, Reshape, Squeeze, Unsqueeze, Flatten or Identity is a source with its axes in another
layout.  Behind an elementwise node on such tensors, all moved alike, the source is what the node would give if it were
computed before the change.  Sizes are taken from what holds for every input; a shape that is computed at run time is
followed through its Shape, Gather, Slice and Concat nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import onnx

from rewriter.alike import broadcasts
from rewriter.constants import Array, attribute, constant, is_constant
from rewriter.following import element_type
from rewriter.graph import Graph
from rewriter.layouts import AxisLayout, Dim, Perm, Size, broadcast, moved
from rewriter.per_channel import ELEMENTWISE, POOLS, is_plain

LAYOUT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_UNARY = ELEMENTWISE | frozenset({"Cast", "Ceil", "Floor", "Log", "Reciprocal", "Round", "Sign", "HardSwish"})
_SAME_SHAPE = _UNARY | {"BatchNormalization", "Softmax", "LayerNormalization", "InstanceNormalization", "LRN"}
_FLOATS = frozenset({"float", "float16", "double", "bfloat16"})

_SIMPLE = _UNARY | POOLS | frozenset({"Conv", "ConvTranspose", "BatchNormalization", "Concat"})


class Source(NamedTuple):
    """A tensor of the graph, or where `virtual` what its elementwise node gives when it is computed before the move."""

    tensor: str
    virtual: bool = False


@dataclass(frozen=True)
class Moved:
    """A tensor: its source, and how it lies."""

    source: Source
    layout: AxisLayout


@dataclass
class LayoutWalk:
    """What is known of every tensor, node by node; `perms` says how an elementwise node's operands are moved."""

    graph: Graph
    moved: dict[str, Moved] = field(default_factory=dict)
    perms: dict[int, Perm | None] = field(default_factory=dict)
    """By elementwise node that can be computed before the move; None where axes are merged or split."""
    _dims: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    _vectors: dict[str, list[Size]] = field(default_factory=dict)

    def dims(self, tensor: str, rank: int | None = None) -> tuple[Dim, ...] | None:
        """The sizes of a tensor, named where they may differ; None where not even the rank is known."""
        known = self.graph.sizes(tensor)
        if tensor not in self._dims:
            if known is None and rank is None:
                return None
            known = known if known is not None else (None,) * (rank or 0)
            self._dims[tensor] = tuple(f"{tensor}:{axis}" if size is None else size for axis, size in enumerate(known))
        return self._dims[tensor]

    def node(self, index: int) -> None:
        """Look at the next node."""
        node = self.graph.model.nodes[index]
        if node.domain not in ("", "ai.onnx") or not node.output or not node.input:
            return
        if self._is_data(node) and node.op_type in LAYOUT:
            self._change(node)
        elif self._is_data(node) and (node.op_type in _UNARY or broadcasts(node) or node.op_type == "Concat"):
            self._elementwise(index, node)
        elif node.op_type in _VECTORS | LAYOUT and element_type(self.graph, node.output[0]) not in _FLOATS:
            vector = self._vector_of(node)
            if vector is not None:
                self._vectors[node.output[0]] = vector
        if node.output[0] not in self._dims:
            self._note(node)

    def _is_data(self, node: onnx.NodeProto) -> bool:
        """Whether a node is about numbers, not about shapes or weights."""
        several = broadcasts(node) or node.op_type == "Concat"
        constants = [is_constant(self.graph.model, name) for name in (node.input if several else node.input[:1])]
        return is_plain(node) and not all(constants) and element_type(self.graph, node.output[0]) in _FLOATS

    def _note(self, node: onnx.NodeProto) -> None:
        """Sizes that a node's output has from its input: those that are not known as numbers."""
        known = self.graph.sizes(node.output[0])
        before = self.dims(node.input[0]) if node.op_type in _SAME_SHAPE | {"Conv", "ConvTranspose"} else None
        if known is None or before is None or len(known) != len(before):
            return
        kept = before if node.op_type in _SAME_SHAPE else before[:1]
        names = (*kept, *(f"{node.output[0]}:{axis}" for axis in range(len(kept), len(known))))
        self._dims[node.output[0]] = tuple(
            name if size is None else size for size, name in zip(known, names, strict=True)
        )

    def _change(self, node: onnx.NodeProto) -> None:
        """A layout node: the layout of its output, where it can be followed."""
        x, y = node.input[0], node.output[0]
        perm = attribute(node, "perm")
        dims = self.dims(x, len(perm.ints) if perm else None)
        if dims is None and x not in self.moved:
            return
        before = self.moved.get(x) or Moved(Source(x), AxisLayout.start(dims or ()))
        after = self._changed(node, before.layout)
        if after is None:
            return
        self.moved[y] = Moved(before.source, after)
        names = [size.dim for size in after.sizes]
        self._dims[y] = tuple(f"{y}:{axis}" if name is None else name for axis, name in enumerate(names))

    def _changed(self, node: onnx.NodeProto, layout: AxisLayout) -> AxisLayout | None:
        rank = len(layout.axes)
        if node.op_type == "Identity":
            return layout
        if node.op_type == "Transpose":
            perm = attribute(node, "perm")
            order = list(perm.ints) if perm else list(range(rank))[::-1]
            return layout.transposed(order) if sorted(order) == list(range(rank)) else None
        if node.op_type == "Flatten":
            entry = attribute(node, "axis")
            axis = entry.i if entry else 1
            axis = axis + rank if axis < 0 else axis
            ones = [Size(1), Size(1)]
            for place, size in enumerate(layout.sizes):
                ones[place >= axis] = ones[place >= axis].times(size)
            return layout.reshaped(ones)
        if node.op_type == "Reshape":
            return self._reshaped(node, layout)
        axes = self._axes(node)
        if axes is None or (node.op_type == "Squeeze" and any(not -rank <= axis < rank for axis in axes)):
            return None
        return layout.unsqueezed(axes) if node.op_type == "Unsqueeze" else layout.squeezed(axes)

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        """Axes in an attribute or, from opset 13 on, in an input; None where they are not known for every input."""
        entry = attribute(node, "axes")
        if entry is not None:
            return list(entry.ints)
        value = self.graph.declared.value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return None if value is None else [int(axis) for axis in value.reshape(-1)]

    def _reshaped(self, node: onnx.NodeProto, layout: AxisLayout) -> AxisLayout | None:
        zero = attribute(node, "allowzero")
        vector = self._vector(node.input[1]) if len(node.input) > 1 else None
        if vector is None:
            return None
        target: list[Size | None] = []
        for place, size in enumerate(vector):
            if size.number == -1 and not size.names:
                target.append(None)
            elif size.number < 1 and (size.names or size.number < 0 or (zero and zero.i) or place >= len(layout.axes)):
                return None
            else:
                target.append(layout.sizes[place] if size.number == 0 else size)
        return layout.reshaped(target)

    def _vector(self, tensor: str) -> list[Size] | None:
        """A shape, or a part of one, as far as it is known for every input."""
        if tensor in self._vectors:
            return self._vectors[tensor]
        value = self.graph.declared.value(tensor)
        value = constant(self.graph.model, tensor) if value is None and is_constant(self.graph.model, tensor) else value
        return None if value is None or value.ndim > 1 else [Size(int(size)) for size in value.reshape(-1)]

    def _vector_of(self, node: onnx.NodeProto) -> list[Size] | None:
        """What shape arithmetic gives, by its elements."""
        if node.op_type == "Shape":
            dims = self.dims(node.input[0])
            limits = {entry.name: entry.i for entry in node.attribute}
            return None if dims is None else [Size.of(d) for d in dims[limits.get("start", 0) : limits.get("end")]]
        parts = [self._vector(name) for name in (node.input if node.op_type == "Concat" else node.input[:1])]
        if any(part is None for part in parts):
            return None
        whole = [size for part in parts for size in part or ()]
        if node.op_type in ("Gather", "Slice"):
            return self._picked(node, whole)
        # What gives a vector another rank is followed for one number only, so that each of these is a vector.
        return whole if len(whole) == 1 or node.op_type in ("Cast", "Concat", "Identity") else None

    def _picked(self, node: onnx.NodeProto, whole: list[Size]) -> list[Size] | None:
        values = [self.graph.declared.value(name) for name in node.input[1:] if name]
        if node.op_type == "Slice" and attribute(node, "starts"):
            entries = [attribute(node, name) for name in ("starts", "ends")]
            values = [np.asarray(entry.ints) for entry in entries if entry is not None]
        if any(value is None for value in values):
            return None
        numbers = [[int(number) for number in value.reshape(-1)] for value in values if value is not None]
        if node.op_type == "Slice":
            step = numbers[3][0] if len(numbers) > 3 else 1
            return whole[slice(numbers[0][0], numbers[1][0], step)] if len(numbers) > 1 and step > 0 else None
        return [whole[at] for at in numbers[0]] if all(-len(whole) <= at < len(whole) for at in numbers[0]) else None

    def _elementwise(self, index: int, node: onnx.NodeProto) -> None:
        """A node on moved tensors: where all are moved alike, it can be computed before the move."""
        operands = self.operands(node)
        if operands is None:
            self._note_broadcast(node)
            return
        sources = [each.layout.source for each in operands]
        y = node.output[0]
        joined = node.op_type == "Concat"
        perm = next((perm for perm in self._perms(operands) if self._fits(node, operands, perm)), None)
        if perm is None and (joined or not _alike(operands) or not self._scalars(node, operands[0])):
            return
        if joined:
            assert perm is not None
            sizes = self._joined(node, sources, perm)
        else:
            constants = [] if perm is None else self.constants(node)
            values = [constant_before(value, perm or (), len(sources[0])) for value in constants]
            shapes = [(1,) * (len(sources[0]) - value.ndim) + value.shape for value in values if value is not None]
            sizes = broadcast([*sources, *shapes], f"{y}:before")
        layout = AxisLayout(sizes, operands[0].layout.axes) if perm is None else moved(sizes, perm)
        self.perms[index] = perm
        self.moved[y] = Moved(Source(y, virtual=True), layout)
        names = [size.dim for size in layout.sizes]
        self._dims[y] = tuple(f"{y}:{axis}" if name is None else name for axis, name in enumerate(names))

    def operands(self, node: onnx.NodeProto) -> list[Moved] | None:
        """Its data operands, all of them moved, of one rank before; None where they are not."""
        names = node.input[:1] if node.op_type in _UNARY else [name for name in node.input if name]
        model = self.graph.model
        data = [name for name in names if node.op_type == "Concat" or not is_constant(model, name)]
        found = [self.moved[name] for name in data if name in self.moved]
        rest = node.op_type not in _UNARY or all(is_constant(model, name) for name in node.input[1:] if name)
        if len(found) < len(data) or not rest or (node.op_type == "PRelu" and node.input[0] not in data):
            return None
        if all(each.layout.is_identity for each in found):  # back where they were: a new beginning
            return None
        ranks = {(len(each.layout.source), len(each.layout.axes)) for each in found}
        return found if len(ranks) == 1 else None

    def constants(self, node: onnx.NodeProto) -> list[Array]:
        """The constants that a node broadcasts against its data."""
        if not broadcasts(node):
            return []
        values = [constant(self.graph.model, name) for name in node.input if name]
        return [value for value in values if value is not None]

    def constant_before(self, index: int, name: str) -> Array | None:
        """A constant that an elementwise node broadcasts, as it must be before the move; None where it is the same."""
        perm, node = self.perms[index], self.graph.model.nodes[index]
        value = constant(self.graph.model, name) if broadcasts(node) and is_constant(self.graph.model, name) else None
        if value is None or perm is None:
            return None
        made = constant_before(value, perm, len(self.moved[node.output[0]].layout.source))
        return None if made is None or (made.shape == value.shape and np.array_equal(made, value)) else made

    def _perms(self, operands: Sequence[Moved]) -> list[Perm]:
        """Ways in which the operands may be moved, those that say most first."""
        ranked = sorted(operands, key=lambda each: -sum(bool(axis) for axis in each.layout.axes))
        return [perm for perm in (each.layout.perm for each in ranked) if perm is not None]

    def _fits(self, node: onnx.NodeProto, operands: Sequence[Moved], perm: Perm) -> bool:
        alike = all(each.layout.is_moved_by(perm) for each in operands)
        if node.op_type == "Concat":
            axis = attribute(node, "axis")
            return alike and axis is not None and -len(perm) <= axis.i < len(perm) and perm[axis.i] is not None
        rank = len(operands[0].layout.source)
        return alike and all(constant_before(value, perm, rank) is not None for value in self.constants(node))

    def _scalars(self, node: onnx.NodeProto, first: Moved) -> bool:
        rank = min(len(first.layout.source), len(first.layout.axes))
        return all(value.size == 1 and value.ndim <= rank for value in self.constants(node))

    def _joined(self, node: onnx.NodeProto, sources: Sequence[tuple[Dim, ...]], perm: Perm) -> tuple[Dim, ...]:
        axis = attribute(node, "axis")
        assert axis is not None
        place = perm[axis.i]
        assert place is not None
        sizes = list(broadcast([[*each[:place], 1, *each[place + 1 :]] for each in sources], node.output[0]))
        numbers = [each[place] for each in sources]
        whole = [number for number in numbers if isinstance(number, int)]
        sizes[place] = sum(whole) if len(whole) == len(numbers) else f"{node.output[0]}:joined"
        return tuple(sizes)

    def _note_broadcast(self, node: onnx.NodeProto) -> None:
        """Sizes of a node that stays where it is, as far as they follow from its operands'."""
        if node.op_type == "Concat" or node.output[0] in self._dims:
            return
        names = node.input[:1] if node.op_type in _UNARY else [name for name in node.input if name]
        several = [self.dims(name) for name in names]
        known = self.graph.sizes(node.output[0])
        if known is None or any(each is None for each in several):
            return
        rank = max(len(each or ()) for each in several)
        aligned = [(1,) * (rank - len(each or ())) + (each or ()) for each in several]
        wide = broadcast(aligned, node.output[0])
        if len(wide) == len(known):
            self._dims[node.output[0]] = tuple(
                name if size is None else size for size, name in zip(known, wide, strict=True)
            )


def is_simple(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution or of what is usual around one, which an audit can follow under new names."""
    return is_plain(node) and (node.op_type in _SIMPLE or broadcasts(node))


_VECTORS = frozenset({"Shape", "Gather", "Slice", "Concat", "Cast"})
_FOUND: WeakKeyDictionary[Graph, LayoutWalk] = WeakKeyDictionary()


def walk_layouts(graph: Graph) -> LayoutWalk:
    """The walk over all of a graph; made once for each."""
    if graph not in _FOUND:
        made = LayoutWalk(graph)
        for index in range(len(graph.model.nodes)):
            made.node(index)
        _FOUND[graph] = made
    return _FOUND[graph]


def constant_before(value: Array, perm: Perm, rank: int) -> Array | None:
    """A constant broadcast against moved tensors as one against their sources of `rank` axes; None where it is none.

    Leading axes of size 1 are left out.  A number stays as it is.
    """
    if value.ndim > len(perm):
        return None
    if value.size == 1 and value.ndim <= rank:
        return value
    aligned = value.reshape((1,) * (len(perm) - value.ndim) + value.shape)
    if any(place is None and size != 1 for place, size in zip(perm, aligned.shape, strict=True)):
        return None
    order = [at for at, place in sorted(enumerate(perm), key=lambda each: each[1] or 0) if place is not None]
    sizes = [aligned.shape[perm.index(place)] if place in perm else 1 for place in range(rank)]
    ordered = aligned.transpose(*order, *(at for at, place in enumerate(perm) if place is None)).reshape(sizes)
    while ordered.ndim and ordered.shape[0] == 1:
        ordered = ordered[0]
    return ordered


def _alike(operands: Sequence[Moved]) -> bool:
    """Whether tensors have the same sizes and lie the same, so that any node of elements can be before the move."""
    return all(each.layout == operands[0].layout for each in operands)
