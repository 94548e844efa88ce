"""Where two models differ, found by comparing them: the auditor does not ask the rewriter what it changed.

Run-time nodes are matched by their tensor names, attributes and the contents of the constants they read.  What does not
match is grouped into regions, connected through tensors that only one of the models has: a tensor that both models make
is where two regions meet, because there they can be compared.  Shape arithmetic (nodes whose integer values are known
under the binding) never joins regions; each region takes along what it reads of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rewriter import external
from rewriter.constants import constant, is_constant
from rewriter.equivalence.fused import functions
from rewriter.equivalence.operators import Operators, sparse_initializers
from rewriter.equivalence.unions import Unions
from rewriter.model import INITIALIZER, Model
from rewriter.shapes import Bound
from rewriter.wiring import used_names

_TYING = frozenset({"Concat", "Split", "Slice", "Gather", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})
_NodeKey = tuple[str, int]
"""Side ("before" or "after") and position."""


@dataclass(frozen=True)
class Region:
    """Nodes (positions) that differ, the run-time tensors they read, and the tensors of both models that leave them."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two models, with what the comparison looks up again and again."""

    name: str
    model: Model
    bound: Bound

    @cached_property
    def reads(self) -> tuple[frozenset[str], ...]:
        """Names each node reads, those read inside its subgraphs included."""
        return tuple(frozenset(used_names([node])) for node in self.model.nodes)

    @cached_property
    def readers(self) -> Mapping[str, frozenset[int]]:
        found: dict[str, set[int]] = {}
        for index, names in enumerate(self.reads):
            for name in names:
                found.setdefault(name, set()).add(index)
        return {name: frozenset(indices) for name, indices in found.items()}

    @cached_property
    def runtime(self) -> frozenset[int]:
        """Nodes that are no constant sources."""
        nodes = enumerate(self.model.nodes)
        return frozenset(i for i, node in nodes if not all(self.constant(name) for name in node.output if name))

    @cached_property
    def _constant(self) -> dict[str, bool]:
        return {}

    def constant(self, name: str) -> bool:
        if name not in self._constant:
            self._constant[name] = is_constant(self.model, name)
        return self._constant[name]

    def maker(self, name: str) -> int | None:
        """The run-time node that makes a tensor."""
        index = self.model.wiring.producer(name)
        return index if index in self.runtime else None

    def is_shape_arithmetic(self, index: int) -> bool:
        """Whether all the node's outputs are integers known under the binding."""
        return all(self.bound.value(name) is not None for name in self.model.nodes[index].output if name)

    @cached_property
    def functions(self) -> frozenset[tuple[str, str]]:
        """Domains and names of the model's own functions: each takes the place of an operator of that name."""
        return functions(self.model)

    @cached_property
    def bodies(self) -> Mapping[str, memoryview]:
        """Serialized initializers by name."""
        pieces = (piece for piece in self.model.pieces if piece.number == INITIALIZER)
        return {t.name: p.body for t, p in zip(self.model.skeleton.graph.initializer, pieces, strict=True)}


class Diff:
    """The comparison of two models under one binding."""

    def __init__(self, before: Model, after: Model, bounds: tuple[Bound, Bound]) -> None:
        self.before = Side("before", before, bounds[0])
        self.after = Side("after", after, bounds[1])
        self._same_constant: dict[str, bool] = {}
        self.operators = Operators(before, after)
        self._sparse = sparse_initializers(before), sparse_initializers(after)
        self.matched = dict(self._match())

    def _match(self) -> Iterable[tuple[int, int]]:
        a, b = self.before, self.after
        by_outputs = {tuple(node.output): j for j, node in enumerate(b.model.nodes) if j in b.runtime}
        for i in sorted(a.runtime):
            j = by_outputs.get(tuple(a.model.nodes[i].output))
            if j is not None and self._same_node(i, j):
                yield i, j

    def _same_node(self, i: int, j: int) -> bool:
        a, b = self.before.model.nodes[i], self.after.model.nodes[j]
        if list(a.input) != list(b.input) or not self.operators.same(a, b):
            return False
        return all(self.same_constant(name) for name in self.before.reads[i] | self.after.reads[j])

    def same_constant(self, name: str) -> bool:
        """Whether the name is no constant in either model, or one of equal type, shape and bits in both.

        0.0 and -0.0 are different bits, and different constants: 1/x tells them apart.
        """
        if name not in self._same_constant:
            self._same_constant[name] = self._compare_constant(name)
        return self._same_constant[name]

    def _compare_constant(self, name: str) -> bool:
        a, b = self.before, self.after
        if self._sparse[0].get(name) != self._sparse[1].get(name):
            return False
        if not a.constant(name) or not b.constant(name):
            return a.constant(name) == b.constant(name)
        if name in a.bodies and name in b.bodies and _external_free(a.model, name):
            old, new = a.bodies[name], b.bodies[name]
            if old is new or np.array_equal(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)):
                return True
        x, y = constant(a.model, name), constant(b.model, name)
        assert x is not None and y is not None
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()

    def regions(self, *, meet: bool = True) -> tuple[Region, ...]:
        """The regions in graph order.

        With `meet` False, tensors of equal name do not part regions: for models where a name got other contents.
        """
        unions: Unions[_NodeKey] = Unions()
        unmatched = {
            "before": self.before.runtime - set(self.matched),
            "after": self.after.runtime - set(self.matched.values()),
        }
        common = self._made_by_both(unmatched)
        joined = {side.name: self._participants(side, unmatched[side.name], common) for side in self._sides}
        for side in self._sides:
            for index in joined[side.name]:
                unions.add((side.name, index))
                for name, maker in self._sources(side, index, unmatched[side.name], joined[side.name]):
                    if not meet or name not in common:
                        unions.join((side.name, index), (side.name, maker))
        for name in common:
            makers = [(side.name, found) for side in self._sides if (found := side.maker(name)) is not None]
            unions.join(*makers)
        grouped = [self._region(group, unmatched) for group in unions.groups()]
        loose = [self._loose_output(name) for name in sorted(self._loose_outputs())]
        order = {name: i for i, node in enumerate(self.before.model.nodes) for name in node.output}
        kept = [region for region in grouped + loose if region.outputs]
        return tuple(sorted(kept, key=lambda region: (order.get(region.outputs[0], len(order)), region.outputs)))

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.before, self.after

    def _made_by_both(self, unmatched: Mapping[str, frozenset[int]]) -> frozenset[str]:
        names = [
            {name for index in unmatched[side.name] for name in side.model.nodes[index].output if name}
            for side in self._sides
        ]
        return frozenset(names[0] & names[1])

    def _participants(self, side: Side, unmatched: frozenset[int], common: frozenset[str]) -> frozenset[int]:
        """Nodes that form regions: all but shape arithmetic that only one model has."""
        return frozenset(
            index
            for index in unmatched
            if not side.is_shape_arithmetic(index) or common.intersection(side.model.nodes[index].output)
        )

    def _sources(
        self, side: Side, index: int, unmatched: frozenset[int], joined: frozenset[int]
    ) -> Iterable[tuple[str, int]]:
        """Region nodes whose tensors the node reads, directly or through shape arithmetic."""
        todo, seen = [index], {index}
        while todo:
            for name in side.reads[todo.pop()]:
                maker = side.maker(name)
                if maker is None or maker not in unmatched:
                    continue
                if maker in joined:
                    yield name, maker
                elif maker not in seen:
                    seen.add(maker)
                    todo.append(maker)

    def _region(self, group: Iterable[_NodeKey], unmatched: Mapping[str, frozenset[int]]) -> Region:
        nodes = {side.name: {index for name, index in group if name == side.name} for side in self._sides}
        for side in self._sides:
            nodes[side.name] |= _shape_nodes(side, nodes[side.name], unmatched[side.name])
        made = {name for side in self._sides for i in nodes[side.name] for name in side.model.nodes[i].output if name}
        leaving = [name for name in made if any(_leaves(side, name, nodes[side.name]) for side in self._sides)]
        leaving = [name for name in leaving if all(_exists(side, name) for side in self._sides)]
        entering = {
            name
            for side in self._sides
            for i in nodes[side.name]
            for name in side.reads[i]
            if name not in made and not side.constant(name) and _exists(side, name)
        }
        order = {name: i for i, node in enumerate(self.before.model.nodes) for name in node.output}
        for index in self._tying(entering):
            nodes["before"].add(index)
            nodes["after"].add(self.matched[index])
            moved = self.before.model.nodes[index]
            entering -= set(moved.output)
            entering |= {name for name in moved.input if name and not self.before.constant(name)}
        inputs, outputs = (
            tuple(sorted(names, key=lambda name: (order.get(name, -1), name))) for names in (entering, leaving)
        )
        return Region(tuple(sorted(nodes["before"])), tuple(sorted(nodes["after"])), inputs, outputs)

    def _tying(self, entering: set[str]) -> list[int]:
        """Nodes of both models, the last one first, that only move what enters into other things that enter.

        Taken for independent of each other, a tensor and its parts would seem to differ where they are the same.
        """
        found: list[int] = []
        tied = set(entering)
        while True:
            for name in sorted(tied):
                maker = self.before.maker(name)
                if maker is None or maker not in self.matched or maker in found:
                    continue
                node = self.before.model.nodes[maker]
                others = {*node.input, *node.output} - {name}
                if node.op_type in _TYING and node.domain in ("", "ai.onnx") and tied & others:
                    found.append(maker)
                    tied = (tied - set(node.output)) | {i for i in node.input if i and not self.before.constant(i)}
                    break
            else:
                return sorted(found, reverse=True)

    def _loose_outputs(self) -> set[str]:
        """Graph outputs that no node makes at run time, and that differ: constants, or inputs passed on."""
        outputs = {value.name for value in self.before.model.outputs} & {v.name for v in self.after.model.outputs}
        return {
            name
            for name in outputs
            if all(side.maker(name) is None for side in self._sides) and not self.same_constant(name)
        }

    def _loose_output(self, name: str) -> Region:
        inputs = tuple(name for side in self._sides[:1] if not side.constant(name))
        return Region((), (), inputs, (name,))


def _shape_nodes(side: Side, nodes: set[int], unmatched: frozenset[int]) -> set[int]:
    """Unmatched shape arithmetic that the nodes read."""
    found: set[int] = set()
    todo = list(nodes)
    while todo:
        for name in side.reads[todo.pop()]:
            maker = side.maker(name)
            if maker in unmatched and maker not in nodes | found and side.is_shape_arithmetic(maker):
                found.add(maker)
                todo.append(maker)
    return found


def _leaves(side: Side, name: str, nodes: set[int]) -> bool:
    maker = side.maker(name)
    if maker is not None and maker not in nodes:
        return False
    outputs = {value.name for value in side.model.outputs}
    return name in outputs or bool(side.readers.get(name, frozenset()) - nodes)


def _exists(side: Side, name: str) -> bool:
    model = side.model
    if name in model.headers or model.wiring.producer(name) is not None:
        return True
    return any(value.name == name for value in model.skeleton.graph.input)


def _external_free(model: Model, name: str) -> bool:
    return external.reference(model.headers[name]) is None
