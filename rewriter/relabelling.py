"""Emit the nodes of channel components again, their channels in other places: padded or permuted.

An embedding per band says where its channels are afterwards (see `rewriter.conv.embedding`).  Everything that reads or
makes a tensor of such a band is made again: weights by the embeddings of both sides, constants with a value per
channel, selections with other bounds.  Tensors whose channels moved have new names; all others keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from rewriter.build import Builder
from rewriter.channels import Channels, End, Keep, Link
from rewriter.constants import Array, attribute, constant
from rewriter.conv import Ints, NotGrouped, embed, embed_weight, is_identity, joined, most_groups
from rewriter.emit import interleave, shuffle
from rewriter.graph import Graph
from rewriter.rule import Declined, require

Names = Callable[[str], str]
Emit = Callable[[Builder, Names, Names], Mapping[str, str]]
"""Emits nodes in place of one: asked with the new name of what is read, and the one to make a tensor under.

Gives tensors that are not made any more, each with the one that is read instead.
"""


@dataclass(frozen=True)
class Relabelled:
    """New nodes, each with the position it goes before, and the nodes they stand for."""

    removed: frozenset[int]
    added: tuple[onnx.NodeProto, ...]
    places: tuple[int, ...]
    initializers: tuple[onnx.TensorProto, ...]
    site: str
    """The last tensor made again that keeps its name."""
    zeros: int
    """Weights that are zero now and were not there before."""


def relabel(
    graph: Graph,
    channels: Channels,
    embeddings: Mapping[int, Ints],
    merge: Mapping[int, int],
    prefix: str,
    instead: Mapping[int, Emit | None] | None = None,
) -> Relabelled:
    """Everything again that has to do with the bands of `embeddings`, by number.

    `merge` gives the number of groups of convolutions, by node; without, as many as possible.  Nodes of `instead` go,
    and what is emitted there comes in their place.  Declines where an embedding does not go with an operator.
    """
    work = _Relabelling(graph, channels, embeddings, merge, Builder(graph.model, prefix), instead or {})
    work.run()
    kept = [name for node in work.build.nodes for name in node.output if name in work.original]
    require(kept, "nothing that keeps its channels comes behind", prefix, matched=0)
    return Relabelled(
        frozenset(work.removed),
        tuple(work.build.nodes),
        tuple(work.places),
        tuple(work.build.initializers),
        kept[-1],
        work.zeros,
    )


@dataclass(eq=False)
class _Relabelling:
    graph: Graph
    channels: Channels
    embeddings: Mapping[int, Ints]
    merge: Mapping[int, int]
    build: Builder
    instead: Mapping[int, Emit | None]
    names: dict[str, str] = field(default_factory=dict)
    """New names of the tensors of bands that change."""
    removed: set[int] = field(default_factory=set)
    places: list[int] = field(default_factory=list)
    original: set[str] = field(default_factory=set)
    shapes: set[str] = field(default_factory=set)
    """Shapes of tensors that change, which hold another number of channels."""
    zeros: int = 0

    def run(self) -> None:
        roles: dict[int, list[Keep | Link | End]] = {}
        for band in self.channels.bands:
            for keep in band.keeps:
                roles.setdefault(keep.node, []).append(keep)
            for end in (*band.births, *band.deaths):
                roles.setdefault(end.node, []).append(end)
        for component in self.channels.components:
            for link in component.links:
                roles.setdefault(link.nodes[0], []).append(link)
        for pick in self.channels.picks:
            roles.setdefault(pick.node, []).append(pick)
        for index, node in enumerate(self.graph.model.nodes):
            if index in self.removed:  # the rest of a channel shuffle
                continue
            if index in self.instead:
                self._instead(index)
                continue
            found = roles.get(index, [])
            touched = [name for name in (*node.input, *node.output) if self.moves(name) or name in self.shapes]
            if not touched and not any(isinstance(role, Link) and self.moves(role.leaving) for role in found):
                continue
            before = len(self.build.nodes)
            if not found:
                self._other(index, node)
            elif isinstance(found[0], Keep):
                self._keep(index, node, found[0])
            elif isinstance(found[0], End):
                self._dense(index, node)
            else:
                self._link(index, node, [role for role in found if isinstance(role, Link)])
            self.places += [index] * (len(self.build.nodes) - before)

    def _instead(self, index: int) -> None:
        emit, before = self.instead[index], len(self.build.nodes)
        self.removed.add(index)
        if emit is not None:
            self.names |= emit(self.build, self.name, self.output)
        self.places += [index] * (len(self.build.nodes) - before)

    def moves(self, tensor: str) -> bool:
        band = self.channels.band_of.get(tensor)
        return band is not None and band.number in self.embeddings

    def embedding(self, tensor: str) -> Ints:
        band = self.channels.band_of[tensor]
        if band.number in self.embeddings:
            return self.embeddings[band.number]
        sizes = self.graph.sizes(tensor) or ()  # its own: those of a band that may not move need not agree
        own = sizes[1] if len(sizes) > 1 else None
        return np.arange(band.channels if own is None else own)

    def name(self, tensor: str) -> str:
        return self.names.get(tensor, tensor)

    def output(self, tensor: str) -> str:
        """The name to make a tensor under: its own, unless its channels move."""
        if not tensor:
            return ""
        if self.moves(tensor):
            self.names[tensor] = self.build.fresh(f"{tensor}/channels")
            return self.names[tensor]
        self.original.add(tensor)
        return tensor

    def _copy(self, index: int, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with the new names, without an output yet renamed twice."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self.name(name) for name in node.input]
        copy.output[:] = [self.output(name) for name in node.output]
        self.removed.add(index)
        return copy

    def _add(self, node: onnx.NodeProto) -> None:
        self.build.nodes.append(node)

    def _other(self, index: int, node: onnx.NodeProto) -> None:
        """A Shape, and those who read other sizes of it than that of the channels: all else would have stopped them."""
        y = node.output[0]
        require(node.op_type == "Shape" or node.input[0] in self.shapes, f"{node.op_type} '{y}' reads its channels", y)
        copy = self._copy(index, node)
        start = attribute(node, "start")
        if node.op_type == "Shape" and not (start is not None and start.i > 1):  # it holds another number of channels
            self.shapes.add(y)
            self.original.discard(y)
            self.names[y] = copy.output[0] = self.build.fresh(f"{y}/channels")
        self._add(copy)

    def _keep(self, index: int, node: onnx.NodeProto, keep: Keep) -> None:
        embedding = self.embedding(keep.tensors[0])
        if node.op_type == "Conv":
            self._conv(index, node, embedding, embedding, len(embedding))
            return
        copy = self._copy(index, node)
        if node.op_type == "Dropout":  # nobody reads its mask, which would have other channels under the old name
            del copy.output[1:]
            self.original.difference_update(node.output[1:])
        for position, axis, fill in keep.constants:
            copy.input[position] = self._constant(node.input[position], embedding, axis, fill)
        self._add(copy)

    def _constant(self, name: str, embedding: Ints, axis: int, fill: float) -> str:
        """A constant with one value per channel again; with axis -1 the shape of a Reshape."""
        value = constant(self.graph.model, name)
        assert value is not None
        if axis < 0:
            shape = value.copy()
            shape[1] = len(embedding)
            return self.build.constant(shape, "shape")
        return self.build.constant(embed(value, embedding, axis, fill), "constant")

    def _dense(self, index: int, node: onnx.NodeProto) -> None:
        inputs, outputs = (self._side(name) for name in (node.input[0], node.output[0]))
        if node.op_type == "Conv":
            self._conv(index, node, inputs, outputs, 1)
            return
        turned = attribute(node, "transB")
        matrix = self._value(node.input[1])  # [M, C] if it is turned, else [C, M]
        matrix = matrix if turned is not None and turned.i else matrix.T
        sides = zip(matrix.shape, (outputs, inputs), strict=True)
        rows, columns = (np.arange(size) if side is None else side for size, side in sides)
        matrix = embed_weight(matrix, 1, columns, rows, 1)
        matrix = matrix if turned is not None and turned.i else matrix.T
        copy = self._copy(index, node)
        copy.input[1] = self.build.constant(matrix, "weight")
        if len(node.input) > 2 and node.input[2] and outputs is not None:
            bias = self._value(node.input[2])
            axis = bias.ndim - 1
            if bias.ndim and bias.shape[axis] > 1:
                copy.input[2] = self.build.constant(embed(bias, outputs, axis, 0.0), "bias")
        self._add(copy)

    def _side(self, tensor: str) -> Ints | None:
        """Where its channels go; None where they stay, and the weight alone may know how many there are."""
        return self.embedding(tensor) if self.moves(tensor) else None

    def _conv(self, index: int, node: onnx.NodeProto, inputs: Ints | None, outputs: Ints | None, group: int) -> None:
        """A Conv with embedded weights: `group` is the number of groups that it has afterwards."""
        weight = self._value(node.input[1])
        entry = attribute(node, "group")
        old = entry.i if entry else 1
        inputs = np.arange(weight.shape[1] * old) if inputs is None else inputs
        outputs = np.arange(weight.shape[0]) if outputs is None else outputs
        try:
            new = embed_weight(weight, old, inputs, outputs, group)
        except NotGrouped as no:
            raise Declined(str(no), node.output[0]) from no
        self.zeros += new.size - weight.size
        bias = None
        if len(node.input) > 2 and node.input[2]:
            bias = node.input[2]
            if self.moves(node.output[0]):
                bias = self.build.constant(embed(self._value(bias), outputs, 0, 0.0), "bias")
        made = self.build.constant(new, "weight")
        self.removed.add(index)
        self.build.conv(node, self.name(node.input[0]), made, bias, group, self.output(node.output[0]))

    def _value(self, name: str) -> Array:
        value = constant(self.graph.model, name)
        assert value is not None
        return value

    def _link(self, index: int, node: onnx.NodeProto, links: list[Link]) -> None:
        first = links[0]
        if first.kind == "concat":
            parts = [(self.embedding(name), self.channels.band_of[name].channels) for name in first.entering]
            same = np.array_equal(joined(parts), self.embedding(first.leaving))
            require(same, f"the channels behind Concat '{first.leaving}' are not those before it", first.leaving)
            self._add(self._copy(index, node))
        elif first.kind == "groups":
            inputs, outputs = self.embedding(first.entering[0]), self.embedding(first.leaving)
            weight = self._value(node.input[1])
            o_per = weight.shape[0] // first.group
            group = self.merge.get(index) or most_groups(o_per, weight.shape[1], inputs, outputs)
            self._conv(index, node, inputs, outputs, group)
        elif first.kind == "shuffle":
            self._shuffle(first)
        else:
            self._pick(index, node, links)

    def _shuffle(self, link: Link) -> None:
        assert link.order is not None
        x = link.entering[0]
        picks = self._sources(link)
        self.removed.update(link.nodes)
        if is_identity(picks, len(self.embedding(x))) and self.moves(link.leaving):
            self.names[link.leaving] = self.name(x)
            return
        sizes = list(self.graph.sizes(x) or ())
        sizes[1] = len(self.embedding(x))
        regular = interleave(picks) is not None if len(picks) == sizes[1] else False
        how = "reshape" if regular else "gather"
        shuffle(self.build, self.name(x), picks, how, tuple(sizes), self.output(link.leaving))

    def _sources(self, link: Link) -> Ints:
        """For each new leaving channel the new entering one that it is read from; any near one where it holds none."""
        assert link.order is not None
        inputs, outputs = self.embedding(link.entering[0]), self.embedding(link.leaving)
        place = np.full(int(max(inputs.max(initial=0), link.order.max(initial=0))) + 1, -1)
        held = np.flatnonzero(inputs >= 0)
        place[inputs[held[::-1]]] = held[::-1]
        picks = np.where(outputs >= 0, place[link.order[np.maximum(outputs, 0)]], -1)
        require((picks[outputs >= 0] >= 0).all(), f"a channel of '{link.leaving}' is lost", link.leaving)
        return _filled(picks, len(inputs))

    def _pick(self, index: int, node: onnx.NodeProto, links: list[Link]) -> None:
        """Split, Slice or Gather with other bounds: a Slice for each output where they are in a row, else a Gather."""
        x = self.name(links[0].entering[0])
        every = [self._sources(link) for link in links]
        self.removed.add(index)
        if all(is_identity(picks, len(self.embedding(links[0].entering[0]))) for picks in every) and all(
            self.moves(link.leaving) for link in links
        ):
            self.names |= {link.leaving: x for link in links}  # everything is picked
            return
        complete = len(links) == len([name for name in node.output if name])
        if (
            node.op_type == "Split"
            and complete
            and is_identity(np.concatenate(every), len(self.embedding(links[0].entering[0])))
        ):
            names = [self.output(link.leaving) for link in links]
            self.build.split(x, [len(picks) for picks in every], 1, "split", names)
            return
        for link, picks in zip(links, every, strict=True):
            name = self.output(link.leaving)
            if (np.diff(picks) == 1).all():
                self.build.slice(x, int(picks[0]), int(picks[-1]) + 1, 1, "slice", name)
            else:
                self.build.gather(x, picks, 1, "gather", name)


def _filled(picks: Ints, width: int) -> Ints:
    """Channels to read where none is asked for, so that what is read stays in a row if it can."""
    known = np.flatnonzero(picks >= 0)
    if known.size and len(picks) <= width:
        first = int(picks[known[0]] - known[0])
        row = np.arange(first, first + len(picks))
        if first >= 0 and first + len(picks) <= width and (row[known] == picks[known]).all():
            return row
    return np.maximum(picks, 0)
