"""The one loop: survey, propose, measure, audit, time.  The only module that branches on an outcome."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from rewriter.activations import Activations
from rewriter.base import Pass
from rewriter.blame import Accepts, fallen, find_blame
from rewriter.certificate.digests import file_digest
from rewriter.equivalence import Audit
from rewriter.equivalence.records import Verdict
from rewriter.errors import BadInput
from rewriter.fates import accepted, demoted, left_out
from rewriter.feeds import Inputs, representative
from rewriter.lifting import convs
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.planned import from_plan
from rewriter.profile import KernelTime, profile
from rewriter.propose import Applied, Step, check_allowed, sweep, unreachable_sites
from rewriter.providers import PROVIDERS
from rewriter.remake import approximates, audit_rewritten, remade
from rewriter.rule import Attempt, Settings
from rewriter.search import search
from rewriter.session import SessionFailed
from rewriter.timing import Timing
from rewriter.tuning import Memory, asked_digest
from rewriter.whole_timing import time_whole

Progress = Callable[[str, int, int], None]

_MEASURE_SHARE = 0.6
"""Part of the budget that goes into measuring candidates; the timing of the whole model and the audit get the rest."""
_TIMING_SHARE = 0.2
_AUDIT_SHARE = 0.15  # kept for the audit where more candidates could be measured than fit into their part
_MOST_TIMING = 20.0  # seconds for the whole model's timing, unless fewer pairs than an interval needs fit into it


Kernels = tuple[tuple[KernelTime, ...], tuple[KernelTime, ...]]


@dataclass(frozen=True)
class Refused:
    """A rewritten model that did not pass, and the audit that says why."""

    model: Model
    audit: Audit


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
    kernels: Kernels | None = None
    """Where the original and the rewritten model spend their time, where it was looked at."""
    refused: Refused | None = None
    """With all rewrites, where these did not pass; without some of them it may have."""


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
        captured = Activations(current, options.samples, options.runtime) if approximates(step) else None
        current, done, declined = sweep(current, step, options.input_shapes, options.runtime.provider, captured)
        applied += done
        attempts += declined
    progress("rewriting", len(steps), len(steps))
    if not applied:
        return _unchanged(model, attempts, _nothing_done(model, "No pass applies anywhere."))
    sifted = _sift(model, current, applied, options, lambda audit: audit.accepted, progress)
    audit = sifted.first
    if audit.accepted:
        attempts = accepted(applied, audit) + attempts
        outcome = Outcome(current, True, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit)
        return replace(outcome, notes=notes if audit.verdict == "approximate" else ())
    attempts = [*sifted.dropped, *_withheld(sifted), *attempts]
    refused = Refused(current, audit)
    return Outcome(model, False, audit.verdict, audit.grade, _blaming(sifted), tuple(attempts), audit, refused=refused)


@dataclass(frozen=True)
class _Sifted:
    """Rewrites that pass the audit together, and those that had to go for that."""

    model: Model
    kept: list[Applied]
    audit: Audit
    """Of the rewrites kept; where none is, the first one."""
    first: Audit
    """Of all rewrites."""
    dropped: list[Attempt]


def _sift(
    model: Model,
    current: Model,
    applied: Sequence[Applied],
    options: RunOptions,
    accepts: Accepts,
    progress: Progress,
) -> _Sifted:
    """Audit `current`, which has the rewrites applied, and drop what is to blame until what is left passes."""
    first = audit = audit_rewritten(model, current, applied, options, progress)
    kept, dropped = list(applied), list[Attempt]()
    while kept and not accepts(audit):
        blamed = find_blame(model, current, kept, audit, options, accepts, progress)
        rest = [done for done in kept if all(done is not entry.done for entry in blamed)]
        current, again = remade(model, rest, options)
        dropped += [*(entry.attempt for entry in blamed), *fallen(kept, blamed, again)]
        kept = again
        if kept:
            audit = audit_rewritten(model, current, kept, options, progress)
    return _Sifted(current, kept, audit if kept else first, first, dropped)


def _withheld(sifted: _Sifted) -> list[Attempt]:
    """What would have been written, had it been asked for alone."""
    grade = f" ({sifted.audit.grade})" if sifted.audit.grade else ""
    found = f"Found {sifted.audit.verdict}{grade} without what was dropped"
    reason = f"{found}, but not written: exactly these passes were asked for."
    return [
        Attempt(done.step.rule.name, done.rewrite.site, "withheld", reason, summary=done.rewrite.summary)
        for done in sifted.kept
    ]


def _blaming(sifted: _Sifted) -> str:
    """The first audit's reason, and whether the others are fine without what is to blame."""
    if not sifted.kept:
        return sifted.first.reason
    what, count = sifted.dropped[0], len(sifted.dropped)
    more, them = (f" and {count - 1} more", "them") if count > 1 else ("", "it")
    others = "the other rewrite passes" if len(sifted.kept) == 1 else f"the other {len(sifted.kept)} rewrites pass"
    return (
        f"{sifted.first.reason} To blame: {what.pass_name} at '{what.site}'{more}; without {them} {others} the audit."
    )


def _measurable(model: Model, steps: Sequence[Step], options: RunOptions) -> tuple[RunOptions, tuple[str, ...]]:
    """Options with inputs to measure approximations on, and a note where they had to be made up."""
    if options.samples or not any(map(approximates, steps)):
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
    memory: Memory | None = None,
) -> Outcome:
    """Keep the rewrites measured faster in context if the whole model is faster with them, and audited equivalent.

    What `memory` has of this machine is not measured again, and what comes out is added to it.
    """
    begin = time.perf_counter()
    inputs = representative(model, options)
    seconds = min(_MOST_TIMING, _TIMING_SHARE * budget)
    task = _Task(model, rules, settings, options, inputs, budget, begin, progress)
    known = None if memory is None else _recalled(task, memory, seconds)
    if known is not None:
        return known
    share = _MEASURE_SHARE * budget
    most = max(share, budget - seconds - _AUDIT_SHARE * budget - (time.perf_counter() - begin))
    current, applied, attempts = search(model, rules, settings, options, inputs, share, most, progress, memory)
    attempts += unreachable_sites(model)
    if not applied:
        notes = _remember(task, memory, [], None)
        unchanged = _unchanged(model, attempts, _nothing_done(model, _none_faster(attempts)))
        return replace(unchanged, inputs=inputs, notes=notes)
    current, kept, timing, without = _fastest(model, current, applied, inputs, options, seconds, progress)
    outcome, kept = _judged(task, current, kept, timing, without + attempts)
    return replace(outcome, notes=(*outcome.notes, *_remember(task, memory, kept, outcome)))


@dataclass(frozen=True)
class _Task:
    """What `optimize` was asked, and since when."""

    model: Model
    rules: Mapping[str, Pass]
    settings: Mapping[str, Settings]
    options: RunOptions
    inputs: Inputs
    budget: float
    begin: float
    progress: Progress

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.perf_counter() - self.begin)

    @property
    def identity(self) -> tuple[str, str]:
        """Digests of the model with its data, and of what was asked: what a recorded plan is of."""
        asked = asked_digest(self.rules, self.settings, self.options, self.inputs.shapes)
        return sha256(file_digest(self.model).model_dump_json().encode()).hexdigest(), asked


def _judged(
    task: _Task, current: Model, kept: list[Applied], timing: Timing, attempts: list[Attempt]
) -> tuple[Outcome, list[Applied]]:
    """What becomes of rewrites that were timed as a whole: audited where that is faster; and those that are kept."""
    model, options, inputs, progress = task.model, task.options, task.inputs, task.progress
    if timing.verdict == "FASTER":
        sifted = _sift(model, current, kept, options, lambda audit: audit.verdict == "equivalent", progress)
        refused = Refused(current, sifted.first) if sifted.dropped else None
        current, kept, audit = sifted.model, sifted.kept, sifted.audit
        attempts = sifted.dropped + attempts
        if not kept:
            # The original itself is equivalent to the original; say why the rewrites are not in it.
            reason = f"No rewrite passed the audit: {audit.reason}"
            return replace(_unchanged(model, attempts, reason), inputs=inputs, refused=refused), []
        if sifted.dropped:
            timing = time_whole(model, [current], inputs, options, task.left, progress)[0]
        if timing.verdict == "FASTER":
            attempts = accepted(kept, audit, again=bool(sifted.dropped)) + attempts
            outcome = Outcome(
                current, True, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit, timing, inputs
            )
            return replace(outcome, refused=refused, kernels=_kernels(task, current)), kept
    attempts = demoted(kept, timing) + attempts
    reason = f"The whole was not measured faster: {timing.reason}"
    return replace(_unchanged(model, attempts, reason), inputs=inputs, timing=timing), []


def _recalled(task: _Task, memory: Memory, seconds: float) -> Outcome | None:
    """The rewrites recorded for this model, timed and audited again; None where there are none that hold."""
    plan = None
    with contextlib.suppress(BadInput):  # records that cannot be read are none
        plan = memory.plan(*task.identity, task.budget)
    made = None if plan is None else from_plan(task.model, plan, task.rules, task.options)
    if plan is None or made is None:
        return None
    current, applied = made
    timing = time_whole(task.model, [current], task.inputs, task.options, seconds, task.progress)[0]
    outcome, _ = _judged(task, current, applied, timing, list(unreachable_sites(task.model)))
    when = f"{plan.created:%Y-%m-%d}"
    note = f"Nothing was searched: these rewrites were recorded on {when}, on this machine (--no-records searches)."
    return replace(outcome, notes=(*outcome.notes, note)) if outcome.changed else None


def _remember(task: _Task, memory: Memory | None, kept: Sequence[Applied], outcome: Outcome | None) -> tuple[str, ...]:
    """Record what was measured, and the rewrites kept; a note where that cannot be done, which spoils nothing else."""
    if memory is None:
        return ()
    plan = None
    if outcome is not None and outcome.changed and outcome.timing is not None:
        complete = all(entry.outcome != "unmeasured" for entry in outcome.attempts)
        plan = memory.planned(*task.identity, kept, outcome.timing.speedup, task.budget, complete=complete)
    try:
        memory.keep(kept if plan else [], plan)
    except BadInput as error:
        return (f"What was measured is not kept: {error}",)
    return ()


def _kernels(task: _Task, after: Model) -> Kernels | None:
    """Where both models spend their time, on providers whose kernels finish when they return."""
    if PROVIDERS[task.options.runtime.provider].bound:
        return None
    task.progress("profiling", 0, 1)
    try:
        before, now = (
            profile(one.to_bytes(), task.inputs.feeds, task.options.runtime, external_folder=one.folder)
            for one in (task.model, after)
        )
    except SessionFailed:
        return None
    return before, now


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
    sure_model, sure = _leaving_out(model, applied, doubtful, options) if doubtful else (everything, list(applied))
    rivals = [everything, sure_model] if doubtful and sure else [everything]
    timings = time_whole(model, rivals, inputs, options, seconds, progress)
    best = max(timings, key=lambda timing: (timing.verdict == "FASTER", timing.speedup))
    if best is not timings[0]:
        return sure_model, sure, timings[1], [left_out(done) for done in doubtful]
    return everything, list(applied), timings[0], []


def _leaving_out(
    model: Model, applied: Sequence[Applied], some: Sequence[Applied], options: RunOptions
) -> tuple[Model, list[Applied]]:
    return remade(model, [done for done in applied if all(done is not other for other in some)], options)


def _unchanged(model: Model, attempts: Sequence[Attempt], reason: str) -> Outcome:
    """Nothing is kept: the output is the input, which needs no audit to be equivalent to itself."""
    return Outcome(model, False, "equivalent", "bitwise", reason, tuple(attempts))


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
