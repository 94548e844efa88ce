"""The measuring loop and its records, on a simulated machine: order, blocks, budget, hashes, failures."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.session import Runtime, SessionFailed
from rewriter.timing import Contender, compare, latency, tensor_sha256
from rewriter.timing.compare import log_ratios
from rewriter.timing.digest import differing
from rewriter.timing.rounds import Plan, measure, mirrored
from rewriter.timing.statistics import MINIMUM_PAIRS
from simulated_timing import Machine, Simulated, assert_interval, named, simulate


def test_one_model_by_itself() -> None:
    machine = Machine(0.01)
    alone = latency(named(0.01), {}, Runtime(), budget_seconds=60, clock=machine.clock, open_with=machine.open)
    assert alone.ms == pytest.approx(10, rel=0.02)
    assert alone.interval_ms is not None
    assert 9.5 < alone.interval_ms[0] <= alone.ms <= alone.interval_ms[1] < 10.5
    assert (alone.name, alone.runs_per_block, alone.threads, alone.provider) == ("0.01", 11, 1, "cpu")
    assert alone.blocks == 2 * MINIMUM_PAIRS
    machine = Machine()
    none = latency(named(0.01), {}, Runtime(), budget_seconds=0.1, clock=machine.clock, open_with=machine.open)
    assert (none.blocks, none.interval_ms) == (0, None)
    assert none.ms == pytest.approx(10)


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_orders_are_mirrored(count: int, seed: int) -> None:
    order = mirrored(count, np.random.default_rng(seed))
    assert order == order[::-1]
    assert sorted(order) == sorted([*range(count), *range(count)])


def test_orders_vary_and_repeat_with_the_seed() -> None:
    def orders(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [mirrored(3, rng) for _ in range(20)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert len({tuple(order) for order in orders(1)}) > 3


def test_everything_is_timed_as_the_plan_says() -> None:
    machine = Machine()
    timing = simulate(machine, 1 / 32, before=1 / 128)[0]  # powers of two: the simulated clock is exact
    original, control, candidate = "0.0078125#1", "0.0078125#2", "0.03125#1"
    assert machine.opened == ["0.0078125", "0.0078125", "0.03125"]
    warmed, timed = machine.log[:59], machine.log[59:]
    assert warmed == [(original, 1)] * 26 + [(control, 1)] * 26 + [(candidate, 1)] * 7  # at least 0.2 s each
    assert timing.runs_per_block == (13, 4)  # at least 0.1 s each
    settled = [(original, 1), (control, 1)]  # one untimed run where that costs little
    assert set(timed) == {(original, 13), (control, 13), (candidate, 4), *settled}
    for before, block in pairwise(timed):
        if block[1] == 13:
            assert before == (block[0], 1)
    names = [name for name, runs in timed if runs > 1]
    assert timing.pairs == MINIMUM_PAIRS  # no noise: the fewest that make an interval
    assert len(names) == 2 * 3 * timing.pairs
    for start in range(0, len(names), 6):
        order = names[start : start + 6]
        assert order == order[::-1]


def test_a_record_says_what_was_measured() -> None:
    faster, slower = simulate(Machine(), 0.005, 0.02)
    assert (faster.before, faster.after, slower.after) == ("0.01", "0.005", "0.02")
    assert faster.before_ms == pytest.approx(10)
    assert [faster.after_ms, slower.after_ms] == pytest.approx([5, 20])
    assert [faster.speedup, slower.speedup] == pytest.approx([2, 0.5])
    assert_interval(faster.interval, 2)
    assert_interval(faster.control_interval, 1)
    assert faster.smallest_effect == 0.01
    assert (faster.verdict, slower.verdict) == ("FASTER", "SLOWER")
    assert (faster.threads, faster.provider) == (2, "cpu")
    assert faster.seconds == slower.seconds > 0
    assert faster.before_sha256 == faster.after_sha256 == {"y": tensor_sha256(np.zeros(2, np.float32))}
    assert faster.nondeterministic == ()
    assert "2.000 to 2.000 (7 pairs)" in faster.reason


def test_the_same_samples_give_the_same_record() -> None:
    assert simulate(Machine(0.02, seed=3), 0.009, seed=5) == simulate(Machine(0.02, seed=3), 0.009, seed=5)
    assert simulate(Machine(0.02, seed=3), 0.009, seed=5) != simulate(Machine(0.02, seed=3), 0.009, seed=6)


@pytest.mark.parametrize(("budget", "pairs"), [(3.0, range(1, 7)), (0.1, range(1))])
def test_a_budget_for_too_few_pairs_gives_no_verdict(budget: float, pairs: range) -> None:
    timing = simulate(Machine(), 0.002, budget=budget)[0]
    assert timing.pairs in pairs
    assert timing.verdict == "NOISE"
    assert timing.interval is None
    assert timing.control_interval is None
    assert timing.smallest_effect is None
    assert f"Only {timing.pairs} pairs" in timing.reason
    assert [timing.before_ms, timing.after_ms] == pytest.approx([10, 2])
    assert timing.speedup == pytest.approx(5)


@pytest.mark.parametrize("load", [lambda _: 1.0, lambda seconds: 1.0 if seconds < 0.7 else 3.0])
def test_a_round_that_does_not_fit_is_not_begun(load: Callable[[float], float]) -> None:
    """Also on a machine that gets three times slower after the warm-up."""
    timing = simulate(Machine(load=load), 0.01, budget=5.5, half_width=0)[0]
    round_seconds = 6 * 0.12 * load(5)
    assert timing.pairs >= 2
    assert 5.5 - round_seconds < timing.seconds <= 5.5


def test_the_budget_is_kept_when_the_machine_is_too_noisy() -> None:
    machine = Machine(0.2)
    timing = simulate(machine, 0.01, budget=10)[0]
    assert 8 < timing.seconds <= 10 * 1.1  # the last round may take longer than the one before it
    assert timing.interval is not None
    assert timing.interval[1] / timing.interval[0] > math.exp(0.06)


def test_progress_ends_at_one_and_never_goes_back() -> None:
    seen: list[float] = []
    machine = Machine()
    compare(
        named(0.01),
        [named(0.02)],
        {},
        Runtime(),
        budget_seconds=60,
        progress=seen.append,
        clock=machine.clock,
        open_with=machine.open,
    )
    assert len(seen) == MINIMUM_PAIRS + 1
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == 1.0


def test_garbage_is_collected_again_whatever_happens() -> None:
    class Failing(Simulated):
        def repeat(self, runs: int) -> None:
            if runs > 1:
                assert not gc.isenabled()
                raise SessionFailed("Out of memory.")
            super().repeat(runs)

    machine = Machine()
    failing = [Failing(machine, "a", 0.01)]
    assert gc.isenabled()
    with pytest.raises(SessionFailed):
        measure(failing, Plan(60), lambda _: False, clock=machine.clock, started=0.0)
    assert gc.isenabled()


def test_a_failure_while_timing_names_the_model() -> None:
    class Failing(Simulated):
        def repeat(self, runs: int) -> None:
            raise SessionFailed("Out of memory.")

    machine = Machine()
    with pytest.raises(SessionFailed, match=r"^'0.01' cannot be timed: Out of memory\.$"):
        compare(
            named(0.01),
            [named(0.02)],
            {},
            Runtime(),
            budget_seconds=60,
            clock=machine.clock,
            open_with=lambda contender, *_: Failing(machine, contender.name, 0.01),
        )


def test_nothing_to_compare_opens_nothing() -> None:
    machine = Machine()
    assert simulate(machine) == []
    assert machine.opened == []


def test_log_ratios_pair_the_blocks_of_a_round() -> None:
    seconds = np.log([[[1.0, 4.0], [2.0, 2.0], [1.0, 1.0]], [[3.0, 3.0], [3.0, 3.0], [6.0, 1.5]]])
    assert np.exp(log_ratios(seconds)) == pytest.approx(np.array([[1, 2], [1, 1]]))


# Outputs


class Changing(Simulated):
    def outputs(self) -> dict[str, np.ndarray]:
        self.results += 1
        return {"same": np.zeros(1), "changing": np.array([self.results])}


@pytest.mark.parametrize(("which", "who"), [("0.02", "0.02"), ("0.01", "0.01")])
def test_outputs_that_change_from_run_to_run_are_named(which: str, who: str) -> None:
    machine = Machine()

    def open_with(contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Simulated:
        kind = Changing if contender.name == which else Simulated
        return kind(machine, contender.name, float(contender.name))

    timing = compare(
        named(0.01),
        [named(0.02)],
        {},
        Runtime(),
        budget_seconds=60,
        clock=machine.clock,
        open_with=open_with,
    )[0]
    assert timing.nondeterministic == (f"{who}: changing",)


def test_two_sessions_of_one_model_that_differ_are_named() -> None:
    machine = Machine()
    count = iter(range(10))

    class Own(Simulated):
        def outputs(self) -> dict[str, np.ndarray]:
            return {"y": np.array([self.results])}

    def open_with(contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Simulated:
        return Own(machine, contender.name, 0.01, results=next(count))

    timing = compare(
        named(0.01),
        [named(0.02)],
        {},
        Runtime(),
        budget_seconds=60,
        clock=machine.clock,
        open_with=open_with,
    )[0]
    assert timing.nondeterministic == ("0.01: y",)


@pytest.mark.parametrize(
    "other",
    [
        np.array([[1.0, -0.0]], np.float32),  # the sign of a zero
        np.array([1.0, 0.0], np.float32),  # shape
        np.array([[1.0, 0.0]], np.float64),
        np.array([[1.0, 1e-45]], np.float32),
        np.array([[1.0, 0.0]], np.float32).view(np.int32),
    ],
)
def test_a_hash_sees_every_bit_the_shape_and_the_type(other: np.ndarray) -> None:
    tensor = np.array([[1.0, 0.0]], np.float32)
    assert tensor_sha256(tensor) == tensor_sha256(np.asfortranarray(tensor.copy()))
    assert tensor_sha256(tensor) != tensor_sha256(other)


def test_hashes_of_types_numpy_does_not_know() -> None:
    values = np.array([1, 2])
    kinds = [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4, np.float16]
    assert len({tensor_sha256(values.astype(kind)) for kind in kinds}) == len(kinds)
    assert tensor_sha256(np.array(1, ml_dtypes.bfloat16)) != tensor_sha256(np.array([1], ml_dtypes.bfloat16))
    assert tensor_sha256(np.array(["ab", "c"], object)) != tensor_sha256(np.array(["a", "bc"], object))
    assert tensor_sha256(np.array(["ab"], object)) == tensor_sha256(np.array(["".join("ab")], object))


def test_differing_names_what_only_one_side_has() -> None:
    assert differing({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == ("a", "b", "c")
    assert differing({"a": "1"}, {"a": "1"}) == ()
