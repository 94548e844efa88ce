"""The loop's decisions, with measurements made up: what is kept, dropped, left out, and what is never written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rewriter.choose
import rewriter.whole_timing
from models.resnext import ResNeXt, resnext_model
from rewriter.base import Pass
from rewriter.engine import Outcome, optimize, rewrite
from rewriter.graph import Graph
from rewriter.match import Match
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.pattern import NodePattern, Op, Var, maybe
from rewriter.propose import Step
from rewriter.registry import pass_named
from rewriter.rule import Rewrite, Settings
from rewriter.timing import Contender, Timing
from timings import timing

REGROUP = pass_named("regroup")
BLOCK: Settings = {"block": 8}
OPTIONS = RunOptions()


class DropsATap(Pass):
    """A regrouping that loses one weight: the audit must find it."""

    name = "drops-a-tap"
    safety = REGROUP.safety
    defaults: ClassVar[Settings] = REGROUP.defaults

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        return op.Conv(x, w, maybe(b))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        right = REGROUP.rewrite(graph, found, settings)
        wrong = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in right.initializers]
        weight = numpy_helper.to_array(wrong[0]).copy()
        weight[0, 0, 0, 0] = 0
        wrong[0].CopyFrom(numpy_helper.from_array(weight, wrong[0].name))
        return Rewrite(
            self.name, right.site, right.safety, right.removed, right.anchor, right.added, tuple(wrong), right.summary
        )


@pytest.fixture
def model() -> Model:
    """A small ResNeXt with 4 channels per group, so that regrouping applies with a block of 8."""
    return Model.load(resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10)))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what contexts and whole models measure."""

    def install(context: Callable[[str], Timing], whole: Callable[[Contender], Timing]) -> None:
        def in_context(_original: Contender, some: Sequence[Contender], *_: Any, **__: Any) -> list[Timing]:
            return [context(contender.name) for contender in some]

        def as_whole(_original: Contender, some: Sequence[Contender], *_: Any, **__: Any) -> list[Timing]:
            return [whole(contender) for contender in some]

        monkeypatch.setattr(rewriter.choose, "compare", in_context)
        monkeypatch.setattr(rewriter.whole_timing, "compare", as_whole)

    return install


def regrouped(contender: Contender) -> int:
    """Convolutions in groups of 8 or more channels each way, which the models here do not have."""
    assert isinstance(contender.model, bytes)
    nodes = Model.load(contender.model).nodes
    groups = [entry.i for node in nodes for entry in node.attribute if entry.name == "group"]
    return sum(1 < count < 16 for count in groups)


def run(model: Model, *rules: Pass) -> Outcome:
    settings: Mapping[str, Settings] = {rule.name: BLOCK for rule in rules}
    return optimize(model, {rule.name: rule for rule in rules}, settings, OPTIONS)


def kept(outcome: Outcome) -> set[tuple[str, str]]:
    return {(entry.pass_name, entry.site) for entry in outcome.attempts if entry.outcome == "accepted"}


def outcomes(outcome: Outcome, name: str) -> set[str]:
    return {str(entry.outcome) for entry in outcome.attempts if entry.pass_name == name} - {"declined"}


def test_what_is_faster_and_equivalent_is_kept(model: Model, measured: Callable[..., None]) -> None:
    measured(lambda _: timing(1.5, "FASTER"), lambda _: timing(1.4, "FASTER"))
    outcome = run(model, REGROUP)
    assert outcome.changed
    assert outcome.verdict == "equivalent"
    assert outcome.grade == "finite"
    assert kept(outcome) == {("regroup", "stage1.block1.conv2")}
    assert outcome.timing is not None
    assert outcome.timing.speedup == 1.4


def test_slower_in_context_leaves_the_model_as_it_is(model: Model, measured: Callable[..., None]) -> None:
    measured(lambda _: timing(0.8, "SLOWER"), lambda _: pytest.fail("nothing is left to time"))
    outcome = run(model, REGROUP)
    assert outcome.model.to_bytes() == model.to_bytes()
    assert outcomes(outcome, "regroup") == {"slower"}


@pytest.mark.parametrize(("verdict", "expected"), [("NOISE", "not_worth_it"), ("SLOWER", "slower")])
def test_a_whole_that_is_not_faster_is_not_kept(
    model: Model, measured: Callable[..., None], verdict: str, expected: str
) -> None:
    measured(lambda _: timing(1.5, "FASTER"), lambda _: timing(1.2, verdict))
    outcome = run(model, REGROUP)
    assert outcome.model.to_bytes() == model.to_bytes()
    assert not outcome.changed
    assert outcomes(outcome, "regroup") == {expected}


@pytest.mark.parametrize(("speedup", "looks"), [(1.2, 2), (1.0, 1)])
def test_a_restless_machine_gets_a_second_look(
    model: Model, measured: Callable[..., None], speedup: float, looks: int
) -> None:
    seen: list[Contender] = []

    def whole(after: Contender) -> Timing:
        seen.append(after)
        return timing(speedup, "NOISE" if len(seen) == 1 else "FASTER")

    measured(lambda _: timing(1.5, "FASTER"), whole)
    assert run(model, REGROUP).changed == (looks == 2)
    assert len(seen) == looks


def test_a_likely_rewrite_is_decided_by_the_whole_model(model: Model, measured: Callable[..., None]) -> None:
    measured(lambda _: timing(1.2, "NOISE"), lambda _: timing(1.1, "FASTER"))
    assert kept(run(model, REGROUP)) == {("regroup", "stage1.block1.conv2")}
    measured(lambda _: timing(0.9, "SLOWER"), lambda _: pytest.fail("what loses in context is not tried as a whole"))
    assert not run(model, REGROUP).changed


def test_a_wrong_rewrite_is_dropped_however_fast(model: Model, measured: Callable[..., None]) -> None:
    measured(lambda _: timing(9.0, "FASTER"), lambda _: timing(9.0, "FASTER"))
    outcome = run(model, DropsATap())
    assert outcome.model.to_bytes() == model.to_bytes()
    assert outcomes(outcome, "drops-a-tap") == {"different"}
    assert "No rewrite passed the audit" in outcome.reason


def test_asking_for_a_wrong_rewrite_gives_different_and_the_original(model: Model) -> None:
    outcome = rewrite(model, [Step(DropsATap(), BLOCK)], OPTIONS)
    assert outcome.verdict == "different"
    assert outcome.model.to_bytes() == model.to_bytes()
    assert outcomes(outcome, "drops-a-tap") == {"different"}


def test_the_rest_is_kept_when_one_is_wrong(model: Model, measured: Callable[..., None]) -> None:
    two = Model.load(resnext_model(ResNeXt(image=32, blocks=(2,), width=32, groups=16, classes=10)))
    wrong_site = "stage1.block2.conv2"

    class WrongOnce(DropsATap):
        name = "wrong-once"

        def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
            made = super().rewrite(graph, found, settings)
            right = REGROUP.rewrite(graph, found, settings)
            chosen = made if made.site == wrong_site else right
            return Rewrite(
                self.name,
                chosen.site,
                chosen.safety,
                chosen.removed,
                chosen.anchor,
                chosen.added,
                chosen.initializers,
                chosen.summary,
            )

    measured(lambda _: timing(1.5, "FASTER"), lambda _: timing(1.4, "FASTER"))
    outcome = run(two, WrongOnce())
    assert outcome.changed
    assert outcome.verdict == "equivalent"
    assert kept(outcome) == {("wrong-once", "stage1.block1.conv2")}
    assert {entry.site for entry in outcome.attempts if entry.outcome == "different"} == {wrong_site}


def test_doubtful_ones_are_left_out_when_the_rest_is_faster_alone(model: Model, measured: Callable[..., None]) -> None:
    two = Model.load(resnext_model(ResNeXt(image=32, blocks=(2,), width=32, groups=16, classes=10)))

    def context(name: str) -> Timing:
        return timing(1.5, "FASTER") if "block1" in name else timing(1.2, "NOISE")

    measured(context, lambda after: timing({0: 1.0, 1: 1.3, 2: 1.2}[regrouped(after)], "FASTER"))
    outcome = run(two, REGROUP)
    assert kept(outcome) == {("regroup", "stage1.block1.conv2")}
    left = [entry for entry in outcome.attempts if entry.outcome == "not_worth_it"]
    assert [entry.site for entry in left] == ["stage1.block2.conv2"]
    assert "faster without it" in left[0].reason
    assert np.isclose(outcome.timing.speedup if outcome.timing else 0, 1.3)


def test_doubtful_ones_stay_where_the_whole_is_faster_with_them(model: Model, measured: Callable[..., None]) -> None:
    two = Model.load(resnext_model(ResNeXt(image=32, blocks=(2,), width=32, groups=16, classes=10)))

    def context(name: str) -> Timing:
        return timing(1.5, "FASTER") if "block1" in name else timing(1.2, "NOISE")

    measured(context, lambda after: timing({0: 1.0, 1: 1.2, 2: 1.3}[regrouped(after)], "FASTER"))
    assert kept(run(two, REGROUP)) == {("regroup", f"stage1.block{block}.conv2") for block in (1, 2)}


def test_without_time_every_candidate_says_so(model: Model, measured: Callable[..., None]) -> None:
    measured(lambda _: pytest.fail("there is no time to measure"), lambda _: pytest.fail("nothing is left to time"))
    outcome = optimize(model, {REGROUP.name: REGROUP}, {REGROUP.name: BLOCK}, OPTIONS, budget=1e-9)
    reasons = [entry.reason for entry in outcome.attempts if entry.outcome == "unmeasured"]
    assert len(reasons) == 1
    assert "raise --budget" in reasons[0]
    assert outcome.reason == "No rewrite was measured faster, and 1 could not be measured."


def test_what_the_first_round_left_over_is_measured_after_it(
    model: Model, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Model.load(resnext_model(ResNeXt(image=32, blocks=(1, 1), width=16, groups=16, classes=10)))
    measured(lambda _: timing(1.5, "FASTER"), lambda _: timing(1.4, "FASTER"))
    everything = kept(run(two, REGROUP))
    assert len(everything) == 2
    # A clock on which a measurement takes 4 s, and everything else nothing.
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(_original: Contender, some: Sequence[Contender], *_: Any, **__: Any) -> list[Timing]:
        now[0] += 4
        return [timing(1.5, "FASTER") for _ in some]

    monkeypatch.setattr(rewriter.choose, "compare", slow)

    def spending(budget: float) -> Outcome:
        now[0] = 0.0
        return optimize(two, {REGROUP.name: REGROUP}, {REGROUP.name: BLOCK}, OPTIONS, budget)

    # The first round ends after 0.23 of the budget, measuring after 0.4 at most.
    monkeypatch.setattr(rewriter.whole_timing.Cost, "of", lambda *_: rewriter.whole_timing.Cost(0.1))
    assert len(kept(spending(12))) == 2
    short = spending(8)
    assert len(kept(short)) == 1
    assert [entry.outcome for entry in short.attempts if "raise --budget" in entry.reason] == ["unmeasured"]


def test_a_model_without_convolutions_is_not_run() -> None:
    """ONNX Runtime does not know its operator, and need not."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Own", ["x"], ["y"], domain="mine")], "g", values[:1], values[1:]
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("mine", 1)]
    model = Model.load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    outcome = optimize(model, {REGROUP.name: REGROUP}, {}, OPTIONS)
    assert (outcome.changed, outcome.verdict) == (False, "equivalent")
    assert outcome.reason == "The model has no convolution."
