"""Where a pass has nothing to measure, `optimize` says so and makes nothing there."""

from __future__ import annotations

import pytest

import rewriter.choose
from models.resnext import ResNeXt, resnext_model
from rewriter.base import Pass
from rewriter.engine import optimize
from rewriter.graph import Graph
from rewriter.match import Match
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.registry import pass_named
from rewriter.rule import Settings


@pytest.fixture
def model() -> Model:
    return Model.load(resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10)))


@pytest.fixture
def idle() -> Pass:
    """A pass that applies to grouped convolutions and has nothing worth measuring."""

    class Idle(type(pass_named("split-groups"))):  # type: ignore[misc]  # the class of a pass is known at run time
        def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
            self.rewrite(graph, found, self.defaults)
            return ()

    return Idle()


def test_an_empty_choice_is_not_measured_with_the_defaults(
    model: Model, idle: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriter.choose, "compare", lambda *_, **__: pytest.fail("there is nothing to measure"))
    outcome = optimize(model, {idle.name: idle}, {}, RunOptions())
    assert not outcome.changed
    found = [entry for entry in outcome.attempts if entry.outcome != "declined"]
    assert {entry.site for entry in found} == {"stage1.block1.conv2", "stage2.block1.conv2"}
    assert {entry.outcome for entry in found} == {"not_worth_it"}
    reason = "Nothing here is worth measuring for latency: ask for split-groups by name to have it anyway."
    assert {entry.reason for entry in found} == {reason}


def test_settings_of_the_user_are_measured_all_the_same(
    model: Model, idle: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measured(Exception):
        pass

    def compare(*_: object, **__: object) -> None:
        raise Measured

    monkeypatch.setattr(rewriter.choose, "compare", compare)
    with pytest.raises(Measured):
        optimize(model, {idle.name: idle}, {idle.name: {"parts": 2}}, RunOptions())
