"""What makes a model smaller, or take less memory: nothing is timed here, bytes are counted or measured instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from rewriter.base import Pass
from rewriter.candidates import candidates, fresh, onward
from rewriter.choose import Looking
from rewriter.errors import NotVerified
from rewriter.footprint import NOISE_MIB, peak_memory
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.moves import Move, additions
from rewriter.propose import Applied, combine, forbidden, merge, overlap
from rewriter.rule import Attempt, Settings
from rewriter.saving import file_bytes
from rewriter.search import Found, allowed, without_made

_ROUNDS = 3
_MOST_SETS = 8  # whose peak is measured in one round


def smallest(model: Model, rules: Mapping[str, Pass], settings: Mapping[str, Settings], looking: Looking) -> Found:
    """At each convolution the rewrite that saves most bytes of the file, in rounds, until nothing saves any."""
    options = looking.options
    able = allowed(rules, looking)
    current, applied = model, list[Applied]()
    attempts = _refused(model, rules, looking)
    for turn in range(_ROUNDS):
        looking.progress("looking for smaller forms", turn, _ROUNDS)
        graph = Graph(current, options.input_shapes, options.runtime.provider)
        offered, declined = candidates(graph, able, settings)
        new = fresh(applied, current)
        attempts += [] if turn else declined
        chosen: list[Applied] = []
        size = file_bytes(current)
        for start, variants in offered.items():
            some = onward(variants, applied) if start in new else variants
            saved = {id(one): size - file_bytes(current.splice(merge([one.rewrite]))) for one in some}
            best = max(some, key=lambda one: saved[id(one)], default=None)
            fits = best is not None and not any(overlap(best.rewrite, other.rewrite) for other in chosen)
            if best is not None and fits and saved[id(best)] > 0:
                chosen.append(_because(best, f"{saved[id(best)]} bytes less"))
            if not turn:
                attempts += [_kept_out(one, _grown(saved[id(one)])) for one in some if saved[id(one)] <= 0]
        if not chosen:
            break
        current = current.splice(combine(current, [one.rewrite for one in chosen]))
        applied += chosen
    return Found(current, applied, without_made(attempts, applied))


def leanest(
    model: Model,
    rules: Mapping[str, Pass],
    settings: Mapping[str, Settings],
    looking: Looking,
    until: float,
) -> Found:
    """From the smallest file on, one pass more at a time wherever it applies, while the measured peak gets lower.

    `until` is a time of `time.perf_counter`.  Raises as `peak_memory` does.
    """
    found = smallest(model, rules, settings, looking)
    able = allowed(rules, looking)

    def peak(one: Model) -> float:
        return peak_memory(one, looking.inputs.feeds, looking.options.runtime)

    looking.progress("measuring memory", 0, 0)
    start, lowest = Move("", found.model, tuple(found.applied)), peak(found.model)
    if found.applied and lowest > (before := peak(model)) + NOISE_MIB:
        start, lowest = Move("", model, ()), before
    best, attempts = start, found.attempts
    for _ in range(_ROUNDS):
        sets = additions(best, able, settings, looking)[:_MOST_SETS]
        better, seen = _lowest(sets, peak, lowest, lambda: looking.patience.until(until) > 0)
        attempts += [_set_aside(one, best, mib - lowest) for one, mib in seen if one is not better]
        if better is None:
            break
        saved = lowest - {one.name: mib for one, mib in seen}[better.name]
        known = set(map(id, best.applied))
        why = f"{saved:.1f} MiB less at the peak, with {len(better.applied) - len(best.applied) - 1} others"
        applied = tuple(one if id(one) in known else _because(one, why) for one in better.applied)
        best, lowest = Move(better.name, better.model, applied), lowest - saved
    return Found(best.model, list(best.applied), without_made(attempts, best.applied))


def _lowest(
    sets: list[Move], peak: Callable[[Model], float], lowest: float, more: Callable[[], bool]
) -> tuple[Move | None, list[tuple[Move, float]]]:
    """The set with the lowest peak, where that is lower by more than the noise; and all that were measured."""
    seen: list[tuple[Move, float]] = []
    for one in sets:
        if more():
            with contextlib.suppress(NotVerified):  # that set cannot be run
                seen.append((one, peak(one.model)))
    best = min(seen, key=lambda pair: pair[1], default=None)
    return (best[0] if best and best[1] < lowest - NOISE_MIB else None), seen


def _refused(model: Model, rules: Mapping[str, Pass], looking: Looking) -> list[Attempt]:
    graph = Graph(model, looking.options.input_shapes, looking.options.runtime.provider)
    return [entry for rule in rules.values() for entry in forbidden(graph, rule, looking.options.allow)]


def _because(one: Applied, why: str) -> Applied:
    return replace(one, why=why)


def _grown(saved: int) -> str:
    return f"The file would be {-saved} bytes larger." if saved else "The file would be as large as it is."


def _kept_out(one: Applied, reason: str) -> Attempt:
    made = one.rewrite
    return Attempt(one.step.rule.name, made.site, "not_worth_it", reason, summary=made.summary)


def _set_aside(one: Move, best: Move, more: float) -> Attempt:
    first = one.applied[len(best.applied)]
    reason = f"The peak memory changes by {more:+.1f} MiB with it wherever it applies."
    return _kept_out(first, reason)
