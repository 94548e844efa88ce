"""Which rewrites `optimize` keeps of those that exclude each other, and which blocks it takes for equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from programs import program
from rewriter.choose import Choice, Place, _decide, _expected, better_half, compatible
from rewriter.context import neighbourhood
from rewriter.model import Model
from rewriter.propose import Applied, Step
from rewriter.registry import pass_named
from rewriter.rule import Rewrite, Safety
from rewriter.timing import Timing
from timings import timing


def choice(site: str, before_ms: float, after_ms: float, removed: frozenset[int]) -> Choice:
    made = Rewrite("regroup", site, Safety.EXACT, removed, 0, (), (), "a -> b")
    measured = replace(timing(before_ms / after_ms, "FASTER"), before_ms=before_ms, after_ms=after_ms)
    return Choice(Applied(Step(pass_named("regroup")), made), measured, site)


def test_of_two_that_exclude_each_other_the_one_that_saves_more_time_is_kept() -> None:
    """2 of 10 ms are more than half of 1 ms, though the ratio is smaller."""
    wide = choice("wide", 10.0, 8.0, frozenset({1, 2, 3}))
    narrow = choice("narrow", 1.0, 0.5, frozenset({2}))
    apart = choice("apart", 1.0, 0.9, frozenset({7}))
    kept, rest = compatible([narrow, wide, apart])
    assert [entry.measured_at for entry in kept] == ["wide", "apart"]
    assert [entry.measured_at for entry in rest] == ["narrow"]


def test_equal_blocks_have_equal_neighbourhoods_however_many_come_behind() -> None:
    blocks = [
        f"c{n} = Conv (r{n}, w) i{n} = Relu (c{n}) d{n} = Conv (i{n}, w) a{n} = Add (d{n}, r{n}) r{n + 1} = Relu (a{n})"
        for n in range(6)
    ]
    body = f"r0 = Conv (x, w) {' '.join(blocks)} y = Conv (r6, w)"
    model = Model.load(program(body, w=np.ones((8, 8, 1, 1), np.float32)))
    makers = {node.output[0]: index for index, node in enumerate(model.nodes)}
    around = [sorted(model.nodes[at].op_type for at in neighbourhood(model, [makers[f"d{n}"]])) for n in range(1, 5)]
    assert all(kinds == around[0] for kinds in around)
    assert "Add" in around[0]


def test_the_faster_half_goes_on_two_at_least_and_nothing_that_loses() -> None:
    def of(*speedups: float) -> list[Timing]:
        return [timing(speedup, "FASTER" if speedup > 1 else "SLOWER") for speedup in speedups]

    assert better_half(of(1.1, 1.3, 1.2, 1.05, 0.99), range(5)) == [1, 2, 0]
    assert better_half(of(1.1, 1.3), range(2)) == [1, 0]
    assert better_half(of(0.8, 0.7, 0.9), range(3)) == []
    assert better_half(of(1.1, 1.3, 1.2, 1.4), [0, 2]) == [2, 0]


def test_in_the_noise_what_a_pass_usually_gives_counts_the_more_the_wider_the_interval() -> None:
    option = choice("y", 1, 1, frozenset()).applied

    def of(speedup: float, low: float, high: float, verdict: str = "NOISE") -> float:
        return _expected(option, replace(timing(speedup, verdict), interval=(low, high)), {"regroup": 1.1})

    assert of(1.0, 0.99, 1.01) == pytest.approx(1.0, abs=0.005)
    assert 1.0 < of(1.0, 0.99, 1.01) < of(1.0, 0.95, 1.05) < of(1.0, 0.8, 1.25) < 1.1
    assert of(1.3, 1.2, 1.4, "FASTER") == 1.3
    alone = replace(timing(1.2, "NOISE"), interval=None)
    assert _expected(option, alone, {}) == pytest.approx(1.2)


def test_what_is_slower_there_never_wins_whatever_its_pass_usually_gives() -> None:
    option = choice("y", 1, 1, frozenset()).applied
    place = Place("y", (option,), frozenset(), (), (), onnx.ModelProto(), "key", 1)
    slower = replace(timing(0.9, "SLOWER"), interval=(0.6, 0.99))
    assert _expected(option, slower, {"regroup": 1.5}) > 1.02
    winner, (attempt,) = _decide(place, [slower], "y", {"regroup": 1.5})
    assert (winner, attempt.outcome) == (None, "slower")
