"""The measuring loop: warm up, then time short blocks of every model in mirrored random order until it is enough."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewriter.nvidia import Clocks
from rewriter.timing.clocks import ClockPair
from rewriter.timing.digest import differing, output_sha256
from rewriter.timing.runners import Runner

Clock = Callable[[], float]
"""Seconds from any origin, never going back."""

Progress = Callable[[float], None]
"""Told the part of the budget that is spent, 0 to 1; 1 at the end."""

_SETTLED_FROM: Final = 5  # runs per block from which one more, untimed, costs little


@dataclass(frozen=True)
class Plan:
    """How long to measure; all durations in seconds."""

    budget: float
    block: float = 0.1
    warmup: float = 0.2
    seed: int = 0
    warm_runs: int = 1
    """Runs of the warm-up, at least; the fastest is looked for from this one on."""


@dataclass(frozen=True)
class Rounds:
    """What was measured of each of m models."""

    log_seconds: np.ndarray
    """Natural logarithm of the seconds per run, float64 [rounds, m, 2]: each round times two blocks of each model."""
    warm_seconds: tuple[float, ...]
    """The fastest run of the warm-up, for when not even one round fitted into the budget."""
    runs: tuple[int, ...]
    """Runs per block."""
    sha256: tuple[dict[str, str], ...]
    nondeterministic: tuple[tuple[str, ...], ...]
    """Outputs whose first and last run differ."""
    clocks: ClockPair = (None, None)


def measure(
    runners: Sequence[Runner],
    plan: Plan,
    enough: Callable[[np.ndarray], bool],
    *,
    clock: Clock,
    started: float,
    progress: Progress | None = None,
    observe: Callable[[], Clocks | None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Rounds:
    """Time `runners` until `enough(log_seconds)`, `stop()`, or no further round fits into the budget.

    The budget counts from the clock's `started`. Warm-up is never cut short, so a tiny budget is exceeded by it.
    `observe` reads the device's clocks while it is warm: an idle device lowers them.
    """
    rng = np.random.default_rng(plan.seed)
    first = [output_sha256(runner.outputs()) for runner in runners]
    warm = [_warm_up(runner, plan, clock) for runner in runners]
    runs = [max(1, math.ceil(plan.block / seconds)) for seconds in warm]
    needed = sum(2 * (count + _settling(count)) * seconds for count, seconds in zip(runs, warm, strict=True))
    measured: list[np.ndarray] = []
    before = observe()
    with _no_garbage_collection():
        while not enough(_stacked(measured, len(runners))) and not stop():
            begun = clock()
            if begun - started + needed > plan.budget:
                break
            measured.append(_round(runners, runs, rng, clock))
            needed = clock() - begun
            if progress is not None:
                progress(min(1.0, (clock() - started) / plan.budget))
    after = observe()
    last = [output_sha256(runner.outputs()) for runner in runners]
    if progress is not None:
        progress(1.0)
    return Rounds(
        log_seconds=_stacked(measured, len(runners)),
        warm_seconds=tuple(warm),
        runs=tuple(runs),
        sha256=tuple(first),
        nondeterministic=tuple(differing(a, b) for a, b in zip(first, last, strict=True)),
        clocks=(before, after),
    )


def mirrored(count: int, rng: np.random.Generator) -> list[int]:
    """A random order of `count` models followed by its reverse: ABBA or BAAB for two.

    Each model's two turns lie at the same distance from the middle, so a machine that steadily gets slower or faster
    during the round changes no ratio.
    """
    order = [int(index) for index in rng.permutation(count)]
    return order + order[::-1]


def _round(runners: Sequence[Runner], runs: Sequence[int], rng: np.random.Generator, clock: Clock) -> np.ndarray:
    """Logarithms of seconds per run, float64 [m, 2]."""
    seconds: list[list[float]] = [[] for _ in runners]
    for index in mirrored(len(runners), rng):
        seconds[index].append(_block(runners[index], runs[index], clock))
    return np.log(np.asarray(seconds, dtype=np.float64))


def _block(runner: Runner, runs: int, clock: Clock) -> float:
    if _settling(runs):  # the caches still hold the model that ran before
        runner.repeat(1)
    begun = clock()
    runner.repeat(runs)
    return _positive(clock() - begun) / runs


def _settling(runs: int) -> int:
    return 1 if runs >= _SETTLED_FROM else 0


def _warm_up(runner: Runner, plan: Plan, clock: Clock) -> float:
    """Run for `plan.warmup` seconds and `plan.warm_runs` runs; returns the seconds of the fastest run that counts.

    On a device the first runs do not count: they choose algorithms, allocate, and capture a graph.
    """
    started = clock()
    fastest, runs = math.inf, 0
    while True:
        begun = clock()
        runner.repeat(1)
        now = clock()
        runs += 1
        if runs < plan.warm_runs:
            continue
        fastest = min(fastest, _positive(now - begun))
        if now - started >= plan.warmup:
            return fastest


def _positive(seconds: float) -> float:
    return max(seconds, 1e-7)  # a clock may be too coarse to see a run


def _stacked(measured: Sequence[np.ndarray], models: int) -> np.ndarray:
    return np.stack(measured) if measured else np.empty((0, models, 2))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """As timeit does: a collection would fall on one block only."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
