"""sum-of-stack: every spelling of a stack and its sums, attention that depends on a sum, and what declines it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import rewriter
from funnel import Passed, Sizes, check, declines, run
from programs import program
from rewriter import Safety
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named

PASS = "sum-of-stack"
SIZES: list[Sizes] = [{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]
W = (8, 8, 1, 1)
CONVS = "c = Conv (x, w) d = Conv (x, v)"
STACK = f"{CONVS} c1 = Unsqueeze (c, one) d1 = Unsqueeze (d, one) t = Concat <axis = 1> (c1, d1)"
DATA: dict[str, Any] = {"w": W, "v": W, "one": [1]}
THREE = "c = Conv (x, w) d = Conv (x, v) r = Relu (d) "

SUMS: list[tuple[str, dict[str, Any], str]] = [
    (f"{STACK} y = ReduceSum <keepdims = 0> (t, one)", {}, "Conv/1 Conv/1 Add"),
    (f"{STACK} y = ReduceSum (t, one)", {}, "Conv/1 Conv/1 Add Unsqueeze"),
    (f"{STACK} y = ReduceSum <keepdims = 0> (t, minus)", {"minus": [-4]}, "Conv/1 Conv/1 Add"),
    (f"{STACK} s = ReduceSum <keepdims = 0> (t, one) y = Conv (s, k)", {"k": W}, "Conv/1 Conv/1 Add Conv/1"),
    (  # the same tensor twice, and a relu on the way
        THREE + "a = Unsqueeze (r, z) b = Unsqueeze (c, z) t = Concat <axis = 0> (a, b, a) "
        "y = ReduceSum <keepdims = 0> (t, z)",
        {"z": [0]},
        "Conv/1 Conv/1 Relu Add Add",
    ),
    (  # along the last axis
        "c = Conv (x, w) a = Unsqueeze (c, z) b = Unsqueeze (x, z) t = Concat <axis = -1> (a, b) "
        "y = ReduceSum <keepdims = 0> (t, z)",
        {"z": [4], "v": None, "one": None},
        "Conv/1 Add",
    ),
    (
        f"{CONVS} j = Concat <axis = 1> (c, d) t = Reshape (j, to) y = ReduceSum <keepdims = 0> (t, one)",
        {"to": [0, 2, 8, 5, 5]},
        "Conv/1 Conv/1 Add",
    ),
    (
        f"{CONVS} j = Concat <axis = 1> (c, d) t = Reshape (j, to) y = ReduceSum <keepdims = 1> (t, one)",
        {"to": [-1, 2, 8, 5, 5]},
        "Conv/1 Conv/1 Add Unsqueeze",
    ),
]


def model_of(body: str, constants: dict[str, Any], **options: Any) -> onnx.ModelProto:
    given = {name: value for name, value in {**DATA, **constants}.items() if value is not None}
    return program(body, **options, **given)


@pytest.mark.parametrize(("body", "constants", "becomes"), SUMS, ids=[case[0] for case in SUMS])
def test_sums_become_additions(body: str, constants: dict[str, Any], becomes: str) -> None:
    model = model_of(body, constants)
    check(model, PASS, becomes=becomes, safety=Safety.EXACT, sizes=SIZES)
    verdict = rewriter.rewrite(model, [PASS]).report.verdict
    # Of a sum that has one tensor twice the audit may know only that runs agree.
    assert verdict == "equivalent" or ("(a, b, a)" in body and verdict == "approximate")


ATTENTION = (
    f"{STACK} s = ReduceSum <keepdims = 0> (t, one) g = GlobalAveragePool (s) f = Conv (g, k) r = Reshape (f, to) "
    "a = Softmax <axis = 1> (r) m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)"
)
# As in split attention: the channels of one tensor are a stack.
RADIX = "c = Conv <group = 2> (x, u) r = Relu (c) t = Reshape (r, to)"
SPLIT_ATTENTION = (
    f"{RADIX} s = ReduceSum <keepdims = 0> (t, one) g = GlobalAveragePool (s) f = Conv (g, k) e = Reshape (f, as) "
    "a = Softmax <axis = 1> (e) m = Mul (t, a) z = ReduceSum <keepdims = 0> (m, one) y = Conv (z, w)"
)
RESHAPED: list[tuple[str, dict[str, Any], str]] = [
    (f"{RADIX} y = ReduceSum <keepdims = 0> (t, one)", {}, "Conv/2 Relu Split Add"),
    (f"{RADIX} s = ReduceSum (t, one) y = Relu (s)", {}, "Conv/2 Relu Split Add Unsqueeze Relu"),
    (f"{RADIX} y = ReduceSum <keepdims = 0> (t, one)", {"to": [0, 4, 4, 5, 5]}, "Conv/2 Relu Split Add Add Add"),
    (f"{RADIX} y = ReduceSum <keepdims = 0> (t, one)", {"to": [-1, 2, 8, 5, 5]}, "Conv/2 Relu Split Add"),
    (  # the whole is read elsewhere, too
        f"{RADIX} s = ReduceSum <keepdims = 0> (t, one) q = ReduceMax (r) y = Mul (s, q)",
        {},
        "Conv/2 Relu Split Add ReduceMax Mul",
    ),
    (
        SPLIT_ATTENTION,
        {"k": (16, 8, 1, 1), "as": [0, 2, 8, 1, 1], "w": W},
        "Conv/2 Relu Split Add GlobalAveragePool Conv/1 Reshape Softmax Split Squeeze Squeeze Mul Mul Add Conv/1",
    ),
    (  # a size of the parts that is asked of the whole
        "c = Conv (x, w) n = Shape <start = 0, end = 1> (c) h = Concat <axis = 0> (n, rest) t = Reshape (c, h) "
        "y = ReduceSum <keepdims = 0> (t, one)",
        {"w": W, "rest": [2, 4, 5, 5], "u": None, "to": None},
        "Conv/1 Split Add",
    ),
]


@pytest.mark.parametrize(("body", "constants", "becomes"), RESHAPED, ids=[case[2] for case in RESHAPED])
def test_channels_that_a_reshape_makes_a_stack(body: str, constants: dict[str, Any], becomes: str) -> None:
    given = {"u": (16, 4, 1, 1), "to": [0, 2, 8, 5, 5], "one": [1]} | constants
    model = program(body, **{name: value for name, value in given.items() if value is not None})
    check(model, PASS, becomes=becomes, safety=Safety.EXACT, sizes=SIZES, integers="Softmax" not in body)
    assert rewriter.rewrite(model, [PASS]).report.verdict == "equivalent"


def test_channels_by_hand() -> None:
    """1·x + 10·2·x per element: the first half of the channels has the first factor."""
    u, a = np.array([1, 2], np.float32).reshape(2, 1, 1, 1), np.array([1, 10], np.float32).reshape(2, 1, 1, 1)
    body = "c = Conv (x, u) t = Reshape (c, to) m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)"
    model = program(body, x="float[1,1,2,3]", u=u, a=a, to=[0, 2, 1, 2, 3], one=[1])
    (y,) = run(check(model, PASS).after, {"x": np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)}, "all").values()
    assert y.reshape(-1).tolist() == [21 * value for value in range(6)]


ATTENDED: list[tuple[str, dict[str, Any], str]] = [
    (
        ATTENTION,
        {"k": (16, 8, 1, 1), "to": [0, 2, 8, 1, 1]},
        "Conv/1 Conv/1 Add GlobalAveragePool Conv/1 Reshape Softmax Split Squeeze Squeeze Mul Mul Add",
    ),
    (  # the factor first, and a node on the way that depends on the sum and has nothing to do with the factor
        ATTENTION.replace("Mul (t, a)", "Mul (a, t)").replace(
            "r = Reshape", "q = Relu (s) o = Conv (q, w) r = Reshape"
        ),
        {"k": (16, 8, 1, 1), "to": [0, 2, 8, 1, 1]},
        "Conv/1 Conv/1 Add GlobalAveragePool Conv/1 Relu Conv/1 Reshape Softmax Split Squeeze Squeeze Mul Mul Add",
    ),
]


@pytest.mark.parametrize(("body", "constants", "becomes"), ATTENDED, ids=["(t, a)", "(a, t)"])
def test_attention_over_a_stack(body: str, constants: dict[str, Any], becomes: str) -> None:
    y = "y o" if " o = " in body else "y"
    model = model_of(body, constants, y=y)
    passed = check(model, PASS, becomes=becomes, safety=Safety.EXACT, sizes=SIZES, integers=False)
    assert [made.summary for made in passed.rewrites] == ["stack of 2 + 2 ReduceSum -> Mul + Add"]
    assert_nodes_between_are_the_same(model, passed)


def assert_nodes_between_are_the_same(model: onnx.ModelProto, passed: Passed) -> None:
    kinds = ("GlobalAveragePool", "Conv", "Reshape", "Softmax", "Relu")

    def between(proto: onnx.ModelProto) -> list[bytes]:
        return [node.SerializeToString(deterministic=True) for node in proto.graph.node if node.op_type in kinds]

    assert between(passed.after) == between(model)


FACTORS: list[tuple[str, dict[str, Any], str]] = [
    ("m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)", {"a": (2, 8, 1, 1)}, "Split Squeeze Squeeze Mul Mul Add"),
    ("m = Mul (t, a) y = ReduceSum (m, one)", {"a": (1, 2, 1, 5, 5)}, "Split Squeeze Squeeze Mul Mul Add Unsqueeze"),
    ("m = Mul (a, t) y = ReduceSum <keepdims = 0> (m, one)", {"a": (1, 1, 8, 1, 1)}, "Squeeze Mul Mul Add"),
    ("m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)", {"a": (8, 1, 1)}, "Mul Mul Add"),
    ("m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)", {"a": np.float32(3)}, "Mul Mul Add"),
    (  # two sums of one product, and both depend on nothing but it
        "m = Mul (t, a) p = ReduceSum <keepdims = 0> (m, one) q = ReduceSum (m, one) y = Add (p, q)",
        {"a": (1, 2, 8, 1, 1)},
        "Split Squeeze Squeeze Mul Mul Add Split Squeeze Squeeze Mul Mul Add Unsqueeze Add",
    ),
    (  # a factor computed at run time
        "g = Conv (x, k) r = Reshape (g, to) m = Mul (t, r) y = ReduceSum <keepdims = 0> (m, one)",
        {"k": (16, 8, 5, 5), "to": [0, 2, 8, 1, 1]},
        "Conv/1 Reshape Split Squeeze Squeeze Mul Mul Add",
    ),
]


@pytest.mark.parametrize(("behind", "constants", "becomes"), FACTORS, ids=[str(case[2]) for case in FACTORS])
def test_factors_are_taken_apart_where_they_lie_along_the_stack(
    behind: str, constants: dict[str, Any], becomes: str
) -> None:
    model = model_of(f"{STACK} {behind}", constants)
    check(model, PASS, becomes=f"Conv/1 Conv/1 {becomes}", safety=Safety.EXACT, sizes=SIZES)


def test_by_hand() -> None:
    """1·10 + 2·100 per element: the factors are not swapped."""
    body = "c = Conv (x, w) d = Conv (x, v) c1 = Unsqueeze (c, one) d1 = Unsqueeze (d, one) "
    body += "t = Concat <axis = 1> (c1, d1) m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)"
    w, v = (np.full((1, 1, 1, 1), value, np.float32) for value in (1, 2))
    a = np.array([10, 100], np.float32).reshape(2, 1, 1, 1)
    model = program(body, x="float[1,1,2,3]", w=w, v=v, a=a, one=[1])
    passed = check(model, PASS)
    (y,) = run(passed.after, {"x": np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)}, "all").values()
    assert y.reshape(-1).tolist() == [210 * value for value in range(6)]


@pytest.mark.parametrize(
    ("options", "x"),
    [
        ({"opset": 11}, "float[N,8,5,5]"),
        ({"opset": 7, "ir": 3}, "float[N,8,5,5]"),
        ({"opset": 9, "ir": 3}, "float[2,8,5,5]"),
        ({"opset": 13}, "float[N,8,H,W]"),
        ({"opset": 21}, "float[N,8,H,W]"),
        ({"opset": 17, "dtype": np.float16}, "float16[N,8,5,5]"),
    ],
)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_operator_sets_and_types(options: dict[str, Any], x: str, keepdims: int) -> None:
    if options["opset"] < 13:
        body = f"{CONVS} c1 = Unsqueeze <axes = [1]> (c) d1 = Unsqueeze <axes = [1]> (d) t = Concat <axis = 1> (c1, d1)"
        body += f" m = Mul (t, a) y = ReduceSum <axes = [1], keepdims = {keepdims}> (m)"
        constants: dict[str, Any] = {"w": W, "v": W}
    else:
        body = f"{STACK} m = Mul (t, a) y = ReduceSum <keepdims = {keepdims}> (m, one)"
        constants = DATA
    model = program(body, x=x, a=(1, 2, 8, 1, 1), **options, **constants)
    sizes = SIZES if "N" in x else [{}]
    passed = check(model, PASS, safety=Safety.EXACT, sizes=sizes)
    assert "ReduceSum" not in passed.text


def test_volumes_and_signals() -> None:
    for x, w, size in (("float[N,4,9]", (4, 4, 1), (2, 4, 9)), ("float[N,4,3,4,5]", (4, 4, 1, 1, 1), (2, 4, 3, 4, 5))):
        model = program(f"{STACK} y = ReduceSum <keepdims = 0> (t, one)", x=x, w=w, v=w, one=[1])
        check(model, PASS, becomes="Conv/1 Conv/1 Add", sizes=[{"x": size}])


DECLINED: list[tuple[str, dict[str, Any], str]] = [
    (
        f"{STACK} s = ReduceSum <keepdims = 0> (t, one) n = Squeeze (c1, one) y = Sub (s, n)",
        {},
        "'c1' is read elsewhere, too.",
    ),
    (f"{CONVS} y = ReduceSum <keepdims = 0> (c, one)", {}, "No sum over a stack is near it."),
    (f"{STACK} y = ReduceSum <keepdims = 0> (t, two)", {"two": [2]}, "'y' sums [2], not the stack's axis 1."),
    (f"{STACK} y = ReduceSum <keepdims = 0> (t)", {}, "'y' sums None, not the stack's axis 1."),
    (f"{STACK} y = ReduceSum <keepdims = 0> (t, both)", {"both": [1, 2]}, "'y' sums [1, 2], not the stack's axis 1."),
    (
        f"{STACK} s = ReduceSum <keepdims = 0> (t, one) n = Relu (t) q = ReduceMax (n) y = Add (s, q)",
        {},
        "by Relu at 'n'",
    ),
    (f"{STACK} m = Mul (t, t) y = ReduceSum <keepdims = 0> (m, one)", {}, "The stack is multiplied by itself."),
    (
        f"{STACK} m = Mul (t, a) q = Relu (m) y = ReduceSum (q, one)",
        {"a": (2, 8, 1, 1)},
        "No sum over a stack is near it.",
    ),
    (
        f"{STACK} m = Mul (t, a) n = Neg (m) o = ReduceMax (n) s = ReduceSum (m, one) y = Add (s, o)",
        {"a": (2, 8, 1, 1)},
        "The stack is also read by Neg at 'n'.",
    ),
    (
        f"{CONVS} c1 = Unsqueeze (c, one) t = Concat <axis = 1> (c1) y = ReduceSum (t, one)",
        {},
        "It stacks one tensor only.",
    ),
    (
        f"{CONVS} c1 = Unsqueeze (c, one) d1 = Unsqueeze (d, one) t = Concat <axis = 2> (c1, d1) "
        "y = ReduceSum (t, two)",
        {"two": [2]},
        "'c1' is not stacked along axis 2.",
    ),
    (
        "c = Conv (x, w) c1 = Unsqueeze (c, one) q = Neg (c1) t = Concat <axis = 1> (q, c1) y = ReduceSum (t, one)",
        {},
        "'q' in the Concat it sums comes from Neg, not Unsqueeze.",
    ),
    (
        f"{CONVS} j = Concat <axis = 1> (c, d) t = Reshape (j, to) y = ReduceSum <keepdims = 0> (t, two)",
        {"to": [0, 8, 2, 5, 5], "two": [2]},
        "Reshape 't' does not split the joined axis into its parts.",
    ),
    (
        f"{CONVS} j = Concat <axis = 1> (c, d) t = Reshape (j, to) s = ReduceSum (t, one) "
        "q = ReduceMax (j) y = Add (s, q)",
        {"to": [0, 2, 8, 5, 5]},
        "'j' is read elsewhere, too.",
    ),
    (  # parts that lie apart
        "c = Conv (x, w) t = Reshape (c, to) y = ReduceSum <keepdims = 0> (t, two)",
        {"to": [0, 4, 2, 5, 5], "two": [2]},
        "'y' sums [2], not the stack's axis 1.",
    ),
    (
        "c = Conv (x, w) t = Reshape (c, to) y = ReduceSum <keepdims = 0> (t, one)",
        {"to": [0, 2, 5, 4, 5]},
        "Reshape 't' does not split one axis of 'c' into parts.",
    ),
    (
        "c = Conv (x, w) t = Reshape (c, to) y = ReduceSum <keepdims = 0> (t, one)",
        {"x": "float[N,8,H,5]", "to": [0, 8, -1, 3, 5], "one": [2]},
        "depends on the input.",
    ),
    (
        f"{STACK} m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)",
        {"a": (1, 1, 2, 8, 5, 5)},
        "The factor 'a' has more axes than the stack.",
    ),
]


@pytest.mark.parametrize(("body", "constants", "reason"), DECLINED, ids=[case[2] for case in DECLINED])
def test_declines(body: str, constants: dict[str, Any], reason: str) -> None:
    declines(model_of(body, {**_unread(body), **constants}), PASS, reason)


def _unread(body: str) -> dict[str, None]:
    """The common constants that nothing reads, to be left out."""
    return {name: None for name in DATA if not re.search(rf"[(,] ?{name}[,)]", body)}


def test_without_a_convolution_nothing_is_looked_at() -> None:
    body = "c = Relu (x) d = Neg (x) c1 = Unsqueeze (c, one) d1 = Unsqueeze (d, one) t = Concat <axis = 1> (c1, d1) "
    model = Model.load(program(f"{body} s = ReduceSum <keepdims = 0> (t, one) y = Softmax (s)", one=[1]))
    assert sweep(model, Step(pass_named(PASS)), {}) == (model, [], [])
    far = program(f"{body} s = ReduceSum <keepdims = 0> (t, one) r = Softmax (s) y = Conv (r, w)", w=W, one=[1])
    declines(far, PASS, "No sum over a stack is near it.")


def test_each_stack_is_found_from_one_convolution() -> None:
    """The one that reads the sum; the ones that make the parts point to it."""
    model = model_of(f"{STACK} s = ReduceSum <keepdims = 0> (t, one) y = Conv (s, k)", {"k": W})
    reasons = [entry.reason for entry in check(model, PASS, sizes=SIZES).attempts]
    assert reasons == ["The sum is found from 'y'."] * 2


def test_the_stack_or_the_product_as_an_output_stays() -> None:
    declines(model_of(f"{STACK} y = ReduceSum (t, one)", {}, y="y t"), PASS, "'t' is a graph output, so the stack must")
    body = f"{STACK} m = Mul (t, a) y = ReduceSum (m, one)"
    declines(model_of(body, {"a": (2, 8, 1, 1)}, y="y m"), PASS, "'m' is a graph output, so the stack must stay.")


def test_a_factor_that_may_be_broadcast_is_left_alone() -> None:
    """Along the stack the input may be 1 or 2 long."""
    model = model_of(f"{STACK} m = Mul (t, a) y = ReduceSum <keepdims = 0> (m, one)", {})
    model.graph.input.append(helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", "K", 8, 1, 1]))
    declines(model, PASS, "It is not known how 'a' lies along the stack for every input.")


def test_a_sum_read_in_a_subgraph_cannot_move_behind_it() -> None:
    body = ATTENTION + " z = If <then_branch = p () => (float[N,8,5,5] i) { i = Neg (s) }, "
    body += "else_branch = q () => (float[N,8,5,5] j) { j = Abs (s) }> (flag)"
    constants = {"k": (16, 8, 1, 1), "to": [0, 2, 8, 1, 1], "flag": np.array(True)}
    declines(model_of(body, constants, y="y z"), PASS, "'s' is read inside a subgraph, which cannot move.")


def test_the_branches_of_one_size_only() -> None:
    """Stacked tensors are of one shape; a Concat along an axis of parts of different sizes is no stack."""
    body = "c = Conv (x, w) d = Conv (x, v) j = Concat <axis = 1> (c, d) t = Reshape (j, to) "
    body += "y = ReduceSum <keepdims = 0> (t, one)"
    model = program(body, w=(6, 8, 1, 1), v=(10, 8, 1, 1), to=[0, 2, 8, 5, 5], one=[1])
    declines(model, PASS, "'c' is of another shape.")


def test_what_the_audit_says_of_products() -> None:
    """Products of two run-time tensors: runs agree, and nothing refutes them."""
    model = model_of(ATTENTION, {"k": (16, 8, 1, 1), "to": [0, 2, 8, 1, 1]})
    report = rewriter.rewrite(model, [PASS]).report
    assert report.verdict == "equivalent", report.reason
