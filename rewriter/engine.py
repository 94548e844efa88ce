"""The one loop: survey, propose, measure, audit, time.  The only module that branches on an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from rewriter import equivalence
from rewriter.activations import Activations
from rewriter.base import Pass
from rewriter.equivalence import Audit, AuditOptions
from rewriter.equivalence.records import Verdict
from rewriter.errors import BadInput
from rewriter.feeds import Inputs, representative
from rewriter.lifting import convs
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Applied, Step, check_allowed, replay, sweep, unreachable_sites
from rewriter.rule import Attempt, Settings
from rewriter.search import search
from rewriter.session import open_session, run
from rewriter.timing import MINIMUM_PAIRS, Contender, Timing, compare

Progress = Callable[[str, int, int], None]

_MEASURE_SHARE = 0.5
"""Part of the budget that goes into measuring candidates; the timing of the whole model and the audit get the rest."""
_TIMING_SHARE = 0.25
_AUDIT_SHARE = 0.25  # kept for the audit where more candidates could be measured than fit into their part
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
    audit: Audit | None = None
    timing: Timing | None = None
    inputs: Inputs | None = None
    notes: tuple[str, ...] = ()


def quiet(_what: str, _done: int, _total: int) -> None:
    """A progress function that shows nothing."""


def rewrite(model: Model, steps: Sequence[Step], options: RunOptions, progress: Progress = quiet) -> Outcome:
    """Apply the steps wherever they match, and audit the result; the model comes back unchanged unless that passes.

    Raises BadInput for a pass that is not allowed what it needs.
    """
    check_allowed(steps, options.allow)
    attempts: list[Attempt] = list(unreachable_sites(model))
    applied: list[Applied] = []
    current = model
    options, notes = _measurable(model, steps, options)
    for number, step in enumerate(steps):
        progress("rewriting", number, len(steps))
        captured = Activations(current, options.samples, options.runtime) if _approximates(step) else None
        current, done, declined = sweep(current, step, options.input_shapes, options.runtime.provider, captured)
        applied += done
        attempts += declined
    progress("rewriting", len(steps), len(steps))
    if not applied:
        return _unchanged(model, attempts, _nothing_done(model, "No pass applies anywhere."))
    audit = _audit(model, current, applied, options, progress)
    attempts = _accepted(applied, audit) + attempts
    result = current if audit.accepted else model
    outcome = Outcome(result, audit.accepted, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit)
    return replace(outcome, notes=notes if audit.verdict == "approximate" else ())


def _approximates(step: Step) -> bool:
    return "approximate" in step.rule.needed({**step.rule.defaults, **step.settings})


def _measurable(model: Model, steps: Sequence[Step], options: RunOptions) -> tuple[RunOptions, tuple[str, ...]]:
    """Options with inputs to measure approximations on, and a note where they had to be made up."""
    if options.samples or not any(map(_approximates, steps)):
        return options, ()
    made = representative(model, options)
    note = "No inputs were given: the errors are those on generated ones, which cannot stand for your data (--inputs)."
    return replace(options, samples=(made.feeds,)), (note,)


def optimize(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    options: RunOptions,
    budget: float = 60.0,
    progress: Progress = quiet,
) -> Outcome:
    """Keep the rewrites measured faster in context if the whole model is faster with them, and audited equivalent."""
    begin = time.perf_counter()
    inputs = representative(model, options)
    seconds = min(_MOST_TIMING, _TIMING_SHARE * budget)
    share = _MEASURE_SHARE * budget
    most = max(share, budget - seconds - _AUDIT_SHARE * budget - (time.perf_counter() - begin))
    current, applied, attempts = search(model, rules, settings, options, inputs, share, most, progress)
    attempts += unreachable_sites(model)
    if not applied:
        return replace(_unchanged(model, attempts, _nothing_done(model, _none_faster(attempts))), inputs=inputs)
    current, kept, timing, left_out = _fastest(model, current, applied, inputs, options, seconds, progress)
    attempts = left_out + attempts
    while timing.verdict == "FASTER":
        audit = _audit(model, current, kept, options, progress)
        if audit.verdict == "equivalent":
            attempts = _accepted(kept, audit) + attempts
            return Outcome(
                current, True, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit, timing, inputs
            )
        bad = _culprits(kept, audit) or kept
        attempts = [_failed(done, audit) for done in bad] + attempts
        current, kept = _without(model, kept, bad, options)
        if not kept:
            # The original itself is equivalent to the original; say why the rewrites are not in it.
            reason = f"No rewrite passed the audit: {audit.reason}"
            return replace(_unchanged(model, attempts, reason), inputs=inputs)
        timing = _time(model, [current], inputs, options, budget - (time.perf_counter() - begin), progress)[0]
    attempts = _demoted(kept, timing) + attempts
    reason = f"The whole was not measured faster: {timing.reason}"
    return replace(_unchanged(model, attempts, reason), inputs=inputs, timing=timing)


def _none_faster(attempts: Sequence[Attempt]) -> str:
    """That none is, and that some may be."""
    left = sum(entry.outcome == "unmeasured" for entry in attempts)
    return "No rewrite was measured faster" + (f", and {left} could not be measured." if left else ".")


def _nothing_done(model: Model, reason: str) -> str:
    """The reason, unless there was nothing to look at."""
    return reason if convs(model) or unreachable_sites(model) else "The model has no convolution."


def _fastest(
    model: Model,
    everything: Model,
    applied: Sequence[Applied],
    inputs: Inputs,
    options: RunOptions,
    seconds: float,
    progress: Progress,
) -> tuple[Model, list[Applied], Timing, list[Attempt]]:
    """The faster of two sets, timed as whole models in one run: all rewrites, or only those sure by themselves."""
    doubtful = [done for done in applied if not done.sure]
    sure_model, sure = _without(model, applied, doubtful, options) if doubtful else (everything, list(applied))
    rivals = [everything, sure_model] if doubtful and sure else [everything]
    timings = _time(model, rivals, inputs, options, seconds, progress)
    best = max(timings, key=lambda timing: (timing.verdict == "FASTER", timing.speedup))
    if best is not timings[0]:
        return sure_model, sure, timings[1], [_left_out(done) for done in doubtful]
    return everything, list(applied), timings[0], []


def _left_out(done: Applied) -> Attempt:
    reason = f"{done.why}, and the whole model was faster without it."
    return Attempt(done.step.rule.name, done.rewrite.site, "not_worth_it", reason, summary=done.rewrite.summary)


def _without(
    model: Model, applied: Sequence[Applied], bad: Sequence[Applied], options: RunOptions
) -> tuple[Model, list[Applied]]:
    """The other rewrites made again on the original, in order; those that depended on a bad one fall away."""
    again: list[Applied] = []
    sites = {(done.step.rule.name, done.rewrite.site) for done in bad}
    for done in applied:
        if (done.step.rule.name, done.rewrite.site) in sites:
            continue
        step = Step(done.step.rule, done.step.settings, frozenset([done.rewrite.site]))
        model, made, _ = sweep(model, step, options.input_shapes)
        again += [replace(entry, why=done.why, sure=done.sure) for entry in made]
    return model, again


def _audit(before: Model, after: Model, applied: Sequence[Applied], options: RunOptions, progress: Progress) -> Audit:
    asked = AuditOptions(
        runtime=options.runtime,
        seed=options.seed,
        input_shapes=options.input_shapes,
        samples=options.samples,
        approximated={
            name: done.rewrite.deviation.allowed
            for done in applied
            if done.rewrite.deviation is not None
            for name in _made(done)
        },
    )
    return equivalence.audit(before, after, asked, rerun=replay(applied), progress=progress)


def _culprits(applied: Sequence[Applied], audit: Audit) -> list[Applied]:
    """The rewrites inside regions that the audit did not find equivalent."""
    bad = {name for region in audit.regions if not region.accepted for name in region.outputs}
    return [done for done in applied if bad & _made(done)]


def _made(done: Applied) -> set[str]:
    return {name for node in done.rewrite.added for name in node.output}


def _failed(done: Applied, audit: Audit) -> Attempt:
    made = done.rewrite
    region = next((entry for entry in audit.regions if set(entry.outputs) & _made(done)), None)
    judged = audit if region is None or region.accepted else region
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
        if not (audit if region is None else region).accepted:
            found.append(_failed(done, audit))
            continue
        if not audit.accepted:
            reason = f"Verified by itself, but nothing is written because the whole model was not: {audit.reason}"
            found.append(
                Attempt(done.step.rule.name, done.rewrite.site, "not_verified", reason, summary=done.rewrite.summary)
            )
            continue
        grade = audit.grade if region is None else region.grade
        details: dict[str, object] = {"safety": done.rewrite.safety.name, "grade": grade}
        if done.why:
            details["measured"] = done.why
        if done.rewrite.deviation is not None:
            audited = region.level("L3") if region else None
            measured = {"audited_error": audited.figures.get("error")} if audited else {}
            details["deviation"] = asdict(done.rewrite.deviation) | measured
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
    return Outcome(model, False, "equivalent", "bitwise", reason, tuple(attempts))


def _time(
    before: Model,
    afters: Sequence[Model],
    inputs: Inputs,
    options: RunOptions,
    seconds: float,
    progress: Progress,
) -> list[Timing]:
    """All models in one interleaved run, for at least as long as the pairs for an interval take."""
    original = Contender("original", before.to_bytes(), before.folder)
    return compare(
        original,
        [Contender("rewritten", after.to_bytes(), after.folder) for after in afters],
        inputs.feeds,
        options.runtime,
        budget_seconds=max(seconds, _least_seconds(original, 2 + len(afters), inputs, options)),
        block_seconds=_BLOCK_SECONDS,
        seed=options.seed,
        progress=lambda fraction: progress("timing the whole model", round(100 * fraction), 100),
    )


def _least_seconds(original: Contender, sessions: int, inputs: Inputs, options: RunOptions) -> float:
    """About how long the least number of pairs takes: each times two blocks of every session."""
    begin = time.perf_counter()
    session = open_session(original.model, options.runtime.plain(), external_folder=original.external_folder)
    run(session, inputs.feeds)
    loaded = time.perf_counter()
    run(session, inputs.feeds)
    block = max(_BLOCK_SECONDS, time.perf_counter() - loaded)
    return 1.3 * sessions * ((loaded - begin) + (MINIMUM_PAIRS + 1) * 2 * block)


def check_pass_choice(
    known: Mapping[str, Pass], only: Sequence[str], skip: Sequence[str], allow: Collection[str]
) -> dict[str, Pass]:
    """The passes that `--only` and `--skip` leave.

    Raises BadInput for an unknown name, an empty choice, or a pass in `only` that is not allowed what it needs.
    """
    for name in (*only, *skip):
        if name not in known:
            raise BadInput(f"there is no pass '{name}'; there are: {', '.join(known)}.")
    chosen = {name: rule for name, rule in known.items() if (not only or name in only) and name not in skip}
    if not chosen:
        raise BadInput("--only and --skip leave no pass to try.")
    check_allowed((Step(rule) for name, rule in chosen.items() if name in only), allow)
    return chosen
