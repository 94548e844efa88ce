"""Which rewrites `optimize` keeps of those that exclude each other, and which blocks it takes for equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from programs import program
from rewriter.choose import Choice, Place, Promise, compatible
from rewriter.context import neighbourhood
from rewriter.model import Model
from rewriter.propose import Applied, Step
from rewriter.registry import pass_named
from rewriter.rule import Rewrite, Safety
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


def place(start: str, work: int, *names: str) -> Place:
    """A place with a candidate of each of these passes."""
    rewrite = Rewrite("", start, Safety.EXACT, frozenset(), 0, (), (), "")
    candidates = tuple(Applied(Step(pass_named(name)), rewrite) for name in names)
    return Place(start, candidates, frozenset(), (), (), onnx.ModelProto(), start, work)


def test_a_pass_that_saved_much_elsewhere_promises_more_for_the_same_work() -> None:
    promise = Promise()
    regroup, split = place("a", 10**8, "regroup"), place("b", 10**8, "split-groups")
    assert promise.of(regroup) == promise.of(split)
    assert promise.is_new(regroup)
    promise.learn(regroup, [timing(1.5, "FASTER")])
    promise.learn(split, [timing(0.5, "SLOWER")])
    assert not promise.is_new(regroup)
    assert promise.is_new(place("c", 1, "regroup", "grouped-to-dense"))
    assert promise.of(regroup) > promise.of(split) > 0
    assert promise.of(place("d", 10**6, "regroup")) < promise.of(split)


def test_of_several_candidates_of_a_pass_the_best_counts_and_their_work_once() -> None:
    one, two = Promise(), Promise()
    one.learn(place("a", 10**8, "regroup"), [timing(1.5, "FASTER")])
    two.learn(place("a", 10**8, "regroup", "regroup"), [timing(0.5, "SLOWER"), timing(1.5, "FASTER")])
    probe = place("b", 10**7, "regroup")
    assert one.of(probe) == two.of(probe)
