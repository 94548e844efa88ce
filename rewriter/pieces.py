"""Do without picks of channels: make only the channels that are picked, or read those that are not as well.

    y = Split(f(Conv(x, W)))        becomes        y_1 = f(Conv(x, W_1)), y_2 = f(Conv(x, W_2))

with W_p some rows of W.  The way leads back through whatever keeps channels apart, to the rows of dense convolutions
and to the inputs of a Concat; where a part is a tensor that there is already, nothing is computed at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from rewriter.build import Builder
from rewriter.channels import Channels, End, Keep, Link
from rewriter.constants import Array, constant
from rewriter.conv import Ints, embed, embed_weight, is_identity
from rewriter.graph import Graph
from rewriter.lifting import lift
from rewriter.rule import require

Role = Keep | Link | End
_MOST = 4
"""How many times the multiplications of convolutions it may cost that they read everything."""


@dataclass(frozen=True)
class Taken:
    """New nodes, each with the position it goes before, and the nodes they stand for."""

    removed: frozenset[int]
    added: tuple[tuple[int, onnx.NodeProto], ...]
    initializers: tuple[onnx.TensorProto, ...]
    convs: int
    """Convolutions that were made again."""


def take_pieces(graph: Graph, channels: Channels, groups: list[list[Link]], prefix: str) -> Taken:
    """What the picks make, computed part by part.  Declines where anybody else needs what is taken apart.

    Where another tensor holds a part already, the readers of the part read that.
    """
    work = _Pieces(graph, channels, Builder(graph.model, prefix))
    instead = {}
    picks = [pick for group in groups for pick in group]
    for pick in picks:
        assert pick.order is not None
        made = work.piece(pick.entering[0], pick.order, pick.leaving)
        if made != pick.leaving:
            instead[pick.leaving] = made
    removed = work.removed({node for pick in picks for node in pick.nodes})
    readers = _rewired(graph, instead, removed)
    added = sorted([*work.added, *readers], key=lambda entry: entry[0])
    for index, node in work.added:  # a Concat may stay for others
        if index not in removed and node.name and node.name == graph.model.nodes[index].name:
            node.name = work.build.fresh(f"{node.name}/piece")
    require(added, "nobody reads what is picked", *instead)
    return Taken(
        removed | {index for index, _ in readers}, tuple(added), tuple(work.build.initializers), len(work.convs)
    )


def _rewired(graph: Graph, instead: Mapping[str, str], removed: frozenset[int]) -> list[tuple[int, onnx.NodeProto]]:
    """The readers of tensors that others hold already, reading those."""
    model = graph.model
    for name in instead:
        why = model.wiring.escapes(name)
        require(not why, f"{why}, so it must stay", name)
    entries = []
    for index in sorted({index for name in instead for index in model.wiring.readers(name)} - removed):
        copy = onnx.NodeProto()
        copy.CopyFrom(model.nodes[index])
        copy.input[:] = [instead.get(name, name) for name in copy.input]
        entries.append((index, copy))
    return entries


def read_everything(graph: Graph, channels: Channels, groups: list[list[Link]], prefix: str) -> Taken:
    """The convolutions that read what is picked, reading what it is picked from, with zero columns for the rest.

    `groups` are picks of one tensor each.  Declines where others than dense convolutions read what is picked, and
    where that takes more than four times the multiplications.
    """
    build = Builder(graph.model, prefix)
    entries = [entry for picks in groups for entry in _wide(graph, channels, picks, build)]
    entries.sort(key=lambda entry: entry[0])
    picking = {index for picks in groups for pick in picks for index in pick.nodes}
    convs = {index for index, _ in entries}
    return Taken(frozenset(picking | convs), tuple(entries), tuple(build.initializers), len(convs))


def _wide(graph: Graph, channels: Channels, picks: list[Link], build: Builder) -> list[tuple[int, onnx.NodeProto]]:
    model = graph.model
    x = picks[0].entering[0]
    width = channels.band_of[x].channels
    entries = []
    before = after = 0
    for pick in picks:
        assert pick.order is not None
        require(len(np.unique(pick.order)) == len(pick.order), "a channel is picked twice", pick.leaving)
        why = model.wiring.escapes(pick.leaving)
        require(not why, f"{why}, so it must stay", pick.leaving)
        place = np.full(width, -1)
        place[pick.order] = np.arange(len(pick.order))
        for reader in model.wiring.readers(pick.leaving):
            other = model.nodes[reader]
            dense = other.op_type == "Conv" and reader in {end.node for end in channels.band_of[pick.leaving].deaths}
            require(dense, f"{other.op_type} '{other.output[0]}' reads it, and is no dense Conv", pick.leaving)
            conv = lift(model, reader)
            new = embed_weight(conv.weight, 1, place, np.arange(conv.m), 1)
            before, after = before + conv.weight.size, after + new.size
            made = len(build.nodes)
            weight = build.constant(new, "weight")
            bias = other.input[2] if len(other.input) > 2 and other.input[2] else None
            build.conv(other, x, weight, bias, 1, conv.y)
            entries += [(reader, entry) for entry in build.nodes[made:]]
    require(entries, "nobody reads what is picked", *(pick.leaving for pick in picks))
    times = f"reading all {width} channels takes {after / before:.1f} times the multiplications"
    require(after <= _MOST * before, f"{times}, more than {_MOST} times", x)
    return entries


@dataclass(eq=False)
class _Pieces:
    graph: Graph
    channels: Channels
    build: Builder
    known: dict[tuple[str, bytes], str] = field(default_factory=dict)
    added: list[tuple[int, onnx.NodeProto]] = field(default_factory=list)
    copied: set[int] = field(default_factory=set)
    """Nodes that are computed part by part: nobody else may need them."""
    passed: set[int] = field(default_factory=set)
    """Concats and picks on the way: they may stay for others."""
    convs: set[int] = field(default_factory=set)
    roles: dict[str, Role] = field(init=False)
    """What makes each tensor."""

    def __post_init__(self) -> None:
        self.roles = {}
        nodes = self.graph.model.nodes
        for band in self.channels.bands:
            for keep in band.keeps:
                self.roles |= {name: keep for name in nodes[keep.node].output if name}
            self.roles |= {end.tensor: end for end in band.births}
        for component in self.channels.components:
            self.roles |= {link.leaving: link for link in component.links}
        self.roles |= {link.leaving: link for link in self.channels.picks}

    def piece(self, tensor: str, order: Ints, wanted: str | None = None) -> str:
        """The name of a tensor of these channels of another: `wanted`, if a node is made for it."""
        if is_identity(order, self.channels.band_of[tensor].channels):
            return tensor
        key = tensor, order.tobytes()
        if key in self.known:
            return self.known[key]
        role = self.roles.get(tensor)
        maker = self.graph.model.wiring.producer(tensor)
        kind = "a graph input" if maker is None else self.graph.model.nodes[maker].op_type
        if isinstance(role, Keep):
            found = self._kept(role, order, wanted)
        elif isinstance(role, End):
            found = self._rows(role, order, wanted)
        else:
            require(role is not None and role.kind in ("concat", "pick"), f"'{tensor}' is made by {kind}", tensor)
            assert isinstance(role, Link)
            self.passed.add(role.node)
            found = self._picked(role, order, wanted) if role.kind == "pick" else self._parts(role, order, wanted)
        self.known[key] = found
        return found

    def _picked(self, link: Link, order: Ints, wanted: str | None) -> str:
        assert link.order is not None
        return self.piece(link.entering[0], link.order[order], wanted)

    def _parts(self, link: Link, order: Ints, wanted: str | None) -> str:
        """Some channels of a Concat: of one of its inputs, or of several that are concatenated anew."""
        found, first, read = [], 0, 0
        for name in link.entering:
            width = self.channels.band_of[name].channels
            inside = order[(order >= first) & (order < first + width)] - first
            if inside.size:
                require(np.array_equal(order[read : read + inside.size] - first, inside), "its order changes", name)
                found.append((name, inside))
                read += inside.size
            first += width
        if len(found) == 1:
            return self.piece(*found[0], wanted)
        names = [self.piece(name, inside) for name, inside in found]
        return self._copy(link.node, names, wanted)

    def _kept(self, keep: Keep, order: Ints, wanted: str | None) -> str:
        """A node that keeps channels apart, for some of them."""
        node = self.graph.model.nodes[keep.node]
        inputs = list(node.input)
        for position, name in enumerate(node.input):
            if name in keep.tensors:
                inputs[position] = self.piece(name, order)
        self.copied.add(keep.node)
        if node.op_type == "Conv":
            return self._conv(keep.node, inputs[0], order, len(order), wanted)
        for position, axis, _ in keep.constants:
            value = self._value(node.input[position])
            if axis < 0:
                shape = value.copy()
                shape[1] = len(order)
                inputs[position] = self.build.constant(shape, "shape")
                continue
            inputs[position] = self.build.constant(embed(value, order, axis, 0.0), "constant")
        return self._copy(keep.node, inputs, wanted)

    def _rows(self, end: End, order: Ints, wanted: str | None) -> str:
        node = self.graph.model.nodes[end.node]
        require(node.op_type == "Conv", f"'{end.tensor}' is made by {node.op_type}", end.tensor)
        self.copied.add(end.node)
        return self._conv(end.node, node.input[0], order, 1, wanted)

    def _conv(self, index: int, x: str, order: Ints, group: int, wanted: str | None) -> str:
        """Some rows of a dense or depthwise convolution."""
        node = self.graph.model.nodes[index]
        self.convs.add(index)
        weight = self.build.constant(self._value(node.input[1])[order], "weight")
        bias = None
        if len(node.input) > 2 and node.input[2]:
            bias = self.build.constant(self._value(node.input[2])[order], "bias")
        made = self.build.conv(node, x, weight, bias, group, wanted)
        self._move(index)
        return made

    def _copy(self, index: int, inputs: list[str], wanted: str | None) -> str:
        node = self.graph.model.nodes[index]
        (made, *_) = self.build.replay(node, inputs)
        copy = self.build.nodes[-1]
        if wanted is not None:
            copy.output[0] = made = wanted
        if any(other.name == copy.name for _, other in self.added if copy.name):
            copy.name = self.build.fresh(f"{copy.name}/piece")
        self._move(index)
        return made

    def _move(self, index: int) -> None:
        """Note where the nodes just built go: before the one they stand for."""
        done = {id(node) for _, node in self.added}
        self.added += [(index, node) for node in self.build.nodes if id(node) not in done]

    def _value(self, name: str) -> Array:
        value = constant(self.graph.model, name)
        assert value is not None
        return value

    def removed(self, picks: set[int]) -> frozenset[int]:
        """The nodes that go; declines where one that was computed part by part is needed as a whole."""
        wiring, nodes = self.graph.model.wiring, self.graph.model.nodes
        gone = set(picks)
        for index in sorted((self.copied | self.passed) - picks, reverse=True):
            why = ""
            for name in nodes[index].output:
                others = [at for at in wiring.readers(name) if at not in gone]
                if wiring.escapes(name):
                    why = wiring.escapes(name) or ""
                elif others:
                    other = nodes[others[0]]
                    why = f"'{name}' is read by {other.op_type} '{other.output[0] if other.output else other.name}'"
            require(
                index not in self.copied or not why, f"it cannot be taken apart: {why}, too", nodes[index].output[0]
            )
            if not why:
                gone.add(index)
        return frozenset(gone)
