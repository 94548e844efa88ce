"""Paired measurement of models on the same inputs: how much faster, how sure, and what could not have been seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rewriter.errors import BadInput
from rewriter.providers import PROVIDERS
from rewriter.session import Runtime
from rewriter.timing.clocks import ReadClocks, device_name, read_clocks
from rewriter.timing.digest import differing
from rewriter.timing.records import Contender, Latency, Timing
from rewriter.timing.rounds import Clock, Plan, Progress, Rounds, measure
from rewriter.timing.runners import NamedRunner, OpenRunner, open_runner
from rewriter.timing.statistics import MINIMUM_PAIRS, Interval, Verdict, judge, median_interval, smallest_effect

_BEFORE, _CONTROL, _AFTERS = 0, 1, 2  # places among the models of a measurement
_BOUND_WARM_RUNS = 3  # the first on a device chooses algorithms, the second may still allocate


def compare(
    before: Contender,
    afters: Sequence[Contender],
    feeds: Mapping[str, np.ndarray],
    runtime: Runtime,
    *,
    budget_seconds: float,
    block_seconds: float = 0.1,
    warmup_seconds: float = 0.2,
    half_width: float = 0.03,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
    open_with: OpenRunner = open_runner,
    clocks: ReadClocks = read_clocks,
    stop: Callable[[], bool] = lambda: False,
) -> list[Timing]:
    """Time each of `afters` against `before`, all of them interleaved with a second session of `before` as control.

    Measures until every 95 % interval, the control's included, is at most `half_width` (relative) to either side,
    `stop()`, or the budget, which counts loading and warm-up, is spent. For short parts of a model use blocks and
    warm-ups a tenth as long. A smaller `half_width` sees smaller effects, if the budget allows. A contender with a
    runtime of its own is run with that; the control is `before` with its own. Returns one record per candidate, in
    order. Raises NotVerified without the provider, SessionFailed where a model cannot be loaded or run, BadInput where
    a contender's runtime differs from the measurement's in more than provider options.
    """
    if not afters:
        return []
    started = clock()
    models = [before, before, *afters]
    runtimes = [runtime_of(model, runtime) for model in models]
    runners = [NamedRunner(model, own, feeds, open_with) for model, own in zip(models, runtimes, strict=True)]
    plan = Plan(budget_seconds, block_seconds, warmup_seconds, seed, _warm_runs(runtime))

    def enough(log_seconds: np.ndarray) -> bool:
        return _narrow(log_ratios(log_seconds), half_width)

    rounds = measure(
        runners,
        plan,
        enough,
        clock=clock,
        started=started,
        progress=progress,
        observe=lambda: clocks(runtime),
        stop=stop,
    )
    seconds = clock() - started
    return [
        _timing(before, after, index, rounds, runtime, budget_seconds, seconds)
        for index, after in enumerate(afters, start=_AFTERS)
    ]


def latency(
    model: Contender,
    feeds: Mapping[str, np.ndarray],
    runtime: Runtime,
    *,
    budget_seconds: float,
    block_seconds: float = 0.1,
    warmup_seconds: float = 0.2,
    half_width: float = 0.03,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
    open_with: OpenRunner = open_runner,
    clocks: ReadClocks = read_clocks,
) -> Latency:
    """Time one model by itself, with the same blocks and the same stopping rule. Raises as `compare` does."""
    started = clock()
    own = runtime_of(model, runtime)
    runner = NamedRunner(model, own, feeds, open_with)
    plan = Plan(budget_seconds, block_seconds, warmup_seconds, warm_runs=_warm_runs(runtime))

    def enough(log_seconds: np.ndarray) -> bool:
        return _narrow(log_seconds.mean(axis=2), half_width)

    rounds = measure(
        [runner], plan, enough, clock=clock, started=started, progress=progress, observe=lambda: clocks(runtime)
    )
    interval = _interval(rounds.log_seconds.mean(axis=2)[:, 0])
    return Latency(
        name=model.name,
        ms=_ms(rounds, 0),
        interval_ms=None if interval is None else (1e3 * math.exp(interval.low), 1e3 * math.exp(interval.high)),
        blocks=2 * len(rounds.log_seconds),
        runs_per_block=rounds.runs[0],
        threads=runtime.threads,
        provider=runtime.provider,
        seconds=clock() - started,
        sha256=rounds.sha256[0],
        nondeterministic=_nondeterministic(rounds, {0: model}),
        options=own.provider_options,
        cuda_graph=_replays(own),
        bound=PROVIDERS[runtime.provider].bound,
        device=device_name(runtime),
        clocks=rounds.clocks,
    )


def runtime_of(contender: Contender, runtime: Runtime) -> Runtime:
    """The runtime that `contender` is run with in a measurement with `runtime`.

    Raises BadInput where the two differ in more than provider options: a record has one provider, number of threads
    and optimization level, and clocks of one device.
    """
    own = contender.runtime
    if own is None:
        return runtime
    same = replace(own, provider_options=runtime.provider_options) == runtime
    if not same or own.device != runtime.device:
        raise BadInput(
            f"{contender.name!r} has a runtime of its own on {_described(own)}, the measurement is on "
            f"{_described(runtime)}: only provider options may differ, and not the device."
        )
    return own


def _described(runtime: Runtime) -> str:
    return f"{runtime.provider} device {runtime.device} with {runtime.threads} threads at level {runtime.level}"


def _replays(runtime: Runtime) -> bool:
    return PROVIDERS[runtime.provider].bound and runtime.captures


def _warm_runs(runtime: Runtime) -> int:
    return _BOUND_WARM_RUNS if PROVIDERS[runtime.provider].bound else 1


def log_ratios(log_seconds: np.ndarray) -> np.ndarray:
    """log(before / other) of each round, [rounds, m - 1] from [rounds, m, 2]: control, then candidates."""
    per_round = log_seconds.mean(axis=2)
    return np.asarray(per_round[:, [_BEFORE]] - per_round[:, _CONTROL:])


def _narrow(samples: np.ndarray, half_width: float) -> bool:
    """Whether the interval of each column of `samples` [n, k] is narrow enough."""
    if len(samples) < MINIMUM_PAIRS:
        return False
    return all(median_interval(column).half_width <= half_width for column in samples.T)


def _interval(samples: np.ndarray) -> Interval | None:
    return median_interval(samples) if len(samples) >= MINIMUM_PAIRS else None


def _timing(
    before: Contender,
    after: Contender,
    index: int,
    rounds: Rounds,
    runtime: Runtime,
    budget: float,
    seconds: float,
) -> Timing:
    ratios = log_ratios(rounds.log_seconds)
    samples = ratios[:, index - _CONTROL]
    pairs = len(samples)
    interval, control = _interval(samples), _interval(ratios[:, 0])
    effect = None if control is None else smallest_effect(control)
    verdict: Verdict = "NOISE" if interval is None or effect is None else judge(interval, effect)
    warm = math.log(rounds.warm_seconds[_BEFORE] / rounds.warm_seconds[index])
    return Timing(
        before=before.name,
        after=after.name,
        verdict=verdict,
        reason=_reason(verdict, _ratios(interval), effect, pairs, budget),
        before_ms=_ms(rounds, _BEFORE),
        after_ms=_ms(rounds, index),
        speedup=math.exp(float(np.median(samples)) if pairs else warm),
        interval=_ratios(interval),
        control_interval=_ratios(control),
        smallest_effect=effect,
        pairs=pairs,
        runs_per_block=(rounds.runs[_BEFORE], rounds.runs[index]),
        threads=runtime.threads,
        provider=runtime.provider,
        seconds=seconds,
        before_sha256=rounds.sha256[_BEFORE],
        after_sha256=rounds.sha256[index],
        nondeterministic=_nondeterministic(rounds, {_BEFORE: before, _CONTROL: before, index: after}),
        before_options=runtime_of(before, runtime).provider_options,
        after_options=runtime_of(after, runtime).provider_options,
        before_cuda_graph=_replays(runtime_of(before, runtime)),
        cuda_graph=_replays(runtime_of(after, runtime)),
        bound=PROVIDERS[runtime.provider].bound,
        device=device_name(runtime),
        clocks=rounds.clocks,
    )


def _ratios(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (math.exp(interval.low), math.exp(interval.high))


def _reason(
    verdict: Verdict, interval: tuple[float, float] | None, effect: float | None, pairs: int, budget: float
) -> str:
    if interval is None or effect is None:
        return (
            f"Only {pairs} pairs of blocks fitted into the budget of {budget:g} s, and {MINIMUM_PAIRS} are needed for "
            "a verdict: give a larger budget."
        )
    spread = f"the 95 % interval of the speed-up, {interval[0]:.3f} to {interval[1]:.3f} ({pairs} pairs),"
    if verdict == "NOISE":
        return f"No effect was shown: {spread} does not clear the smallest visible effect of {effect:.1%}."
    return f"{verdict.capitalize()}: {spread} clears the smallest visible effect of {effect:.1%}."


def _ms(rounds: Rounds, index: int) -> float:
    """Median over blocks of the milliseconds per run; that of the warm-up where nothing else was measured."""
    blocks = rounds.log_seconds[:, index, :]
    return 1e3 * (math.exp(float(np.median(blocks))) if blocks.size else rounds.warm_seconds[index])


def _nondeterministic(rounds: Rounds, models: Mapping[int, Contender]) -> tuple[str, ...]:
    """Outputs that differ between two runs of a session, or between the first runs of two sessions of one model."""
    names = [f"{model.name}: {output}" for index, model in models.items() for output in rounds.nondeterministic[index]]
    if _CONTROL in models:
        between = differing(rounds.sha256[_BEFORE], rounds.sha256[_CONTROL])
        names += [f"{models[_CONTROL].name}: {output}" for output in between]
    return tuple(dict.fromkeys(names))
