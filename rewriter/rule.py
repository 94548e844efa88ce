"""What a pass is: it proposes a rewrite at a site, or declines with one sentence.

A pass is written as a subclass of `Pass` in a file of its own in `passes/`.  `require` is the only way to decline; any
other exception is a bug of the pass and is shown as one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal

import onnx

from rewriter.graph import Graph
from rewriter.model import Edit

Setting = int | str | bool | float
Settings = Mapping[str, Setting]
Outcome = Literal["accepted", "declined", "different", "not_verified", "slower", "not_worth_it", "failed"]


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

    @property
    def edit(self) -> Edit:
        return Edit(self.removed, {self.anchor: self.added}, self.initializers)


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


class Pass(ABC):
    """Base class of all passes.  Stateless: everything a rewrite depends on is in the model and the settings."""

    name: ClassVar[str]
    safety: ClassVar[Safety]
    """The weakest safety a rewrite of this pass may have."""
    defaults: ClassVar[Settings] = {}
    """Settings and their defaults; users set them as `pass.key=value`."""
    takes: ClassVar[str] = ""
    """The form of a convolution this pass starts from, where the pass alone can tell (`depthwise_sum`)."""

    @abstractmethod
    def sites(self, graph: Graph) -> Iterator[int]:
        """Positions of the nodes at which the pattern could begin."""

    @abstractmethod
    def rewrite(self, graph: Graph, node: int, settings: Settings) -> Rewrite:
        """The rewrite at that node; declines with `require`."""

    def candidates(self, graph: Graph, node: int) -> tuple[Settings, ...]:  # noqa: ARG002 - part of the interface
        """The settings worth measuring at that node when the user leaves the choice to the machine."""
        return ({},)

    def propose(self, graph: Graph, node: int, settings: Settings) -> Rewrite:
        """`rewrite` with the defaults filled in and its contract checked; raises Declined."""
        made = self.rewrite(graph, node, {**self.defaults, **settings})
        _check_contract(self, graph, made)
        return made


def _check_contract(rule: Pass, graph: Graph, made: Rewrite) -> None:
    """What every rewrite must keep, whatever the pass: a breach is a bug of the pass."""
    model = graph.model
    outputs = {name for node in made.added for name in node.output}
    if made.site not in outputs:
        raise AssertionError(f"{rule.name}: the rewrite does not produce its own site '{made.site}'")
    lost = {name for index in made.removed for name in model.nodes[index].output} - outputs
    for name in sorted(lost):
        if model.wiring.escapes(name) or set(model.wiring.readers(name)) - made.removed:
            raise AssertionError(f"{rule.name}: '{name}' is still read, but the rewrite at '{made.site}' removes it")
    new = (outputs | {tensor.name for tensor in made.initializers}) - {
        name for index in made.removed for name in model.nodes[index].output
    }
    taken = new & model.wiring.names
    if taken:
        raise AssertionError(f"{rule.name}: the new name '{min(taken)}' is taken")
