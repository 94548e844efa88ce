"""Search: rounds of proposing candidates everywhere and measuring them in context, until nothing more is faster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rewriter.base import Pass
from rewriter.candidates import candidates, fresh, onward
from rewriter.chains import chained
from rewriter.choose import Choice, Looking, Place, choose, compatible, describe, places, unmeasured
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Applied, combine, forbidden
from rewriter.rule import Attempt, Settings

_ROUNDS = 3
"""A convolution can be recognised, then regrouped; no more turns are needed than that and one to see it is done."""
_FIRST_ROUND = 0.65
"""Part of the measuring time for the first round, so that what it makes possible can be measured as well."""
_BEFORE_LAST = 0.85
"""Part of it for all rounds before those of the passes that finish."""
_REPLACED = "It was not measured before another rewrite took its place."


@dataclass(frozen=True)
class Found:
    """The model with what was faster in context, those rewrites in order, and what became of all others."""

    model: Model
    applied: list[Applied]
    attempts: list[Attempt]


def search(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    looking: Looking,
    seconds: float,
    most: float,
) -> Found:
    """Rounds of proposing and measuring until nothing more is faster or `seconds` are spent.

    Where candidates are still unmeasured then, up to `most` seconds are.  Passes that finish what others take have
    rounds of their own, on what the others left.
    """
    begin = time.perf_counter()
    options = looking.options
    graph = Graph(model, options.input_shapes, options.runtime.provider)
    refused = {name: forbidden(graph, rule, options.allow) for name, rule in rules.items()}
    able = allowed(rules, looking)
    last = {name: rule for name, rule in able.items() if rule.finishes}
    phases = [phase for phase in ({n: r for n, r in able.items() if n not in last}, last) if phase]
    current = model
    applied: list[Applied] = []
    attempts: list[Attempt] = []
    for number, phase in enumerate(phases, 1):
        share = 1.0 if number == len(phases) else _BEFORE_LAST
        until = (begin + share * seconds, begin + share * most)
        found = _rounds(current, phase, settings, looking, until)
        current = found.model
        applied += found.applied
        attempts += found.attempts
    return Found(current, applied, attempts + [attempt for entries in refused.values() for attempt in entries])


def allowed(rules: Mapping[str, Pass], looking: Looking) -> dict[str, Pass]:
    """The passes that have the permissions they need."""
    return {name: rule for name, rule in rules.items() if not rule.needs - looking.options.allow}


def without_made(attempts: Sequence[Attempt], made: Sequence[Applied]) -> list[Attempt]:
    """The attempts but those of rewrites that were made after all."""
    known = {(one.step.rule.name, one.rewrite.site, one.rewrite.summary) for one in made}
    return [entry for entry in attempts if (entry.pass_name, entry.site, entry.summary) not in known]


def _rounds(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    looking: Looking,
    until: tuple[float, float],
) -> Found:
    """Rounds of some of the passes, up to `until`: two times of `time.perf_counter`, the later where some are left."""
    begin = time.perf_counter()
    first = begin + (until[0] - begin) * _FIRST_ROUND
    current = model
    applied: list[Applied] = []
    attempts: list[Attempt] = []
    measured: set[str] = set()
    late: Mapping[str, Sequence[Applied]] = {}
    for turn in range(_ROUNDS):
        graph = Graph(current, looking.options.input_shapes, looking.options.runtime.provider)
        offered, declined = candidates(graph, rules, settings)
        if turn:  # what an earlier round declined, or measured and did not keep, would only come out the same
            new = fresh(applied, current) - measured
            further = {start: onward(offered[start], applied) for start in new & offered.keys()}
            attempts += [
                entry for start in late.keys() - offered.keys() for entry in unmeasured(late[start], _REPLACED)
            ]
            offered = {start: found for start, found in offered.items() if start in late} | further
            offered = {start: variants for start, variants in offered.items() if variants}
            declined = []
        attempts += declined
        measured |= offered.keys()
        ends = until[1:] if late or turn == _ROUNDS - 1 else until if turn else (first, *until)
        deadline = next((end for end in ends if looking.patience.until(end) > 0), None)
        late = offered
        if not offered or deadline is None:
            break
        found, left_out = places(graph, offered, looking.inputs.feeds)
        attempts += left_out
        choices, others, left = choose(graph, found, looking, deadline)
        attempts += others
        late = {place.start: place.candidates for place in left}
        together, others = _in_rows(graph, found, choices, looking, deadline)
        attempts += others
        kept, clashing = compatible([*choices, *together])
        attempts += [_clash(choice) for choice in clashing]
        if not kept and not late:
            break
        if kept:
            current = current.splice(combine(current, [choice.applied.rewrite for choice in kept]))
        done = [one for choice in kept for one in _measured(choice)]
        applied += done
        rows = [one for choice in kept if choice.applied.parts for one in choice.applied.parts]
        attempts = without_made(attempts, rows)  # by themselves they were not worth it
    attempts += [entry for variants in late.values() for entry in unmeasured(variants, looking.unmeasured)]
    return Found(current, applied, attempts)


def _in_rows(
    graph: Graph, found: Sequence[Place], choices: Sequence[Choice], looking: Looking, deadline: float
) -> tuple[list[Choice], list[Attempt]]:
    """Convolutions in a row of which none was faster by itself, measured together."""
    taken = {id(choice.applied) for choice in choices}
    won = {place.start for place in found if any(id(one) in taken for one in place.candidates)}
    rows, _ = places(graph, chained(found, won, looking.findings), looking.inputs.feeds)
    if not rows or looking.patience.until(deadline) <= 0:
        return [], []
    winners, attempts, _ = choose(graph, rows, looking, deadline)
    return winners, attempts


def _measured(choice: Choice) -> list[Applied]:
    sure, found = choice.timing.verdict == "FASTER", f"{describe(choice.timing)}, measured at '{choice.measured_at}'"
    parts = choice.applied.parts
    if not parts:
        return [replace(choice.applied, why=found, sure=sure)]
    return [replace(part, why=f"{found} with all {len(parts)} in a row", sure=sure) for part in parts]


def _clash(choice: Choice) -> Attempt:
    made = choice.applied.rewrite
    reason = "Its region overlaps that of a rewrite that gains more."
    return Attempt(choice.applied.step.rule.name, made.site, "not_worth_it", reason, summary=made.summary)
