"""The table form × form holds: every conversion on a few random models, every refusal, and the page of a campaign.

FORMS_CASES=40 asks for more models of each; `make forms` runs the campaign that docs/forms.md counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import forms_cases
from benchmarks import forms as campaign
from docs import forms as docs
from forms_cases import Failed, audited, back_again, case_of, convert, refuses, same_bits, weights
from forms_known import FORMS, ONLY_MADE
from forms_recognise import recognised
from forms_table import (
    STEPS,
    THERE_AND_BACK,
    WHY_NOT,
    Conversion,
    No,
    Pass,
    conversions,
    why_not,
)
from funnel import run
from rewriter.registry import all_passes
from rewriter.rule import Safety

CASES = range(int(os.environ.get("FORMS_CASES", "3")))
CHAINS = {chain.name: chain for chain in conversions().values()}
REFUSALS = {f"{source} -> {target}": (source, no) for (source, target), no in WHY_NOT.items() if no.tried}
DRAWN = [name for name in FORMS if name not in ONLY_MADE]

NO_CONVERSION = {"absorb-shuffle", "align-concat", "cancel-layout-pairs", "expand-gate", "pad-channels"}
"""Passes that leave a convolution in its form."""
# What is also of another form: neighbours, spatial axes and branches say nothing about groups and rank.
_ANY = {"conv1d", "conv3d", "affine", "padded", "folded", "activated", "add_chain", "mean", "pooled"}
_ALSO: dict[str, set[str]] = {
    "depthwise_sum": {"conv3d_as_2d"},  # its Reshape
    "block_dense": {"dense_rank_input", "dense_rank_output"},  # few outputs, or inputs, have few filters
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_conversion_holds(name: str) -> None:
    for number in CASES:
        convert(CHAINS[name], number)


@pytest.mark.parametrize(("source", "target"), THERE_AND_BACK)
def test_there_and_back_gives_the_same_bits(source: str, target: str) -> None:
    for number in CASES:
        back_again(source, target, number)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_pass_refuses_what_the_table_says_it_does(name: str) -> None:
    for number in CASES:
        refuses(*REFUSALS[name], number)


# The table.


def test_every_pair_has_a_conversion_or_a_sentence() -> None:
    chains = conversions()
    for source, target in permutations(FORMS, 2):
        if (source, target) not in chains:
            sentence = why_not(source, target).why
            assert sentence.endswith("."), sentence
            assert sentence[0].isupper(), sentence


def test_every_sentence_is_of_some_pair_and_no_pair_has_both() -> None:
    chains = conversions()
    used = [why_not(*pair) for pair in permutations(FORMS, 2) if pair not in chains]
    assert [key for key, no in WHY_NOT.items() if not any(no is one for one in used)] == []
    assert not chains.keys() & WHY_NOT.keys()


def test_every_pass_makes_a_conversion() -> None:
    used = {step.name for chain in CHAINS.values() for step in chain.passes}
    assert used == all_passes().keys() - NO_CONVERSION


def test_chains_are_the_shortest_and_as_weak_as_their_weakest_step() -> None:
    single = {(step.source, step.target) for step in STEPS}
    for pair, chain in conversions().items():
        assert len(chain.passes) == len(chain.via) + 1
        assert (len(chain.passes) == 1) == (pair in single)
    assert CHAINS["depthwise_sum -> split_concat"].via == ("grouped",)
    assert CHAINS["depthwise_sum -> split_concat"].safety is Safety.EXACT
    assert CHAINS["split_concat -> block_dense"].safety is Safety.FINITE


# Draws and recognisers.


@pytest.mark.parametrize("name", DRAWN)
def test_a_draw_is_of_its_form_and_of_no_other(name: str) -> None:
    """But for what says nothing about each other, such as groups and what stands beside them."""
    form = FORMS[name]
    for number in range(12):
        case = case_of(name, number)
        assert recognised(case.model, form.is_one, case.head) == ""
        for other in FORMS.values():
            independent = other.name in _ALSO.get(name, set()) or other.name in _ANY or name in _ANY
            if other is not form and not independent:
                assert recognised(case.model, other.is_one, case.head) != "", f"{name} {number} is {other.name}"


@pytest.mark.parametrize("name", ["conv1d -> conv1d_as_2d", "conv3d -> conv3d_as_2d", "activated -> fused"])
def test_what_is_only_made_is_not_there_before(name: str) -> None:
    chain = CHAINS[name]
    for number in range(12):
        assert recognised(case_of(chain.source, number).model, FORMS[chain.target].is_one) != ""


def test_draws_are_the_same_twice_and_differ() -> None:
    for name in DRAWN:
        drawn = [case_of(name, number).model.SerializeToString(deterministic=True) for number in (0, 1, 0)]
        assert drawn[0] == drawn[2] != drawn[1]


# The checks can fail.


def test_a_conversion_that_ends_elsewhere_fails() -> None:
    with pytest.raises(Failed, match="it is not depthwise: it is not depthwise with a multiplier"):
        convert(
            replace(CHAINS["grouped -> split_concat"], target="depthwise", passes=(Pass("regroup", {"groups": 1}),)), 0
        )


def test_a_conversion_that_does_not_apply_fails() -> None:
    with pytest.raises(Failed, match="split-groups made nothing that stayed: It is dense"):
        audited(case_of("dense", 0), [Pass("split-groups")])


def test_a_safety_that_is_too_strong_fails() -> None:
    chain = CHAINS["grouped -> block_dense"]
    with pytest.raises(Failed, match="it is EXACT by the table, and FINITE by its passes"):
        convert(replace(chain, safety=Safety.EXACT), 0)


def test_a_grade_that_is_too_weak_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forms_cases._GRADES, "exact", Safety.ROUNDING)
    with pytest.raises(Failed, match="it is EXACT by the table, and ROUNDING by the audit"):
        convert(CHAINS["grouped -> split_concat"], 0)


def test_bits_that_differ_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("grouped", 0)

    def wrong(model: ModelProto, inputs: Any, level: str) -> Any:
        outputs = run(model, inputs, level)
        return outputs if model is case.twin else {name: value + 1 for name, value in outputs.items()}

    monkeypatch.setattr(forms_cases, "run", wrong)
    with pytest.raises(Failed, match="differs on integers at level disable"):
        same_bits(case, [Pass("split-groups")])


def test_weights_that_do_not_come_back_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    number = iter(range(2))
    monkeypatch.setattr(forms_cases, "weights", lambda model: [*weights(model), str(next(number)).encode()])
    with pytest.raises(Failed, match="through split_concat the weights do not come back to the last bit"):
        back_again("grouped", "split_concat", 0)


def test_one_bit_more_is_another_weight() -> None:
    model = case_of("dense", 0).model
    before = weights(model)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "y.weight"]
    value = numpy_helper.to_array(tensor).copy()
    value.flat[0] = np.nextafter(value.flat[0], value.dtype.type(9))
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    assert weights(model) != before


def test_a_refusal_that_does_not_happen_fails() -> None:
    with pytest.raises(Failed, match="split-groups applies"):
        refuses("grouped", No("", Pass("split-groups"), ""), 0)
    with pytest.raises(Failed, match="split-groups does not say 'a wrong reason'"):
        refuses("dense", No("", Pass("split-groups"), "a wrong reason"), 0)


# The campaign and its page.


def test_the_campaign_was_of_this_table_and_nothing_failed() -> None:
    report = docs.load()
    described = campaign.described()
    assert {key: report[key] for key in described if key != "versions"} == {
        key: value for key, value in described.items() if key != "versions"
    }, "tests/forms_table.py changed: run make forms"
    wanted = [campaign.facts(chain) for chain in conversions().values()]
    assert [{key: row[key] for key in wanted[0]} for row in report["conversions"]] == wanted, "run make forms"
    rows = [*report["conversions"], *report["there_and_back"], *report["refused"]]
    assert len(rows) == len(wanted) + len(THERE_AND_BACK) + len(REFUSALS)
    for row in rows:
        assert row["passed"] == row["cases"] == report["cases"] >= 40
        assert row["failures"] == []


def test_the_page_is_what_the_campaign_gives() -> None:
    assert docs.stale() == []


def test_a_page_that_is_edited_or_a_count_that_changes_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    report = json.loads(docs.RESULTS.read_text())
    report["conversions"][0]["passed"] -= 1
    changed = tmp_path / "forms.json"
    changed.write_text(json.dumps(report))
    monkeypatch.setattr(docs, "RESULTS", changed)
    assert docs.stale() == ["docs/forms.md is not what benchmarks/results/forms.json gives: run python -m docs.build"]


def test_every_link_of_the_page_is_there() -> None:
    for row in docs.load()["conversions"]:
        for step in row["passes"]:
            assert (docs.PAGE.parent / "passes" / f"{step.partition(' ')[0]}.md").exists()


def test_a_campaign_counts_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """And has it in its result; one conversion run again replaces its row alone."""
    chains = list(CHAINS)
    bad = [1]

    def convert_some(chain: Conversion, number: int) -> forms_cases.Converted:
        if number in bad:
            raise Failed("no")
        return forms_cases.Converted(ModelProto(), Safety.EXACT, Safety.FINITE, "")

    monkeypatch.setattr(forms_cases, "convert", convert_some)
    for name in ("back_again", "refuses"):
        monkeypatch.setattr(forms_cases, name, lambda *_: None)
    monkeypatch.setattr(campaign, "RESULTS", tmp_path / "forms.json")

    monkeypatch.setattr("sys.argv", ["forms", "--cases", "3"])
    assert campaign.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{chains[0]}, case 1: no"
    assert f"{len(chains)} failed" in said[-1]
    rows = json.loads(campaign.RESULTS.read_text())["conversions"]
    assert [row["passed"] for row in rows] == [2] * len(chains)
    assert (rows[0]["cases"], rows[0]["declared"], rows[0]["audited"]) == (3, {"EXACT": 2}, {"FINITE": 2})
    assert rows[0]["failures"] == [{"case": 1, "reason": "no"}]

    bad.clear()
    monkeypatch.setattr("sys.argv", ["forms", "--cases", "3", "--only", chains[1]])
    assert campaign.main() == 0
    rows = json.loads(campaign.RESULTS.read_text())["conversions"]
    assert [row["passed"] for row in rows] == [2, 3, *[2] * (len(chains) - 2)]
    monkeypatch.setattr("sys.argv", ["forms", "--cases", "3", "--only", "a typing error"])
    assert campaign.main() == 1
