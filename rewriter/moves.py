"""Whole models one step away from another: with a pass wherever it does not lose, or without what a pass did.

What gains too little at each place to be seen there may well be seen in the whole model, when it is done everywhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewriter.base import Pass
from rewriter.candidates import candidates, fresh, onward
from rewriter.choose import Looking
from rewriter.findings import Findings, is_losing
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Applied, combine, label, overlap
from rewriter.remake import key, remade
from rewriter.rule import Settings

_UNKNOWN = 1e-6  # milliseconds of a pass that nothing is known of: it comes last


@dataclass(frozen=True, eq=False)
class Move:
    """A whole model with rewrites, all of them in order; `name` says what sets it apart."""

    name: str
    model: Model
    applied: tuple[Applied, ...]
    promise: float = 0.0
    """Milliseconds it may save over the model it is one step away from, from what was measured in context."""
    doubted: bool = False
    """Whether it only lacks rewrites that were not surely faster in context."""
    fewer: bool = False
    """Whether it lacks rewrites, and has no new ones."""

    @property
    def identity(self) -> Hashable:
        """Equal for equal sets of rewrites."""
        return frozenset(key(done) for done in self.applied)


def additions(best: Move, rules: Mapping[str, Pass], settings: Mapping[str, Settings], looking: Looking) -> list[Move]:
    """With each pass at all places where it was not seen to lose, the most promising first; those that may gain."""
    options = looking.options
    graph = Graph(best.model, options.input_shapes, options.runtime.provider)
    offered, _ = candidates(graph, rules, settings)
    new = fresh(best.applied, best.model)
    usual = looking.findings.usual()
    groups: dict[str, list[tuple[Applied, float]]] = {}
    for start, variants in offered.items():
        if looking.findings.failed(start):
            continue
        if start in new and looking.findings.knows(start):  # it is what was chosen among all that there was for it
            continue
        able = onward(variants, best.applied) if start in new else variants
        for name, some in _by_name(able).items():
            picked = _pick(start, some, looking.findings)
            if picked is not None:
                one, saved = picked
                guess = usual.get(one.step.rule.name, _UNKNOWN)
                groups.setdefault(name, []).append((one, guess if saved is None else saved))
    moves = [_added(best, group) for group in groups.values()]
    return sorted((move for move in moves if move.promise > 0), key=lambda move: -move.promise)


def certain(model: Model, best: Move, looking: Looking) -> list[Move]:
    """`best` without what was not surely faster in context, if that is something and not all; `model`: the original."""
    doubtful = [done for done in best.applied if not done.sure]
    if not doubtful:
        return []
    return _without(model, best, {"only what is surely faster in context": doubtful}, looking, doubted=True)


def drops(model: Model, best: Move, looking: Looking) -> list[Move]:
    """`best` without each of its passes; `model` is the original."""
    by_name: dict[str, list[Applied]] = {}
    for done in best.applied:
        by_name.setdefault(f"without {label(done.step)}", []).append(done)
    return _without(model, best, by_name, looking, doubted=False)


def _without(
    model: Model, best: Move, groups: Mapping[str, list[Applied]], looking: Looking, *, doubted: bool
) -> list[Move]:
    found = []
    for name, group in groups.items():
        rest = [done for done in best.applied if all(done is not other for other in group)]
        if rest:
            without, kept = remade(model, rest, looking.options)
            found.append(Move(name, without, tuple(kept), doubted=doubted, fewer=True))
    return found


def _by_name(variants: Iterable[Applied]) -> dict[str, list[Applied]]:
    found: dict[str, list[Applied]] = {}
    for one in variants:
        found.setdefault(label(one.step), []).append(one)
    return found


def _pick(start: str, variants: Sequence[Applied], findings: Findings) -> tuple[Applied, float | None] | None:
    """The fastest variant measured there and what it saved, or the first one; None where all were seen to lose."""
    timed = [(one, findings.of(start, one.step.rule.name, one.step.settings)) for one in variants]
    measured = [(one, timing) for one, timing in timed if timing is not None]
    if not measured:
        return variants[0], None
    one, timing = max(measured, key=lambda pair: pair[1].speedup)
    return None if is_losing(timing) else (one, timing.before_ms - timing.after_ms)


def _added(best: Move, group: Iterable[tuple[Applied, float]]) -> Move:
    chosen: list[Applied] = []
    promise = 0.0
    for one, saved in sorted(group, key=lambda pair: -pair[1]):
        if not any(overlap(one.rewrite, other.rewrite) for other in chosen):
            chosen.append(one)
            promise += saved
    model = best.model.splice(combine(best.model, [one.rewrite for one in chosen]))
    name = f"{label(chosen[0].step)} at {len(chosen)} more places" if best.applied else f"{label(chosen[0].step)} alone"
    return Move(name, model, (*best.applied, *chosen), promise)
