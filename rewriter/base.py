"""The base class of passes: it matches the pattern, asks the pass, and checks what every rewrite must keep.

A pass is a subclass of `Pass` in a file of its own in `passes/`: a pattern, a condition, and a rewrite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from rewriter.graph import Graph
from rewriter.match import Match, match, starts
from rewriter.pattern import PatternFunction, trace
from rewriter.rule import Rewrite, Safety, Settings


class Pass(ABC):
    """Base class of all passes.  Stateless: everything a rewrite depends on is in the model and the settings."""

    name: ClassVar[str]
    safety: ClassVar[Safety]
    """The weakest safety a rewrite of this pass may have."""
    defaults: ClassVar[Settings] = {}
    """Settings and their defaults; users set them as `pass.key=value`."""
    takes: ClassVar[str] = ""
    """A form of several nodes that this pass replaces as a whole (`depthwise_sum`); empty for a single node."""
    gives: ClassVar[str] = ""
    """A form of several nodes that this pass makes; a pass that takes it would undo this one."""

    undoes: ClassVar[frozenset[str]] = frozenset()
    """Passes whose rewrites it turns back where it is applied to what they made."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the user must allow (`--allow`, `RunOptions.allow`) before this pass makes anything."""
    finishes: ClassVar[bool] = False
    """No other pass takes what this one makes: it is measured when the others have had their turn."""

    pattern: ClassVar[PatternFunction]
    """The nodes it looks for: a static method like `def pattern(op, x, w, b): return op.Conv(x, w, maybe(b))`."""

    @abstractmethod
    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        """The rewrite where the pattern fits; declines with `require`."""

    def needed(self, settings: Settings) -> frozenset[str]:  # noqa: ARG002 - part of the interface
        """What the user must allow for these settings; `settings` has a value for each default."""
        return self.needs

    def check(self, settings: Settings) -> None:  # noqa: B027 - most passes take any value of the right type
        """Raise BadInput for settings that are wrong whatever the model; `settings` has a value for each default.

        Called before any work, and again with each proposal.
        """

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:  # noqa: ARG002 - part of the interface
        """The settings worth measuring there when the user leaves the choice to the machine; declines with `require`.

        Empty where the pass fits and no settings are worth it.  This, and what reasons say, is all that may depend on
        `graph.provider`.
        """
        return ({},)

    def sites(self, graph: Graph) -> Iterator[int]:
        """Positions of the nodes at which the pattern could end."""
        return starts(trace(self.pattern), graph.model)

    def candidates(self, graph: Graph, node: int) -> tuple[Settings, ...]:
        """`choices` at a node; raises Declined where the pattern does not fit."""
        return self.choices(graph, match(trace(self.pattern), graph.model, node))

    def propose(self, graph: Graph, node: int, settings: Settings) -> Rewrite:
        """`rewrite` at a node, with the defaults filled in and its contract checked; raises Declined."""
        complete = {**self.defaults, **settings}
        self.check(complete)
        found = match(trace(self.pattern), graph.model, node)
        made = self.rewrite(graph, found, complete)
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
    known = {"", "ai.onnx", *(domain for domain, _ in made.imports)}
    foreign = {node.domain for node in made.added} - known - {node.domain for node in model.nodes}
    if foreign:
        raise AssertionError(f"{rule.name}: the rewrite at '{made.site}' imports no operator set '{min(foreign)}'")
    new = (outputs | {tensor.name for tensor in made.initializers}) - {
        name for index in made.removed for name in model.nodes[index].output
    }
    taken = new & model.wiring.names
    if taken:
        raise AssertionError(f"{rule.name}: the new name '{min(taken)}' is taken")
