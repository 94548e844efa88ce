"""L4 against float64: what only it finds, what it must not allow, and on how many runs it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.bindings import find_bindings
from rewriter.equivalence import AuditOptions, audit, float64, float64_conv, float64_runs, whole
from rewriter.equivalence.inputs import trials
from rewriter.equivalence.records import LevelResult, OutputAudit
from rewriter.equivalence.whole import Whole
from rewriter.model import Model
from rewriter.report.text_audit import audit_blocks
from rewriter.session import Runtime
from test_equivalence.nets import half, net
from test_equivalence.test_float64 import graph_model

Array = np.ndarray[Any, Any]


def dense(*, products: int = 64, outputs: int = 32, seed: int = 0) -> onnx.ModelProto:
    """Two convolutions with a Relu between; `products` channels in the middle."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.standard_normal((products, 16, 3, 3)) / 12,
        "w2": rng.standard_normal((outputs, products, 1, 1)) / np.sqrt(products),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    model = graph_model(nodes, {name: value.astype(np.float32) for name, value in weights.items()}, x=(1, 16, 10, 10))
    return model.to_proto()


def reweighted(model: onnx.ModelProto, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """The same graph with each weight changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), tensor.name))
    return made


def to_bfloat16(value: Array) -> Array:
    return value.astype(ml_dtypes.bfloat16).astype(np.float32)


def summed_in_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The last convolution as products that are stored in float16, and their sum over the channels, stored there too.

    Transposes keep ONNX Runtime from dropping the casts: it has no such sums on the CPU.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[-1]
    made.graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["r", "one"], ["r5"]),
            helper.make_node("Mul", ["r5", "w2"], ["products"]),
            helper.make_node("Cast", ["products"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Transpose", ["half"], ["turned"], perm=[0, 1, 3, 4, 2]),
            helper.make_node("ReduceSum", ["turned", "last"], ["sum"], keepdims=0),
            helper.make_node("Transpose", ["sum"], ["back"], perm=[0, 1, 3, 2]),
            helper.make_node("Cast", ["back"], ["y1"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["y1"], ["y"], perm=[0, 1, 3, 2]),
        ]
    )
    axes = {"one": np.array([1]), "last": np.array([4])}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in axes.items())
    return made


def permuted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The channels in the middle in another order: the same sums, added in another order."""
    made = reweighted(model, lambda value: value)
    for tensor in made.graph.initializer:
        value = numpy_helper.to_array(tensor)
        order = np.random.default_rng(1).permutation(value.shape[0 if tensor.name == "w1" else 1])
        moved = value[order] if tensor.name == "w1" else value[:, order]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(moved), tensor.name))
    return made


def compared(
    before: onnx.ModelProto, after: onnx.ModelProto, *, full: bool = True, products: int = 0, **options: Any
) -> tuple[LevelResult, OutputAudit, Whole]:
    """L4 alone: no region was looked at."""
    models = Model.load(before), Model.load(after)
    whole_models = Whole(*models, Runtime(), {}, full=full)
    asked = AuditOptions(full=full, **options)
    whole_models.run_original(trials(models[0], find_bindings(models[0], {}, (1, 3)), asked))
    level, outputs = whole_models.compare(0.0, products)
    return level, outputs[0], whole_models


@pytest.mark.parametrize("change", [lambda model: reweighted(model, to_bfloat16), summed_in_float16])
def test_lost_accuracy_is_found_by_l4_alone(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    level, output, _ = compared(dense(), change(dense()))
    assert level.outcome == "fail"
    assert output.own_error is not None
    assert output.new_error is not None
    assert output.new_error > 20 * output.own_error
    assert f"Against float64 it is off by {output.new_error:.3g}, the original by" in level.detail
    assert level.figures["reference"] == "float64"


def test_float64_sees_what_the_spread_of_long_sums_hides() -> None:
    """Weights off by 16 units: as much as sums of 4096 products may be off, but not as much as these are."""
    before = dense(products=4096, outputs=4)
    after = reweighted(before, lambda value: value * np.float32(1 + 2**-19))
    assert compared(before, after, full=False, products=4096)[0].outcome == "pass"
    level, _, _ = compared(before, after, products=4096)
    assert level.outcome == "fail"


def test_another_order_of_summation_is_as_accurate() -> None:
    before = dense(products=512)
    level, output, _ = compared(before, permuted(before))
    assert level.outcome == "pass"
    assert not output.bitwise
    assert output.own_error
    assert output.new_error
    assert output.new_error <= 2 * output.own_error + 8 * 2**-24 * 100
    assert (
        level.detail == "All outputs are as accurate as the original's on 5 inputs, held against float64 on 5 of them."
    )
    assert level.figures["float64_runs"] == 5


def test_without_full_nothing_is_held_against_float64() -> None:
    level, output, _ = compared(dense(), dense(), full=False)
    assert level.outcome == "pass"
    assert (output.own_error, output.new_error) == (None, None)
    assert "reference" not in level.figures


def test_the_whole_audit_says_what_it_held_outputs_against() -> None:
    before = dense()
    after = reweighted(before, to_bfloat16)
    stages: list[str] = []
    found = audit(
        Model.load(before), Model.load(before), AuditOptions(full=True), progress=lambda stage, *_: stages.append(stage)
    )
    assert found.verdict == "equivalent"
    found = audit(
        Model.load(before), Model.load(after), AuditOptions(full=True), progress=lambda stage, *_: stages.append(stage)
    )
    assert found.verdict == "different"
    assert stages.count("float64 reference") >= 2 * 3
    (output,) = found.outputs
    line = f"Against float64, 'y' is off by {output.new_error:.2e}, the original's by {output.own_error:.2e}."
    assert line in audit_blocks(found, verbose=True)
    assert line not in audit_blocks(found, verbose=False)


@pytest.mark.parametrize("factor", [1.01, np.nan, np.inf])
def test_a_wrong_reference_allows_nothing(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Twice the original's distance from a reference that computes something else would allow as much again.

    And whatever one would call the distance from NaN, it must not be 0.
    """

    class Conv(float64_conv.Conv):
        def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any]:
            y = super()._run(x, w, b, **attributes)[0]
            return (y * factor if attributes.get("pads") is None else y,)

    monkeypatch.setattr(float64, "OPERATORS", (Conv,))
    before = dense()
    level, output, _ = compared(before, reweighted(before, lambda value: value * np.float32(1.003)))
    assert level.outcome == "fail"
    assert output.own_error is None
    assert level.figures["reference"] == "spread"
    level, output, _ = compared(before, before)
    assert level.outcome == "pass"
    assert "for 'y' the original gives something else" in level.detail


def test_quantization_is_not_held_against_float64() -> None:
    """What is rounded to steps on purpose is off by a step where it nearly ties: that is not the original's error."""
    scales: dict[str, Array] = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    rng = np.random.default_rng(0)
    weights = {"w": (rng.integers(-9, 10, (8, 32, 3, 3)) * 0.1).astype(np.float32), **scales}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    before = graph_model(nodes, weights, x=(1, 32, 16, 16)).to_proto()
    level, _, _ = compared(before, before)
    assert level.outcome == "pass"
    moved = onnx.ModelProto()
    moved.CopyFrom(before)
    moved.graph.initializer.append(numpy_helper.from_array(np.array(0.101, np.float32), "s2"))
    moved.graph.node[-1].input[1] = "s2"
    assert compared(before, moved)[0].outcome == "fail"


def test_what_has_no_reference_is_judged_by_the_spread_and_says_why() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("GridSample", ["x", "t"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((2, 6, 1, 1)).astype(np.float32) / 4}
    before = graph_model(nodes, weights, opset=16).to_proto()
    level, output, _ = compared(before, before)
    assert level.outcome == "pass"
    assert output.own_error is None
    assert "there is no float64 reference: GridSample 'y' is computed in float32 by onnx's reference" in level.detail
    assert level.figures["reference"] == "spread"
    assert level.figures["float64_runs"] == 0
    assert compared(before, reweighted(before, to_bfloat16))[0].outcome == "fail"


def test_which_runs_get_a_reference_when_they_cost_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the user's inputs and the first two recipes, and no more."""
    monkeypatch.setattr(float64_runs, "_BUDGET", -1.0)
    samples = [{"x": np.full((1, 16, 10, 10), number, np.float32)} for number in (1, 2, 3)]
    level, _, models = compared(dense(), dense(), samples=samples)
    assert models._references is not None
    recipes = [recipe for recipe, _, _ in models._references.seen]
    assert recipes == ["user's inputs 0", "normal", "uniform"]
    assert level.figures["float64_runs"] == 3
    assert level.figures["runs"] == 8


@pytest.mark.parametrize(("more", "outcome", "held"), [(3, "pass", 5), (0, "fail", 2)])
def test_what_the_spread_refuses_gets_a_reference_that_decides(
    monkeypatch: pytest.MonkeyPatch, more: int, outcome: str, held: int
) -> None:
    monkeypatch.setattr(float64_runs, "_BUDGET", -1.0)
    monkeypatch.setattr(float64_runs, "_INSISTED", more)
    monkeypatch.setattr(whole, "observed_allowance", lambda *_: 1e-30)  # the spread allows nothing
    monkeypatch.setattr(whole, "_TRUST", 1e40)
    before = dense(products=512)
    level, _, _ = compared(before, permuted(before))
    assert level.outcome == outcome
    assert level.figures["float64_runs"] == held


@pytest.mark.parametrize("seed", range(3))
def test_float16_networks_are_held_against_float64(seed: int) -> None:
    before = half(net(groups=1, inputs=32, outputs=32, seed=seed))
    level, output, _ = compared(before, before)
    assert level.outcome == "pass"
    assert level.figures["reference"] == "float64"
    assert output.own_error
    assert compared(before, scaled(before, 1.02))[0].outcome == "fail"


def scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The model with the last weight times a factor."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensor = next(entry for entry in made.graph.initializer if entry.name == "w_tail")
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((value * value.dtype.type(factor)).astype(value.dtype), tensor.name))
    return made
