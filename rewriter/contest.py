"""The choice over the whole model: sets of rewrites timed against the original and each other, on fresh data each time.

It begins with all that was faster in context.  A set one step away takes its place when it is faster than that by its
whole interval; what was in doubt goes when the model is no slower without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from rewriter.base import Pass
from rewriter.choose import Looking
from rewriter.model import Model
from rewriter.moves import Move, additions, drops
from rewriter.pareto import Variant
from rewriter.propose import Applied
from rewriter.rule import Settings
from rewriter.timing import Timing
from rewriter.whole_timing import Cost, time_whole

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


def contest(
    model: Model,
    first: Move,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    looking: Looking,
    until: float,
    cost: Cost,
) -> Won:
    """From `first` to better sets, one step at a time, up to `until`, a time of `time.perf_counter`.

    `first` may have no rewrites.  What comes out was faster here, which its selection flatters: time it once more.
    """
    best = first
    variants: dict[str, Variant] = {}
    tried = {best.identity, frozenset()}
    for turn in range(1, 1 + len(rules) * 2):  # steps that go back and forth come to an end
        if cost.sessions(looking.patience.until(until)) < LEAST_SESSIONS:
            break
        steps = _steps(model, best, rules, settings, looking, first=turn == 1)
        waiting = [move for move in steps if move.identity not in tried]
        if not waiting:
            break
        moved = False
        while waiting and not moved:
            room = cost.sessions(looking.patience.until(until)) - 2 - bool(best.applied)
            rivals, waiting = waiting[: min(room, _MOST_RIVALS)], waiting[max(0, min(room, _MOST_RIVALS)) :]
            if room < 1:
                return Won(best, tuple(variants.values()))
            tried |= {move.identity for move in rivals}
            best, moved = _round(model, best, rivals, looking, until, cost, turn, variants)
    return Won(best, tuple(variants.values()))


def _steps(
    model: Model,
    best: Move,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    looking: Looking,
    *,
    first: bool,
) -> list[Move]:
    """All sets one step away: without what is in doubt, then more of each pass, then less of each.

    At `first` each pass alone, too: picked place by place among the noise, what only pays together is scattered.
    """
    looking.progress("looking for other sets of rewrites", 0, 0)
    without = drops(model, best, looking)
    more = additions(best, rules, settings, looking)
    alone = additions(Move("", model, ()), rules, settings, looking) if best.applied and first else []
    return [
        *(move for move in without if move.doubted),
        *(move for pair in zip_longest(alone, more) for move in pair if move is not None),
        *(move for move in without if not move.doubted),
    ]


def _round(
    model: Model,
    best: Move,
    rivals: Sequence[Move],
    looking: Looking,
    until: float,
    cost: Cost,
    turn: int,
    variants: dict[str, Variant],
) -> tuple[Move, bool]:
    """The best of all after a look at each and one at the finalists; and whether it is another one than before."""
    shown = [best, *rivals] if best.applied else list(rivals)
    first = dict(
        zip(shown, _look(model, shown, looking, until, _BRIEF * cost.seconds(2 + len(shown)), turn), strict=True)
    )
    variants.update({move.name: _variant(move, timing) for move, timing in first.items()})
    mine = first[best].speedup if best.applied else 1.0
    finalists = sorted((move for move in rivals if _may_win(move, first[move], mine)), key=lambda m: -first[m].speedup)
    finalists = finalists[: max(0, min(_FINALISTS, cost.sessions(looking.patience.until(until)) - 2))]
    if not finalists or looking.patience.stopped:
        return best, False
    # Against the best so far: the noise of the original is in neither.
    seconds = _LONG * cost.seconds(2 + len(finalists))
    second = dict(zip(finalists, _look(best.model, finalists, looking, until, seconds, -turn), strict=True))
    winners = [move for move in finalists if _wins(move, second[move])]
    if not winners or looking.patience.stopped:
        return best, False
    won = max(winners, key=lambda move: second[move].speedup)
    return replace(won, applied=_explained(best, won, second[won])), True


def _look(
    against: Model, moves: Sequence[Move], looking: Looking, until: float, seconds: float, turn: int
) -> list[Timing]:
    return time_whole(
        against,
        [move.model for move in moves],
        looking,
        min(looking.patience.until(until), seconds),
        block_seconds=BLOCK_SECONDS,
        half_width=_HALF_WIDTH,
        seed=abs(2 * turn + (turn < 0)),
        until_stopped=True,
    )


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
    why = f"{timing.speedup:.2f}x ({low:.2f} to {high:.2f}) in the whole model, {len(new)} of them at once"
    return tuple(replace(done, why=why, sure=True) if id(done) not in known else done for done in won.applied)


def _variant(move: Move, timing: Timing) -> Variant:
    return Variant(
        name=move.name,
        rewrites=len(move.applied),
        ms=timing.after_ms,
        speedup=timing.speedup,
        interval=timing.interval,
        bytes=move.model.size,
        peak_mib=None,
    )
