"""The choice over the whole model: sets of rewrites timed against the original and each other, on fresh data each time.

It begins with all that was faster in context.  A set one step away takes its place when it is faster than that by its
whole interval; what was in doubt goes when the model is no slower without it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from rewriter.model import Model
from rewriter.moves import Move, additions, certain, drops
from rewriter.pareto import Variant
from rewriter.propose import Applied
from rewriter.saving import file_bytes
from rewriter.search import allowed
from rewriter.session import SessionFailed
from rewriter.task import Task
from rewriter.timing import Timing
from rewriter.whole_timing import Cost, runs, time_whole

_MOST_BYTES = 6e8  # of the files of all rivals in one run: each session holds a copy, and packed weights besides
_MOST_RIVALS = 6  # timed in one run
_FINALISTS = 2  # of them that get a second, longer look
_HALF_WIDTH = 0.01
BLOCK_SECONDS = 0.05  # shorter than of the last timing: many sets are looked at
LEAST_SESSIONS = 4  # the original twice, the best so far, and another one
_BRIEF, _LONG = 0.6, 1.3  # times what the pairs for an interval take: a first look needs none
_CLEAR = 1.003  # a speed-up over the best so far that is worth more rewrites


@dataclass(frozen=True)
class Won:
    """The best set, and all models that were timed on the way."""

    best: Move
    variants: tuple[Variant, ...]
    complete: bool
    """Whether no set one step away is left untried."""


def contest(task: Task, first: Move, until: float, cost: Cost) -> Won:
    """From `first` to better sets, one step at a time, up to `until`, a time of `time.perf_counter`.

    `first` may have no rewrites.  What comes out was faster here, which its selection flatters: time it once more.
    """
    ring = _Ring(task, until, cost)
    best = first
    tried = {best.identity, frozenset()}
    for turn in range(1, 1 + len(task.rules) * 2):  # steps that go back and forth come to an end
        if cost.sessions(ring.left) < LEAST_SESSIONS:
            return Won(best, ring.seen, complete=False)
        moved = False
        for steps in (functools.partial(_more, task, best, first=turn == 1), functools.partial(_fewer, task, best)):
            waiting = [] if moved else [move for move in steps() if move.identity not in tried]
            while waiting and not moved:
                room = min(cost.sessions(ring.left) - 2 - bool(best.applied), _MOST_RIVALS, _fitting(task.model))
                if room < 1 or task.patience.stopped:
                    return Won(best, ring.seen, complete=False)
                rivals, waiting = waiting[:room], waiting[room:]
                tried |= {move.identity for move in rivals}
                best, moved = ring.fought(best, rivals, turn)
        if not moved:
            break
    return Won(best, ring.seen, complete=True)


def _fitting(model: Model) -> int:
    """Rivals whose sessions are in memory at once: fewer of large models."""
    return max(1, int(_MOST_BYTES / max(1, file_bytes(model))))


def _more(task: Task, best: Move, *, first: bool) -> list[Move]:
    """Sets one step away: without what is in doubt, then with more of each pass.

    At `first` each pass alone, too: picked place by place among the noise, what only pays together is scattered.
    """
    looking = task.looking
    looking.progress("looking for other sets of rewrites", 0, 0)
    able = allowed(task.rules, looking)
    more = additions(best, able, task.settings, looking)
    alone = additions(Move("", task.model, ()), able, task.settings, looking) if best.applied and first else []
    return [
        *certain(task.model, best, looking),
        *(move for pair in zip_longest(alone, more) for move in pair if move is not None),
    ]


def _fewer(task: Task, best: Move) -> list[Move]:
    """Sets without a pass, which take long to make: only where nothing else is better."""
    return drops(task.model, best, task.looking)


@dataclass(frozen=True)
class _Ring:
    """Where sets are timed against each other, up to a time of `time.perf_counter`."""

    task: Task
    until: float
    cost: Cost
    _variants: dict[Move, Variant] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.task.patience.until(self.until)

    @property
    def seen(self) -> tuple[Variant, ...]:
        """All that was timed, each as it was seen last."""
        return tuple(self._variants.values())

    def fought(self, best: Move, rivals: Sequence[Move], turn: int) -> tuple[Move, bool]:
        """The best of all after a look at each and one at the finalists; and whether it is another one than before."""
        shown = [best, *rivals] if best.applied else list(rivals)
        first = self._look(self.task.model, shown, _BRIEF * self.cost.seconds(2 + len(shown)), 2 * turn)
        if self.task.patience.stopped or (best.applied and best not in first):
            return best, False
        self._variants.update({move: _variant(move, timing) for move, timing in first.items()})
        mine = first[best].speedup if best.applied else 1.0
        able = [move for move in rivals if move in first and _may_win(move, first[move], mine)]
        room = max(0, min(_FINALISTS, self.cost.sessions(self.left) - 2))
        finalists = sorted(able, key=lambda move: -first[move].speedup)[:room]
        if not finalists:
            return best, False
        # Against the best so far: the noise of the original is in neither.
        second = self._look(best.model, finalists, _LONG * self.cost.seconds(2 + len(finalists)), 2 * turn + 1)
        winners = [move for move in finalists if move in second and _wins(move, second[move])]
        if not winners or self.task.patience.stopped:
            return best, False
        won = max(winners, key=lambda move: second[move].speedup)
        explained = replace(won, applied=_explained(best, won, second[won]))
        self._variants[explained] = self._variants.pop(won)
        return explained, True

    def _look(self, against: Model, moves: Sequence[Move], seconds: float, seed: int) -> dict[Move, Timing]:
        """The timings of all; of fewer where ONNX Runtime refuses some."""
        looking, able = self.task.looking, list(moves)
        while able:
            try:
                timings = time_whole(
                    against,
                    [move.model for move in able],
                    looking,
                    min(self.left, seconds),
                    block_seconds=BLOCK_SECONDS,
                    half_width=_HALF_WIDTH,
                    seed=seed,
                    until_stopped=True,
                )
            except SessionFailed:
                runnable = [move for move in able if runs(move.model, looking.inputs.feeds, looking.options)]
                if len(runnable) == len(able):  # it is not theirs
                    return {}
                able = runnable
                continue
            return dict(zip(able, timings, strict=True))
        return {}


def _may_win(rival: Move, timing: Timing, mine: float) -> bool:
    """Whether a first look lets it be better than the best so far."""
    return timing.speedup >= mine if rival.doubted else timing.speedup > _CLEAR * mine


def _wins(rival: Move, timing: Timing) -> bool:
    """Whether it is better than the best so far: no slower where it only lacks what is in doubt, else surely faster."""
    if timing.interval is None:
        return False
    return timing.speedup >= 1 if rival.doubted else timing.interval[0] > 1


def _explained(best: Move, won: Move, timing: Timing) -> tuple[Applied, ...]:
    """The rewrites, the new ones with what was measured of them together, against the best before."""
    known = {id(done) for done in best.applied}
    new = [done for done in won.applied if id(done) not in known]
    if won.fewer or timing.interval is None:
        return won.applied
    low, high = timing.interval
    why = f"{timing.speedup:.2f}x ({low:.2f} to {high:.2f}) over the best set before, {len(new)} of them at once"
    return tuple(replace(done, why=why, sure=True) if id(done) not in known else done for done in won.applied)


def _variant(move: Move, timing: Timing) -> Variant:
    return Variant(
        name=move.name,
        rewrites=len(move.applied),
        ms=timing.after_ms,
        speedup=timing.speedup,
        interval=timing.interval,
        bytes=file_bytes(move.model),
        peak_mib=None,
    )
