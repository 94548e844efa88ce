"""Operators that only one side of a region has, spelled out as the simpler ones that they stand for.

So QuickGelu is compared with a Sigmoid and a Mul, and HardSwish with HardSigmoid and Mul.  Only L1 reads models so: the
other levels run them as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from rewriter.contrib_definitions import defined, is_defined
from rewriter.equivalence.regions import Region, Side
from rewriter.model import Edit

Kind = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Spelled:
    """A side with some of its operators spelled out."""

    side: Side
    places: tuple[tuple[int, ...], ...]
    """The nodes that each of the original's stands for."""

    def nodes(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The positions of these nodes."""
        return tuple(place for index in indices for place in self.places[index])


class Spelling:
    """The sides of one comparison, spelled out when first needed."""

    def __init__(self, pairs: Sequence[tuple[Side, Side]]) -> None:
        self.pairs = pairs
        self._known: dict[tuple[int, frozenset[Kind]], Spelled] = {}

    @cached_property
    def _any(self) -> bool:
        return any(is_defined(*_kind(node)) for side in self.pairs[0] for node in side.model.nodes)

    def of(self, region: Region) -> tuple[Region, Sequence[tuple[Side, Side]]]:
        """The region and both sides of it under each binding, as L1 is to read them."""
        if not self._any:
            return region, self.pairs
        old, new = (
            Counter(map(_kind, (side.model.nodes[index] for index in nodes)))
            for side, nodes in zip(self.pairs[0], (region.before, region.after), strict=True)
        )
        first = self.pairs[0][0]
        uneven = (kind for kind in old | new if old[kind] != new[kind])
        kinds = frozenset(kind for kind in uneven if is_defined(*kind))
        kinds -= first.functions | self.pairs[0][1].functions
        if not kinds:
            return region, self.pairs
        spelled = [tuple(self._spelled(side, kinds) for side in pair) for pair in self.pairs]
        before, after = spelled[0][0].nodes(region.before), spelled[0][1].nodes(region.after)
        return replace(region, before=before, after=after), [(a.side, b.side) for a, b in spelled]

    def _spelled(self, side: Side, kinds: frozenset[Kind]) -> Spelled:
        key = id(side), kinds
        if key not in self._known:
            self._known[key] = spelled_out(side, kinds)
        return self._known[key]


def spelled_out(side: Side, kinds: Collection[Kind]) -> Spelled:
    """The side with all nodes of these kinds spelled out, as far as there is a definition of them."""
    changed: dict[int, tuple[onnx.NodeProto, ...]] = {}
    places: list[tuple[int, ...]] = []
    types = dict(side.bound.types)
    position = 0
    for index, node in enumerate(side.model.nodes):
        parts = defined(node, types.get) if _kind(node) in kinds else None
        count = len(parts) if parts else 1
        places.append(tuple(range(position, position + count)))
        position += count
        if not parts:
            continue
        changed[index] = tuple(parts)
        like = types.get(node.input[0])
        for part in parts:
            for name in part.output:
                if name and like is not None and part.op_type not in ("Constant", "MatMul", "Transpose"):
                    types.setdefault(name, like)
    if not changed:
        return Spelled(side, tuple(places))
    model = side.model.splice(Edit(frozenset(changed), changed))
    spare = frozenset(place for index in side.spare for place in places[index])
    return Spelled(Side(side.name, model, replace(side.bound, types=types), spare), tuple(places))


def _kind(node: onnx.NodeProto) -> Kind:
    return "" if node.domain == "ai.onnx" else str(node.domain), str(node.op_type)
