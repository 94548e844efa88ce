"""The same part of two models, cut out as two small models that can be run, audited and kept on their own.

Nodes are positions in their model.  A part is a `Region` of the audit, or one grown by what is around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from rewriter.bindings import Binding, find_bindings
from rewriter.constants import Array
from rewriter.equivalence.cut import cut
from rewriter.equivalence.records import RegionAudit
from rewriter.equivalence.regions import Diff, Region, Side
from rewriter.model import Model
from rewriter.shapes import Shape, bind

_BATCHES = (1, 3)


@dataclass(frozen=True, eq=False)
class Pair:
    """A part of both models as models of their own, with equal inputs and outputs and all weights inline."""

    before: Model
    after: Model
    inputs: tuple[str, ...]
    """The graph inputs of both, by their names in the whole models."""


class Cutter:
    """Finds and cuts the regions in which two models differ; shapes are derived once."""

    def __init__(self, before: Model, after: Model, input_shapes: Mapping[str, Shape]) -> None:
        """Raises BadInput when a shape given does not fit the original."""
        self.bindings: tuple[Binding, ...] = find_bindings(before, input_shapes, _BATCHES, vary_given=True)
        self._diffs = [Diff(before, after, (found.bound, bind(after, found.shapes))) for found in self.bindings]
        self.diff = self._diffs[0]

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The regions parted where both models make a tensor of one name, then the larger ones where they are not."""
        return tuple(dict.fromkeys([*self._parts, *self.diff.regions(meet=False)]))

    def region(self, record: RegionAudit) -> Region | None:
        """The region that an audit's record is about."""
        wanted = record.inputs, record.outputs
        return next((region for region in self.regions if (region.inputs, region.outputs) == wanted), None)

    def made_in(self, region: Region) -> frozenset[str]:
        """Tensors that the rewritten model makes inside a region."""
        nodes = self.diff.after.model.nodes
        return frozenset(name for index in region.after for name in nodes[index].output if name)

    def pair(self, region: Region) -> Pair | None:
        """The region as two models, free in the dimensions that are free in the whole; None where types are unknown.

        Tensors of known value (shape arithmetic) that enter it become constants; where these depend on the free
        dimensions, the models have the sizes of the first binding.
        """
        if not region.before and not region.after:
            return None
        before = self.diff.before.bound
        if any(before.shape(name) is None or name not in before.types for name in region.inputs):
            return None
        sides = [diff.before for diff in self._diffs]
        known = {name: value for name in region.inputs if (value := before.value(name)) is not None}
        if any(side.bound.shape(name) is None or not _agrees(side, known) for side in sides for name in region.inputs):
            sides = sides[:1]
        shapes = [{name: side.bound.shape(name) or () for name in region.inputs} for side in sides]
        leaving = [{name: side.bound.shape(name) for name in region.outputs} for side in sides]
        old, new = (
            self._model(side, nodes, region, shapes, leaving, known)
            for side, nodes in ((self.diff.before, region.before), (self.diff.after, region.after))
        )
        inputs = tuple(name for name in region.inputs if name not in known)
        return Pair(Model.load(old), Model.load(new), inputs)

    def _model(
        self,
        side: Side,
        nodes: Sequence[int],
        region: Region,
        shapes: Sequence[Mapping[str, Shape]],
        leaving: Sequence[Mapping[str, Shape | None]],
        known: Mapping[str, Array],
    ) -> onnx.ModelProto:
        types = self.diff.before.bound.types
        found = cut(side, nodes, region, types, shapes)
        model = found.with_weights(found.weights)
        graph = model.graph
        del graph.input[:], graph.output[:]  # those that this side does not read are inputs, too
        for name in region.inputs:
            if name in known:
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(known[name]), name))
                continue
            graph.input.append(_value(name, types[name], [sizes[name] for sizes in shapes]))
        for name in region.outputs:
            graph.output.append(_value(name, types.get(name), [sizes[name] for sizes in leaving]))
        return model

    def narrowed(self, region: Region) -> Iterator[Region]:
        """The region with one of its outputs alone, for each of them where there are several."""
        if len(region.outputs) < 2:
            return
        for name in region.outputs:
            sides = ((self.diff.before, region.before), (self.diff.after, region.after))
            before, after = (_leading_to(side, nodes, {name}) for side, nodes in sides)
            if before or after:
                yield self._closed(before, after, only=name)

    def grown(self, region: Region, steps: int) -> Region:
        """The region with the nodes up to `steps` before and behind it, and other regions that these belong to."""
        before, after = set(region.before), set(region.after)
        counterparts = {there: here for here, there in self.diff.matched.items()}
        for _ in range(steps):
            near, near_after = _around(self.diff.before, before), _around(self.diff.after, after)
            same = (near & self.diff.matched.keys()) | {counterparts[i] for i in near_after if i in counterparts}
            for other in self._parts:
                if near & set(other.before) or near_after & set(other.after):
                    before |= set(other.before)
                    after |= set(other.after)
            before |= same
            after |= {self.diff.matched[index] for index in same}
        return self._closed(before, after)

    @cached_property
    def _parts(self) -> tuple[Region, ...]:
        return self.diff.regions()

    def _closed(self, before: Collection[int], after: Collection[int], only: str | None = None) -> Region:
        """Nodes with the tensors that enter and leave them, in graph order."""
        sides = (self.diff.before, self.diff.after)
        chosen = tuple(zip(sides, (set(before), set(after)), strict=True))
        entering: dict[str, None] = {}
        leaving: dict[str, None] = {}
        for side, nodes in chosen:
            made = {name for i in nodes for name in side.model.nodes[i].output if name}
            outputs = {value.name for value in side.model.outputs}
            for index in sorted(nodes):
                for name in sorted(side.reads[index]):
                    if name and name not in made and not side.constant(name):
                        entering.setdefault(name)
                for name in side.model.nodes[index].output:
                    read = name in outputs or side.readers.get(name, frozenset()) - nodes
                    if name and read and all(_has(each.model, name) for each in sides):
                        leaving.setdefault(name)
        return Region(tuple(sorted(before)), tuple(sorted(after)), tuple(entering), (only,) if only else tuple(leaving))


def _agrees(side: Side, known: Mapping[str, Array]) -> bool:
    values = ((side.bound.value(name), value) for name, value in known.items())
    return all(other is not None and np.array_equal(other, value) for other, value in values)


def _value(name: str, kind: onnx.TypeProto | None, sizes: Sequence[Shape | None]) -> onnx.ValueInfoProto:
    """A declaration with free dimensions where the sizes differ; equal sizes in all bindings get one name."""
    if kind is None:
        return onnx.ValueInfoProto(name=name)
    code = kind.tensor_type.elem_type
    known = [shape for shape in sizes if shape is not None]
    if len(known) < len(sizes) or len({len(shape) for shape in known}) != 1:
        return onnx.helper.make_tensor_value_info(name, code, None)
    columns = zip(*known, strict=True)
    dims = [column[0] if len(set(column)) == 1 else "_".join(map(str, ("d", *column))) for column in columns]
    return onnx.helper.make_tensor_value_info(name, code, dims)


def _has(model: Model, name: str) -> bool:
    return name in model.headers or model.wiring.producer(name) is not None


def _around(side: Side, nodes: Collection[int]) -> set[int]:
    """Run-time nodes that make what the nodes read, or read what they make."""
    found: set[int] = set()
    for index in nodes:
        makers = (side.maker(name) for name in side.reads[index])
        found.update(maker for maker in makers if maker is not None)
        for name in side.model.nodes[index].output:
            found.update(side.readers.get(name, frozenset()) & side.runtime)
    return found - set(nodes)


def _leading_to(side: Side, nodes: Collection[int], outputs: set[str]) -> set[int]:
    """Those of the nodes that the outputs are computed from."""
    found: set[int] = set()
    todo = list(outputs)
    while todo:
        maker = side.maker(todo.pop())
        if maker is not None and maker in nodes and maker not in found:
            found.add(maker)
            todo.extend(side.reads[maker])
    return found
