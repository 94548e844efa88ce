"""The choice over the whole model, with measurements made up: what is tried, taken, dropped, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import rewriter.choose
import rewriter.contest
import rewriter.whole_timing
from models.resnext import ResNeXt, resnext_model
from rewriter.engine import Outcome, optimize
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.registry import pass_named
from rewriter.rule import Settings
from rewriter.session import Runtime, SessionFailed
from rewriter.timing import Contender, Timing
from rewriter.tuning import Memory, Store, environment_of
from timings import timing

REGROUP, SPLIT = pass_named("regroup"), pass_named("split-groups")
BLOCK: Settings = {"block": 8}
SITES = {f"stage1.block{block}.conv2" for block in (1, 2, 3)}


@pytest.fixture
def model() -> Model:
    """Three convolutions of 8 groups with 4 channels each; the second and third are alike."""
    return Model.load(resnext_model(ResNeXt(image=32, blocks=(3,), width=16, groups=8, classes=10)))


class Machine:
    """What contexts and whole models measure: by the pass and the site, and by how often each operator is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context: Callable[[str], Timing] = lambda _: timing(1.0, "NOISE")
        self.whole: Callable[[int, int], float] = lambda _regrouped, _splits: 1.0
        self.wholes: list[list[tuple[int, int]]] = []
        monkeypatch.setattr(rewriter.choose, "compare", self._in_context)
        monkeypatch.setattr(rewriter.whole_timing, "compare", self._as_whole)

    def _in_context(self, _: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        return [self.context(contender.name) for contender in some]

    def _as_whole(self, before: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        found = [counts(contender) for contender in some]
        self.wholes.append(found)
        speeds = [self.whole(*pair) / self.whole(*counts(before)) for pair in found]
        return [timing(speed, "FASTER" if speed > 1.02 else "SLOWER" if speed < 0.98 else "NOISE") for speed in speeds]


def counts(contender: Contender) -> tuple[int, int]:
    """Convolutions in fewer and wider groups, and convolutions that were split up."""
    assert isinstance(contender.model, bytes)
    nodes = Model.load(contender.model).nodes
    groups = [entry.i for node in nodes for entry in node.attribute if entry.name == "group"]
    return sum(1 < count < 8 for count in groups), sum(node.op_type == "Split" for node in nodes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def run(model: Model, **more: Any) -> Outcome:
    rules = {rule.name: rule for rule in (REGROUP, SPLIT)}
    return optimize(model, rules, {"regroup": BLOCK}, RunOptions(), **more)


def kept(outcome: Outcome) -> set[tuple[str, str]]:
    return {(entry.pass_name, entry.site) for entry in outcome.attempts if entry.outcome == "accepted"}


def test_what_gains_too_little_to_be_seen_at_each_place_is_tried_at_all_of_them(model: Model, machine: Machine) -> None:
    machine.context = lambda name: timing(1.015 if "regroup" in name else 0.8, "NOISE")
    machine.whole = lambda regrouped, _: 1 + 0.02 * regrouped
    outcome = run(model)
    assert kept(outcome) == {("regroup", site) for site in SITES}
    assert outcome.timing is not None
    assert outcome.timing.speedup == 1.06
    measured = {str(entry.details.get("measured")) for entry in outcome.attempts if entry.outcome == "accepted"}
    assert measured == {"1.06x (1.05 to 1.07) over the best set before, 3 of them at once"}
    assert not any(entry.outcome == "not_worth_it" and entry.pass_name == "regroup" for entry in outcome.attempts)


def test_what_is_no_faster_everywhere_is_not_taken(model: Model, machine: Machine) -> None:
    machine.context = lambda name: timing(1.015 if "regroup" in name else 0.8, "NOISE")
    outcome = run(model)
    assert not outcome.changed
    assert machine.wholes == [[(3, 0)]]
    assert {entry.outcome for entry in outcome.attempts if entry.summary} == {"not_worth_it", "slower"}


def test_more_rewrites_must_be_faster_by_their_whole_interval(model: Model, machine: Machine) -> None:
    machine.context = lambda name: timing(1.5 if "block1" in name else 1.001, "FASTER" if "block1" in name else "NOISE")
    machine.whole = lambda regrouped, splits: 1.3 + 0.005 * (regrouped + splits) if regrouped + splits else 1.0
    outcome = run(model)
    assert len(kept(outcome)) == 1


def test_places_that_lost_in_context_stay_out_of_it(model: Model, machine: Machine) -> None:
    machine.context = lambda name: (
        timing(0.8, "SLOWER") if "block1" in name or "split" in name else timing(1.01, "NOISE")
    )
    machine.whole = lambda regrouped, _: 1 + 0.1 * regrouped
    assert kept(run(model)) == {("regroup", site) for site in SITES if "block1" not in site}


def test_a_pass_that_hurts_the_whole_is_dropped(model: Model, machine: Machine) -> None:
    machine.context = lambda name: (
        timing(1.5, "FASTER") if ("split" in name) == ("block1" in name) else timing(0.5, "SLOWER")
    )
    machine.whole = lambda regrouped, splits: 1 + 0.1 * regrouped - 0.1 * splits
    outcome = run(model)
    assert kept(outcome) == {("regroup", site) for site in SITES if "block1" not in site}
    (dropped,) = [entry for entry in outcome.attempts if "the whole model was faster without it" in entry.reason]
    assert (dropped.pass_name, dropped.outcome) == ("split-groups", "not_worth_it")


def test_the_figure_reported_is_measured_after_the_choice(model: Model, machine: Machine) -> None:
    machine.context = lambda name: timing(1.015 if "regroup" in name else 0.8, "NOISE")
    lucky = iter([1.3, 1.3])  # both looks of the contest
    machine.whole = lambda regrouped, _: (next(lucky, 1.2)) if regrouped else 1.0
    outcome = run(model)
    assert machine.wholes[-1] == [(3, 0)]
    assert outcome.timing is not None
    assert outcome.timing.speedup == 1.2


def test_all_that_was_timed_is_in_the_outcome_with_what_was_chosen(model: Model, machine: Machine) -> None:
    machine.context = lambda name: timing(1.015 if "regroup" in name else 0.8, "NOISE")
    machine.whole = lambda regrouped, _: 1 + 0.02 * regrouped
    variants = run(model).variants
    assert [(one.name, one.rewrites, one.chosen) for one in variants] == [
        ("original", 0, False),
        ("regroup alone", 3, True),
    ]
    assert variants[0].bytes == model.size
    assert variants[1].bytes > model.size


def test_whoever_asks_to_stop_gets_the_best_so_far(model: Model, machine: Machine) -> None:
    contexts: list[str] = []

    def context(name: str) -> Timing:
        contexts.append(name)
        return timing(1.5, "FASTER") if "regroup" in name else timing(0.5, "SLOWER")

    machine.context = context
    machine.whole = lambda regrouped, _: 1 + 0.2 * regrouped
    # The first place takes a look at both candidates and another one at the better; the next one is interrupted.
    outcome = run(model, stop=lambda: len(contexts) > 3)
    assert len(contexts) > 3
    assert outcome.changed
    assert 0 < len(kept(outcome)) < 3
    assert outcome.verdict == "equivalent"
    left = [entry.reason for entry in outcome.attempts if entry.outcome == "unmeasured"]
    assert left
    assert set(left) == {"It was not measured before the search was interrupted."}


def test_stopped_before_anything_was_measured_nothing_changes(model: Model, machine: Machine) -> None:
    machine.context = lambda _: pytest.fail("nothing is measured any more")
    outcome = run(model, stop=lambda: True)
    assert not outcome.changed
    assert not machine.wholes
    assert outcome.reason.startswith("No rewrite was measured faster, and 6 could not be measured.")


def test_without_time_for_it_the_choice_of_the_contexts_stands(
    model: Model, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriter.whole_timing.Cost, "sessions", lambda *_: 2)
    machine.context = lambda name: timing(
        1.5 if "regroup" in name else 0.5, "FASTER" if "regroup" in name else "SLOWER"
    )
    machine.whole = lambda regrouped, _: 1.4 if regrouped else 1.0
    assert kept(run(model)) == {("regroup", site) for site in SITES}
    assert machine.wholes == [[(3, 0)]]


def test_a_set_that_cannot_be_run_is_left_out(model: Model, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(before: Contender, some: Sequence[Contender], *_: Any, **__: Any) -> list[Timing]:
        if any(counts(one)[1] for one in some):
            raise SessionFailed("ONNX Runtime refuses it.")
        return machine._as_whole(before, some)

    machine.context = lambda name: timing(1.015, "NOISE")
    machine.whole = lambda regrouped, _: 1 + 0.02 * regrouped
    monkeypatch.setattr(rewriter.whole_timing, "compare", refusing)
    monkeypatch.setattr(rewriter.contest, "runs", lambda model, *_: not any(n.op_type == "Split" for n in model.nodes))
    assert kept(run(model)) == {("regroup", site) for site in SITES}


def test_what_could_not_be_run_in_its_place_is_not_tried_everywhere(
    model: Model, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> list[Timing]:
        raise SessionFailed("ONNX Runtime refuses it.")

    monkeypatch.setattr(rewriter.choose, "compare", failing)
    outcome = run(model)
    assert not outcome.changed
    assert not machine.wholes


@pytest.mark.parametrize("stopped", [True, False])
def test_a_search_that_was_stopped_is_no_plan(stopped: bool, model: Model, machine: Machine, tmp_path: Path) -> None:
    store = Store(tmp_path / "records.sqlite3")
    contexts: list[str] = []

    def context(name: str) -> Timing:
        contexts.append(name)
        return timing(1.5, "FASTER") if "regroup" in name else timing(0.5, "SLOWER")

    machine.context = context
    machine.whole = lambda regrouped, _: 1 + 0.2 * regrouped
    outcome = run(model, memory=Memory(store, environment_of(Runtime())), stop=lambda: stopped and len(contexts) > 3)
    assert outcome.changed
    assert len(list(store.plans())) == (0 if stopped else 1)


def test_a_plan_of_a_contest_gives_the_same_bytes(model: Model, machine: Machine, tmp_path: Path) -> None:
    store = Store(tmp_path / "records.sqlite3")
    machine.context = lambda name: timing(1.015 if "regroup" in name else 0.8, "NOISE")
    machine.whole = lambda regrouped, _: 1 + 0.02 * regrouped
    first = run(model, memory=Memory(store, environment_of(Runtime())))
    seen = len(machine.wholes)
    second = run(model, memory=Memory(store, environment_of(Runtime())))
    assert first.changed
    assert len(machine.wholes) == seen + 1  # only the last timing
    assert second.model.to_bytes() == first.model.to_bytes()


@pytest.mark.parametrize("room", [2, 100])
def test_a_plan_is_complete_only_where_the_contest_came_to_its_end(
    room: int, model: Model, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contest begins in either case; in one there is no room for a rival then."""
    left = iter([100, 100])  # asked whether there is to be a contest, and whether it may begin
    monkeypatch.setattr(rewriter.whole_timing.Cost, "sessions", lambda *_: next(left, room))
    store = Store(tmp_path / "records.sqlite3")
    machine.context = lambda name: timing(1.5, "FASTER") if "block1" in name else timing(1.01, "NOISE")
    machine.whole = lambda regrouped, splits: 1.3 if regrouped + splits else 1.0
    assert run(model, memory=Memory(store, environment_of(Runtime()))).changed
    (plan,) = store.plans()
    assert plan.complete == (room == 100)
