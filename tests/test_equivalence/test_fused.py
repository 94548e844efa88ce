"""ONNX Runtime's FusedConv against Conv + Add + Relu: what is right is proven, what is wrong is rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.equivalence.cut import Cut
from rewriter.equivalence.forms import Unsupported
from rewriter.equivalence.fused import Activation, expanded, inner_activation
from rewriter.equivalence.rounding import estimate
from rewriter.model import Model
from rewriter.session import Runtime, open_session
from rewriter.shapes import bind
from test_equivalence.fused import MICROSOFT, Fused, set_attribute
from test_equivalence.nets import audited, net
from test_equivalence.wrong_fused import fused_residual_broadcast

PLAIN = Fused()


@pytest.mark.parametrize("swap", [False, True], ids=["fusing", "taking apart"])
@pytest.mark.parametrize(
    "block",
    [
        Fused(),
        Fused(bias=False),
        Fused(residual=False),
        Fused(residual=False, bias=False),
        Fused(groups=2),
        Fused(groups=4, residual=False),
        Fused(stride=2),
        Fused(stride=2, attributes={"auto_pad": "SAME_UPPER"}),
        Fused(attributes={"auto_pad": "SAME_LOWER"}),
        Fused(attributes={"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
        Fused(batch="n"),
        Fused(batch="n", residual=False),
        Fused(size=(5, 4, 3)),
        Fused(size=(9,)),
        Fused(fused_head=True),
    ],
    ids=str,
)
def test_the_right_one_is_proven(block: Fused, swap: bool) -> None:
    models = [block.plain(), block.fused()]
    result = audited(*(models[::-1] if swap else models))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason
    (region,) = result.regions
    assert {level.level: level.outcome for level in region.levels} == {"L1": "pass", "L2": "pass", "L3": "pass"}
    numeric = region.level("L3")
    assert numeric is not None
    assert numeric.figures["certified"] is True


def test_a_bias_of_zeros_is_no_bias() -> None:
    def with_zeros(node: onnx.NodeProto) -> None:
        node.input[2] = "zeros"

    result = audited(Fused(bias=False).plain(), Fused(bias=False).fused(with_zeros, zeros=np.zeros(4, np.float32)))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_a_sum_without_activation_is_a_sum() -> None:
    nodes = PLAIN.plain().graph.node[3:5]
    nodes[1].output[0] = "y"
    after = PLAIN.fused(lambda node: set_attribute(node, "activation", None))
    result = audited(PLAIN.model(nodes), after)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_another_order_of_the_sum_is_the_same_sum() -> None:
    before = PLAIN.plain()
    add = before.graph.node[4]
    add.input[:] = [add.input[1], add.input[0]]
    assert audited(before, PLAIN.fused()).verdict == "equivalent"


@pytest.mark.parametrize(
    ("op_type", "parameters", "attributes"),
    [
        ("Sigmoid", [], {}),
        ("Tanh", [], {}),
        ("LeakyRelu", [0.25], {"alpha": 0.25}),
        ("LeakyRelu", [0.01], {}),
        ("HardSigmoid", [0.3, 0.4], {"alpha": 0.3, "beta": 0.4}),
        ("Clip", [0.0, 6.0], {}),
    ],
)
def test_other_activations_are_proven_by_what_is_beneath(
    op_type: str, parameters: list[float], attributes: dict[str, float]
) -> None:
    block = Fused(residual=False)
    before = block.plain()
    relu = before.graph.node[-1]
    relu.op_type = op_type
    relu.attribute.extend(helper.make_attribute(*entry) for entry in attributes.items())
    if op_type == "Clip":
        relu.input.extend(["low", "high"])
        before.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(value, np.float32), name)
            for name, value in zip(("low", "high"), parameters, strict=True)
        )

    def fused(given: list[float]) -> onnx.ModelProto:
        def change(node: onnx.NodeProto) -> None:
            set_attribute(node, "activation", op_type)
            set_attribute(node, "activation_params", given or None)

        return block.fused(change)

    result = audited(before, fused(parameters))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason
    if parameters:
        other = [*parameters[:-1], parameters[-1] * 1.5]
        assert audited(before, fused(other)).verdict == "different"


def test_a_difference_that_the_activation_hides_refutes_nothing() -> None:
    """Channel 1 is the constant -1 or -2: Relu makes 0 of either."""
    block = Fused(residual=False)
    weight, bias = block.weights["w"].copy(), block.weights["b"].copy()
    weight[1], bias[1] = 0, -1
    other = bias.copy()
    other[1] = -2
    before = block.plain()
    for name, value in (("w", weight), ("b", bias)):
        (tensor,) = [tensor for tensor in before.graph.initializer if tensor.name == name]
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
    result = audited(before, block.fused(w=weight, b=other))
    assert result.verdict == "equivalent", result.reason
    other[1] = 2
    assert audited(before, block.fused(w=weight, b=other)).verdict == "different"


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("LeakyRelu", {"alpha": -1.0}), ("HardSigmoid", {"alpha": 0.0}), ("HardSigmoid", {"alpha": float("nan")})],
)
def test_an_activation_that_tells_nothing_apart_is_not_covered(op_type: str, attributes: dict[str, float]) -> None:
    """|x| is the same of a sum and of its negative: no difference beneath it refutes."""
    block = Fused(residual=False, bias=False)
    models = []
    for name, sign in (("t", 1), ("u", -1)):
        model = block.plain()
        conv, last = model.graph.node[3], model.graph.node[4]
        conv.output[0] = last.input[0] = name
        last.op_type = op_type
        last.attribute.extend(helper.make_attribute(*entry) for entry in attributes.items())
        (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w"]
        weight.CopyFrom(onnx.numpy_helper.from_array(sign * block.weights["w"], "w"))
        models.append(model)
    result = audited(*models)
    assert result.verdict in ("approximate", "not_verified"), result.reason
    assert result.regions[0].levels[0].outcome == "not applicable"


def test_relu_of_a_relu_is_one_relu() -> None:
    after = PLAIN.fused()
    after.graph.node[-1].output[0] = "once"
    after.graph.node.append(helper.make_node("Relu", ["once"], ["y"]))
    result = audited(PLAIN.plain(), after)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_a_residual_to_broadcast_is_not_covered() -> None:
    """ONNX Runtime's CPU kernel refuses it; L1 must not take it for what Add does."""
    before, after = fused_residual_broadcast()
    levels = [level for region in audited(before, after).regions for level in region.levels]
    assert (levels[0].level, levels[0].outcome) == ("L1", "not applicable")


def test_an_unknown_activation_is_not_covered() -> None:
    """ONNX Runtime refuses it, too; whatever runs the model otherwise, nothing is known of it."""
    result = audited(PLAIN.fused(lambda node: set_attribute(node, "activation", "Gelu")), PLAIN.plain())
    assert result.verdict == "not_verified"


@pytest.mark.parametrize("op_type", ["FusedConv", "Conv"])
def test_an_operator_of_another_domain_is_nothing_known(op_type: str) -> None:
    """Nothing runs it; L1 must not take it for ONNX's Conv or ONNX Runtime's FusedConv."""

    def elsewhere(node: onnx.NodeProto) -> None:
        node.op_type, node.domain = op_type, "com.example"

    for models in ((PLAIN.plain(), PLAIN.fused(elsewhere)), (PLAIN.fused(elsewhere), PLAIN.plain())):
        for model in models:
            model.opset_import.append(helper.make_opsetid("com.example", 1))
        result = audited(*models)
        assert result.verdict != "equivalent"
        assert all(level.outcome != "pass" for region in result.regions for level in region.levels)


def test_a_function_of_that_name_is_what_it_says() -> None:
    """ONNX Runtime runs its own FusedConv in its place; what is written in the file is something else."""
    after = PLAIN.fused()
    body = [
        helper.make_node("Conv", ["x", "w", "b"], ["t"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    attributes = ["activation", "group", "strides", "pads"]
    after.functions.append(
        helper.make_function(
            MICROSOFT, "FusedConv", ["x", "w", "b", "z"], ["y"], body, [helper.make_opsetid("", 17)], attributes
        )
    )
    result = audited(PLAIN.plain(), after)
    assert result.verdict == "approximate", result.reason
    (region,) = result.regions
    assert [level.outcome for level in region.levels] == ["not applicable", "not applicable", "pass"]


def test_what_onnx_runtime_fused_itself(tmp_path: Path) -> None:
    """Its own file at level `extended`: FusedConv in place of Conv and Relu, and its operator sets imported."""
    before = net()
    saved = tmp_path / "extended.onnx"
    open_session(before, Runtime(level="extended"), optimized_to=saved)
    after = onnx.load(saved)
    assert [node.op_type for node in after.graph.node] == ["FusedConv", "FusedConv", "Conv"]
    result = audited(before, after)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason
    assert any("com.microsoft" in note for note in result.notes)
    bias = next(tensor for tensor in after.graph.initializer if tensor.name == "b")
    spoilt = np.array(onnx.numpy_helper.to_array(bias))
    spoilt[0] = np.nextafter(spoilt[0], np.float32(9))
    bias.CopyFrom(onnx.numpy_helper.from_array(spoilt, "b"))
    assert audited(before, after).verdict == "different"


def test_an_unused_import_is_a_note() -> None:
    before = Fused(residual=False).plain()
    del before.opset_import[1]
    result = audited(before, Fused(residual=False).plain())
    assert (result.verdict, result.grade) == ("equivalent", "bitwise"), result.reason
    assert any("com.microsoft" in note for note in result.notes)


def test_expansion_names_nothing_twice() -> None:
    model = PLAIN.fused()
    model.graph.node[1].output[0] = "y/0"
    model.graph.node[2].input[0] = "y/0"
    model.graph.node[3].input[3] = "y/0"
    model.graph.output[1].name = "y/0"
    plain = expanded(model)
    assert [node.op_type for node in plain.graph.node] == ["Conv", "Conv", "Neg", "Conv", "Add", "Relu"]
    made = [name for node in plain.graph.node for name in node.output]
    assert len(made) == len(set(made))
    onnx.checker.check_model(plain)


def test_shapes_behind_it_are_those_of_its_convolution() -> None:
    bound = bind(Model.load(replace(PLAIN, stride=2, batch=3).fused()), {"x": (3, 4, 6, 7)})
    assert bound.shape("y") == (3, 4, 3, 4)
    assert not bound.problems


@pytest.mark.parametrize(
    ("activation", "parameters"), [("LeakyRelu", []), ("LeakyRelu", [0.1, 0.2]), ("Relu", [1.0]), ("Clip", [1.0])]
)
def test_a_wrong_number_of_parameters_is_not_covered(activation: str, parameters: list[float]) -> None:
    node = PLAIN.fused().graph.node[-1]
    set_attribute(node, "activation", activation)
    set_attribute(node, "activation_params", parameters or None)
    with pytest.raises(Unsupported, match="not known"):
        inner_activation(node)


def test_the_roundings_of_its_convolution_are_counted() -> None:
    """Products are counted as in a Conv: else the bound would be too small where L1 knows none."""
    model = PLAIN.fused()
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = [estimate(Cut("", part, weights, {}, frozenset())) for part in (model, PLAIN.plain())]
    assert found[0] >= 4 * 3 * 3
    assert 0 <= found[1] - found[0] <= 4


def test_activations_read_well() -> None:
    assert str(Activation("Clip", (0.0, 6.0))) == "Clip(0, 6)"
