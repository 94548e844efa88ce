"""The statistics of timing keep their promise: exactly where that can be computed, on simulated machines elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rewriter.timing.statistics import MINIMUM_PAIRS, Interval, judge, median_interval, smallest_effect
from simulated_timing import Machine, assert_interval, experiments, simulate

samples_of_any_size = st.lists(st.floats(-10, 10), min_size=MINIMUM_PAIRS, max_size=60)


@given(samples_of_any_size)
def test_the_interval_holds_the_median_and_ends_at_samples(samples: list[float]) -> None:
    interval = median_interval(samples)
    assert interval.low in samples
    assert interval.high in samples
    assert interval.low <= np.median(samples) <= interval.high


@given(samples_of_any_size, st.randoms(use_true_random=False))
def test_the_interval_does_not_depend_on_the_order_and_turns_with_the_sign(samples: list[float], rng: object) -> None:
    interval = median_interval(samples)
    shuffled = list(samples)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert median_interval(shuffled) == interval
    turned = median_interval([-value for value in samples])
    assert (turned.low, turned.high) == (-interval.high, -interval.low)


@pytest.mark.parametrize("n", [*range(MINIMUM_PAIRS, 60), 99, 100, 500, 501, 2000])
def test_the_interval_covers_the_median_of_any_distribution(n: int) -> None:
    """Exactly: the order statistics k and n + 1 - k enclose the median unless fewer than k samples lie on one side."""
    rank = int(median_interval(np.arange(n)).low)  # k - 1
    coverage = 1 - 2 * stats.binom.cdf(rank, n, 0.5)
    assert 0.93 <= coverage <= 0.995


@pytest.mark.parametrize("n", [101, 201])
def test_the_interval_is_the_one_that_resampling_gives(n: int) -> None:
    draws = np.random.default_rng(0).integers(0, n, (5000, n))  # samples that are their own ranks
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    interval = median_interval(np.arange(n))
    assert interval.low == pytest.approx(low, abs=2)
    assert interval.high == pytest.approx(high, abs=2)


def test_what_no_interval_can_be_made_of_is_refused() -> None:
    with pytest.raises(ValueError, match="6 samples are too few"):
        median_interval([0.0] * 6)
    with pytest.raises(ValueError, match="finite"):
        median_interval([0.0] * 6 + [math.nan])


@pytest.mark.parametrize(
    ("low", "high", "effect", "verdict"),
    [
        (math.log(1.02), math.log(1.5), 0.01, "FASTER"),
        (math.log(1.005), math.log(1.5), 0.01, "NOISE"),  # whole interval above 1, not above 1 %
        (math.log(1.02), math.log(1.5), 0.03, "NOISE"),
        (-math.log(1.5), -math.log(1.02), 0.01, "SLOWER"),
        (-math.log(1.5), -math.log(1.005), 0.01, "NOISE"),
        (-math.log(1.5), -math.log(1.02), 0.03, "NOISE"),
        (-0.5, 0.5, 0.01, "NOISE"),
    ],
)
def test_only_an_interval_beyond_the_effect_is_a_verdict(low: float, high: float, effect: float, verdict: str) -> None:
    assert judge(Interval(low, high), effect) == verdict


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.001, 0.001, 0.01),  # never below one per cent
        (-math.log(1.05), math.log(1.02), 0.05),
        (-math.log(1.02), math.log(1.05), 0.05),
        (math.log(1.03), math.log(1.04), 0.04),  # narrow, but two sessions of one model differ by 3 to 4 %
    ],
)
def test_the_smallest_effect_is_what_the_control_cannot_explain(low: float, high: float, expected: float) -> None:
    control = Interval(low, high)
    assert smallest_effect(control) == pytest.approx(expected)
    assert math.log1p(smallest_effect(control)) >= control.half_width - 1e-12


# On simulated machines


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_true_ratio_lies_in_the_interval_as_often_as_promised(noise: float) -> None:
    timings = experiments(200, 0.01 / 1.10, noise)
    hits = sum(t.interval is not None and t.interval[0] <= 1.10 <= t.interval[1] for t in timings)
    assert hits >= 0.90 * len(timings)
    assert all(t.interval is not None and t.interval[1] / t.interval[0] <= math.exp(0.0601) for t in timings)


def test_a_model_against_itself_is_noise() -> None:
    verdicts = [timing.verdict for timing in experiments(200, 0.01)]
    assert verdicts.count("NOISE") >= 0.97 * len(verdicts)


def test_a_clear_gain_is_always_found() -> None:
    assert [timing.verdict for timing in experiments(100, 0.01 / 1.10, noise=0.01)].count("FASTER") >= 98


def test_a_slowdown_of_five_per_cent_is_found_with_enough_pairs() -> None:
    few = simulate(Machine(0.03), 0.0105)[0]
    assert few.verdict == "NOISE"  # the default precision of 3 % cannot show it on so noisy a machine ...
    many = simulate(Machine(0.03), 0.0105, half_width=0.01)[0]
    assert many.verdict == "SLOWER"  # ... but more pairs can
    assert many.pairs > few.pairs
    assert many.speedup == pytest.approx(1 / 1.05, rel=0.01)
    assert "Slower" in many.reason


def getting_slower(seconds: float) -> float:
    return 1 + 0.05 * seconds  # twice as slow after 20 s


def test_a_machine_that_gets_slower_fakes_no_effect() -> None:
    timing = simulate(Machine(load=getting_slower), 0.01, 0.008)
    assert timing[0].verdict == "NOISE"
    assert_interval(timing[0].interval, 1, 2e-3)
    assert_interval(timing[1].interval, 1.25, 2e-3)


def test_a_jump_of_the_machine_is_outvoted() -> None:
    """Another program takes half of the machine for one second: some pairs are far off, the median is not."""
    machine = Machine(0.005, load=lambda seconds: 2.0 if 2.0 < seconds < 3.0 else 1.0)
    timing = simulate(machine, 0.01, half_width=0.005)[0]
    assert timing.verdict == "NOISE"
    assert timing.speedup == pytest.approx(1, abs=0.01)
