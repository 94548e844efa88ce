"""depthwise-sum-to-grouped: spellings of one computation, what they become, and what declines them.

The programs convolve 8 channels depthwise, two filters each (16 wide channels, 5×5), and sum them in 2 groups of 4.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from depthwise_sums import BATCHES, MERGE, MERGED, PASS, SPLIT, SUM, WIDE, W, plain, sizes
from funnel import Sizes, check, declines
from models.grouped import GroupedConv, grouped_conv_model
from models.sample import draw_spec
from programs import program
from rewriter import Safety

# --- the generator's spellings ---

SPEC = GroupedConv("depthwise_sum", groups=3, in_per_group=2, out_per_group=4, spatial=(5, 6))


@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        ({}, "Conv/3"),
        ({"bias": "conv"}, "Conv/3"),
        ({"bias": "before"}, "Conv/3"),
        ({"bias": "after"}, "Conv/3"),
        ({"order": "interleaved"}, "Gather Conv/3"),
        ({"order": "interleaved", "keepdims": True}, "Gather Conv/3"),
        ({"keepdims": True}, "Conv/3"),
        ({"layout": "nhwc"}, "Transpose Conv/3 Transpose"),
        ({"layout": "nhwc", "bias": "before", "order": "interleaved"}, "Transpose Gather Conv/3 Transpose"),
        ({"layout": "nhwc", "bias": "after", "shapes": "dynamic"}, "Transpose Conv/3 Transpose"),
        ({"shapes": "dynamic_batch"}, "Conv/3"),
        ({"shapes": "dynamic"}, "Conv/3"),
        ({"shapes": "dynamic", "order": "interleaved"}, "Gather Conv/3"),
        ({"shapes": "dynamic", "opset": 7}, "Conv/3"),
        ({"reduce": "ReduceMean"}, "Conv/3"),
        ({"kernel": (3,), "spatial": (7,), "strides": (2,)}, "Conv/3"),
        ({"kernel": (2, 1, 3), "spatial": (4, 3, 5), "bias": "after"}, "Conv/3"),
        ({"kernel": (2, 1, 3), "spatial": (4, 3, 5), "layout": "nhwc"}, "Transpose Conv/3 Transpose"),
        ({"dilations": (1, 2), "pads": (1, 2, 0, 1)}, "Conv/3"),
        ({"auto_pad": "SAME_UPPER", "strides": (2, 2)}, "Conv/3"),
        ({"auto_pad": "SAME_LOWER", "strides": (2, 2)}, "Conv/3"),
        ({"auto_pad": "VALID"}, "Conv/3"),
        ({"groups": 1}, "Conv/1"),
        ({"in_per_group": 1}, "Conv/3"),
        ({"out_per_group": 1}, "Conv/3"),
        ({"batch": 1}, "Conv/3"),
        ({"weights": "constant"}, "Conv/3"),
        ({"weights": "identity"}, "Conv/3"),
        ({"weights": "cast"}, "Conv/3"),
        ({"weights": "constant_of_shape"}, "Conv/3"),
        ({"weights": "shared"}, "Conv/3 Neg Conv/3"),
        ({"dtype": "float16"}, "Conv/3"),
        ({"dtype": "float64"}, "Conv/3"),
        ({"allowzero": True, "shapes": "dynamic_batch"}, "Conv/3"),
        *(({"opset": opset}, "Conv/3") for opset in (7, 12, 13, 17, 18, 26)),
        *(({"opset": opset, "ir_version": 3}, "Conv/3") for opset in (7, 9, 18)),
        ({"opset": 8, "ir_version": 3, "order": "interleaved"}, "Cast Gather Conv/3"),
    ],
)
def test_spellings(options: dict[str, Any], becomes: str) -> None:
    spec = replace(SPEC, **options)
    summed = spec.bias in ("conv", "before") and spec.in_per_group > 1
    safety = Safety.ROUNDING if summed or spec.reduce == "ReduceMean" else Safety.EXACT
    check(grouped_conv_model(spec), PASS, becomes=becomes, safety=safety, sizes=sizes(spec))


@given(st.integers(0, 10**9))
@settings(max_examples=60)
def test_every_spelling_becomes_one_conv_of_as_many_groups(seed: int) -> None:
    spec = draw_spec(random.Random(seed), "depthwise_sum")
    passed = check(grouped_conv_model(spec), PASS, sizes=sizes(spec))
    convs = [word for word in passed.text.split() if word.startswith("Conv")]
    assert convs == [f"Conv/{spec.groups}"] * (2 if spec.weights == "shared" else 1)
    assert not {"Reshape", "ReduceSum", "ReduceMean", "Add", "Shape", "Concat"} & set(passed.text.split())


# --- spellings by hand ---

NHWC = "x1 = Transpose <perm = [0,3,1,2]> (x) wide = Conv <group = 8, pads = [1,1,1,1]> (x1, w)"
BIAS = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("model", "becomes", "safety"),
    [
        (plain(), "Conv/2", "EXACT"),
        (plain(x="float[2,8,5,5]", s=[2, 2, 4, 2, 5, 5], m=[2, 4, 5, 5]), "Conv/2", "EXACT"),
        (plain(x="float[1,8,5,5]", s=[1, 2, 4, 2, 5, 5], m=[1, 4, 5, 5]), "Conv/2", "EXACT"),
        (plain(s=[-1, 2, 4, 2, 5, 5], m=[-1, 4, 5, 5]), "Conv/2", "EXACT"),
        (plain(two=[-4]), "Conv/2", "EXACT"),
        (plain(f"{SUM.replace('keepdims = 0', 'keepdims = 1')} {MERGE}"), "Conv/2", "EXACT"),
        # A sum that keeps its axis, and the axis dropped by itself; one that comes and goes.
        (
            plain(f"{SUM.replace('keepdims = 0', 'keepdims = 1')} q = Squeeze (sum, two) y = Reshape (q, m)"),
            "Conv/2",
            "EXACT",
        ),
        (plain(f"{SUM} u = Unsqueeze (sum, two) q = Squeeze (u, two) y = Reshape (q, m)"), "Conv/2", "EXACT"),
        # The Reshape after the sum is missing, or comes only after a Relu: the conv's output is reshaped to rank 5.
        (plain(SUM.replace("sum =", "y =")), "Conv/2 Reshape", "EXACT"),
        (plain(f"{SUM} r = Relu (sum) y = Reshape (r, m)"), "Conv/2 Reshape Relu Reshape", "EXACT"),
        # A bias: the conv's own, before and after the sum, as [G, O], in the wide layout, as a scalar; twice.
        (plain(f"{SUM.replace('(x, w)', '(x, w, b)')} {MERGE}", b=(16,)), "Conv/2", "ROUNDING"),
        (plain(f"{SUM.replace('Reshape (wide', 'Add (wide, b) t = Reshape (split')} {MERGE}"
               .replace("(split, two)", "(t, two)"), b=(16, 1, 1)), "Conv/2", "ROUNDING"),
        (plain(f"{SUM} z = Reshape (sum, m) y = Add (z, b)", b=(4, 1, 1)), "Conv/2", "EXACT"),
        (plain(f"{SUM} z = Reshape (sum, m) y = Add (b, z)", b=(1, 4, 1, 1)), "Conv/2", "EXACT"),
        (plain(f"{SUM} z = Add (sum, b) y = Reshape (z, m)", b=(2, 2, 1, 1)), "Conv/2", "EXACT"),
        (plain(f"{SUM} z = Reshape (sum, m) y = Add (z, b)", b=np.float32(0.5)), "Conv/2", "EXACT"),
        (plain(f"{SUM} z = Reshape (sum, m) y = Sub (z, b)", b=(4, 1, 1)), "Conv/2", "EXACT"),
        (plain(f"{SUM} z = Reshape (sum, m) u = Add (z, b) y = Add (u, c)", b=(4, 1, 1), c=(4, 1, 1)), "Conv/2",
         "ROUNDING"),
        # Scales.
        (plain(f"{SUM} z = Reshape (sum, m) y = Mul (z, b)", b=(4, 1, 1)), "Conv/2", "ROUNDING"),
        (plain(f"{SUM} z = Reshape (sum, m) y = Div (z, b)", b=BIAS.reshape(4, 1, 1) + 1), "Conv/2", "ROUNDING"),
        (plain(f"{SUM} z = Reshape (sum, m) y = Sub (b, z)", b=(4, 1, 1)), "Conv/2", "ROUNDING"),
        (plain(f"{SUM} z = Reshape (sum, m) y = BatchNormalization <epsilon = 0.01> (z, a, b, c, d)",
               a=(4,), b=(4,), c=(4,), d=BIAS + 1), "Conv/2", "ROUNDING"),
        (plain(f"{SUM.replace('Sum', 'Mean')} {MERGE}"), "Conv/2", "ROUNDING"),
        # What ends the chain stays.  Positions that are merged are no axes of space any more.
        (plain(f"{SUM} y = Reshape (sum, m)", m=[0, 4, 25, 1]), "Conv/2 Reshape Reshape", "EXACT"),
        (plain(f"{SUM} y = Reshape (sum, m)", m=[0, 4, 25]), "Conv/2 Reshape Reshape", "EXACT"),
        (plain(f"{SUM} z = Reshape (sum, m) r = Relu (z) y = Add (r, b)", b=(4, 1, 1)), "Conv/2 Relu Add", "EXACT"),
        (plain(f"r = ReduceMean <keepdims = 1> (x, one) {SUM} z = Reshape (sum, m) y = Add (z, r)", one=[1]),
         "ReduceMean Conv/2 Add", "EXACT"),
        # Channels summed and flattened; channels in two steps; part of the outputs; one output.
        (plain(f"{SUM} z = Reshape (sum, m) y = Flatten <axis = 1> (z)"), "Conv/2 Flatten", "EXACT"),
        (plain(f"{SUM} z = Reshape (sum, m) t = Transpose <perm = [0,2,3,1]> (z) y = Flatten <axis = 3> (t)"),
         "Conv/2 Transpose Flatten", "EXACT"),
        (plain(f"{WIDE} p = Reshape (wide, s) q = ReduceSum <keepdims = 0> (p, two)"
               " r = ReduceSum <keepdims = 0> (q, two) y = Reshape (r, m)", s=[0, 2, 2, 2, 2, 5, 5]),
         "Conv/2", "EXACT"),
        (plain(f"{WIDE} p = Reshape (wide, s) q = ReduceSum <keepdims = 0> (p, axes) y = Reshape (q, m)",
               s=[0, 2, 2, 2, 2, 5, 5], axes=[3, 2]), "Conv/2", "EXACT"),
        (plain(f"{WIDE} y = ReduceSum (wide, one)", one=[1]), "Conv/1", "ROUNDING"),
        (plain(f"{WIDE} y = ReduceSum <keepdims = 0> (wide, one)", one=[1]), "Conv/1 Transpose Reshape", "ROUNDING"),
        # The order of channels in the output needs a Gather; so does a choice of the input's channels.
        (plain(f"{SUM} t = Transpose <perm = [0,2,1,3,4]> (sum) y = Reshape (t, m)"), "Conv/2 Gather", "EXACT"),
        (plain(f"{WIDE} g = Gather <axis = 1> (wide, p) t = Reshape (g, s) y = ReduceSum <keepdims = 0> (t, two)",
               p=[0, 8, 4, 12], s=[0, 2, 1, 2, 5, 5]), "Gather Conv/4 Reshape", "EXACT"),
        # A dense convolution whose outputs are summed has summed filters.
        (plain("c = Conv (x, v) t = Reshape (c, s) y = ReduceSum <keepdims = 0> (t, two)", v=(4, 8, 3, 3),
               s=[0, 2, 2, 3, 3]), "Conv/1", "ROUNDING"),
        # NHWC between Transposes.
        (plain(f"{NHWC} t = Transpose <perm = [0,2,3,1]> (wide) p = Reshape (t, s)"
               " q = ReduceSum <keepdims = 0> (p, four) y = Reshape (q, m)",
               x="float[N,5,5,8]", s=[0, 5, 5, 2, 4, 2], four=[4], m=[0, 5, 5, 4]),
         "Transpose Conv/2 Transpose", "EXACT"),
        (plain(f"{NHWC} t = Transpose <perm = [0,2,3,1]> (wide) p = Reshape (t, s)"
               " q = ReduceSum <keepdims = 0> (p, four) z = Reshape (q, m) y = Add (z, b)",
               x="float[N,5,5,8]", s=[0, 5, 5, 2, 4, 2], four=[-2], m=[0, 5, 5, 4], b=(4,)),
         "Transpose Conv/2 Transpose", "EXACT"),
        (plain(f"{NHWC} t = Transpose <perm = [0,2,3,1]> (wide) p = Reshape (t, s)"
               " q = ReduceSum <keepdims = 0> (p, four) z = Reshape (q, m)"
               " y = Transpose <perm = [0,3,1,2]> (z)",
               x="float[N,5,5,8]", s=[0, 5, 5, 2, 4, 2], four=[4], m=[0, 5, 5, 4]), "Transpose Conv/2", "EXACT"),
        (plain(f"{NHWC} t = Transpose <perm = [0,2,3,1]> (wide) p = Reshape (t, s)"
               " y = ReduceSum <keepdims = 0> (p, four)", x="float[N,5,5,8]", s=[0, 5, 5, 2, 4, 2], four=[4]),
         "Transpose Conv/2 Transpose Reshape", "EXACT"),
        # The classic mistake sums the filters of one channel: it is a depthwise convolution, of group 8 and not 2.
        (plain(s=[0, 8, 2, 5, 5], m=[0, 8, 5, 5]), "Conv/8", "ROUNDING"),
    ],
)  # fmt: skip
def test_before_and_after(model: onnx.ModelProto, becomes: str, safety: str) -> None:
    (info,) = model.graph.input
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    where: list[Sizes] = [{"x": (batch, *shape[1:])} for batch in ((2, 1, 5) if not shape[0] else shape[:1])]
    check(model, PASS, becomes=becomes, safety=Safety[safety], sizes=where)


def test_the_classic_mistake_is_a_depthwise_conv_with_summed_filters() -> None:
    passed = check(plain(s=[0, 8, 2, 5, 5], m=[0, 8, 5, 5]), PASS, sizes=BATCHES)
    weight = onnx.numpy_helper.to_array(passed.before.graph.initializer[0])
    np.testing.assert_allclose(
        passed.initializer("grouped/weight"), weight.reshape(8, 2, 1, 3, 3).sum(1, dtype=np.float64), rtol=1e-6
    )


def test_one_batch_entry_is_as_good_as_many() -> None:
    """Batch 1 and 1×1 positions: every axis of size 1 could be anything."""
    model = plain(
        "wide = Conv <group = 8> (x, w) p = Reshape (wide, s) q = ReduceSum <keepdims = 0> (p, two) y = Reshape (q, m)",
        x="float[1,8,3,3]",
        s=[1, 2, 4, 2, 1, 1],
        m=[1, 4, 1, 1],
    )
    check(model, PASS, becomes="Conv/2", safety=Safety.EXACT)


# --- declined ---


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (plain("y = Conv (x, v)", v=(4, 8, 3, 3)), "No sum over channels follows: 'y' is a graph output."),
        (plain(f"{WIDE} r = Relu (wide) p = Reshape (r, s) y = ReduceSum (p, two)"), "Relu at 'r' is no linear"),
        (plain(f"{WIDE} r = Softmax (wide) y = ReduceSum (r, two)"), "Softmax at 'r' is no linear"),
        (plain(f"{SUM} {MERGE} r = Relu (wide)", y="y r"), "'wide' is read by 2 nodes"),
        (plain(f"{SUM} {MERGE}", y="y wide"), "'wide' is a graph output"),
        (plain(f"{SUM} {MERGE}", y="y split"), "'split' is a graph output"),
        (plain(f"{SUM} {MERGE} r = Relu (split)", y="y r"), "'split' is read by 2 nodes"),
        (plain(f"{WIDE} y = ReduceSum (wide, two)"), "Batch or space change their size after it."),
        (plain(f"{WIDE} y = ReduceSum <keepdims = 0> (wide, zero)", zero=[0]), "do not keep one axis each"),
        (plain(f"{WIDE} y = ReduceSum (wide)"), "change their size"),
        (plain(s=[-1, 8, 2, 5, 5], m=[0, 8, 5, 5], two=[0]), "Batch or space do not keep one axis each"),
        (plain(f"{WIDE} t = Transpose <perm = [0,2,1,3]> (wide) p = Reshape (t, s) q = ReduceSum (p, two)"
               " y = Reshape (q, m)", s=[0, 2, 4, 2, 5, 5]), "change their size"),
        (plain(f"{WIDE} t = Gather <axis = 3> (wide, p) y = ReduceSum (t, one)", p=[1, 0, 2, 3, 4], one=[1]),
         "It mixes spatial positions into channels."),
        (plain(f"{WIDE} t = Mul (wide, p) y = ReduceSum (t, one)", p=(5,), one=[1]),
         "A constant is added or multiplied per position, not per channel."),
        (plain(f"{WIDE} t = Gather <axis = 1> (wide, p) q = Reshape (t, s) y = ReduceSum <keepdims = 0> (q, two)",
               p=[0, 2, 4, 6, 8, 10, 2, 4, 6, 8, 10, 12], s=[0, 2, 6, 5, 5]), "overlapping but different sets"),
        (plain(f"{WIDE} t = Gather <axis = 1> (wide, p) q = Reshape (t, s) y = ReduceSum <keepdims = 0> (q, two)",
               p=[0, 2, 0, 2, 4, 6], s=[0, 3, 2, 5, 5], two=[2]),
         "Its blocks have different numbers of outputs (1 to 2)."),
        (plain(f"{WIDE} t = Gather <axis = 1> (wide, p) q = Reshape (t, s) y = ReduceSum <keepdims = 0> (q, two)",
               p=[0, 2, 4, 5], s=[0, 2, 2, 5, 5]), "Its outputs read different numbers of input channels (1 to 2)."),
        (plain(f"{WIDE} n = Shape <start = 0, end = 1> (wide) t = Gather <axis = 1> (wide, n) y = ReduceSum (t, one)",
               one=[1]), "What it sums depends on the input size."),
        (plain(f"{SUM} {MERGE} n = Shape <start = 2, end = 2> (wide) z = Expand (one, n)", y="y z",
               one=np.float32(1)), "Shape 'n' asks for none of the sizes of a tensor inside the region."),
        (plain(f"{WIDE} t = Reshape (wide, s) y = ReduceSum (t, two) e = Size (wide)", y="y e"),
         "The size of 'wide' inside the region is read by Size."),
    ],
)  # fmt: skip
def test_declines(model: onnx.ModelProto, reason: str) -> None:
    for output in model.graph.output:
        if output.name == "e":
            output.type.tensor_type.elem_type = TensorProto.INT64
    declines(model, PASS, reason)


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("w = Reshape (v, t)", {"v": (16, 3, 3), "t": [*W]},
         "Its weight 'w' is computed by Reshape from constants; fold constants first, e.g. with onnxslim or onnxsim."),
        ("w = Expand (v, n) n = Shape (x)", {"v": (16, 1, 3, 3)}, "Its weight 'w' is computed at run time by Expand."),
        ("w = DequantizeLinear (v, q)", {"v": np.ones(W, np.int8), "q": np.float32(1)},
         "Its weight 'w' is computed by DequantizeLinear from quantized constants."),
    ],
)  # fmt: skip
def test_weights_that_are_no_constants_decline(body: str, constants: dict[str, Any], reason: str) -> None:
    model = program(f"{body} {SUM} {MERGE}", s=SPLIT, m=MERGED, two=[2], **constants)
    declines(model, PASS, reason)


@pytest.mark.parametrize(("constant", "reason"), [(True, "callers may override"), (False, "'w' is a graph input")])
def test_a_weight_that_callers_can_give_declines(constant: bool, reason: str) -> None:
    model = plain()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W))
    if not constant:
        model.graph.initializer.remove(model.graph.initializer[0])
    declines(model, PASS, reason)


def with_if(model: onnx.ModelProto, read: str, inner: str) -> onnx.ModelProto:
    """The model with an If whose first branch gives out the Relu of `read`, by way of a tensor called `inner`."""
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    nodes = [helper.make_node("Relu", [read], [inner]), helper.make_node("Identity", [inner], ["out"])]
    branch = helper.make_graph(nodes, "then", [], outputs)
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["out"])], "else", [], outputs)
    model.graph.node.append(helper.make_node("If", ["choose"], ["z"], then_branch=branch, else_branch=other))
    model.graph.input.append(helper.make_tensor_value_info("choose", TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", "C", 5, 5]))
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_wide_tensor_read_in_a_subgraph_declines() -> None:
    declines(with_if(plain(), "wide", "inner"), PASS, "'wide' is read inside a subgraph")


def test_new_names_avoid_those_of_subgraphs() -> None:
    passed = check(with_if(plain(), "x", "y/grouped/weight"), PASS, becomes="Conv/2 If", compute=False)
    assert passed.after.graph.initializer[0].name == "y/grouped/weight_2"


def test_a_per_position_constant_is_no_bias() -> None:
    """[W] with W == M: the axis must be that of the channels."""
    model = plain(f"{SUM} z = Reshape (sum, m) y = Add (z, b)", x="float[N,8,4,4]", s=[0, 2, 4, 2, 4, 4],
                  m=[0, 4, 4, 4], b=(4,))  # fmt: skip
    check(model, PASS, becomes="Conv/2 Add", safety=Safety.EXACT, sizes=[{"x": (2, 8, 4, 4)}])


def test_a_constant_with_a_batch_axis_is_no_bias() -> None:
    model = plain(f"{SUM} z = Reshape (sum, m) y = Add (z, b)", x="float[2,8,5,5]", b=(2, 4, 1, 1))
    check(model, PASS, becomes="Conv/2 Add", safety=Safety.EXACT)


def test_sums_too_large_for_float16_decline() -> None:
    weight = np.full(W, 6e4, np.float16)
    model = plain(x="float16[N,8,5,5]", s=[0, 8, 2, 5, 5], m=[0, 8, 5, 5], w=weight)
    declines(model, PASS, "Its combined weights are too large for float16.")


def test_a_squeeze_without_axes_is_left_alone_where_the_batch_may_be_one() -> None:
    """At batch 1 it would drop the batch as well."""
    body = f"{SUM.replace('keepdims = 0', 'keepdims = 1')} q = Squeeze (sum) y = Reshape (q, m)"
    check(plain(body, m=[-1, 4, 5, 5]), PASS, becomes="Conv/2 Reshape Squeeze Reshape", sizes=BATCHES)
    check(plain(body, x="float[2,8,5,5]", s=[2, 2, 4, 2, 5, 5]), PASS, becomes="Conv/2", sizes=[{}])


# --- names, and who else is there ---


def test_new_names_avoid_those_in_use() -> None:
    model = plain(f"{SUM} {MERGE} z = Relu (x)", y="y z")
    names = ["y/grouped/weight", "y/grouped/weight_2"]
    model.graph.node[-1].output[0] = names[0]
    model.graph.node[-1].name = names[1]
    model.graph.output[1].name = names[0]
    passed = check(model, PASS, sizes=BATCHES)
    assert passed.after.graph.initializer[0].name == "y/grouped/weight_3"


def test_two_in_a_row_and_two_side_by_side() -> None:
    second = "".join(
        f" {part}" for part in (
            "wide2 = Conv <group = 4, pads = [1,1,1,1]> (y1, w2) split2 = Reshape (wide2, s2)",
            "sum2 = ReduceSum <keepdims = 0> (split2, two) y = Reshape (sum2, m2)",
        )
    )  # fmt: skip
    row = plain(f"{SUM} y1 = Reshape (sum, m){second}", w2=(8, 1, 3, 3), s2=[0, 2, 2, 2, 5, 5], m2=[0, 4, 5, 5])
    assert len(check(row, PASS, becomes="Conv/2 Conv/2", sizes=BATCHES).rewrites) == 2
    copy = f"{SUM} {MERGE}"
    for name in ("wide", "split", "sum", "y"):
        copy = copy.replace(f"{name} =", f"{name}_b =").replace(f"({name},", f"({name}_b,")
    side = plain(f"{SUM} {MERGE} {copy}", y="y y_b")
    assert len(check(side, PASS, becomes="Conv/2 Conv/2", sizes=BATCHES).rewrites) == 2


@pytest.mark.parametrize("weights", ["constant", "identity", "cast", "constant_of_shape", "initializer"])
def test_a_weight_shared_by_two_convs_goes_with_the_last_of_them(weights: str) -> None:
    """The second copy is made from another input, so that it is a second site with the same weight."""
    spec = replace(SPEC, weights="shared")
    model = grouped_conv_model(spec)
    if weights != "initializer":
        only = grouped_conv_model(replace(SPEC, weights=weights))  # type: ignore[arg-type]  # the generator's names
        (maker,) = [node for node in only.graph.node if "weight" in node.output]
        (old,) = [tensor for tensor in model.graph.initializer if tensor.name == "weight"]
        model.graph.initializer.remove(old)
        names = set(maker.input)
        model.graph.initializer.extend(tensor for tensor in only.graph.initializer if tensor.name in names)
        model.graph.node.insert(0, maker)
    check(model, PASS, becomes="Conv/3 Neg Conv/3", safety=Safety.EXACT)
