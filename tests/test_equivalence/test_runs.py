"""The levels that run models: each must be able to refuse on its own, and to say that it can say nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.bindings import find_bindings
from rewriter.equivalence import AuditOptions, audit
from rewriter.equivalence.cut import Runner
from rewriter.equivalence.exact import Exchange, compare_exactly, hashed
from rewriter.equivalence.inputs import RECIPES, feeds, nudged
from rewriter.equivalence.numeric import compare_on_activations
from rewriter.equivalence.oracle import convolve
from rewriter.equivalence.proving import exchange_of
from rewriter.equivalence.regions import Diff
from rewriter.equivalence.whole import Whole
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.session import Runtime
from rewriter.shapes import bind
from test_equivalence import rewrites as rw
from test_equivalence.nets import audited, caught, net
from test_equivalence.wrong_weights import (
    bias_doubled,
    kernel_transposed,
    mean_instead_of_sum,
    one_ulp_on_one_tap,
    pads_shifted_by_one,
    tap_times_1_001,
    two_input_channels_swapped,
    two_output_channels_swapped,
)


def exchange(before: onnx.ModelProto, after: onnx.ModelProto) -> Exchange:
    a, b = Model.load(before), Model.load(after)
    bindings = find_bindings(a)
    diffs = [Diff(a, b, (found.bound, bind(b, found.shapes))) for found in bindings]
    (region,) = diffs[0].regions()
    found = exchange_of(region, diffs, AuditOptions())
    assert found is not None
    return found


WITHOUT_L1 = [
    one_ulp_on_one_tap,
    tap_times_1_001,
    two_output_channels_swapped,
    two_input_channels_swapped,
    kernel_transposed,
    pads_shifted_by_one,
    mean_instead_of_sum,
    bias_doubled,
]


@pytest.mark.parametrize("make", WITHOUT_L1, ids=lambda make: make.__name__)
def test_the_integer_level_refuses_alone(make: Any) -> None:
    result = compare_exactly(exchange(*make()), moved=True)
    assert result.outcome == "fail"
    assert "differs in" in result.detail


@pytest.mark.parametrize("make", WITHOUT_L1, ids=lambda make: make.__name__)
def test_the_bound_refuses_alone_what_is_no_rounding(make: Any) -> None:
    found = exchange(*make())
    captured = [{"a": np.random.default_rng(0).random(found.shapes[0]["a"]).astype(np.float32)}]
    outcome = compare_on_activations(found, captured, 40).outcome
    assert outcome == ("pass" if make is one_ulp_on_one_tap else "fail")


@pytest.mark.parametrize("make", WITHOUT_L1, ids=lambda make: make.__name__)
def test_the_whole_model_refuses_alone_what_is_no_rounding(make: Any) -> None:
    result = audited(*make())
    whole = result.levels[1]
    assert whole.outcome == ("pass" if make is one_ulp_on_one_tap else "fail")
    assert result.verdict == "different"


def test_right_rewrites_pass_the_integer_level_at_both_optimization_levels() -> None:
    before = net(batch="N")
    found = compare_exactly(exchange(before, rw.regrouped(before, "t", 1)), moved=True)
    assert found.outcome == "pass"
    assert "unoptimized and at level 'all'" in found.detail
    assert found.figures["draws"] == 12


def test_a_region_of_zeros_proves_nothing() -> None:
    before = net()
    weight = np.zeros((8, 2, 3, 3), np.float32)
    weight[0] = 1
    rw.set_weight(before, "w", weight)
    rw.set_weight(before, "b", np.zeros(8, np.float32))
    result = compare_exactly(exchange(before, rw.regrouped(before, "t", 2)), moved=True)
    assert result.outcome == "not exact here"
    assert "are not zero" in result.detail


def test_an_original_that_is_not_exact_itself_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a provider that convolves by FFT: every result a little off, in both models."""
    exact: Any = Runner.plain
    monkeypatch.setattr(Runner, "plain", lambda self, *a: {n: v + np.float32(0.01) for n, v in exact(self, *a).items()})
    before = net()
    result = compare_exactly(exchange(before, rw.regrouped(before, "t", 2)), moved=True)
    assert result.outcome == "not exact here"
    assert "the original itself" in result.detail


@pytest.mark.parametrize(("off", "outcome"), [(64.0, "fail"), (0.25, "fail"), (2.0**-10, "pass")])
def test_the_deployed_level_is_compared_too(monkeypatch: pytest.MonkeyPatch, off: float, outcome: str) -> None:
    """A rewritten region that only the optimized runtime gets wrong; what rounding explains is said."""
    exact: Any = Runner.deployed

    def spoilt(self: Runner, *given: Any) -> list[dict[str, Any]]:
        shift = np.float32(off if self.cut.side == "after" else 0)
        return [{name: value + shift for name, value in found.items()} for found in exact(self, *given)]

    monkeypatch.setattr(Runner, "deployed", spoilt)
    before = net()
    result = compare_exactly(exchange(before, rw.regrouped(before, "t", 2)), moved=True)
    assert result.outcome == outcome
    assert "at level 'all'" in result.detail
    assert outcome == "fail" or "kernels round" in result.detail


def test_hashed_weights_depend_on_the_value_and_the_seed_only() -> None:
    value = np.asarray([1.5, 1.5, np.nextafter(np.float32(1.5), np.float32(2)), 0.0, -0.0, -1.5], np.float32)
    seeds = [hashed(value, seed, 32) for seed in range(12)]
    for found in seeds:
        assert found.dtype == np.float32
        assert found[0] == found[1]
        assert (found[3], found[4]) == (0, 0)
        assert np.abs(found[[0, 2, 5]]).min() >= 1
        assert np.abs(found).max() <= 32
        assert np.array_equal(found, found.astype(np.int64))
        assert found[5] == -found[0]
    assert sum(found[0] == found[2] for found in seeds) <= 3  # a chance of 1/32 each
    assert np.array_equal(hashed(value.astype(np.float64), 5, 32), seeds[5])


def test_sums_too_long_for_float16_are_not_exact_here() -> None:
    before = _half(net(groups=1, inputs=64, outputs=2, kernel=(5, 5), size=(5, 5)))
    after = rw.clone(before)
    rw.node_of(after, "t").attribute.append(helper.make_attribute("kernel_shape", [5, 5]))  # so that it is a region
    result = audited(before, after)
    assert result.verdict == "equivalent"
    assert result.regions[0].level("L2").outcome in ("not exact here", "pass")  # type: ignore[union-attr]


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    result = rw.clone(model)
    for tensor in list(result.graph.initializer):
        rw.set_weight(result, tensor.name, rw.weight_of(model, tensor.name).astype(np.float16))
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return result


def dead() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution whose output is dead after ReLU: only its own output shows an error in it."""
    before = net()
    rw.set_weight(before, "b", np.full(8, -1e4, np.float32))
    after = rw.regrouped(before, "t", 2)
    weight = rw.weight_of(after, "t.regrouped").copy()
    weight[3, 2, 1, 1] *= np.float32(1.5)
    rw.set_weight(after, "t.regrouped", weight)
    return before, after


def test_an_error_behind_blind_outputs_is_found_by_l1() -> None:
    before, after = dead()
    result = audited(before, after)
    assert (result.verdict, caught(result)) == ("different", "L1")
    assert result.outputs[0].bitwise  # nothing to be seen there


def test_an_error_behind_blind_outputs_is_found_by_l2() -> None:
    assert compare_exactly(exchange(*dead()), moved=True).outcome == "fail"


def test_blind_outputs_are_reported_and_the_region_is_still_compared() -> None:
    before, _ = dead()
    result = audited(before, rw.regrouped(before, "t", 2))
    assert (result.verdict, result.regions[0].blind) == ("equivalent", True)
    alive = audited(net(), rw.regrouped(net(), "t", 2))
    assert alive.regions[0].blind is False


def test_a_model_against_itself() -> None:
    before = net()
    result = audited(before, rw.clone(before))
    assert (result.verdict, result.grade, result.regions) == ("equivalent", "bitwise", ())
    assert "identical" in result.reason
    assert result.before_sha256 == result.after_sha256


def test_a_model_with_another_comment_is_run_all_the_same() -> None:
    before = net()
    after = rw.clone(before)
    after.doc_string = "another"
    result = audited(before, after)
    assert (result.verdict, result.grade, result.regions) == ("equivalent", "bitwise", ())
    assert result.levels[1].outcome == "pass"
    assert result.notes


def test_an_unproven_but_accurate_rewrite_is_only_approximate() -> None:
    """Sigmoid as Tanh: no level can prove it, and the outputs respond to it."""
    before = net()
    rw.node_of(before, "r").op_type = "Sigmoid"
    after = rw.clone(before)
    for name, value in {"half": 0.5, "one": 1.0}.items():
        rw.set_weight(after, name, np.asarray(value, np.float32))
    steps = [
        helper.make_node("Mul", ["t", "half"], ["r1"]),
        helper.make_node("Tanh", ["r1"], ["r2"]),
        helper.make_node("Add", ["r2", "one"], ["r3"]),
        helper.make_node("Mul", ["r3", "half"], ["r"]),
    ]
    rw.splice(after, ["r"], steps)
    result = audited(before, after)
    assert (result.verdict, result.grade) == ("approximate", None), result.reason


def test_an_original_that_cannot_run_is_not_verified() -> None:
    before = net()
    rw.node_of(before, "r").domain = "nowhere"
    before.opset_import.append(helper.make_opsetid("nowhere", 1))
    after = rw.regrouped(before, "t", 2)
    result = audited(before, after)
    assert result.verdict == "not_verified", result.reason
    assert all(witness.problem for witness in result.witnesses)


def test_outputs_that_are_never_numbers_are_not_verified() -> None:
    before = net()
    rw.set_weight(before, "w_head", np.full((8, 8, 1, 1), np.nan, np.float32))
    result = audited(before, rw.regrouped(before, "t", 2))
    assert result.verdict == "not_verified", result.reason
    assert not result.outputs[0].compared


def test_an_output_that_ignores_the_input_is_not_evidence() -> None:
    before = net()
    rw.set_weight(before, "w_tail", np.zeros((5, 8, 1, 1), np.float32))
    result = audited(before, rw.regrouped(before, "t", 2))
    assert not result.outputs[0].compared
    assert result.levels[1].outcome == "not applicable"
    assert result.verdict == "equivalent"  # by L1, L2 and L3 at the region's own output
    assert result.regions[0].blind is True


def test_the_users_inputs_and_shapes_are_used() -> None:
    before = net(batch="N")
    after = rw.regrouped(before, "t", 2)
    sample = {"x": np.ones((5, 8, 6, 7), np.float32)}
    result = audited(before, after, samples=(sample,), input_shapes={"x": (4, 8, 6, 7)})
    assert [witness.shapes["x"][0] for witness in result.witnesses][:2] == [5, 4]
    assert result.witnesses[1].chosen == ()
    assert audited(before, after).witnesses[0].chosen == ("x",)
    with pytest.raises(BadInput):
        audited(before, after, input_shapes={"z": (1,)})


def test_models_with_external_data(tmp_path: Path) -> None:
    before, after = net(groups=8, inputs=8), rw.regrouped(net(groups=8, inputs=8), "t", 4)
    wrong = rw.clone(after)
    rw.set_weight(wrong, "w_head", rw.weight_of(after, "w_head") * np.float32(1.001))
    paths = {}
    for name, model in {"before": before, "after": after, "wrong": wrong}.items():
        paths[name] = tmp_path / name / "model.onnx"
        paths[name].parent.mkdir()
        onnx.save(model, paths[name], save_as_external_data=True, location="weights", size_threshold=64)
    loaded = {name: Model.load(path) for name, path in paths.items()}
    right = audit(loaded["before"], loaded["after"], AuditOptions())
    assert (right.verdict, right.grade) == ("equivalent", "finite"), right.reason
    refused = audit(loaded["before"], loaded["wrong"], AuditOptions())
    assert (refused.verdict, caught(refused)) == ("different", "L1")


def test_models_of_ir_3_whose_weights_are_inputs() -> None:
    before = net(opset=8)
    before.ir_version = 3
    for tensor in before.graph.initializer:
        before.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    after = rw.regrouped(before, "t", 2)
    del after.graph.initializer[:]
    after.graph.initializer.extend(before.graph.initializer)
    wide = rw.regrouped_weight(rw.weight_of(before, "w"), 4, 2)
    after.graph.node.insert(
        0, helper.make_node("Constant", [], ["t.regrouped"], value=onnx.numpy_helper.from_array(wide))
    )
    result = audited(before, after)
    assert (result.verdict, result.grade) == ("equivalent", "finite"), result.reason


def test_the_record_is_json_and_the_same_twice() -> None:
    before, after = net(batch="N"), rw.regrouped(net(batch="N"), "t", 2)
    first, second = (audited(before, after, seed=3) for _ in range(2))
    assert first == second
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert json.loads(text)["verdict"] == "equivalent"


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int]] = []
    before = Model.load(net())
    audit(before, Model.load(rw.regrouped(net(), "t", 2)), AuditOptions(), progress=lambda *at: seen.append(at))
    assert {stage for stage, _, _ in seen} >= {"static comparison", "regions", "whole model"}


def test_neither_model_is_changed() -> None:
    before, after = net(), rw.regrouped(net(), "t", 2)
    copies = [model.SerializeToString(deterministic=True) for model in (before, after)]
    models = Model.load(before), Model.load(after)
    hashes = [model.sha256 for model in models]
    audit(models[0], models[1], AuditOptions())
    assert [model.SerializeToString(deterministic=True) for model in (before, after)] == copies
    assert [model.sha256 for model in models] == hashes


@pytest.mark.parametrize("recipe", RECIPES)
def test_feeds_are_seeded_and_typed(recipe: Any) -> None:
    values = [
        helper.make_tensor_value_info("f", TensorProto.FLOAT16, ["N", 3]),
        helper.make_tensor_value_info("i", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("b", TensorProto.BOOL, ["N"]),
    ]
    shapes = {"f": (4, 3), "i": (5,), "b": (6,)}
    first, again, other = (feeds(values, shapes, recipe, seed) for seed in (1, 1, 2))
    assert {name: (value.shape, value.dtype.name) for name, value in first.items()} == {
        "f": ((4, 3), "float16"),
        "i": ((5,), "int64"),
        "b": ((6,), "bool"),
    }
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["f"], other["f"])
    assert np.signbit(first["f"]).any()


def test_nudged_inputs_move_by_one_unit_in_the_last_place() -> None:
    x = np.linspace(1, 2, 99, dtype=np.float32)
    moved = nudged({"x": x, "n": np.asarray(3)}, 0)
    steps = np.abs(moved["x"].view(np.int32) - x.view(np.int32))
    assert 0 < steps.max() <= 2
    assert moved["n"] == 3


def test_the_oracle_convolves_by_definition() -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.integers(-3, 4, (2, 4, 5, 6)), rng.integers(-3, 4, (6, 2, 3, 2)), rng.integers(-3, 4, 6)
    pads, strides, dilations = (1, 0, 2, 1), (2, 1), (1, 2)
    found = convolve(
        x.astype(float), w.astype(float), b.astype(float), {"pads": pads, "strides": strides, "dilations": dilations}, 2
    )
    padded = np.pad(x, [(0, 0), (0, 0), (1, 2), (0, 1)])
    expected = np.zeros_like(found)
    for n, m, i, j in np.ndindex(*found.shape):
        window = padded[n, (m // 3) * 2 : (m // 3) * 2 + 2, i * 2 : i * 2 + 3, j : j + 3 : 2]
        expected[n, m, i, j] = (window * w[m]).sum() + b[m]
    assert np.array_equal(found, expected)


def test_the_spread_of_the_original_is_measured() -> None:
    model = Model.load(net(groups=1, inputs=64, outputs=8, size=(12, 12)))
    whole = Whole(model, model, Runtime(), {})
    assert whole.outputs == ["y"]
    result = audited(
        net(groups=1, inputs=64, outputs=8, size=(12, 12)),
        rw.split_concat(net(groups=1, inputs=64, outputs=8, size=(12, 12)), "t"),
    )
    assert result.outputs[0].spread > 0
    assert 0 <= result.outputs[0].ratio <= 1
    assert replace(AuditOptions(), seed=1).seed == 1
