"""What the audit says at its limits: evaluators that refuse, weights that are no numbers, large regions."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.equivalence import AuditOptions, audit, exact
from rewriter.equivalence.exact import compare_exactly
from rewriter.equivalence.kernels import Refuted, deviation, within
from rewriter.equivalence.numeric import compare_on_activations
from rewriter.equivalence.oracle import Oracle, OracleFailed, convolve
from rewriter.equivalence.precision import difference, largest_finite, worst
from rewriter.equivalence.records import failed, passed
from rewriter.equivalence.rows import rows_by_position, same_rows
from rewriter.equivalence.verdict import audit_verdict
from rewriter.model import Model
from test_equivalence import rewrites as rw
from test_equivalence.nets import audited, chain, net
from test_equivalence.test_runs import exchange
from test_equivalence.wrong_weights import one_ulp_on_one_tap, two_output_channels_swapped

SOUND, FINE = passed("L0", "Sound."), passed("L4", "Fine.")


def spoilt(value: float, where: tuple[int, ...] = (0, 0, 0, 0)) -> onnx.ModelProto:
    before = net()
    weight = rw.weight_of(before, "w").copy()
    weight[where] = value
    rw.set_weight(before, "w", weight)
    return before


def test_nodes_out_of_order_are_audited_all_the_same() -> None:
    """ONNX Runtime sorts them; the reference evaluator refuses."""
    before = net()
    after = rw.split_concat(before, "t")
    for model in (before, after):
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    result = audited(before, after)
    assert result.verdict in ("equivalent", "approximate", "not_verified"), result.reason


def test_what_the_reference_operators_refuse_is_a_reason() -> None:
    found = exchange(net(), rw.regrouped(net(), "t", 2))
    cut = found.before.cut
    feeds = {"a": np.zeros((2, 6, 6, 7), np.float32)}
    with pytest.raises(OracleFailed, match="refuse it: a Conv of 4 groups with 2 inputs each is given 6 channels"):
        Oracle(cut)(feeds, cut.weights)


@pytest.mark.parametrize("stage", ["__init__", "__call__"])
def test_an_evaluator_that_fails_stops_no_audit(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OracleFailed("the reference operators refuse it: so they say")

    monkeypatch.setattr(Oracle, stage, refuse)
    found = exchange(net(), rw.regrouped(net(), "t", 2))
    integers = compare_exactly(found, moved=True)
    assert (integers.outcome, "so they say" in integers.detail) == ("not exact here", True)
    captured = [{"a": np.random.default_rng(0).random(found.shapes[0]["a"]).astype(np.float32)}]
    real = compare_on_activations(found, captured, 40)
    assert (real.outcome, real.figures["certified"]) == ("pass", False)
    assert "so they say" in real.detail


def test_a_rewrite_that_gives_an_unloadable_model_is_refused_not_raised() -> None:
    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        result = rw.clone(model)
        result.graph.node[-1].op_type = "Nowhere"
        return result

    found = compare_exactly(exchange(net(), rw.regrouped(net(), "t", 2)), moved=False, rerun=broken)
    assert (found.outcome, "does not load" in found.detail) == ("fail", True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [lambda m: rw.regrouped(m, "t", 2), lambda m: rw.split_concat(m, "t")])
def test_moved_weights_that_are_no_numbers_are_the_same(value: float, make: Any) -> None:
    before = spoilt(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = audited(before, make(before))
    assert result.verdict != "different", result.reason
    level = result.regions[0].level("L1")
    assert level is not None
    assert level.outcome == "pass", level


@pytest.mark.parametrize(("old", "new"), [(np.nan, 1.0), (np.inf, -np.inf), (1.0, np.inf), (np.inf, np.nan)])
def test_weights_that_become_or_cease_to_be_numbers_are_refused(old: float, new: float) -> None:
    before = spoilt(old)
    after = rw.regrouped(before, "t", 2)
    wide = rw.weight_of(after, "t.regrouped").copy()
    wide[0, 0, 0, 0] = new
    rw.set_weight(after, "t.regrouped", wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert audited(before, after).verdict == "different"


def test_weights_that_are_all_nan_are_not_verified() -> None:
    before = net()
    rw.set_weight(before, "w", np.full((8, 2, 3, 3), np.nan, np.float32))
    result = audited(before, rw.regrouped(before, "t", 2))
    assert result.verdict == "not_verified", result.reason
    level = result.regions[0].level("L3")
    assert level is not None
    assert "finite" in level.detail


def test_deviations_of_what_is_not_finite() -> None:
    a = np.asarray([1.0, np.inf, np.inf, np.nan, np.nan, 2.0])
    b = np.asarray([1.5, np.inf, -np.inf, np.nan, 0.0, np.inf])
    assert deviation(a, b).tolist() == [0.5, 0.0, np.inf, 0.0, np.inf, np.inf]
    assert within(np.zeros(2), np.asarray([np.nan, np.inf]), 2.0**-24, str) == 0
    with pytest.raises(Refuted, match="Infinity or NaN is used at 1 on one side only"):
        within(np.asarray([0.0, np.inf]), np.asarray([1.0, np.inf]), 2.0**-24, str)


def test_differences_taken_in_parts() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 70_001)).astype(np.float32)
    b = a.copy()
    b[2, 70_000] += 0.5
    a[1, 7] = b[1, 7] = np.inf
    error, needed = worst(a, b)
    assert error == difference(a, b).max() == pytest.approx(0.5, 1e-6)
    assert needed == pytest.approx(error / (1 + abs(a[2, 70_000])))
    assert largest_finite(a) == np.abs(a[np.isfinite(a)]).max()


def large(monkeypatch: pytest.MonkeyPatch, before: onnx.ModelProto, after: onnx.ModelProto) -> exact.Exchange:
    monkeypatch.setattr(exact, "LARGE", 100)
    return exchange(before, after)


def test_large_regions_are_run_less_often_and_as_surely(monkeypatch: pytest.MonkeyPatch) -> None:
    found = large(monkeypatch, net(), rw.regrouped(net(), "t", 2))
    assert found.large
    result = compare_exactly(found, moved=True)
    assert result.outcome == "pass", result
    draws, largest = result.figures["draws"], result.figures["largest_weight"]
    assert isinstance(draws, int)
    assert isinstance(largest, int)
    assert draws < 12
    assert largest**draws >= 1e18
    assert f"No more than {draws} draws" in result.detail
    assert "8 draws" not in compare_exactly(dataclasses.replace(found, elements=(1,)), moved=True).detail


@pytest.mark.parametrize("make", [one_ulp_on_one_tap, two_output_channels_swapped])
def test_large_regions_refuse_what_small_ones_do(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    assert compare_exactly(large(monkeypatch, *make()), moved=True).outcome == "fail"


def test_large_models_are_run_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = net(batch="N"), rw.regrouped(net(batch="N"), "t", 2)
    usual = audited(before, after)
    monkeypatch.setattr("rewriter.equivalence.ladder.LARGE", 100)
    found = audited(before, after)
    assert found.verdict == "equivalent"
    assert found.levels[1].figures["runs"] == usual.levels[1].figures["runs"] == len(found.witnesses)
    assert {repr(witness) for witness in found.witnesses} == {repr(witness) for witness in usual.witnesses}
    assert found.outputs[0].compared


@pytest.mark.parametrize(("groups", "size"), [(1, 5), (4, 300), (128, 60)])
def test_the_oracle_convolves_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch, groups: int, size: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (2, groups, size, 3)).astype(float), rng.integers(-3, 4, (groups, 1, 3, 3)).astype(float)
    whole = convolve(x, w, None, {"pads": (1, 1, 1, 1)}, groups)
    monkeypatch.setattr("rewriter.equivalence.oracle._BLOCK", 1)
    assert np.array_equal(convolve(x, w, None, {"pads": (1, 1, 1, 1)}, groups), whole)


def test_rows_are_found_with_and_without_sorting() -> None:
    position = np.broadcast_to(np.arange(6).reshape(2, 1, 3), (2, 4, 3)).reshape(-1)
    live = np.arange(24)
    fast = rows_by_position(position, live, (2, 4, 3))
    slow = rows_by_position(position, live, (24,))
    assert fast is not None
    assert slow is not None
    assert np.array_equal(fast, slow)
    assert rows_by_position(np.asarray([0, 0, 1]), np.arange(3), (3,)) is None
    values = np.asarray([[1.0], [np.nan], [1.0], [np.nan]])
    assert same_rows(values, np.asarray([[0, 1], [2, 3]]))
    assert not same_rows(values, np.asarray([[0, 1], [3, 2]]))


def test_the_reason_says_why_the_original_did_not_run() -> None:
    before = net()
    rw.node_of(before, "r").domain = "nowhere"
    before.opset_import.append(helper.make_opsetid("nowhere", 1))
    result = audited(before, rw.regrouped(before, "t", 2))
    assert result.verdict == "not_verified"
    assert "on any input: ONNX Runtime cannot load the model" in result.reason


def test_inputs_of_unknown_rank_name_what_to_give() -> None:
    before = net()
    before.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    result = audited(before, rw.regrouped(before, "t", 2))
    assert "the rank of the input 'x' is not known" in result.reason
    assert "--input-shape" in result.reason
    assert "--inputs" in result.reason


@pytest.mark.parametrize(
    ("verdicts", "whole", "start"),
    [
        (["equivalent"], FINE, "The region that differs is equivalent (exact)."),
        (["equivalent"] * 2, FINE, "All 2 regions that differ are equivalent (exact)."),
        (["different"], FINE, "The region that differs computes something else."),
        (["different", "equivalent", "equivalent"], FINE, "1 of 3 regions computes something else."),
        (["different", "different", "equivalent"], FINE, "2 of 3 regions compute something else."),
        (["approximate", "approximate"], FINE, "2 of 2 regions agree in every run"),
        (["approximate", "equivalent"], FINE, "1 of 2 regions agrees in every run"),
        (["not_verified", "equivalent"], FINE, "1 of 2 regions could not be verified."),
        (["equivalent"], failed("L4", "Off.", worst=99.0), "Off."),
    ],
)
def test_reasons_agree_in_number(verdicts: list[Any], whole: Any, start: str) -> None:
    regions = [(verdict, "exact" if verdict == "equivalent" else None, "pass") for verdict in verdicts]
    assert audit_verdict(SOUND, regions, whole, identical=False, ran=True)[2].startswith(start)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "verdict"), [(np.inf, "equivalent"), (np.nan, "equivalent"), (1.0, "different")])
def test_combined_weights_that_are_no_numbers_are_the_same(value: float, verdict: str) -> None:
    """A factor behind the convolution, folded into weights of which one is infinite in both models, or in one."""
    weight = np.random.default_rng(0).standard_normal((4, 2, 1, 1)).astype(np.float32)
    folded = weight * np.float32(3)
    weight[0, 0], folded[0, 0] = value, np.inf if value == 1 else value
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "k"], ["y"])]
    before = chain(nodes, {"w": weight, "k": np.asarray(3, np.float32)}, [2, 2, 5, 5])
    after = chain([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": folded}, [2, 2, 5, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = audited(before, after)
    assert result.verdict == verdict, result.reason


def test_numpy_is_quiet_during_an_audit() -> None:
    seen: list[set[str]] = []
    before, after = Model.load(net()), Model.load(rw.regrouped(net(), "t", 2))
    audit(before, after, AuditOptions(), progress=lambda *_: seen.append({str(how) for how in np.geterr().values()}))
    assert seen == [{"ignore"}] * len(seen)
    assert seen
