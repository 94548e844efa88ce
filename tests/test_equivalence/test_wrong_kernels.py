"""A second provider with one wrong kernel: it must neither pass for rounding nor hide where the model does not look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fake_cuda import CUDA, wrong_kernels
from rewriter.equivalence import Audit, AuditOptions, cross
from rewriter.equivalence.crossing import crossing_verdict
from rewriter.equivalence.records import RegionAudit, passed
from rewriter.model import Model
from rewriter.session import Runtime
from test_equivalence.fused import MICROSOFT, Fused, set_attribute
from test_equivalence.nets import net

Nodes = Sequence[onnx.NodeProto]


def crossed(model: onnx.ModelProto) -> Audit:
    return cross(Model.load(model), Runtime(), CUDA.with_options(use_tf32="0"), AuditOptions())


def node(op_type: str, inputs: Sequence[str], output: str, like: onnx.NodeProto | None = None) -> onnx.NodeProto:
    """A node, with the domain and the attributes of another if given."""
    made = helper.make_node(op_type, inputs, [output])
    if like is not None:
        made.domain = like.domain
        made.attribute.extend(like.attribute)
    return made


def negatives_lost(conv: onnx.NodeProto) -> Nodes:
    if conv.op_type != "Conv" or conv.input[0] == "x":  # what enters the others has been through a Relu
        return []
    x = f"{conv.output[0]}/x"
    return [node("Relu", conv.input[:1], x), node("Conv", [x, *conv.input[1:]], conv.output[0], conv)]


def negatives_to_nan(conv: onnx.NodeProto) -> Nodes:
    if conv.op_type != "Conv" or conv.input[0] == "x":
        return []
    root, x = f"{conv.output[0]}/root", f"{conv.output[0]}/x"
    parts = [node("Sqrt", conv.input[:1], root), node("Mul", [root, root], x)]
    return [*parts, node("Conv", [x, *conv.input[1:]], conv.output[0], conv)]


def first_batch_entry_only(conv: onnx.NodeProto) -> Nodes:
    """All batch entries get what the first one has."""
    if conv.op_type != "Conv":
        return []
    y, zeros, first = (f"{conv.output[0]}/{part}" for part in ("y", "zeros", "first"))
    zero = helper.make_node("Constant", [], [f"{y}/0"], value_ints=[0])
    one = helper.make_node("Constant", [], [f"{y}/1"], value_ints=[1])
    sliced = node("Slice", [y, f"{y}/0", f"{y}/1", f"{y}/0"], first)
    return [
        node("Conv", conv.input, y, conv),
        zero,
        one,
        sliced,
        node("Sub", [y, y], zeros),
        node("Add", [zeros, first], conv.output[0]),
    ]


def residual_doubled(fused: onnx.NodeProto) -> Nodes:
    if fused.op_type != "FusedConv":
        return []
    z = f"{fused.output[0]}/z"
    operands = [*fused.input[:3], z]
    return [node("Add", [fused.input[3]] * 2, z), node("FusedConv", operands, fused.output[0], fused)]


def leaking(relu: onnx.NodeProto) -> Nodes:
    return [helper.make_node("LeakyRelu", relu.input, relu.output, alpha=0.5)] if relu.op_type == "Relu" else []


def hidden(model: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """With the output 1 + `size` · y in place of y: nothing of it is left to see."""
    model.graph.node.append(node("Mul", ["y", "size"], "small"))
    model.graph.node.append(node("Add", ["small", "one"], "out"))
    for name, value in (("size", size), ("one", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize("optimized_only", [False, True])
@pytest.mark.parametrize("change", [negatives_lost, negatives_to_nan])
def test_what_real_activations_do_not_show_is_no_rounding(
    change: Any, optimized_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs behind a Relu are never negative: only integers find it, and it is far more than kernels round."""
    wrong_kernels(monkeypatch, change, optimized_only=optimized_only)
    found = crossed(net(bias=False))
    assert found.verdict == "different"
    assert "With integer weights and inputs" in found.reason


@pytest.mark.parametrize("optimized_only", [False, True])
def test_a_kernel_wrong_for_larger_batches_is_found(optimized_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_kernels(monkeypatch, first_batch_entry_only, optimized_only=optimized_only)
    found = crossed(hidden(net(batch="n"), 1e-9))
    assert found.verdict == "different"
    assert "With integer weights and inputs" in found.reason


def test_fused_convolutions_are_run_by_themselves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Fused(groups=2).fused()
    wrong_kernels(monkeypatch, lambda _: [])
    found = crossed(model)
    assert (found.verdict, [next(iter(region.before)) for region in found.regions]) == (
        "equivalent",
        ["Conv", "Conv", "FusedConv"],
    )
    assert [level.outcome for region in found.regions for level in region.levels] == ["pass"] * 9
    assert model.opset_import[1].domain == MICROSOFT
    wrong_kernels(monkeypatch, residual_doubled)
    assert "'y'" in crossed(model).reason.split(":")[0]


def test_a_product_with_neither_integers_nor_a_bound_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Fused(residual=False).fused(lambda fused: set_attribute(fused, "activation", "Sigmoid"))
    wrong_kernels(monkeypatch, lambda _: [])
    found = crossed(model)
    assert [region.verdict for region in found.regions] == ["equivalent", "equivalent", "approximate"]
    assert (found.verdict, found.grade) == ("approximate", None)


def test_outputs_that_respond_to_nothing_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Relu is wrong; of that the output has 1e-10, among roundings."""
    wrong_kernels(monkeypatch, lambda _: [])
    assert crossed(hidden(net(), 1e-10)).verdict == "equivalent"  # all is equal inside
    wrong_kernels(monkeypatch, leaking)
    found = crossed(hidden(net(), 1e-10))
    assert (found.verdict, found.grade) == ("not_verified", None), found.reason
    assert "hardly respond" in found.reason
    assert "'a' differs by" in found.reason
    assert crossed(net()).verdict == "different"


def test_whole_numbers_without_rounding_may_not_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 400 elements is wrong, in a model that has nothing to round."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT64, [400]) for name in "xy")
    table = numpy_helper.from_array(np.arange(10) * 7, "table")
    graph = helper.make_graph([helper.make_node("Gather", ["table", "x"], ["y"])], "g", [x], [y], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bad = numpy_helper.from_array(1000 * np.eye(1, 400, 17, dtype=np.int64)[0])

    def off(gather: onnx.NodeProto) -> Nodes:
        if gather.op_type != "Gather":
            return []
        made = helper.make_node("Constant", [], ["bad"], value=bad)
        return [made, node("Gather", gather.input, "right"), node("Add", ["right", "bad"], "y")]

    wrong_kernels(monkeypatch, lambda _: [])
    assert crossed(model).verdict == "equivalent"
    wrong_kernels(monkeypatch, off)
    assert crossed(model).verdict == "different"


def test_products_of_whole_numbers_are_equal_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sums are negative: a bound that is a fraction of them would be met by any error."""
    weight = np.random.default_rng(0).integers(-50, -1, (12, 7)).astype(np.int32)
    nodes = [node("MatMul", ["x", "w"], "t"), helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT)]
    x = helper.make_tensor_value_info("x", TensorProto.INT32, [3, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 7])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def doubled(product: onnx.NodeProto) -> Nodes:
        if product.op_type != "MatMul":
            return []
        return [node("MatMul", product.input, "once"), node("Add", ["once", "once"], "t")]

    wrong_kernels(monkeypatch, doubled)
    (region,) = crossed(model).regions
    assert (region.verdict, region.levels[-1].level) == ("different", "L3")


def test_a_tensor_of_zeros_that_is_not_zero_elsewhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is dead behind the second Relu on the CPU."""
    model = net()
    for tensor in model.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(8, -1e6, np.float32), "b"))
    model.graph.node.append(node("ReduceMean", ["x"], "mean"))
    model.graph.node.append(node("Add", ["y", "mean"], "out"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, None))

    def ones(relu: onnx.NodeProto) -> Nodes:
        return [node("Relu", relu.input, "zeros"), node("Exp", ["zeros"], "r")] if relu.output[0] == "r" else []

    wrong_kernels(monkeypatch, ones)
    found = crossed(model)
    assert found.verdict == "different"
    assert "Relu 'r'" in found.notes[0]


def test_products_without_a_bound_are_not_proven() -> None:
    record = RegionAudit(
        inputs=("x",),
        outputs=("y",),
        before={"Conv": 1},
        after={"Conv": 1},
        verdict="approximate",
        grade=None,
        levels=(passed("L3", "", certified=False),),
        blind=None,
        reason="",
    )
    verdict, _, reason = crossing_verdict([record], passed("L4", ""), (Runtime(), CUDA), "")
    assert verdict == "approximate"
    assert "no bound" in reason
    verdict, _, reason = crossing_verdict(
        [record.model_copy(update={"verdict": "equivalent"})], passed("L4", ""), (Runtime(), CUDA), ""
    )
    assert verdict == "equivalent"
    assert "0 lie within the bound" in reason
    wrong = record.model_copy(update={"verdict": "different", "reason": "Far off."})
    for count, subject in ((1, "1 operator computes"), (2, "2 operators compute")):
        _, _, reason = crossing_verdict([wrong] * count, passed("L4", ""), (Runtime(), CUDA), "")
        assert reason.startswith(f"{subject} something else on cuda, first ")
