"""cancel-layout-pairs: take out changes of layout around convolutions that undo each other.

    t = Transpose(x [N, C, H, W], perm 0 2 3 1)     [N, H, W, C]
    u = Relu(t + b [C])
    y = Transpose(u, perm 0 3 1 2)                  [N, C, H, W]

becomes

    y = Relu(x + b [C, 1, 1])                       [N, C, H, W]

Changes of layout are Transpose, Reshape, Squeeze, Unsqueeze and Flatten, with Identity between.  Those that follow each
other directly go when they give their input back, whatever they do in between; several that are one Transpose become
one; one that changes nothing goes.  Elementwise nodes may be between (not BatchNormalization), and Concat: they are
computed before the change, and need all of their operands to be changed alike or to be constants, which are moved.
Where others need a tensor between as it lies, one Transpose gives it, if fewer remain than there were.  What comes last
takes over the name that others read; where nothing can, they read it from its source, or an Identity keeps the name.

Conditions: a convolution or transposed convolution is near: it makes what enters or reads what leaves, elementwise
nodes, BatchNormalization and pooling between.  Any rank and float type.  The sizes must come back for every input that
the model takes: known as numbers, or followed through Shape, Gather, Slice and Concat.
What `optimize` measures: all that is near a convolution, as one candidate.
Safety: EXACT, data and constants only move.
Source: exports from TensorFlow, which work in [N, H, W, C]; ONNX Runtime's blocked layout ends at each of these nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from rewriter import (
    Builder,
    Graph,
    LayoutPairs,
    LayoutWalk,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    closure,
    dependents,
    is_simple,
    maybe,
    pairs_near,
    transpose_order,
    walk_layouts,
)


class CancelLayoutPairs(Pass):
    """Transpose + Transpose, Reshape + Reshape ... -> nothing."""

    name = "cancel-layout-pairs"
    safety = Safety.EXACT

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The convolution that is near; of a ConvTranspose see `_near_transposed`."""
        return op.Conv(x, w, maybe(b))

    def sites(self, graph: Graph) -> Iterator[int]:
        yield from sorted([*super().sites(graph), *_near_transposed().sites(graph)])

    def candidates(self, graph: Graph, node: int) -> tuple[Settings, ...]:
        if graph.model.nodes[node].op_type == "ConvTranspose":
            return _near_transposed().candidates(graph, node)
        return super().candidates(graph, node)

    def propose(self, graph: Graph, node: int, settings: Settings) -> Rewrite:
        if graph.model.nodes[node].op_type == "ConvTranspose":
            return _near_transposed().propose(graph, node, settings)
        return super().propose(graph, node, settings)

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One, where there are pairs."""
        pairs_near(graph, found.node)
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has no settings
        return _rewritten(graph, pairs_near(graph, found.node))


@cache
def _near_transposed() -> Pass:
    """The same at a ConvTranspose: a pattern has one operator at its end."""

    class NearTransposed(Pass):
        name = CancelLayoutPairs.name
        safety = CancelLayoutPairs.safety
        choices = CancelLayoutPairs.choices
        rewrite = CancelLayoutPairs.rewrite

        @staticmethod
        def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
            return op.ConvTranspose(x, w, maybe(b))

    return NearTransposed()


def _rewritten(graph: Graph, pairs: LayoutPairs) -> Rewrite:
    model = graph.model
    naming = _named(graph, pairs)
    emit = _Emission(graph, pairs, naming, Builder(model, f"{pairs.leaving[-1]}/before"))
    steps = {*pairs.between, *naming.renamed, *naming.rewired, *naming.made}
    last = max(steps)
    early = [name for index in steps - {last} for name in model.nodes[index].output if name]
    kept = set(dependents(model, early, last)) - pairs.changes - steps
    for index in sorted(steps | kept):
        emit.step(index)
    gone = pairs.changes | pairs.between | naming.renamed.keys() | naming.rewired | kept
    outputs = [name for node in emit.build.nodes for name in node.output]
    fewer = f"{len(pairs.transposed)} Transpose" if pairs.transposed else "none"
    return Rewrite(
        CancelLayoutPairs.name,
        next((name for name in reversed(pairs.leaving) if name in outputs), outputs[-1]),
        Safety.EXACT,
        closure(model, gone, emit.build.reads),
        last,
        tuple(emit.build.nodes),
        tuple(emit.build.initializers),
        f"{pairs.described(graph)} -> {fewer}",
    )


@dataclass
class _Naming:
    """How each tensor that leaves keeps its name, or who reads another one instead."""

    renamed: dict[int, str] = field(default_factory=dict)
    """Nodes that give their tensor under another name, with the tensor's old one."""
    rewired: set[int] = field(default_factory=set)
    """Nodes that read a source in place of what it was changed to and back."""
    made: set[int] = field(default_factory=set)
    """Changes of layout in place of which there is a Transpose or an Identity."""
    names: dict[str, str] = field(default_factory=dict)
    """New names by old ones, of tensors that are not computed anew."""
    virtual: dict[str, str] = field(default_factory=dict)
    """Under which leaving name an elementwise node gives what it computes before the change."""


def _named(graph: Graph, pairs: LayoutPairs) -> _Naming:
    """A name for everything that leaves; nodes that an audit may not be able to follow are left alone."""
    model, known = graph.model, walk_layouts(graph)
    sources = {known.moved[name].source.tensor for name in pairs.back}
    inside = closure(model, pairs.changes | pairs.between, sources)
    naming = _Naming()
    for name in pairs.back:
        source, maker = known.moved[name].source, model.wiring.producer(name)
        assert maker is not None
        if source.virtual:
            if naming.virtual.setdefault(source.tensor, name) != name:
                naming.made.add(maker)
            continue
        before = model.wiring.producer(source.tensor)
        alone = not model.wiring.escapes(source.tensor) and set(model.wiring.readers(source.tensor)) <= inside
        if before is not None and alone and source.tensor not in naming.names and _may_change(graph, pairs, before):
            naming.renamed[before] = source.tensor
            naming.names[source.tensor] = name
            continue
        readers = [reader for reader in model.wiring.readers(name) if reader not in pairs.changes]
        if not model.wiring.escapes(name) and len(readers) == 1 and _may_change(graph, pairs, readers[0]):
            naming.rewired.add(readers[0])
            naming.names[name] = naming.names.get(source.tensor, source.tensor)
            continue
        naming.made.add(maker)
    naming.made |= {maker for name in pairs.transposed if (maker := model.wiring.producer(name)) in pairs.changes}
    return naming


def _may_change(graph: Graph, pairs: LayoutPairs, index: int) -> bool:
    return index not in pairs.between and is_simple(graph.model.nodes[index])


@dataclass
class _Emission:
    """Emits the nodes of a rewrite in the order in which they stood."""

    graph: Graph
    pairs: LayoutPairs
    naming: _Naming
    build: Builder
    _inner: dict[str, str] = field(default_factory=dict)
    """What an elementwise node gives before the change, by what it gave."""
    _constants: dict[tuple[str, tuple[int | None, ...] | None], str] = field(default_factory=dict)
    """Moved constants, by name and by what they were moved for."""

    @property
    def known(self) -> LayoutWalk:
        return walk_layouts(self.graph)

    def step(self, index: int) -> None:
        """What stands in place of a node."""
        node = self.graph.model.nodes[index]
        if index in self.pairs.between:
            self._before(index)
        elif index in self.naming.made:
            self._restored(node.output[0])
        else:
            copy = type(node)()
            copy.CopyFrom(node)
            names = self.naming.names
            copy.input[:] = [self._current(name) for name in node.input]
            copy.output[:] = [names.get(name, name) if index in self.naming.renamed else name for name in node.output]
            self.build.nodes.append(copy)

    def _current(self, name: str) -> str:
        return self.naming.names.get(name, name)

    def _source(self, name: str) -> str:
        """The name of a tensor's source now."""
        source = self.known.moved[name].source
        return self._inner[source.tensor] if source.virtual else self._current(source.tensor)

    def _before(self, index: int) -> None:
        """An elementwise node on the sources of its operands."""
        node, perm = self.graph.model.nodes[index], self.known.perms[index]
        y = node.output[0]
        (made,) = self.build.replay(node, [self._operand(index, name) for name in node.input])
        copy = self.build.nodes[-1]
        for entry in copy.attribute:
            if node.op_type == "Concat" and entry.name == "axis":
                assert perm is not None
                entry.i = perm[entry.i] or 0
        self._inner[y] = self.naming.virtual.get(y, made)
        copy.output[:] = [self._inner[y]]
        if y in self.pairs.transposed:
            self._restored(y)

    def _operand(self, index: int, name: str) -> str:
        if name in self.known.moved:
            return self._source(name)
        value = self.known.constant_before(index, name) if name else None
        if value is None:
            return name
        key = name, self.known.perms[index]
        if key not in self._constants:
            self._constants[key] = self.build.constant(value, "constant")
        return self._constants[key]

    def _restored(self, name: str) -> None:
        """A tensor as others need it."""
        order = transpose_order(self.known.moved[name].layout)
        assert order is not None
        if name in self.pairs.back:
            self.build.node("Identity", [self._source(name)], "same", name)
        else:
            self.build.transpose(self._source(name), order, "as_it_was", name)
