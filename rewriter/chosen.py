"""Which set of rewrites `optimize` takes: found place by place, then by a contest of sets on the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rewriter.contest import BLOCK_SECONDS, LEAST_SESSIONS, contest
from rewriter.fates import left_out
from rewriter.lean import leanest, smallest
from rewriter.lifting import convs
from rewriter.model import Model
from rewriter.moves import Move, certain
from rewriter.objective import Objective
from rewriter.pareto import Variant
from rewriter.remake import key, remade
from rewriter.rule import Attempt
from rewriter.search import Found, search
from rewriter.session import SessionFailed
from rewriter.task import Task
from rewriter.timing import Timing
from rewriter.whole_timing import Cost, time_whole

_MEASURE_SHARE, _MOST_MEASURE = 0.35, 0.4
"""Part of the budget that goes into measuring candidates, and where more could be measured than fit into that.

Where the model takes too long for a contest, all of that contest's part."""
_CONTEST_UNTIL = 0.68
"""Part of it that is spent when sets of rewrites have been timed on the whole model; the rest is for the last timing of
the best one and for the audit."""
_LONGER, _FINER = 1.3, 0.01  # times as long, and the half-width asked of a second one
_AUDIT_SHARE = 0.05  # of the budget at least, to be left for the audit then
_FURTHER = 0.1  # of the budget, to go on measuring where candidates are left
_ALL: Mapping[Objective, str] = {
    "latency": "all that was faster in context",
    "throughput": "all that was faster in context",
    "size": "all that makes the file smaller",
    "memory": "all that takes less memory",
}
"""What the set of rewrites is called that each by itself serve the objective."""


@dataclass(frozen=True)
class Chosen:
    """The set of rewrites that serves the objective best, and what became of all others."""

    best: Move
    attempts: list[Attempt]
    variants: tuple[Variant, ...] = ()
    """Whole models that were timed on the way."""
    timing: Timing | None = None
    """Of the best one, where it was timed last already."""
    complete: bool = True
    """Whether more time would find nothing else."""


def choice(task: Task) -> Chosen:
    """The rewrites that each by itself serve the objective, then, where that is speed, the best set of them."""
    until = task.patience.at(_CONTEST_UNTIL)
    if task.objective == "size":
        return _plain(task, smallest(task.model, task.rules, task.settings, task.looking))
    if task.objective == "memory":
        return _plain(task, leanest(task.model, task.rules, task.settings, task.looking, until))
    budget, cost = task.patience.budget, _cost(task)
    contested = cost is not None and cost.sessions((_CONTEST_UNTIL - _MOST_MEASURE) * budget) > LEAST_SESSIONS
    share, most = (_MEASURE_SHARE, _MOST_MEASURE) if contested else (_CONTEST_UNTIL - _FURTHER, _CONTEST_UNTIL)
    found = search(task.model, task.rules, task.settings, task.looking, share * budget, most * budget)
    first = Move(_ALL[task.objective], found.model, tuple(found.applied))
    if contested and cost is not None:
        won = contest(task, first, until, cost)
        best = _as_recorded(task, won.best)
        return Chosen(best, _settled(first, best, found.attempts), won.variants, complete=won.complete)
    best, timing = _of_two(task, _as_recorded(task, first))
    return Chosen(best, _settled(first, best, found.attempts), timing=timing)


def _plain(task: Task, found: Found) -> Chosen:
    first = Move(_ALL[task.objective], found.model, tuple(found.applied))
    return Chosen(_as_recorded(task, first), found.attempts)


def _as_recorded(task: Task, best: Move) -> Move:
    """The same rewrites as they are made again from a record, step by step: so the bytes are the same, too."""
    if not best.applied:
        return best
    model, applied = remade(task.model, best.applied, task.options)
    return replace(best, model=model, applied=tuple(applied))


def _cost(task: Task) -> Cost | None:
    """Of timing the whole model; None where there is no convolution to time it for, or it does not run."""
    if not convs(task.model):
        return None
    try:
        return Cost.of(task.model, task.looking.inputs, task.options, BLOCK_SECONDS)
    except SessionFailed:  # whatever comes next says so
        return None


def _of_two(task: Task, first: Move) -> tuple[Move, Timing | None]:
    """Without a contest: the faster of all rewrites and only the sure ones, where some are not, timed in one run."""
    sure = certain(task.model, first, task.looking)
    if not sure:
        return first, None
    seconds = max(task.timing_seconds, Cost.of(task.model, task.looking.inputs, task.options).seconds(4))
    timings = time_whole(task.model, [first.model, sure[0].model], task.looking, seconds)
    best = max((0, 1), key=lambda number: (task.holds(timings[number]), timings[number].speedup))
    return (first, sure[0])[best], timings[best]


def last_timing(task: Task, current: Model) -> Timing:
    """The model against the original on fresh data, for at least as long as the pairs for an interval take.

    Where that shows no effect though the interval is above 1, the control was restless: once more, and longer, if the
    budget allows.
    """
    seconds = max(task.timing_seconds, Cost.of(task.model, task.looking.inputs, task.options).seconds(3))
    timing = time_whole(task.model, [current], task.looking, seconds)[0]
    restless = timing.verdict == "NOISE" and timing.interval is not None and timing.interval[0] > 1
    if restless and task.patience.left > _LONGER * seconds + _AUDIT_SHARE * task.patience.budget:
        timing = time_whole(task.model, [current], task.looking, _LONGER * seconds, half_width=_FINER, seed=1)[0]
    return timing


def _settled(first: Move, best: Move, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts, without those of places that the whole model decided otherwise than the context."""
    known, kept = set(map(key, first.applied)), set(map(key, best.applied))
    new = [done for done in best.applied if key(done) not in known]
    made = {(done.step.rule.name, done.rewrite.site, done.rewrite.summary) for done in new}
    dropped = [left_out(done) for done in first.applied if key(done) not in kept]
    return dropped + [entry for entry in attempts if (entry.pass_name, entry.site, entry.summary) not in made]
