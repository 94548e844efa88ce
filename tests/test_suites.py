"""The suites that test the auditor, as campaigns: what they count, and the pages that are built from them.

SUITES_CASES=1000 asks for more right rewrites; `make right-rewrites` runs ten thousand.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import polygraphy, right, wrong
from docs import polygraphy_page, wrong_rewrites
from rewriter.equivalence import ladder, proving
from rewriter.equivalence.float64 import Float64
from rewriter.model import Model
from rewriter.session import Runtime, open_session, run
from right_draws import WEIGHTS, Pair, reweighted, sources
from test_equivalence.nets import net
from test_equivalence.rewrites import regrouped
from test_equivalence.wrong_cases import Case, Kind
from test_equivalence.wrong_suite import CASES, family
from test_equivalence.wrong_values import batch_cut_off, one_ulp_in_place

SOURCES = sources()
QUICK = [name for name in SOURCES if name != "small networks"]
KNOWN_ALARMS = {
    "pass: dense_rank_space -> spatial_separable": [(31, False)],
    "other spelling": [(61, True), (95, False)],
}
"""Where a right rewrite may be refused, and cases that are (seed, full audit): less accurate than the original.

Factors of a kernel whose products cancel, met by inputs nearly all zero; a bias of zero written as a sum of biases,
met by inputs so small that little else is in the sum.  No bound tells these from what is added and taken away in front
of a convolution (`epsilon_added_and_taken_away`), which has to be refused.
"""
CANCELS = "a sum that cancels is less accurate."
CASES_EACH = max(1, int(os.environ.get("SUITES_CASES", "260")) // len(QUICK))


# Right rewrites.


@pytest.mark.parametrize("name", QUICK)
def test_right_rewrites_are_not_rejected(name: str) -> None:
    rows = right.campaign({name: SOURCES[name]}, CASES_EACH, 1000, full=0)
    wrong = [row for row in rows if row["verdict"] == "different"]
    assert not wrong, [(row["seed"], row["reason"]) for row in wrong]
    drawn = [row for row in rows if row["verdict"] != "not drawn"]
    assert len(drawn) >= len(rows) / 2


@pytest.mark.parametrize("name", [name for name in QUICK if name.startswith("by hand")])
def test_what_is_made_by_hand_is_proven(name: str) -> None:
    rows = right.campaign({name: SOURCES[name]}, 3, 2000, full=0)
    assert [(row["verdict"], row["reason"]) for row in rows] == [("equivalent", "")] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["by hand: regrouped", "by hand: normalization folded", "by hand: layout changed"])
def test_full_audits_do_not_reject_them_either(name: str) -> None:
    (row,) = right.campaign({name: SOURCES[name]}, 1, 3000, full=1)
    assert (row["verdict"], row["full"], row["reason"]) == ("equivalent", True, "")


@pytest.mark.slow
def test_small_networks_are_not_rejected() -> None:
    (row,) = right.campaign({"small networks": SOURCES["small networks"]}, 1, full=0)
    assert row["verdict"] in ("equivalent", "approximate"), row


def test_a_false_alarm_is_counted_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wrong rewrite among the right ones."""
    before, after = one_ulp_in_place()
    monkeypatch.setattr(right, "LOG", tmp_path / "log" / "right.jsonl")
    draws = {"a wrong one": lambda seed: Pair(before, after, {}, "as drawn", "float"), "nothing": lambda seed: None}
    rows = right.campaign(draws, 4, 7, log=True)
    report = right.summary(rows)
    assert report["counts"] == {"rewrites": 2, "rejected": 2, "equivalent": 0, "unproven": 0, "full audits": 1}
    assert [alarm["seed"] for alarm in report["false alarms"]] == [7, 8]
    assert right.read_log() == rows


def test_known_alarms_are_of_sums_that_cancel() -> None:
    for name, cases in KNOWN_ALARMS.items():
        for seed, full in cases:
            row = right.one(SOURCES[name], name, seed, full=full)
            assert (row["verdict"], row["reason"].endswith(CANCELS)) == ("different", True), row


def test_biases_that_cancel_are_less_accurate() -> None:
    """The models of seed 95 against float64, on inputs of 1e-5: two digits are right, of the original's seven."""
    pair = SOURCES["other spelling"](95)
    assert pair is not None
    x = np.random.default_rng(0).standard_normal((2, 9, 7)).astype(np.float32) * np.float32(1e-5)
    models = [pair.before, pair.after]
    exact, same = (Float64(Model.load(model), ["y"])({"x": x})["y"] for model in models)
    assert np.allclose(exact, same, rtol=1e-9, atol=0)
    old, new = (run(open_session(model, Runtime()), {"x": x}, ["y"])["y"] for model in models)
    errors = [float((np.abs(value - exact) / np.abs(exact)).max()) for value in (old, new)]
    assert errors[0] < 1e-6
    assert errors[1] > 1e-2


@pytest.mark.parametrize("seed", [129, 134])
def test_minus_zero_that_one_pass_drops_and_another_fills_in_as_zero(seed: int) -> None:
    name = "pass: block_dense -> wide_groups"
    row = right.one(SOURCES[name], name, seed)
    assert (row["verdict"], row["grade"]) == ("equivalent", "finite"), row


def test_alarms_are_audited_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three rewrites were refused: one still is, one is proven now, one is left open."""

    def drawn(pair: tuple[onnx.ModelProto, onnx.ModelProto], seed: int) -> Pair:
        return Pair(*pair, {}, "as drawn", "float")

    kinds = {
        "wrong": one_ulp_in_place(),
        "right": (net(), regrouped(net(), "t", 1)),
        "open": CASES["doubled_at_one_batch"].make(),
    }
    draws = {name: partial(drawn, pair) for name, pair in kinds.items()}
    refused = {"verdict": "different", "grade": None, "reason": "Whole. First: that.", "full": False}
    case = {"seed": 3, "weights": "as drawn", "inputs": "0 … 1", "type": "float"}
    first = right.summary([{"source": name, **case, **refused} for name in kinds])
    monkeypatch.setattr(right, "RESULTS", tmp_path / "right.json")
    right.RESULTS.write_text(json.dumps(first), encoding="utf-8")
    monkeypatch.setattr("right_draws.sources", lambda: draws)
    monkeypatch.setattr("sys.argv", ["right", "--again-alarms", "abc1234"])
    assert right.main() == 1
    found = json.loads(right.RESULTS.read_text(encoding="utf-8"))
    assert found["counts"] == {"rewrites": 3, "rejected": 1, "equivalent": 1, "unproven": 1, "full audits": 0}
    assert [alarm["source"] for alarm in found["false alarms"]] == ["wrong"]
    rows = {row["name"]: (row["different"], row["equivalent"], row["unproven"]) for row in found["rewrites"]}
    assert rows == {"open": (0, 0, 1), "right": (0, 1, 0), "wrong": (1, 0, 0)}
    verdicts = {entry["source"]: entry["verdict"] for entry in found["again"]}
    assert verdicts == {"wrong": "different", "right": "equivalent", "open": "approximate"}
    assert right.main() == 1  # and what the campaign said stays
    assert json.loads(right.RESULTS.read_text(encoding="utf-8"))["again"] == found["again"]
    assert json.loads(right.RESULTS.read_text(encoding="utf-8"))["counts"] == found["counts"]
    said = "\n".join(wrong_rewrites._right(found))
    assert "with the auditor of commit abc1234. It called 3 `different`" in said
    assert "- right (seed 3), now `equivalent`. It was: that." in said


def test_a_campaign_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(right, "LOG", tmp_path / "right.jsonl")
    name = "by hand: padding moved"
    first = right.campaign({name: SOURCES[name]}, 2, log=True)
    asked = []

    def draw(seed: int) -> Pair | None:
        asked.append(seed)
        return SOURCES[name](seed)

    assert right.campaign({name: draw}, 3, done=right.read_log())[:2] == first
    assert asked == [2]


def test_draws_are_the_same_each_time_and_of_every_distribution() -> None:
    draw = SOURCES["by hand: depthwise summed"]
    first, second = draw(5), draw(5)
    assert first is not None
    assert second is not None
    assert first.before.SerializeToString(deterministic=True) == second.before.SerializeToString(deterministic=True)
    assert first.after.SerializeToString(deterministic=True) == second.after.SerializeToString(deterministic=True)
    model = net()
    changed = {reweighted(model, name, 0).SerializeToString(deterministic=True) for name in WEIGHTS}
    assert len(changed) == len(WEIGHTS)


# Wrong rewrites.


def test_a_level_asked_alone_says_what_those_below_would_have_said_first() -> None:
    kind = CASES["two_output_channels_swapped"]
    found = wrong.outcome(kind)
    assert (found["caught"], found["late"], found["verdict"]) == ("L1", False, "different")
    assert set(found["alone"]) >= {"L1", "L2", "L3", "L4"}
    assert wrong.outcome(CASES["one_ulp_on_one_tap"])["alone"] == ["L1", "L2"]


def test_a_kind_caught_too_late_is_said() -> None:
    before, after = CASES["relu_dropped"].make()
    late = wrong.outcome(Kind("L1", lambda: (before, after), "It is not."))
    assert (late["caught"], late["late"]) == ("L3", True)


def test_levels_are_asked_again_afterwards() -> None:
    def asked() -> list[object]:
        steps = {proving: ["at_all_sizes", "lone_change"], ladder: ["compare_structure", "compare_exactly"]}
        return [vars(module)[name] for module, names in steps.items() for name in names]

    said = asked()
    with wrong.muted(["L0", "L1", "L2", "L3"], True):
        assert not any(one is other for one, other in zip(said, asked(), strict=True))
    assert asked() == said


def test_one_kind_can_be_asked_for() -> None:
    report = wrong.campaign("batch_cut_off")
    assert [row["kind"] for row in report["kinds"]] == ["batch cut off"]
    assert report["counts"]["rejected"] == 1


# The pages.


def test_the_pages_are_what_the_results_give() -> None:
    assert wrong_rewrites.stale() == []
    assert polygraphy_page.stale() == []


def test_the_results_are_those_of_the_suite() -> None:
    """benchmarks/results/ is of this suite: every kind, with its sentence, rejected no later than its case says."""
    for report in (wrong_rewrites.load("wrong")["kinds"], polygraphy_page.load()["wrong"]):
        rows = {row.get("kind") or row["name"]: row for row in report}
        assert set(rows) == {name.replace("_", " ") for name in CASES}
        assert {name: row["what"] for name, row in rows.items()} == {
            name.replace("_", " "): kind.what for name, kind in CASES.items()
        }
    for row in wrong_rewrites.load("wrong")["kinds"]:
        assert row["verdict"] != "equivalent"
        assert not row["late"]
    alarms = wrong_rewrites.load("right")["false alarms"]
    assert {alarm["source"] for alarm in alarms} <= KNOWN_ALARMS.keys()
    assert all(alarm["reason"].endswith(CANCELS) for alarm in alarms)


def test_a_row_says_which_levels() -> None:
    report = {"kinds": [{"kind": "k", "family": "f", "what": "W.", "caught": "L1", "alone": ["L1", "L3"]}]}
    lines = list(wrong_rewrites._kinds(report))
    assert "| k | W. |  | **●** |  | ○ |  |  |" in lines


def test_families_are_named() -> None:
    assert family(Kind("", batch_cut_off, "")) == "Constants in place, sizes, activations"

    def elsewhere() -> Case:
        raise NotImplementedError

    assert family(Kind("", elsewhere, "")) == "Others"


def test_the_difference_that_polygraphy_met() -> None:
    def values(*numbers: float) -> dict[str, Any]:
        return {"y": np.asarray(numbers, np.float32)}

    assert polygraphy.largest_difference(values(1, 2), values(1, 3)) == 0.5
    assert polygraphy.largest_difference(values(1, 2), values(1, 2, 3)) is None
    assert polygraphy.largest_difference(values(1, 2), values(1, float("nan"))) == "nan"
    assert polygraphy.largest_difference(values(0), values(0)) == 0
    assert json.dumps(polygraphy.largest_difference(values(1), values(float("inf")))) == '"inf"'
