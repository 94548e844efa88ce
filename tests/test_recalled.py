"""A model that was optimized before on this machine: timed and audited again, not searched; what is not recalled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import rewriter
import rewriter.choose
import rewriter.whole_timing
from models.resnext import ResNeXt, resnext_model
from rewriter.engine import Outcome, optimize
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.planned import from_plan
from rewriter.registry import pass_named
from rewriter.rule import Settings
from rewriter.session import Runtime
from rewriter.timing import Contender, Timing
from rewriter.tuning import Memory, PlanEntry, PlanStep, Store, environment_of
from timings import timing

REGROUP = pass_named("regroup")
BLOCK: Settings = {"block": 8}


@pytest.fixture
def model() -> Model:
    return Model.load(resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "tuning.sqlite3")


class Measured:
    """What contexts and whole models measure, and how often they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contexts = 0
        self.context = timing(1.5, "FASTER")
        self.whole = timing(1.4, "FASTER")
        monkeypatch.setattr(rewriter.choose, "compare", self._in_context)
        monkeypatch.setattr(rewriter.whole_timing, "compare", self._as_whole)

    def _in_context(self, _: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        self.contexts += 1
        return [self.context for _ in some]

    def _as_whole(self, _: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        return [self.whole for _ in some]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


@pytest.fixture
def run(model: Model, store: Store) -> Callable[..., Outcome]:
    def once(budget: float = 60.0, block: int = 8) -> Outcome:
        memory = Memory(store, environment_of(Runtime()))
        return optimize(model, {"regroup": REGROUP}, {"regroup": {"block": block}}, RunOptions(), budget, memory=memory)

    return once


def test_the_second_time_nothing_is_searched_and_the_bytes_are_the_same(
    run: Callable[..., Outcome], measured: Measured
) -> None:
    first = run()
    asked = measured.contexts
    assert asked
    second = run()
    assert measured.contexts == asked
    assert second.model.to_bytes() == first.model.to_bytes()
    assert second.audit is not None
    assert second.audit.verdict == "equivalent"
    assert any(note.startswith("Nothing was searched") for note in second.notes)
    assert not first.notes


def test_a_plan_that_is_not_faster_any_more_is_searched_anew(run: Callable[..., Outcome], measured: Measured) -> None:
    run()
    measured.whole = timing(1.0, "NOISE")
    outcome = run()
    assert not outcome.changed
    assert not any(note.startswith("Nothing was searched") for note in outcome.notes)


def test_places_are_recalled_where_the_plan_is_not(
    run: Callable[..., Outcome], measured: Measured, store: Store
) -> None:
    first = run()
    (plan,) = store.plans()
    store.add([], [plan.model_copy(update={"complete": False, "budget": 1.0})])
    asked = measured.contexts
    second = run()
    assert measured.contexts == asked
    assert second.model.to_bytes() == first.model.to_bytes()


def test_what_lost_is_remembered_as_well(run: Callable[..., Outcome], measured: Measured, store: Store) -> None:
    measured.context = timing(0.5, "SLOWER")
    assert not run().changed
    assert [entry.chosen for entry in store.places()] == [None]
    asked = measured.contexts
    outcome = run()
    assert measured.contexts == asked
    assert {entry.outcome for entry in outcome.attempts if entry.summary} == {"slower"}


def test_nothing_that_was_not_faster_as_a_whole_is_kept(
    run: Callable[..., Outcome], measured: Measured, store: Store
) -> None:
    measured.whole = timing(1.0, "NOISE")
    assert not run().changed
    assert not store.plans()
    assert not store.places()


def test_other_settings_are_another_question(run: Callable[..., Outcome], measured: Measured) -> None:
    run()
    asked = measured.contexts
    run(block=16)
    assert measured.contexts > asked


def test_from_python_with_and_without_records(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    source = resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=2, classes=10))
    calls = []
    for records in (False, False, True, True, tmp_path / "own.sqlite3"):
        measured.contexts = 0
        result = rewriter.optimize(source, only=["split-groups"], records=records)
        assert result.changed
        calls.append(measured.contexts > 0)
    assert calls == [True, True, True, False, True]
    assert (tmp_path / "cache" / "tuning.sqlite3").exists()
    assert (tmp_path / "own.sqlite3").exists()


def test_a_cache_folder_that_cannot_be_used_is_no_error(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured.contexts == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "file"))
    source = resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=2, classes=10))
    assert rewriter.optimize(source, only=["split-groups"]).changed
    with pytest.raises(rewriter.BadInput, match="cannot be made"):
        rewriter.optimize(source, only=["split-groups"], records=tmp_path / "file" / "x.sqlite3")


def test_records_that_cannot_be_kept_are_a_note(
    run: Callable[..., Outcome], measured: Measured, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*_: object) -> None:
        raise rewriter.BadInput("the disk is full.")

    monkeypatch.setattr(Store, "add", add)
    outcome = run()
    assert outcome.changed
    assert outcome.notes == ("What was measured is not kept: the disk is full.",)
    assert measured.contexts
    assert not store.plans()


def test_a_plan_of_a_pass_that_is_not_allowed_is_not_made(model: Model) -> None:
    step = PlanStep(pass_name="fuse-conv-activation", settings={}, site="stage1.block1.relu1", why="", sure=True)
    rules = {"fuse-conv-activation": pass_named("fuse-conv-activation")}
    made = PlanEntry(
        environment=environment_of(Runtime()),
        model="ab" * 32,
        asked="cd" * 32,
        steps=(step,),
        speedup=1.5,
        budget=60.0,
        complete=True,
        created=datetime.now(UTC),
    )
    assert from_plan(model, made, rules, RunOptions()) is None
