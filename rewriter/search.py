"""Search: rounds of proposing candidates everywhere and measuring them in context, until nothing more is faster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rewriter.base import Pass
from rewriter.choose import (
    BUDGET_SPENT,
    Choice,
    Progress,
    Promise,
    choose,
    compatible,
    describe,
    places,
    unmeasured,
)
from rewriter.feeds import Inputs
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Applied, Step, ask, combine, forbidden, refusal
from rewriter.rule import Attempt, Declined, Settings
from rewriter.tuning import Memory

_ROUNDS = 3
"""A convolution can be recognised, then regrouped; no more turns are needed than that and one to see it is done."""
_FIRST_ROUND = 0.65
"""Part of the measuring time for the first round, so that what it makes possible can be measured as well."""
_BEFORE_LAST = 0.85
"""Part of it for all rounds before those of the passes that finish."""
_REPLACED = "It was not measured before another rewrite took its place."


def search(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    options: RunOptions,
    inputs: Inputs,
    seconds: float,
    most: float,
    progress: Progress,
    memory: Memory | None = None,
) -> tuple[Model, list[Applied], list[Attempt]]:
    """Rounds of proposing and measuring until nothing more is faster or `seconds` are spent.

    Where candidates are still unmeasured then, up to `most` seconds are.  Passes that finish what others take have
    rounds of their own, on what the others left.
    """
    begin = time.perf_counter()
    graph = Graph(model, options.input_shapes, options.runtime.provider)
    refused = {name: forbidden(graph, rule, options.allow) for name, rule in rules.items()}
    able = {name: rule for name, rule in rules.items() if not rule.needs - options.allow}
    last = {name: rule for name, rule in able.items() if rule.finishes}
    phases = [phase for phase in ({n: r for n, r in able.items() if n not in last}, last) if phase]
    current = model
    promise = Promise()
    applied: list[Applied] = []
    attempts: list[Attempt] = []
    for number, phase in enumerate(phases, 1):
        share = 1.0 if number == len(phases) else _BEFORE_LAST
        until = (begin + share * seconds, begin + share * most)
        current, done, others = _rounds(current, phase, settings, options, inputs, until, progress, promise, memory)
        applied += done
        attempts += others
    return current, applied, attempts + [attempt for found in refused.values() for attempt in found]


def _rounds(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    options: RunOptions,
    inputs: Inputs,
    until: tuple[float, float],
    progress: Progress,
    promise: Promise,
    memory: Memory | None,
) -> tuple[Model, list[Applied], list[Attempt]]:
    """Rounds of some of the passes, up to `until`: two times of `time.perf_counter`, the later where some are left."""
    begin = time.perf_counter()
    first = begin + (until[0] - begin) * _FIRST_ROUND
    current = model
    applied: list[Applied] = []
    attempts: list[Attempt] = []
    measured: set[str] = set()
    late: Mapping[str, Sequence[Applied]] = {}
    for turn in range(_ROUNDS):
        graph = Graph(current, options.input_shapes, options.runtime.provider)
        candidates, declined = _candidates(graph, rules, settings)
        if turn:  # what an earlier round declined, or measured and did not keep, would only come out the same
            new = _fresh(applied, current) - measured
            onward = {start: _onward(candidates[start], applied) for start in new & candidates.keys()}
            attempts += [
                entry for start in late.keys() - candidates.keys() for entry in unmeasured(late[start], _REPLACED)
            ]
            candidates = {start: found for start, found in candidates.items() if start in late} | onward
            candidates = {start: variants for start, variants in candidates.items() if variants}
            declined = []
        attempts += declined
        measured |= candidates.keys()
        ends = until[1:] if late or turn == _ROUNDS - 1 else until if turn else (first, *until)
        deadline = next((end for end in ends if end > time.perf_counter()), None)
        late = candidates
        if not candidates or deadline is None:
            break
        found, left_out = places(graph, candidates, inputs.feeds)
        attempts += left_out
        choices, others, left = choose(graph, found, inputs.feeds, options, deadline, progress, promise, memory)
        attempts += others
        late = {place.start: place.candidates for place in left}
        kept, clashing = compatible(choices)
        attempts += [_clash(choice) for choice in clashing]
        if not kept and not late:
            break
        if kept:
            current = current.splice(combine(current, [choice.applied.rewrite for choice in kept]))
        applied += [_measured(choice) for choice in kept]
    attempts += [entry for variants in late.values() for entry in unmeasured(variants, BUDGET_SPENT)]
    return current, applied, attempts


def _fresh(applied: Sequence[Applied], model: Model) -> set[str]:
    """Outputs of the Convs that rewrites put in."""
    added = {name for done in applied for node in done.rewrite.added if node.op_type == "Conv" for name in node.output}
    return added & {name for node in model.nodes for name in node.output}


def _onward(variants: Sequence[Applied], applied: Sequence[Applied]) -> list[Applied]:
    """Without those that would undo a rewrite just made."""
    taken = {done.step.rule.takes for done in applied} - {""}
    given = {done.step.rule.gives for done in applied} - {""}
    rules = [variant.step.rule for variant in variants]
    undoes = [rule.gives in taken or rule.takes in given for rule in rules]
    return [variant for variant, back in zip(variants, undoes, strict=True) if not back]


def _candidates(
    graph: Graph, rules: Mapping[str, Pass], settings: Mapping[str, Settings]
) -> tuple[dict[str, list[Applied]], list[Attempt]]:
    """Every candidate rewrite by the output of the convolution it starts at, and the sites that were declined."""
    found: dict[str, list[Applied]] = {}
    declined: list[Attempt] = []
    for rule in rules.values():
        fixed = settings.get(rule.name, {})
        for node in rule.sites(graph):
            start = graph.model.nodes[node].output[0]
            try:
                variants = ({},) if fixed else rule.candidates(graph, node)
            except Declined as no:  # not asked with the defaults, which are for whoever measures nothing
                declined.append(refusal(graph, rule, node, no))
                continue
            if not variants:
                declined.append(_idle(rule, start))
            answers = [(variant, ask(graph, rule, node, {**fixed, **variant})) for variant in variants]
            made = [
                Applied(Step(rule, {**fixed, **variant}), answer)
                for variant, answer in answers
                if not isinstance(answer, Attempt)
            ]
            declined += [answer for _, answer in answers if isinstance(answer, Attempt)]
            if made:
                found.setdefault(start, []).extend(made)
    return _whole_forms(found, declined), declined


def _idle(rule: Pass, start: str) -> Attempt:
    """The pass fits there and has no settings to measure."""
    reason = f"Nothing here is worth measuring for latency: ask for {rule.name} by name to have it anyway."
    return Attempt(rule.name, start, "not_worth_it", reason, matched=1)


def _whole_forms(found: Mapping[str, list[Applied]], declined: list[Attempt]) -> dict[str, list[Applied]]:
    """Where a pass replaces a form of several nodes as a whole, passes for one node of it wait for the result."""
    kept: dict[str, list[Applied]] = {}
    for start, options in found.items():
        whole = [option for option in options if option.step.rule.takes]
        kept[start] = whole or options
        if whole:
            first = whole[0].step.rule
            reason = f"It is one part of a {first.takes} form, which {first.name} replaces as a whole."
            parts = [option for option in options if not option.step.rule.takes]
            declined += [Attempt(part.step.rule.name, start, "not_worth_it", reason, matched=1) for part in parts]
    return kept


def _measured(choice: Choice) -> Applied:
    why = f"{describe(choice.timing)}, measured at '{choice.measured_at}'"
    return replace(choice.applied, why=why, sure=choice.timing.verdict == "FASTER")


def _clash(choice: Choice) -> Attempt:
    made = choice.applied.rewrite
    reason = "Its region overlaps that of a rewrite that gains more."
    return Attempt(choice.applied.step.rule.name, made.site, "not_worth_it", reason, summary=made.summary)
