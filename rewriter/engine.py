"""The one loop: survey, propose, measure, audit, time.  The only module that branches on an outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from rewriter.activations import Activations
from rewriter.base import Pass
from rewriter.blame import Accepts, fallen, find_blame
from rewriter.choose import Looking
from rewriter.chosen import choice, last_timing
from rewriter.compared import Kernels, Last, kernels, side_by_side
from rewriter.equivalence import Audit
from rewriter.equivalence.records import Verdict
from rewriter.errors import BadInput
from rewriter.fates import accepted, demoted
from rewriter.feeds import Inputs, representative
from rewriter.lifting import convs
from rewriter.model import Model
from rewriter.moves import Move
from rewriter.objective import USUAL_BATCH, Objective
from rewriter.options import RunOptions
from rewriter.pareto import Variant
from rewriter.patience import Patience, Stop, never
from rewriter.planned import from_plan
from rewriter.propose import Applied, Step, check_allowed, sweep, unreachable_sites
from rewriter.remake import approximates, audit_rewritten, remade
from rewriter.rule import Attempt, Settings
from rewriter.task import Task
from rewriter.timing import Timing
from rewriter.tuning import Memory
from rewriter.whole_timing import runs

Progress = Callable[[str, int, int], None]

_INTERRUPTED = "Interrupted: the search ended before its time; with more of it there may be more to gain."


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
    variants: tuple[Variant, ...] = ()
    """The original and the sets of rewrites that were timed as whole models, the one that was chosen among them."""
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
    *,
    objective: Objective = "latency",
    stop: Stop = never,
) -> Outcome:
    """Keep the rewrites measured faster in context if the whole model is faster with them, and audited equivalent.

    With another objective those that make it smaller, if the whole model is not slower with them.  What `memory` has of
    this machine is not measured again, and what comes out is added to it.  When `stop()` holds, nothing more is looked
    for: the best so far is timed and audited.
    """
    patience = Patience(budget, stop)
    inputs, options, notes = _fitting(model, options, objective)
    task = Task(model, rules, settings, Looking(options, inputs, patience, progress, memory), objective)
    known = None if memory is None else _recalled(task, memory)
    if known is not None:
        return replace(known, notes=(*notes, *known.notes))
    found = choice(task)
    best, attempts = found.best, found.attempts + unreachable_sites(model)
    kept: list[Applied] = []
    if best.applied:
        timing = found.timing or last_timing(task, best.model)
        outcome, kept = _judged(task, best.model, list(best.applied), timing, attempts)
        outcome = replace(outcome, variants=_variants(task, best, outcome, found.variants))
    else:
        reason = _nothing_done(model, _none_better(objective, attempts))
        outcome = replace(_unchanged(model, attempts, reason), inputs=inputs)
    notes += (_INTERRUPTED,) if patience.stopped else ()
    kept_notes = _remember(task, memory, kept, outcome, complete=found.complete)
    return replace(outcome, notes=(*notes, *outcome.notes, *kept_notes))


def _fitting(model: Model, options: RunOptions, objective: Objective) -> tuple[Inputs, RunOptions, tuple[str, ...]]:
    """Inputs to time with; where nobody gave a batch for throughput, of one that the model takes."""
    if objective != "throughput" or options.batch is not None or options.samples:
        return representative(model, options), options, ()
    several = replace(options, batch=USUAL_BATCH)
    inputs = representative(model, several)
    if runs(model, inputs.feeds, options):
        return inputs, several, ()
    note = f"The model does not run with a batch of {USUAL_BATCH}: it was timed with 1."
    return representative(model, options), options, (note,)


def _judged(
    task: Task, current: Model, kept: list[Applied], timing: Timing, attempts: list[Attempt]
) -> tuple[Outcome, list[Applied]]:
    """What becomes of rewrites that were timed as a whole: audited where that holds; and those that are kept."""
    model, options, looking = task.model, task.options, task.looking
    refused = None
    if task.holds(timing):
        sifted = _sift(model, current, kept, options, lambda audit: audit.verdict == "equivalent", looking.progress)
        refused = Refused(current, sifted.first) if sifted.dropped else None
        current, kept, audit = sifted.model, sifted.kept, sifted.audit
        attempts = sifted.dropped + attempts
        if not kept:
            # The original itself is equivalent to the original; say why the rewrites are not in it.
            reason = f"No rewrite passed the audit: {audit.reason}"
            return replace(_unchanged(model, attempts, reason), inputs=looking.inputs, refused=refused), []
        if sifted.dropped:
            timing = last_timing(task, current)
        if task.holds(timing):
            attempts = accepted(kept, audit, again=bool(sifted.dropped)) + attempts
            outcome = Outcome(
                current, True, audit.verdict, audit.grade, audit.reason, tuple(attempts), audit, timing, looking.inputs
            )
            return replace(outcome, refused=refused, kernels=kernels(task, current)), kept
    how = "measured faster" if task.about_speed else "shown to be as fast"
    attempts = demoted(kept, timing, how) + attempts
    reason = f"The whole was not {how}: {timing.reason}"
    return replace(_unchanged(model, attempts, reason), inputs=looking.inputs, timing=timing, refused=refused), []


def _recalled(task: Task, memory: Memory) -> Outcome | None:
    """The rewrites recorded for this model, timed and audited again; None where there are none that hold."""
    plan = None
    with contextlib.suppress(BadInput):  # records that cannot be read are none
        plan = memory.plan(*task.identity, task.patience.budget)
    made = None if plan is None else from_plan(task.model, plan, task.rules, task.options)
    if plan is None or made is None:
        return None
    current, applied = made
    timing = last_timing(task, current)
    outcome, kept = _judged(task, current, applied, timing, list(unreachable_sites(task.model)))
    when = f"{plan.created:%Y-%m-%d}"
    note = f"Nothing was searched: these rewrites were recorded on {when}, on this machine (--no-records searches)."
    if not outcome.changed:
        return None
    best = Move("as recorded", current, tuple(kept))
    return replace(outcome, notes=(*outcome.notes, note), variants=_variants(task, best, outcome, ()))


def _variants(task: Task, best: Move, outcome: Outcome, others: Sequence[Variant]) -> tuple[Variant, ...]:
    """The whole models side by side, where the best one was timed at all."""
    if outcome.timing is None:
        return ()
    after = outcome.model if outcome.changed else best.model
    kept = sum(entry.outcome == "accepted" for entry in outcome.attempts) if outcome.changed else len(best.applied)
    return side_by_side(task, Last(best.name, after, kept, outcome.timing, outcome.changed), others)


def _remember(
    task: Task, memory: Memory | None, kept: Sequence[Applied], outcome: Outcome, *, complete: bool
) -> tuple[str, ...]:
    """Record what was measured, and the rewrites kept; a note where that cannot be done, which spoils nothing else.

    Where the search was stopped, its rewrites are no plan: the next one shall look further.
    """
    if memory is None:
        return ()
    plan = None
    if outcome.changed and outcome.timing is not None and not task.patience.stopped:
        complete = complete and all(entry.outcome != "unmeasured" for entry in outcome.attempts)
        plan = memory.planned(*task.identity, kept, outcome.timing.speedup, task.patience.budget, complete=complete)
    try:
        memory.keep(kept if outcome.changed else [], plan)
    except BadInput as error:
        return (f"What was measured is not kept: {error}",)
    return ()


def _none_better(objective: Objective, attempts: Sequence[Attempt]) -> str:
    """That none is, and that some may be."""
    what = {"size": "makes the file smaller", "memory": "takes less memory"}.get(objective, "was measured faster")
    left = sum(entry.outcome == "unmeasured" for entry in attempts)
    return f"No rewrite {what}" + (f", and {left} could not be measured." if left else ".")


def _nothing_done(model: Model, reason: str) -> str:
    """The reason, unless there was nothing to look at."""
    return reason if convs(model) or unreachable_sites(model) else "The model has no convolution."


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
