"""The one loop: survey, propose, measure, audit, time.  The only module that branches on an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rewriter import choose as choosing
from rewriter import equivalence
from rewriter.base import Pass
from rewriter.choose import Choice, compatible, places
from rewriter.equivalence import Audit, AuditOptions
from rewriter.equivalence.records import Verdict
from rewriter.errors import BadInput
from rewriter.feeds import Inputs, representative
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Applied, Step, ask, combine, replay, sweep, unreachable_sites
from rewriter.rule import Attempt, Declined, Settings
from rewriter.session import open_session, run
from rewriter.timing import MINIMUM_PAIRS, Contender, Timing, compare

Progress = Callable[[str, int, int], None]

_ROUNDS = 3
"""A convolution can be recognised, then regrouped; no more turns are needed than that and one to see it is done."""
_MEASURE_SHARE = 0.4
"""Part of the budget that goes into measuring candidates; audits and the timing of the whole model get the rest."""
_FIRST_ROUND = 0.65
"""Part of the measuring time for the first round, so that what it makes possible can be measured as well."""
_AUDITS = 3
"""Audits before giving up on a set of rewrites from which failing ones are dropped."""
_MOST_TIMING = 20.0  # seconds for the whole model's timing, unless fewer pairs than an interval needs fit into it
_BLOCK_SECONDS = 0.1  # of one timed block of the whole model


@dataclass(frozen=True)
class Outcome:
    """What the loop came to: the model to save (the original when nothing is kept), and all on the way."""

    model: Model
    changed: bool
    verdict: Verdict
    grade: str | None
    reason: str
    attempts: tuple[Attempt, ...]
    audit: Audit | None
    timing: Timing | None
    inputs: Inputs | None


def quiet(_what: str, _done: int, _total: int) -> None:
    """A progress function that shows nothing."""


def rewrite(model: Model, steps: Sequence[Step], options: RunOptions, progress: Progress = quiet) -> Outcome:
    """Apply the steps wherever they match, and audit the result; the model comes back unchanged unless that passes."""
    attempts: list[Attempt] = list(unreachable_sites(model))
    applied: list[Applied] = []
    current = model
    for number, step in enumerate(steps):
        progress("rewriting", number, len(steps))
        current, done, declined = sweep(current, step, options.input_shapes)
        applied += done
        attempts += declined
    progress("rewriting", len(steps), len(steps))
    if not applied:
        return _unchanged(model, attempts, "No pass applies anywhere.")
    audit = _audit(model, current, applied, options, progress)
    if audit.verdict != "equivalent":
        attempts = _accepted(applied, audit) + attempts
        return Outcome(model, False, audit.verdict, None, audit.reason, tuple(attempts), audit, None, None)
    attempts = _accepted(applied, audit) + attempts
    return Outcome(current, True, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit, None, None)


def optimize(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    options: RunOptions,
    budget: float = 60.0,
    progress: Progress = quiet,
) -> Outcome:
    """Keep the rewrites measured faster in context, audit them, and keep the whole only if it is faster too."""
    begin = time.perf_counter()
    inputs = representative(model, options)
    current, applied, attempts = _search(
        model, rules, settings, options, inputs, begin + _MEASURE_SHARE * budget, progress
    )
    attempts += unreachable_sites(model)
    if not applied:
        reason = "No rewrite was measured faster."
        return replace(_unchanged(model, attempts, reason), inputs=inputs)
    current, kept, audit, dropped = _audited(model, current, applied, options, progress)
    attempts = dropped + attempts
    if not kept or audit.verdict != "equivalent":
        # Nothing that was kept could be shown equivalent.  The original itself is; say why the rewrites are not in it.
        reason = f"No rewrite passed the audit: {audit.reason}"
        return replace(_unchanged(model, attempts, reason), inputs=inputs)
    left = budget - (time.perf_counter() - begin)
    timing = _time(model, current, inputs, options, min(_MOST_TIMING, left), progress)
    if timing.verdict != "FASTER":
        attempts = _demoted(kept, timing) + attempts
        reason = f"The whole was not measured faster: {timing.reason}"
        return replace(_unchanged(model, attempts, reason), inputs=inputs, timing=timing)
    attempts = _accepted(kept, audit) + attempts
    return Outcome(current, True, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit, timing, inputs)


def _search(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    options: RunOptions,
    inputs: Inputs,
    seconds: float,
    progress: Progress,
) -> tuple[Model, list[Applied], list[Attempt]]:
    """Rounds of proposing and measuring until nothing more is faster or `seconds` are spent."""
    begin = time.perf_counter()
    current = model
    applied: list[Applied] = []
    attempts: list[Attempt] = []
    measured: set[str] = set()
    for turn in range(_ROUNDS):
        graph = Graph(current, options.input_shapes)
        candidates, declined = _candidates(graph, rules, settings)
        if turn:  # what an earlier round declined, or measured and did not keep, would only come out the same
            new = _fresh(applied, current) - measured
            candidates = {start: _onward(variants, applied) for start, variants in candidates.items() if start in new}
            candidates = {start: variants for start, variants in candidates.items() if variants}
            declined = []
        attempts += declined
        measured |= candidates.keys()
        deadline = begin + seconds * (1.0 if turn else _FIRST_ROUND)
        if not candidates or time.perf_counter() > deadline:
            break
        found = places(graph, candidates, inputs.feeds)
        choices, others = choosing.choose(graph, found, inputs.feeds, options, deadline, progress)
        attempts += others
        kept, clashing = compatible(choices)
        attempts += [_clash(choice) for choice in clashing]
        if not kept:
            break
        current = current.splice(combine(current, [choice.applied.rewrite for choice in kept]))
        applied += [_measured(choice) for choice in kept]
    return current, applied, attempts


def _fresh(applied: Sequence[Applied], model: Model) -> set[str]:
    """Outputs of the Convs that rewrites put in."""
    added = {name for done in applied for node in done.rewrite.added if node.op_type == "Conv" for name in node.output}
    return added & {name for node in model.nodes for name in node.output}


def _onward(variants: Sequence[Applied], applied: Sequence[Applied]) -> list[Applied]:
    """Without those that would undo a rewrite just made."""
    taken = {done.step.rule.takes for done in applied} - {""}
    return [variant for variant in variants if variant.step.rule.gives not in taken]


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
            except Declined:
                variants = ({},)
            answers = [(variant, ask(graph, rule, node, {**fixed, **variant})) for variant in variants or ({},)]
            made = [
                Applied(Step(rule, {**fixed, **variant}), answer)
                for variant, answer in answers
                if not isinstance(answer, Attempt)
            ]
            declined += [answer for _, answer in answers if isinstance(answer, Attempt)]
            if made:
                found.setdefault(start, []).extend(made)
    return _whole_forms(found, declined), declined


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
    return replace(choice.applied, why=f"{choosing.describe(choice.timing)}, measured at '{choice.measured_at}'")


def _clash(choice: Choice) -> Attempt:
    made = choice.applied.rewrite
    reason = "Its region overlaps that of a rewrite that gains more."
    return Attempt(choice.applied.step.rule.name, made.site, "not_worth_it", reason, summary=made.summary)


def _audited(
    model: Model, current: Model, applied: list[Applied], options: RunOptions, progress: Progress
) -> tuple[Model, list[Applied], Audit, list[Attempt]]:
    """The rewrites that pass the audit together, those that fail dropped and named."""
    dropped: list[Attempt] = []
    audit = _audit(model, current, applied, options, progress)
    for _ in range(_AUDITS - 1):
        culprits = _culprits(applied, audit)
        if audit.verdict == "equivalent" or not culprits:
            break
        dropped += [_failed(done, audit) for done in culprits]
        sites = {done.rewrite.site for done in culprits}
        applied = [done for done in applied if done.rewrite.site not in sites]
        if not applied:
            break
        current, applied = _reassemble(model, applied, options)
        audit = _audit(model, current, applied, options, progress)
    else:
        if audit.verdict != "equivalent":
            dropped += [_failed(done, audit) for done in applied]
            applied = []
    if audit.verdict != "equivalent" and not _culprits(applied, audit):
        dropped += [_failed(done, audit) for done in applied]
        applied = []
    return current, applied, audit, dropped


def _reassemble(model: Model, applied: Sequence[Applied], options: RunOptions) -> tuple[Model, list[Applied]]:
    """The same rewrites made again on the original, in order; those that depended on one left out fall away."""
    again: list[Applied] = []
    for done in applied:
        step = Step(done.step.rule, done.step.settings, frozenset([done.rewrite.site]))
        model, made, _ = sweep(model, step, options.input_shapes)
        again += [replace(entry, why=done.why) for entry in made]
    return model, again


def _audit(before: Model, after: Model, applied: Sequence[Applied], options: RunOptions, progress: Progress) -> Audit:
    asked = AuditOptions(
        runtime=options.runtime, seed=options.seed, input_shapes=options.input_shapes, samples=options.samples
    )
    return equivalence.audit(before, after, asked, rerun=replay(applied), progress=progress)


def _culprits(applied: Sequence[Applied], audit: Audit) -> list[Applied]:
    """The rewrites inside regions that the audit did not find equivalent."""
    bad = {name for region in audit.regions if region.verdict != "equivalent" for name in region.outputs}
    return [done for done in applied if bad & _made(done)]


def _made(done: Applied) -> set[str]:
    return {name for node in done.rewrite.added for name in node.output}


def _failed(done: Applied, audit: Audit) -> Attempt:
    made = done.rewrite
    region = next((entry for entry in audit.regions if set(entry.outputs) & _made(done)), None)
    judged = audit if region is None or region.verdict == "equivalent" else region
    return Attempt(
        done.step.rule.name,
        made.site,
        "different" if judged.verdict == "different" else "not_verified",
        judged.reason,
        summary=made.summary,
    )


def _accepted(applied: Sequence[Applied], audit: Audit) -> list[Attempt]:
    """One attempt per rewrite in the model, accepted or with the audit's reason against it."""
    found = []
    for done in applied:
        region = next((entry for entry in audit.regions if set(entry.outputs) & _made(done)), None)
        verdict = audit.verdict if region is None else region.verdict
        if verdict != "equivalent":
            found.append(_failed(done, audit))
            continue
        if audit.verdict != "equivalent":
            reason = f"Verified by itself, but nothing is written because the whole model was not: {audit.reason}"
            found.append(
                Attempt(done.step.rule.name, done.rewrite.site, "not_verified", reason, summary=done.rewrite.summary)
            )
            continue
        grade = audit.grade if region is None else region.grade
        details = {"safety": done.rewrite.safety.name, "grade": grade, **({"measured": done.why} if done.why else {})}
        reason = f"{done.rewrite.summary}: {done.rewrite.safety.value}."
        found.append(
            Attempt(
                done.step.rule.name,
                done.rewrite.site,
                "accepted",
                reason,
                summary=done.rewrite.summary,
                details=details,
            )
        )
    return found


def _demoted(applied: Sequence[Applied], timing: Timing) -> list[Attempt]:
    """One attempt per rewrite that was faster in context, in a model that was not faster as a whole."""
    outcome: Literal["slower", "not_worth_it"] = "slower" if timing.verdict == "SLOWER" else "not_worth_it"
    return [
        Attempt(
            done.step.rule.name,
            done.rewrite.site,
            outcome,
            f"{done.why}, but the whole model was not measured faster.",
            summary=done.rewrite.summary,
        )
        for done in applied
    ]


def _unchanged(model: Model, attempts: Sequence[Attempt], reason: str) -> Outcome:
    """Nothing is kept: the output is the input, which needs no audit to be equivalent to itself."""
    return Outcome(model, False, "equivalent", "bitwise", reason, tuple(attempts), None, None, None)


def _time(
    before: Model, after: Model, inputs: Inputs, options: RunOptions, seconds: float, progress: Progress
) -> Timing:
    """Both models in one interleaved run, for at least as long as the pairs for an interval take."""
    original = Contender("original", before.to_bytes(), before.folder)
    return compare(
        original,
        [Contender("rewritten", after.to_bytes(), after.folder)],
        inputs.feeds,
        options.runtime,
        budget_seconds=max(seconds, _least_seconds(original, inputs, options)),
        block_seconds=_BLOCK_SECONDS,
        seed=options.seed,
        progress=lambda fraction: progress("timing the whole model", round(100 * fraction), 100),
    )[0]


def _least_seconds(original: Contender, inputs: Inputs, options: RunOptions) -> float:
    """About how long the least number of pairs takes: each times two blocks of original, control and candidate."""
    begin = time.perf_counter()
    session = open_session(original.model, options.runtime, external_folder=original.external_folder)
    run(session, inputs.feeds)
    loaded = time.perf_counter()
    run(session, inputs.feeds)
    block = max(_BLOCK_SECONDS, time.perf_counter() - loaded)
    return 1.3 * (3 * (loaded - begin) + (MINIMUM_PAIRS + 1) * 6 * block)


def check_pass_choice(known: Mapping[str, Pass], only: Sequence[str], skip: Sequence[str]) -> dict[str, Pass]:
    """The passes that `--only` and `--skip` leave; raises BadInput for an unknown name or an empty choice."""
    for name in (*only, *skip):
        if name not in known:
            raise BadInput(f"there is no pass '{name}'; there are: {', '.join(known)}.")
    chosen = {name: rule for name, rule in known.items() if (not only or name in only) and name not in skip}
    if not chosen:
        raise BadInput("--only and --skip leave no pass to try.")
    return chosen
