"""What a pass gives: a rewrite at a site, or a declining with one sentence; as immutable records.

`require` is the only way to decline; any other exception is a bug of the pass and is shown as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import onnx

from rewriter.model import Edit

Setting = int | str | bool | float
Settings = Mapping[str, Setting]
Outcome = Literal[
    "accepted", "declined", "different", "not_verified", "withheld", "unmeasured", "slower", "not_worth_it", "failed"
]
"""`unmeasured`: it may be worth it, but there was no time, or no way, to find out; `withheld`: it was verified, but not
written, because another one that was asked for with it was not."""


class Safety(Enum):
    """What a rewrite does to the numbers."""

    EXACT = "weights only move"
    FINITE = "exact for finite activations: zeros are inserted, and 0 times infinity is not 0"
    ROUNDING = "weights are combined: results differ by rounding"
    APPROXIMATE = "the result is an approximation, made only on request"


class Declined(Exception):
    """A pass does not apply: `reason` one sentence, `where` the tensors concerned, `matched` how many nodes fitted."""

    def __init__(self, reason: str, *where: str, matched: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.matched = matched


def require(condition: object, reason: str, *where: str, matched: int = 1) -> None:
    """Decline with `reason` unless `condition` holds.  `matched` ranks near misses: more nodes fitted, nearer."""
    if not condition:
        raise Declined(reason, *where, matched=matched)


@dataclass(frozen=True)
class Deviation:
    """The figures of an approximate rewrite: what it costs, and how far off it is."""

    before: int
    """Multiplications per output position."""
    after: int
    rank: int
    full_rank: int
    weight_error: float
    """Norm of the effective weights' error over the norm of the weights."""
    error: float
    """Root mean square of the output's error over that of the output, on all inputs."""
    held_error: float
    """The same on those of them that it was not fitted to."""
    allowed: float
    """The largest such error that the user allows."""


@dataclass(frozen=True)
class Rewrite:
    """One rewrite of one region, as a record: apply it with `Model.splice(rewrite.edit)`."""

    pass_name: str
    site: str
    """The output tensor of the region's last node."""
    safety: Safety
    removed: frozenset[int]
    anchor: int
    """Position of the node before which the new nodes go."""
    added: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]
    summary: str
    """What became what, in a few words."""
    imports: tuple[tuple[str, int], ...] = ()
    """Operator sets, (domain, version), that the new nodes need besides the default one."""
    places: tuple[int, ...] = ()
    """Of each new node the position it goes before, where they do not all go to `anchor`: a region spread out."""
    deviation: Deviation | None = None
    """What was given away for what, where the safety is APPROXIMATE; else None."""

    @property
    def edit(self) -> Edit:
        return Edit(self.removed, self.inserted, self.initializers, self.imports)

    @property
    def inserted(self) -> dict[int, tuple[onnx.NodeProto, ...]]:
        """The new nodes by the position they go before."""
        if not self.places:
            return {self.anchor: self.added}
        found: dict[int, tuple[onnx.NodeProto, ...]] = {}
        for place, node in zip(self.places, self.added, strict=True):
            found[place] = (*found.get(place, ()), node)
        return found


@dataclass(frozen=True)
class Attempt:
    """One considered rewrite and what became of it."""

    pass_name: str
    site: str
    outcome: Outcome
    reason: str
    where: tuple[str, ...] = ()
    matched: int = 0
    summary: str = ""
    details: Mapping[str, object] = field(default_factory=dict)
