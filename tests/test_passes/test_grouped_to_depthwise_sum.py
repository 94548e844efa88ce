"""grouped-to-depthwise-sum: before and after, what declines it, and the way back; each for every `reduce`."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthwise_sums import sizes
from funnel import check, declines
from models.grouped import GroupedConv, grouped_conv_model, parameters
from models.sample import draw_spec
from programs import program
from rewriter import BadInput, Graph, Safety, Settings
from rewriter.api import rewrite
from rewriter.cli import main
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined

PASS = "grouped-to-depthwise-sum"
BACK = "depthwise-sum-to-grouped"
SPEC = GroupedConv(groups=3, in_per_group=2, out_per_group=4, kernel=(3, 3), spatial=(5, 6))
CHAIN = "Conv/6 Reshape ReduceSum Reshape"
PLACES = ("middle", "first", "last")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        ({}, CHAIN),
        ({"bias": "conv"}, f"{CHAIN} Add"),
        ({"bias": "after"}, f"{CHAIN} Add"),
        ({"kernel": (3,), "spatial": (7,)}, CHAIN),
        ({"kernel": (2, 1, 3), "spatial": (4, 3, 5), "bias": "conv"}, f"{CHAIN} Add"),
        ({"strides": (2, 3)}, CHAIN),
        ({"dilations": (2, 1)}, CHAIN),
        ({"pads": (0, 1, 2, 3)}, CHAIN),
        ({"auto_pad": "SAME_UPPER", "strides": (2, 2), "spatial": (6, 6)}, CHAIN),
        ({"auto_pad": "SAME_LOWER", "strides": (2, 2), "spatial": (6, 6)}, CHAIN),
        ({"auto_pad": "VALID"}, CHAIN),
        ({"out_per_group": 1}, CHAIN),
        ({"shapes": "dynamic_batch"}, CHAIN),
        (
            {"shapes": "dynamic"},
            "Conv/6 Shape Gather Shape Gather Concat Reshape ReduceSum Concat Reshape",
        ),
        ({"layout": "nhwc"}, f"Transpose {CHAIN} Transpose"),
        ({"order": "interleaved"}, f"Gather {CHAIN}"),
        ({"weights": "constant"}, CHAIN),
        ({"weights": "identity"}, CHAIN),
        ({"weights": "cast"}, CHAIN),
        ({"weights": "constant_of_shape"}, CHAIN),
        ({"weights": "shared"}, f"{CHAIN} Neg {CHAIN}"),
        ({"dtype": "float16"}, CHAIN),
        ({"dtype": "float64"}, CHAIN),
        ({"opset": 7}, CHAIN),
        ({"opset": 12}, CHAIN),
        ({"opset": 13}, CHAIN),
        ({"opset": 26}, CHAIN),
        ({"ir_version": 3}, CHAIN),
        ({"ir_version": 3, "opset": 8, "bias": "conv"}, "Conv/6 Cast Reshape ReduceSum Cast Reshape Add"),
        ({"ir_version": 3, "opset": 9, "weights": "constant_of_shape"}, CHAIN),
    ],
)
def test_before_and_after(options: dict[str, Any], becomes: str, place: str) -> None:
    spec = replace(SPEC, **options)
    chosen: Settings = {} if place == "middle" else {"reduce": place}
    if place != "middle":
        becomes = becomes.replace("ReduceSum", "Transpose ReduceSum")
    passed = check(grouped_conv_model(spec), PASS, chosen, becomes=becomes, safety=Safety.EXACT, sizes=sizes(spec))
    kept = {"strides", "dilations", "pads", "auto_pad", "kernel_shape"}
    for before, after in zip(convs(passed.before), convs(passed.after), strict=True):
        assert attributes(before, kept) == attributes(after, kept)
        assert before.name == after.name


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("opset", [7, 13])
@pytest.mark.parametrize("kernel", [(3,), (3, 3), (1, 2, 3)])
def test_the_summed_axis_lies_where_it_was_asked_for(kernel: tuple[int, ...], opset: int, place: str) -> None:
    spec = replace(SPEC, kernel=kernel, spatial=(5, 6, 7)[: len(kernel)], opset=opset)
    passed = check(grouped_conv_model(spec), PASS, {"reduce": place}, sizes=sizes(spec))
    inferred = onnx.shape_inference.infer_shapes(passed.after, data_prop=True)
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in inferred.graph.value_info
    }
    (node,) = [node for node in passed.after.graph.node if node.op_type == "ReduceSum"]
    (axis,) = node.attribute[0].ints if opset < 13 else value(passed.after, node.input[1]).tolist()
    shape = shapes[node.input[0]]
    assert axis == {"middle": 2, "first": 0, "last": len(shape) - 1}[place]
    assert len(shape) == len(kernel) + 4
    assert shape[axis] == spec.in_per_group
    (made,) = passed.rewrites
    assert made.summary.endswith({"middle": "over 2", "first": "over 2 in front", "last": "over 2 at the end"}[place])


def convs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def attributes(node: onnx.NodeProto, names: set[str]) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name in names}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 1}, "It is dense (group 1), not grouped."),
        ({"in_per_group": 1}, "It is depthwise already: each group has one input channel."),
    ],
)
def test_declines(options: dict[str, Any], reason: str) -> None:
    declines(grouped_conv_model(replace(SPEC, **options)), PASS, reason)


@pytest.mark.parametrize("groups", [3, 1])
def test_an_unknown_place_is_an_error_wherever_it_is_given(
    groups: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the pass has nothing to do: groups of 1."""
    model = grouped_conv_model(replace(SPEC, groups=groups))
    says = "the setting grouped-to-depthwise-sum.reduce is 'side': it must be one of middle, first, last."
    with pytest.raises(BadInput, match=says):
        rewrite("not looked at yet.onnx", [PASS], settings={PASS: {"reduce": "side"}})
    with pytest.raises(BadInput, match=says):
        pass_named(PASS).propose(Graph(Model.load(model)), 0, {"reduce": "side"})
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    assert main(["rewrite", str(path), "--pass", PASS, "--set", f"{PASS}.reduce=side"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"Error: {says[0].upper()}{says[1:]}\n"
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_worth_measuring_depends_on_where_it_runs() -> None:
    graph = Graph(Model.load(grouped_conv_model(SPEC)))
    assert pass_named(PASS).candidates(graph, 0) == ({},)
    assert pass_named(PASS).candidates(replace(graph, provider="cuda"), 0) == tuple({"reduce": at} for at in PLACES)


@pytest.mark.parametrize("options", [{"groups": 1}, {"in_per_group": 1}])
def test_nothing_is_worth_measuring_where_it_declines(options: dict[str, Any]) -> None:
    graph = Graph(Model.load(grouped_conv_model(replace(SPEC, **options))), provider="cuda")
    with pytest.raises(Declined, match="it is d"):
        pass_named(PASS).candidates(graph, 0)


CONV = "y = Conv <group = 2> (x, w)"
WEIGHT = np.ones((4, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            program("w = Neg (v) y = Conv <group = 2> (x, w)", v=WEIGHT),
            "Its weight 'w' is computed by Neg from constants; fold constants first",
        ),
        (
            program("y = Conv <group = 2> (x, w, b) b = Neg (v)", w=WEIGHT, v=(4,)),
            "Its bias 'b' is computed by Neg from constants; fold",
        ),
        (
            program(
                "w = DequantizeLinear (v, s) y = Conv <group = 2> (x, w)", v=WEIGHT.astype(np.int8), s=np.float32(1)
            ),
            "Its weight 'w' is computed by DequantizeLinear from quantized constants.",
        ),
        (program("y = Conv <group = 3> (x, w)", w=WEIGHT), "Its 4 output channels do not divide into 3 groups."),
        (program(CONV, w=WEIGHT, opset=6), "The model's opset 6 is below 7, the oldest one supported."),
    ],
    ids=["weight", "bias", "dequantized", "groups", "opset"],
)
def test_declines_without_constant_operands(model: onnx.ModelProto, reason: str) -> None:
    declines(model, PASS, reason)


@pytest.mark.parametrize("constant", [False, True])
def test_a_weight_that_callers_can_give_declines(constant: bool) -> None:
    model = program(CONV, w=WEIGHT)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, WEIGHT.shape))
    if not constant:
        del model.graph.initializer[:]
    reason = "'w' is an initializer that callers may override" if constant else "Its weight 'w' is a graph input."
    declines(model, PASS, reason)


def test_a_wrong_bias_shape_declines() -> None:
    declines(program("y = Conv <group = 2> (x, w, b)", w=WEIGHT, b=(4, 1)), PASS, "Its bias is not of shape [4].")


def test_a_bias_given_as_the_empty_name_is_no_bias() -> None:
    model = program(CONV, w=WEIGHT)
    model.graph.node[0].input.append("")
    check(model, PASS, becomes="Conv/8 Reshape ReduceSum Reshape", sizes=[{"x": (2, 8, 5, 5)}])


@pytest.mark.parametrize("place", PLACES)
def test_bfloat16_weights_move_and_keep_their_type(place: str) -> None:
    """Nothing here can run a bfloat16 convolution, so that bits are compared."""
    weight = np.arange(4 * 4 * 9).astype(ml_dtypes.bfloat16).reshape(4, 4, 3, 3)
    model = program(CONV, x="bfloat16[N,8,5,5]", opset=22, w=weight)
    total = "ReduceSum" if place == "middle" else "Transpose ReduceSum"
    passed = check(model, PASS, {"reduce": place}, becomes=f"Conv/8 Reshape {total} Reshape", compute=False)
    wide = passed.initializer("depthwise_sum/weight")
    assert wide.dtype == weight.dtype
    assert sorted(wide.reshape(-1).tolist()) == sorted(weight.reshape(-1).tolist())
    back = check(passed.after, BACK, becomes="Conv/2", safety=Safety.EXACT, compute=False)
    assert back.initializer("weight").tobytes() == weight.tobytes()


@given(st.integers(0, 10**9), st.sampled_from(PLACES))
@settings(max_examples=40)
def test_there_and_back_gives_the_same_bits(seed: int, place: str) -> None:
    """Whatever the spelling: the same weights and bias, bit for bit, and the same Conv with all its attributes."""
    spec = replace(draw_spec(random.Random(seed), "grouped"), weights="initializer")
    assume(spec.groups > 1 and spec.in_per_group > 1)
    there_and_back(spec, place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bias", ["none", "conv"])
@pytest.mark.parametrize("shapes", ["static", "dynamic_batch", "dynamic"])
@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 1, 3)])
def test_there_and_back_at_every_rank(kernel: tuple[int, ...], shapes: str, bias: str, place: str) -> None:
    there_and_back(replace(SPEC, kernel=kernel, spatial=(6, 5, 7)[: len(kernel)], shapes=shapes, bias=bias), place)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", PLACES)
def test_there_and_back_where_sizes_of_one_make_places_alike(place: str) -> None:
    """One output per group, and one position: the axis could be taken for its neighbours."""
    there_and_back(replace(SPEC, out_per_group=1, kernel=(3, 3), spatial=(3, 3), batch=1), place)
    there_and_back(replace(SPEC, in_per_group=4, kernel=(3, 3), spatial=(6, 6), batch=4), place)  # I = O = S = N


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel", [(3,), (3, 3)])
@pytest.mark.parametrize("opset", [7, 8])
def test_there_and_back_where_sizes_are_float_constants_behind_a_cast(
    opset: int, kernel: tuple[int, ...], place: str
) -> None:
    """Up to IR version 3 and opset 8, among sizes read at run time."""
    spec = replace(SPEC, ir_version=3, opset=opset, shapes="dynamic")
    there_and_back(replace(spec, kernel=kernel, spatial=(7,) * len(kernel)), place)


def there_and_back(spec: GroupedConv, place: str) -> None:
    there = check(grouped_conv_model(spec), PASS, {"reduce": place}, safety=Safety.EXACT, sizes=sizes(spec))
    back = check(there.after, BACK, safety=Safety.EXACT, sizes=sizes(spec))
    numbers = parameters(spec)
    (before,), (after,) = convs(there.before), convs(back.after)
    assert after.attribute == before.attribute
    assert value(back.after, after.input[1]).tobytes() == np.ascontiguousarray(numbers.weight).tobytes()
    if numbers.bias is None:
        assert list(after.input[2:]) == []
    else:
        assert value(back.after, after.input[2]).tobytes() == numbers.bias.tobytes()


def value(model: onnx.ModelProto, name: str) -> np.ndarray:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
    (node,) = [node for node in model.graph.node if name in node.output]
    return np.asarray(onnx.numpy_helper.to_array(node.attribute[0].t))
