"""Where two models differ, found by comparing them: the auditor does not ask the rewriter what it changed.

Run-time nodes are matched by their tensor names, attributes and the contents of the constants they read.  What does not
match is grouped into regions, connected through tensors that only one of the models has: a tensor that both models make
is where two regions meet, because there they can be compared.  Shape arithmetic (nodes whose integer values are known
under the binding) never joins regions; each region takes along what it reads of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx

from rewriter import external
from rewriter.constants import constant, is_constant
from rewriter.equivalence.counterparts import Named, named_alike
from rewriter.equivalence.fused import functions, is_default
from rewriter.equivalence.numbering import COMMUTATIVE, content
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
    spare: frozenset[int] = frozenset()
    """Nodes that make again what another one makes; nothing reads that."""

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
        """Nodes that are no constant sources, and make what no other one does."""
        nodes = enumerate(self.model.nodes)
        made = frozenset(i for i, node in nodes if not all(self.constant(name) for name in node.output if name))
        return made - self.spare

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
    """The comparison of two models under one binding; `before` and `after` have one set of names."""

    def __init__(
        self, before: Model, after: Model, bounds: tuple[Bound, Bound], named: tuple[Named, Named] | None = None
    ) -> None:
        """`named` are both under common names, where that is known already; nodes are at the same positions there."""
        old, new = named or named_alike(before, after)[0]
        self.before = Side("before", old.model, _renamed(bounds[0], old), old.spare)
        self.after = Side("after", new.model, _renamed(bounds[1], new), new.spare)
        before, after = old.model, new.model
        self._same_constant: dict[tuple[str, str], bool] = {}
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
        if len(a.input) != len(b.input) or not self.operators.same(a, b):
            return False
        orders = [list(b.input), list(b.input)[::-1]] if _is_commutative(a, self.before) else [list(b.input)]
        if not any(all(map(self._same_operand, a.input, operands)) for operands in orders):
            return False
        inner = (self.before.reads[i] - set(a.input)) | (self.after.reads[j] - set(b.input))
        return all(self.same_constant(name, name) for name in inner)

    def _same_operand(self, old: str, new: str) -> bool:
        if old == new:
            return self.same_constant(old, new)
        constants = bool(old and new) and self.before.constant(old) and self.after.constant(new)
        return constants and self.same_constant(old, new)

    def same_constant(self, old: str, new: str) -> bool:
        """Whether the tensors are no constants in either model, or of equal type, shape and bits in both.

        0.0 and -0.0 are different bits, and different constants: 1/x tells them apart.
        """
        pair = old, new
        if pair not in self._same_constant:
            self._same_constant[pair] = self._compare_constant(old, new)
        return self._same_constant[pair]

    def _compare_constant(self, old: str, new: str) -> bool:
        a, b = self.before, self.after
        if self._sparse[0].get(old) != self._sparse[1].get(new):
            return False
        if not a.constant(old) or not b.constant(new):
            return a.constant(old) == b.constant(new)
        if old == new and old in a.bodies and new in b.bodies and _external_free(a.model, old):
            first, second = a.bodies[old], b.bodies[new]
            if first is second or np.array_equal(np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)):
                return True
        x, y = constant(a.model, old), constant(b.model, new)
        assert x is not None and y is not None
        return x.dtype == y.dtype and x.shape == y.shape and content(x) == content(y)

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
            if all(side.maker(name) is None for side in self._sides) and not self.same_constant(name, name)
        }

    def _loose_output(self, name: str) -> Region:
        inputs = tuple(name for side in self._sides[:1] if not side.constant(name))
        return Region((), (), inputs, (name,))


def _renamed(bound: Bound, named: Named) -> Bound:
    """The same under the common names."""
    names = named.names
    types = {names.get(name, name): kind for name, kind in bound.types.items()}
    values = {names.get(name, name): value for name, value in bound.values.items()}
    return replace(bound, types=types, values=values)


def _is_commutative(node: onnx.NodeProto, side: Side) -> bool:
    return node.op_type in COMMUTATIVE and len(node.input) == 2 and is_default(node, side.functions)


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
