"""fuse-separable: which convolutions in a row become one, what their border allows, and TensorFlow's own programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from funnel import LEVELS, check, declines, run
from programs import program
from rewriter import BadInput, Safety
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined
from test_seeds import assert_tensorflows, model, one_input

PASS = "fuse-separable"
STATIC, FREE = "float[2,8,9,9]", "float[N,8,9,9]"
SIZES = [{"x": (2, 8, 9, 9)}, {"x": (3, 8, 9, 9)}]
EXACT = {"border": "exact"}


def attributes(proto: onnx.ModelProto) -> dict[str, Any]:
    (node,) = [node for node in proto.graph.node if node.op_type == "Conv"]
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def convs(one: str, two: str, bias: str = "") -> str:
    """Two convolutions with these attributes; `bias` names those that have one."""
    first, second = (f", {name}" if name in bias else "" for name in "bc")
    return f"t = Conv <{one}> (x, v{first}) y = Conv <{two}> (t, w{second})".replace(" <>", "")


DW, PW = (8, 1, 3, 3), (6, 8, 1, 1)


@pytest.mark.parametrize("bias", ["", "b", "c", "bc"])
@pytest.mark.parametrize(
    ("one", "v", "two", "w", "becomes", "window"),
    [
        # Depthwise and pointwise, in either order; stride, dilation and padding of the first are no obstacle.
        ("group=8", DW, "", PW, "Conv/1", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("group=8, pads=[1,1,1,1]", DW, "", PW, "Conv/1", ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
        ("group=8, strides=[2,1], dilations=[1,2], pads=[0,1,2,1]", DW, "strides=[1,2]", PW, "Conv/1",
         ((3, 3), (2, 2), (1, 2), (0, 1, 2, 1))),
        ("", (6, 8, 1, 1), "group=6", (6, 1, 3, 3), "Conv/1", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        # Wide ones.
        ("pads=[1,0,1,0]", (4, 8, 3, 1), "", (5, 4, 1, 3), "Conv/1", ((3, 3), (1, 1), (1, 1), (1, 0, 1, 0))),
        ("", (4, 8, 1, 3), "", (5, 4, 3, 1), "Conv/1", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("", (4, 8, 3, 3), "", (5, 4, 3, 3), "Conv/1", ((5, 5), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("dilations=[2,2]", (4, 8, 2, 2), "dilations=[2,2]", (5, 4, 2, 2), "Conv/1",
         ((3, 3), (1, 1), (2, 2), (0, 0, 0, 0))),
        ("strides=[2,2], pads=[1,1,1,1]", (4, 8, 3, 3), "strides=[2,2], dilations=[1,2]", (5, 4, 2, 2), "Conv/1",
         ((5, 7), (4, 4), (1, 1), (1, 1, 1, 1))),
        # Groups.
        ("group=4", (8, 2, 3, 3), "group=2", (6, 4, 1, 1), "Conv/2", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("group=4", (12, 2, 1, 1), "group=6", (6, 2, 3, 3), "Conv/2", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("group=8", (16, 1, 3, 3), "group=8", (8, 2, 1, 1), "Conv/8", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("group=8", (8, 1, 3, 1), "group=8", (8, 1, 1, 3), "Conv/8", ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
        ("auto_pad=\"SAME_UPPER\", group=8", DW, "auto_pad=\"VALID\"", PW, "Conv/1",
         ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
        ("auto_pad=\"SAME_LOWER\", strides=[2,2], group=8", (8, 1, 4, 4), "", PW, "Conv/1",
         ((4, 4), (2, 2), (1, 1), (2, 2, 1, 1))),
    ],
)  # fmt: skip
def test_two_become_one(
    one: str, v: tuple[int, ...], two: str, w: tuple[int, ...], becomes: str, window: tuple[Any, ...], bias: str
) -> None:
    given: dict[str, Any] = {"b": v[:1]} if "b" in bias else {}
    given |= {"c": w[:1]} if "c" in bias else {}
    proto = program(convs(one, two, bias), x="float[N,8,9,9]", v=v, w=w, **given)
    passed = check(proto, PASS, becomes=becomes, safety=Safety.ROUNDING, sizes=SIZES)
    found = attributes(passed.after)
    ones = [1, 1]
    kernel, strides, dilations, pads = (
        tuple(found.get(name, default))
        for name, default in (("kernel_shape", ()), ("strides", ones), ("dilations", ones), ("pads", [0] * 4))
    )
    assert (kernel, strides, dilations, pads) == window
    assert "auto_pad" not in found
    assert len(passed.after.graph.node[0].input) == (3 if bias else 2)


@pytest.mark.parametrize(
    ("two", "w"),
    [
        ("pads=[0,1,0,1]", (5, 4, 1, 3)),
        ("pads=[0,2,0,0], strides=[1,2]", (5, 4, 1, 3)),
        ("pads=[0,1,0,2]", (5, 4, 2, 2)),
    ],
)  # fmt: skip
def test_a_second_one_may_be_padded_where_the_first_is_1_wide(two: str, w: tuple[int, ...]) -> None:
    body = convs("pads=[1,0,1,0], strides=[1,2]", two, "c")
    check(program(body, v=(4, 8, 3, 1), w=w, c=(5,)), PASS, becomes="Conv/1", sizes=[{"x": (2, 8, 5, 5)}])


def test_a_bias_of_zeros_is_none() -> None:
    proto = program(convs("", "pads=[1,1,1,1]", "b"), x=FREE, v=(4, 8, 1, 1), w=(5, 4, 3, 3), b=np.zeros(4, np.float32))
    passed = check(proto, PASS, becomes="Conv/1", sizes=SIZES)
    assert len(passed.after.graph.node[0].input) == 2


@pytest.mark.parametrize("options", [
    {"x": "float[N,8,S]", "v": (8, 1, 3), "w": (6, 8, 1), "sizes": [{"x": (1, 8, 9)}, {"x": (2, 8, 12)}]},
    {"x": "float[N,8,D,H,W]", "v": (8, 1, 3, 1, 3), "w": (6, 8, 1, 2, 1), "sizes": [{"x": (2, 8, 5, 6, 7)}]},
    {"x": "float16[N,8,9,9]", "dtype": np.float16},
    {"x": "double[N,8,9,9]", "dtype": np.float64},
    {"opset": 7}, {"opset": 8, "ir": 3}, {"opset": 21},
], ids=str)  # fmt: skip
def test_ranks_types_and_opsets(options: dict[str, Any]) -> None:
    given = {"v": DW, "w": PW, "b": (8,), "c": (6,), "sizes": SIZES, "x": FREE, **options}
    where = given.pop("sizes")
    check(program(convs("group=8", "", "bc"), **given), PASS, becomes="Conv/1", sizes=where)


def test_a_long_row_becomes_one_and_a_row_with_a_border_as_few_as_can_be() -> None:
    whole = "a = Conv <group=8> (x, v) b = Conv (a, w) c = Conv <group=6> (b, u) y = Conv (c, q)"
    weights: dict[str, Any] = {"v": DW, "w": PW, "u": (6, 1, 3, 3), "q": (4, 6, 1, 1)}
    check(program(whole, x=FREE, **weights), PASS, becomes="Conv/1", sizes=SIZES)
    # The third is padded: it takes in the second, which is 1 wide, and not the first.
    apart = whole.replace("<group=6>", "<group=6, pads=[1,1,1,1]>")
    passed = check(program(apart, x=FREE, **weights), PASS, becomes="Conv/8 Conv/1", sizes=SIZES)
    assert [made.site for made in passed.rewrites] == ["y"]
    assert "It goes into the run of convolutions that ends at 'y'." in [entry.reason for entry in passed.attempts]
    # The fourth is wide and padded: two runs of two.
    two = whole.replace("y = Conv (c, q)", "y = Conv <pads=[0,1,0,1]> (c, q)")
    passed = check(program(two, x=FREE, **{**weights, "q": (4, 6, 1, 2)}), PASS, becomes="Conv/1 Conv/1", sizes=SIZES)
    assert [made.site for made in passed.rewrites] == ["c"]


def test_the_weights_are_the_sums_of_products() -> None:
    passed = check(program(convs("group=8", "", "b"), x=FREE, v=DW, w=PW, b=(8,)), PASS, sizes=SIZES)
    v, w, b = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in passed.before.graph.initializer)
    expected = w[:, :, 0, 0, None, None] * v[None, :, 0]
    assert np.array_equal(passed.initializer("fused/weight"), expected.astype(np.float32))
    np.testing.assert_allclose(passed.initializer("fused/bias"), w[:, :, 0, 0] @ b, rtol=1e-6)


def test_shared_weights_stay() -> None:
    body = "t = Conv <group=8> (x, v) s = Conv (t, w) z = Conv <group=8> (x, v) y = Neg (s)"
    passed = check(program(body, y="y z", x=FREE, v=DW, w=PW), PASS, becomes="Conv/1 Conv/8 Neg", sizes=SIZES)
    assert {tensor.name for tensor in passed.after.graph.initializer} >= {"v"}


# --- the border ---


@pytest.mark.parametrize(
    ("x", "two", "w", "shape"),
    [
        ("float[N,8,9,9]", "pads=[1,1,1,1]", (5, 4, 3, 3), [1, 5, 9, 9]),
        ("float[N,8,9,9]", "pads=[1,1,1,1], strides=[2,2]", (5, 4, 3, 3), [1, 5, 5, 5]),
        ("float[N,8,H,9]", "pads=[0,2,0,1]", (5, 4, 3, 3), [1, 5, 1, 10]),
    ],
)
@pytest.mark.parametrize("bias", ["b", "bc"])
def test_with_border_exact_what_the_bias_makes_there_is_added(
    x: str, two: str, w: tuple[int, ...], shape: list[int], bias: str
) -> None:
    given: dict[str, Any] = {"c": (5,)} if "c" in bias else {}
    proto = program(convs("", two, bias), x=x, v=(4, 8, 1, 1), w=w, b=(4,), **given)
    declines(proto, PASS, "the border would differ: set fuse-separable.border=exact")
    passed = check(proto, PASS, EXACT, becomes="Conv/1 Add", sizes=SIZES)
    assert list(passed.initializer("fused/border").shape) == shape


def test_the_constant_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the funnel refuses: the case is one in which the border really differs."""
    monkeypatch.setattr("passes.fuse_separable.bias_through", lambda bias, *_: np.zeros((1, 5, 9, 9)))
    proto = program(convs("", "pads=[1,1,1,1]", "b"), x=STATIC, v=(4, 8, 1, 1), w=(5, 4, 3, 3), b=(4,))
    with pytest.raises(AssertionError, match="is rounding"):
        check(proto, PASS, EXACT)


def test_the_refused_border_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding of the second behind a wide first, let through, does not pass the funnel."""
    proto = program(convs("", "pads=[1,1,1,1]"), x=STATIC, v=(4, 8, 3, 3), w=(5, 4, 3, 3))
    declines(proto, PASS, "the second is padded ([1, 1, 1, 1]) where")
    monkeypatch.setattr("passes.fuse_separable.why_not_linear", lambda *_: "")
    monkeypatch.setattr("rewriter.conv.compose.why_not_linear", lambda *_: "")
    with pytest.raises(AssertionError, match="is rounding"):
        check(proto, PASS)


# --- declines ---


@pytest.mark.parametrize(
    ("body", "constants", "phrase"),
    [
        ("t = Relu (x) y = Conv (t, w)", {"w": PW}, "No convolution comes right before it."),
        ("s = Conv <group=8> (x, v) t = Relu (s) y = Conv (t, w)", {"v": DW, "w": PW}, "No convolution comes right"),
        ("t = Conv <group=8> (x, v) y = Conv (t, w) z = Neg (t)", {"v": DW, "w": PW, "y": "y z"},
         "are not one: 't' has 2 readers"),
        ("t = Conv <group=8> (x, v) y = Conv (t, w)", {"v": DW, "w": PW, "y": "y t"}, "'t' is a graph output"),
        ("t = Conv <group=8> (x, v) n = Neg (v0) y = Conv (t, n)", {"v": DW, "v0": PW}, "Its weight 'n' is computed"),
        ("n = Neg (v0) t = Conv <group=8> (x, n) y = Conv (t, w)", {"v0": DW, "w": PW},
         "of the convolution before, its weight 'n' is computed"),
        (convs("", "pads=[1,0,0,0]"), {"v": (4, 8, 2, 1), "w": (5, 4, 1, 1)},
         "the second is padded ([1, 0, 0, 0]) where the first is wider than 1 (2x1)"),
        (convs("", "pads=[1,1,1,1]", "b"), {"v": (4, 8, 1, 1), "w": (5, 4, 3, 3), "b": (4,)},
         "the first has a bias and the second is padded"),
        (convs("strides=[2,2], auto_pad=\"SAME_UPPER\"", ""),
         {"v": (4, 8, 3, 3), "w": (5, 4, 1, 1), "x": "float[N,8,H,W]"},
         "depend on the input's size, which is not fixed"),
    ],
)  # fmt: skip
def test_declines(body: str, constants: dict[str, Any], phrase: str) -> None:
    declines(program(body, **constants), PASS, phrase)


def test_a_constant_of_sizes_that_are_not_fixed_is_declined() -> None:
    given: dict[str, Any] = {"v": (4, 8, 1, 1), "w": (5, 4, 3, 3), "b": (4,)}
    proto = program(convs("", "pads=[0,1,0,1]", "b"), x="float[N,8,9,W]", **given)
    declines(proto, PASS, "padded on axes whose sizes are not fixed", EXACT)


def test_sums_that_float16_cannot_hold_are_declined() -> None:
    large: dict[str, Any] = {"v": np.full(DW, 3e2, np.float16), "w": np.full(PW, 3e2, np.float16)}
    declines(program(convs("group=8", ""), x="float16[1,8,9,9]", **large), PASS, "too large for float16")
    small: dict[str, Any] = {"v": np.full(DW, 3e-5, np.float16), "w": np.full(PW, 3e-3, np.float16)}
    declines(program(convs("group=8", ""), x="float16[1,8,9,9]", **small), PASS, "too small for float16")


def test_a_border_there_is_not_is_a_usage_error() -> None:
    with pytest.raises(BadInput, match="border is 'loose': it must be one of refuse, exact"):
        pass_named(PASS).check({"border": "loose"})


def test_only_what_costs_little_more_is_measured() -> None:
    rule = pass_named(PASS)
    cheap = program(convs("", ""), v=(4, 8, 3, 1), w=(5, 4, 1, 3))  # 156 → 360
    dear = program(convs("group=8", ""), x=FREE, v=DW, w=(32, 8, 1, 1))
    assert rule.candidates(Graph(Model.load(program(convs("", ""), v=(16, 8, 3, 1), w=(16, 16, 1, 3)))), 1) == ({},)
    for proto in (cheap, dear):
        with pytest.raises(Declined, match=r"as one it would take \d+ multiplications per output position instead of"):
            rule.candidates(Graph(Model.load(proto)), 1)
    passed = check(dear, PASS, sizes=SIZES)
    (made,) = passed.rewrites
    assert made.summary == (
        "Conv 3x3 group 8 and 1x1 group 1 -> 3x3 group 1: 328 -> 2304 multiplications per output position"
    )


# --- TensorFlow's programs ---


@pytest.mark.parametrize("kind", ["ones", "random", "multiplier2"])
def test_tensorflows_separable_convolutions_fuse_into_dense_ones(kind: str) -> None:
    name = f"seed3_separable_{kind}"
    batch = [{"x": (1, 14, 14, 128)}] if kind == "multiplier2" else one_input(name)
    key = model(name).graph.input[0].name
    where = [{key: next(iter(sizes.values()))} for sizes in batch]
    passed = check(model(name), PASS, becomes="Transpose Conv/1 Transpose", sizes=where)
    assert_tensorflows(passed.after, name)


def test_the_separable_ones_fuse_into_the_regular_ones() -> None:
    passed = check(model("seed3_separable_ones"), PASS)
    assert (passed.initializer("fused/weight") == 1).all()
    inputs = {"x": np.arange(20, dtype=np.float32).reshape(1, 1, 10, 2)}
    for level in LEVELS:
        (one,), (other,) = (run(proto, inputs, level).values() for proto in (passed.after, model("seed3_regular_ones")))
        assert np.array_equal(one, other)
