"""Pairs of models made to be taken for equivalent: functions, interfaces, unchanged operators, documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.equivalence.unchanged import Changed
from rewriter.errors import BadInput
from rewriter.shapes import Shape
from test_equivalence.models import UNSURE, W, conv, documented, info, model, node, random
from test_equivalence.nets import Array, audited, by_name_only, caught

# Functions, overloads, operator sets


def clamp(low: float, overload: str = "") -> onnx.FunctionProto:
    nodes = [node("Constant", [], ["k"], value_float=low), node("Max", ["a", "k"], ["b"])]
    made = helper.make_function("my", "Clamp", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    made.overload = overload
    return made


def calling_in_a_branch(low: float) -> onnx.ModelProto:
    call = helper.make_graph([node("Clamp", ["x"], ["o"], domain="my")], "t", [], [info("o", None)])
    other = helper.make_graph([node("Identity", ["x"], ["p"])], "e", [], [info("p", None)])
    nodes = [node("If", ["c"], ["y"], then_branch=call, else_branch=other)]
    inputs = [info("x", [1, 3]), info("c", [], TensorProto.BOOL)]
    return model(nodes, inputs, [info("y", None)], functions=[clamp(low)])


def test_a_function_called_in_a_branch_only() -> None:
    assert audited(calling_in_a_branch(-1e4), calling_in_a_branch(-2e4)).verdict in UNSURE
    assert audited(calling_in_a_branch(-1e4), documented(calling_in_a_branch(-1e4))).verdict == "equivalent"


def overloaded(chosen: str) -> onnx.ModelProto:
    call = node("Clamp", ["x"], ["y"], domain="my", overload=chosen)
    functions = [clamp(-1e4, "near"), clamp(-2e4, "far")]
    return model([call], [info("x", [1, 3])], [info("y", None)], functions=functions)


def test_another_overload() -> None:
    assert audited(overloaded("near"), overloaded("far")).verdict in UNSURE


def test_an_operator_of_a_branch_in_another_operator_set() -> None:
    """Of the two operators, only the one inside has another definition in opset 14."""

    def made(opset: int) -> onnx.ModelProto:
        taken = helper.make_graph([node("Relu", ["x"], ["o"])], "t", [], [info("o", None)])
        other = helper.make_graph([node("Identity", ["x"], ["p"])], "e", [], [info("p", None)])
        nodes = [node("If", ["c"], ["y"], then_branch=taken, else_branch=other)]
        inputs = [info("x", [1, 3, 4]), info("c", [], TensorProto.BOOL)]
        return model(nodes, inputs, [info("y", None)], opset=opset)

    result = audited(made(13), made(15))
    assert [region.outputs for region in result.regions] == [("y",)]
    assert result.verdict != "different"


# Interface and shapes


def test_a_shape_declared_where_there_was_none_freezes_the_input() -> None:
    before = conv([1])
    before.graph.input[0].type.tensor_type.ClearField("shape")
    result = audited(before, conv([1, 3, 64, 64]), input_shapes={"x": (1, 3, 64, 64)})
    assert result.verdict == "different"
    assert "no declared shape and is now fixed to [1, 3, 64, 64]" in result.reason


def flattened(target: Sequence[int], shape: Sequence[int | str] = ("N", 3, "H", "W")) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["t"], pads=[1] * 4), node("Reshape", ["t", "to"], ["y"])]
    return model(nodes, [info("x", shape)], [info("y", None)], {"w": W, "to": np.asarray(target)})


def test_a_size_frozen_to_the_one_given() -> None:
    result = audited(flattened([0, 4, -1]), flattened([1, 4, 64]), input_shapes={"x": (1, 3, 8, 8)})
    assert result.verdict == "different"


def test_a_size_that_only_the_given_one_fits_is_not_held_against_the_rewrite() -> None:
    """`Reshape` to 8×8 inside a branch, where the auditor does not see that the original takes no other size."""
    reshape = helper.make_graph([node("Reshape", ["t", "to"], ["o"])], "t", [], [info("o", None)])
    same = helper.make_graph([node("Reshape", ["t", "to"], ["p"])], "e", [], [info("p", None)])
    inputs = [info("x", ["N", 3, "H", "W"]), info("c", [], TensorProto.BOOL)]

    def made(name: str) -> onnx.ModelProto:
        nodes = [
            node("Conv", ["x", "w"], [name], pads=[1] * 4),
            node("Identity", [name], ["t"]),
            node("If", ["c"], ["y"], then_branch=reshape, else_branch=same),
        ]
        return model(nodes, inputs, [info("y", None)], {"w": W, "to": np.asarray([1, 256])})

    result = audited(made("u"), made("v"), input_shapes={"x": (1, 3, 8, 8)})
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason
    assert any("The original does not run with the inputs' shapes x [2, " in note for note in result.notes)


@pytest.mark.parametrize("given", [{"z": (1, 3, 8, 8)}, {"x": (1, 4, 8, 8)}])
def test_a_shape_that_does_not_fit_is_bad_input_whatever_the_models(given: dict[str, Shape]) -> None:
    before = conv(["N", 3, 8, 8])
    after = documented(before)
    after.graph.output[0].name = "z"
    after.graph.node[0].output[0] = "z"
    for other in (before, after):
        with pytest.raises(BadInput, match="--input-shape"):
            audited(before, other, input_shapes=given)


# Unchanged operators


def scaled(weight: Array, by: float | Array, name: str = "t") -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], [name]), node("Mul", [name, "c"], ["y"])]
    return model(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], {"w": weight, "c": np.asarray(by, np.float32)})


def few_ulp(value: float) -> Array:
    moved = np.asarray(value, np.float32)
    for _ in range(4):
        moved = np.nextafter(moved, np.float32(9))
    return moved


@pytest.mark.parametrize("name", ["t", "renamed"])
def test_a_scale_off_by_a_few_ulp_is_no_rounding(name: str) -> None:
    result = audited(scaled(W, 1.7), scaled(W, few_ulp(1.7), name))
    assert result.verdict == "different"
    assert "No operator changed, but the constant 'c' was 1.70000005 and is 1.70000052" in result.reason


def test_a_normalization_off_by_a_few_ulp_is_no_rounding() -> None:
    def made(factor: float) -> onnx.ModelProto:
        weights = {name: np.abs(random(4, seed=i)) + np.float32(0.5) for i, name in enumerate("abcd")}
        weights["a"] = weights["a"] * np.float32(factor)
        nodes = [node("Conv", ["x", "w"], ["t"]), node("BatchNormalization", ["t", *"abcd"], ["y"])]
        return model(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], {"w": W, **weights})

    assert audited(made(1), made(1 + 4e-7)).verdict == "different"


def test_a_power_of_two_moved_between_constants_is_exact() -> None:
    result = audited(scaled(W, 1.0), scaled(W * 2, 0.5, "renamed"))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_the_sign_of_a_zero_is_a_difference() -> None:
    assert audited(scaled(W, 0.0), scaled(W, -0.0)).verdict == "different"
    assert audited(scaled(W, -0.0), scaled(W, 0.0)).verdict == "different"


def with_zero(zero: float, operator: str = "Conv", *others: onnx.NodeProto) -> onnx.ModelProto:
    """A convolution of a weight whose second row is this zero; `w` and `t` are for others to read."""
    weight = random(4, 4, 1, 1)
    weight[1] = zero
    nodes = [node(operator, ["x", "w"], ["t" if others else "y"]), *others]
    return model(nodes, [info("x", [1, 4, 3, 3])], [info("y", None)], {"w": weight})


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_zero_of_a_kernel_may_lose_its_minus_sign(operator: str) -> None:
    """A pass drops it as a zero, another one fills in 0.0; only a sum of zeros has another sign then."""
    result = audited(with_zero(-0.0, operator), with_zero(0.0, operator), full=True)
    assert (result.verdict, result.grade) == ("equivalent", "finite"), result.reason
    static = result.regions[0].level("L1")
    assert static is not None
    assert (static.figures["zeros"], static.figures["taps"]) == (4, 12)
    assert audited(with_zero(0.0, operator), with_zero(-0.0, operator)).verdict == "different"


def test_a_zero_may_not_become_minus_zero_where_operators_change_either() -> None:
    def split(zero: float) -> onnx.ModelProto:
        whole = with_zero(zero)
        weight = numpy_helper.to_array(whole.graph.initializer[0])
        nodes = [node("Conv", ["x", f"w{part}"], [f"t{part}"]) for part in "ab"]
        nodes.append(node("Concat", ["ta", "tb"], ["y"], axis=1))
        weights = {"wa": weight[:2], "wb": weight[2:]}
        return model(nodes, list(whole.graph.input), list(whole.graph.output), weights)

    kept, cleared, spoiled = (
        audited(with_zero(old), split(new)) for old, new in ((-0.0, -0.0), (-0.0, 0.0), (0.0, -0.0))
    )
    assert (kept.verdict, kept.grade) == ("equivalent", "exact")
    assert (cleared.verdict, cleared.grade) == ("equivalent", "finite")
    assert (spoiled.verdict, caught(spoiled)) == ("different", "L1")
    assert "output channel 1, input channel 0" in spoiled.reason
    assert "0 became -0, and no weights were combined there." in spoiled.reason


@pytest.mark.parametrize(("old", "new", "cleared"), [(-0.0, 0.0, True), (0.0, -0.0, False), (-0.0, 1.0, False)])
def test_what_a_kernel_may_lose(old: float, new: float, cleared: bool) -> None:
    values = np.asarray([old, -0.0, 2], np.float32), np.asarray([new, -0.0, 2], np.float32)
    assert Changed(("w", "w"), values, kernel=True).cleared is cleared
    assert not Changed(("w", "w"), values).cleared


@pytest.mark.parametrize("inputs", [["t", "w"], ["w", "t"]])
def test_no_zero_that_something_else_reads(inputs: list[str]) -> None:
    added = node("Add", inputs, ["y"])
    result = audited(with_zero(-0.0, "Conv", added), with_zero(0.0, "Conv", added))
    assert (result.verdict, caught(result)) == ("different", "L1")
    assert "No operator changed, but the constant 'w' was -0 and is 0 at element 4" in result.reason


def test_the_weights_of_a_dead_channel_before_an_activation() -> None:
    """Channel 0 is dead on all inputs that are tried: its weights times 7 show in no run, but L1 reads them."""
    weight, bias = random(64, 64, 3, 3) * np.float32(0.05), np.zeros(64, np.float32)
    bias[0] = -3000
    other = weight.copy()
    other[0] *= 7

    def made(name: str, weight: Array) -> onnx.ModelProto:
        nodes = [node("Conv", ["x", "w", "b"], [name], pads=[1] * 4), node("Relu", [name], ["y"])]
        ends = [info("x", [1, 64, 8, 8], TensorProto.FLOAT16)], [info("y", None, TensorProto.FLOAT16)]
        return model(nodes, *ends, {"w": weight.astype(np.float16), "b": bias.astype(np.float16)})

    result = audited(made("t", weight), made("u", other))
    assert result.verdict == "different", result.reason


def test_hidden_channels_in_another_order_are_right() -> None:
    first, last, order = random(8, 3, 1, 1), random(4, 8, 1, 1), [3, 1, 7, 0, 2, 6, 5, 4]

    def made(name: str, order: Sequence[int]) -> onnx.ModelProto:
        nodes = [
            node("Conv", ["x", "w"], [name]),
            node("Relu", [name], [f"{name}.r"]),
            node("Conv", [f"{name}.r", "v"], ["y"]),
        ]
        weights = {"w": first[order], "v": last[:, order]}
        return model(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], weights)

    assert audited(made("t", range(8)), made("u", order)).verdict == "equivalent"


# Operators the static level does not follow


def test_integers_wrap_around() -> None:
    def made(nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        ends = [info("x", [1, 6], TensorProto.INT32)], [info("y", None, TensorProto.INT32)]
        return model(nodes, *ends, {"c": np.asarray(2**28, np.int32)})

    rewritten = [node("Mul", ["x", "c"], ["t"]), node("Div", ["t", "c"], ["y"])]
    result = audited(made([node("Identity", ["x"], ["y"])]), made(rewritten))
    assert result.verdict in UNSURE, result.reason
    static = result.regions[0].level("L1")
    assert static is not None
    assert "integers" in static.detail


@pytest.mark.parametrize("read", [True, False])
@by_name_only()
def test_the_mask_of_a_dropout(read: bool) -> None:
    def made(name: str) -> onnx.ModelProto:
        nodes = [node("Conv", ["x", "w"], [name]), node("Dropout", [name], [f"{name}.d", f"{name}.mask"])]
        nodes.append(node("Identity", [f"{name}.d"], ["y"]))
        outputs = [info("y", None)]
        if read:
            nodes.append(node("Identity", [f"{name}.mask"], ["m"]))
            outputs.append(info("m", None, TensorProto.BOOL))
        return model(nodes, [info("x", [1, 3, 8, 8])], outputs, {"w": W})

    result = audited(made("t"), made("u"))
    if read:
        assert result.verdict != "different"
        return
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_operators_that_onnx_does_not_know_leave_no_types_behind() -> None:
    before = model(
        [
            node("Conv", ["x", "w"], ["t"]),
            node("Relu", ["t"], ["a"]),
            node("Conv", ["a", "v"], ["s"]),
            node("Sigmoid", ["s"], ["y"]),
        ],
        [info("x", [1, 3, 8, 8])],
        [info("y", None)],
        {"w": W, "v": random(4, 4, 3, 3)},
    )
    after = documented(before)
    del after.graph.node[:2]
    fused = node("FusedConv", ["x", "w"], ["a"], domain="com.microsoft", activation="Relu")
    after.graph.node.insert(0, fused)
    after.graph.node[1].attribute.append(helper.make_attribute("kernel_shape", [3, 3]))
    after.opset_import.add(domain="com.microsoft", version=1)
    result = audited(before, after)
    assert result.verdict != "different", result.reason
    assert [region.outputs for region in result.regions] == [("a",), ("s",)]


# Nothing but documentation


def shape_only() -> onnx.ModelProto:
    return model([node("Shape", ["x"], ["y"])], [info("x", [1, 3])], [info("y", None, TensorProto.INT64)])


def no_nodes() -> onnx.ModelProto:
    return model([], [info("x", [1, 3])], [info("c", [2])], {"c": np.ones(2, np.float32)})


def no_inputs() -> onnx.ModelProto:
    nodes = [node("Constant", [], ["c"], value_floats=[1.0, 2.0]), node("Relu", ["c"], ["y"])]
    return model(nodes, [], [info("y", [2])])


def of_strings() -> onnx.ModelProto:
    return model([node("Identity", ["x"], ["y"])], [info("x", [2], 8)], [info("y", [2], 8)])


@pytest.mark.parametrize("make", [shape_only, no_nodes, no_inputs, of_strings])
def test_documentation_alone_is_proven_without_a_comparison(make: Callable[[], onnx.ModelProto]) -> None:
    result = audited(make(), documented(make()))
    assert (result.verdict, result.grade) == ("equivalent", "bitwise"), result.reason


def test_without_a_region_but_with_another_operator_set_a_run_is_needed() -> None:
    after = shape_only()
    after.opset_import[0].version = 18
    assert audited(shape_only(), after).verdict == "not_verified"
