"""Convolutions in a row that are only faster together: one candidate, measured and kept as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import rewriter.choose
import rewriter.whole_timing
from rewriter.engine import Outcome, optimize
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.registry import pass_named
from rewriter.rule import Settings
from rewriter.timing import Contender, Timing
from timings import timing

REGROUP = pass_named("regroup")
BLOCK: Settings = {"block": 8}
GROUPS = 4


def row(convs: int, between: bool = False) -> Model:
    """Convolutions of 4 groups with 4 channels each, one behind the other; `between`: a pointwise one in the middle."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for number in range(convs):
        pointwise = between and number == convs // 2
        shape = (16, 16, 1, 1) if pointwise else (16, 16 // GROUPS, 3, 3)
        weights.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{number}"))
        attributes: dict[str, Any] = {} if pointwise else {"group": GROUPS, "pads": [1] * 4}
        nodes.append(helper.make_node("Conv", [x, f"w{number}"], [f"c{number}"], **attributes))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [x := f"y{number}"]))
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 16, 9, 9]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "row", values[:1], values[1:], weights)
    return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def regrouped(contender: Contender) -> int:
    """Convolutions of fewer groups than before."""
    model = contender.model
    nodes = Model.load(model).nodes if isinstance(model, bytes) else model.graph.node  # type: ignore[union-attr]  # no path
    return sum(entry.i == GROUPS // 2 for node in nodes for entry in node.attribute if entry.name == "group")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many were regrouped in what was measured in context; faster only where it is more than one."""
    seen: list[int] = []

    def in_context(_: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        seen.extend(map(regrouped, some))
        return [timing(1.3, "FASTER") if regrouped(one) > 1 else timing(0.9, "SLOWER") for one in some]

    def as_whole(_: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        return [timing(1.2, "FASTER") if regrouped(one) else timing(1.0, "NOISE") for one in some]

    monkeypatch.setattr(rewriter.choose, "compare", in_context)
    monkeypatch.setattr(rewriter.whole_timing, "compare", as_whole)
    return seen


def run(model: Model) -> Outcome:
    return optimize(model, {REGROUP.name: REGROUP}, {REGROUP.name: BLOCK}, RunOptions())


def accepted(outcome: Outcome) -> dict[str, str]:
    found = [entry for entry in outcome.attempts if entry.outcome == "accepted"]
    return {entry.site: str(entry.details["measured"]) for entry in found}


def test_what_is_faster_only_together_is_measured_and_kept_together(looked_at: list[int]) -> None:
    outcome = run(row(3))
    assert 3 in looked_at
    assert accepted(outcome).keys() == {"c0", "c1", "c2"}
    assert all("with all 3 in a row" in why for why in accepted(outcome).values())
    assert outcome.verdict == "equivalent"


def test_a_convolution_between_them_makes_two_rows(looked_at: list[int]) -> None:
    outcome = run(row(5, between=True))
    assert max(looked_at) == 2
    assert accepted(outcome).keys() == {"c0", "c1", "c3", "c4"}


def test_one_by_itself_is_no_row(looked_at: list[int]) -> None:
    assert not run(row(1)).changed
    assert set(looked_at) == {1}


def test_where_all_are_hopeless_nothing_is_measured_together(
    looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(_: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        looked_at.extend(map(regrouped, some))
        return [timing(0.5, "SLOWER") for _ in some]

    monkeypatch.setattr(rewriter.choose, "compare", hopeless)
    assert not run(row(3)).changed
    assert set(looked_at) == {1}
