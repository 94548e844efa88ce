"""split-multiplier: where the channel order goes, what declines it, and the way back with merge-multiplier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rewriter
from funnel import Sizes, check, declines
from programs import program
from rewriter import BadInput, Graph, Safety
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined

PASS, BACK = "split-multiplier", "merge-multiplier"
SIZES: list[Sizes] = [{"x": (1, 4, 6, 5)}, {"x": (3, 4, 6, 5)}]
X = "float[N,4,6,5]"
CONV = "t = Conv <group = 4> (x, w, b)"
SPLIT = "Conv/4 Conv/4 Conv/4 Concat"
W, B, V = (12, 1, 3, 3), (12,), (5, 12, 1, 1)
"""4 input channels, multiplier 3; and a dense convolution behind."""

RESTORED: list[tuple[str, dict[str, Any], str]] = [
    ("y = Conv <group = 4> (x, w, b)", {"w": W, "b": B}, f"{SPLIT} Gather"),
    ("y = Conv <group = 4> (x, w)", {"w": W}, f"{SPLIT} Gather"),
    ("y = Conv <group = 4, strides = [2, 1], pads = [1, 0, 1, 2], dilations = [2, 1]> (x, w)", {"w": W}, ""),
    ('y = Conv <group = 4, auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w, b)', {"w": W, "b": B}, ""),
    (f"{CONV} y = Relu (t)", {"w": W, "b": B}, f"{SPLIT} Gather Relu"),  # no convolution behind
    (f"{CONV} u = Conv (t, v) y = Add (t, s)", {"w": W, "b": B, "v": V, "s": (12, 1, 1)}, f"{SPLIT} Gather Conv/1 Add"),
    (f"{CONV} u = Relu (t) v = Softmax <axis = 1> (u) y = Conv (v, k)", {"w": W, "b": B, "k": V}, ""),  # mixes channels
    (f"{CONV} y = Conv <group = 2> (t, k)", {"w": W, "b": B, "k": (4, 6, 1, 1)}, f"{SPLIT} Gather Conv/2"),
    (f"{CONV} u = Add (t, x2) y = Conv (u, k)", {"w": W, "b": B, "k": V, "x2": (1, 12, 4, 3)}, ""),
]


@pytest.mark.parametrize(("body", "constants", "becomes"), RESTORED, ids=[case[0] for case in RESTORED])
def test_the_order_is_restored(body: str, constants: dict[str, Any], becomes: str) -> None:
    y = "y u" if "u = Conv" in body else "y"
    absorbs = "x2" in constants
    model = program(body, x=X, y=y, **constants)
    check(model, PASS, {"order": "shuffle"}, becomes=becomes or None, safety=Safety.EXACT, sizes=SIZES)
    passed = check(model, PASS, safety=Safety.EXACT, sizes=SIZES)
    assert ("Gather" in passed.text) != absorbs


ABSORBED: list[tuple[str, dict[str, Any], str]] = [
    ("y = Conv (t, v)", {}, "Conv/1"),
    ("y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (t, v, c)", {"v": (5, 12, 3, 3), "c": (5,)}, "Conv/1"),
    ("u = Relu (t) y = Conv (u, v)", {}, "Relu Conv/1"),
    ("u = Clip (t, low, high) y = Conv (u, v)", {"low": np.float32(-1), "high": np.float32(6)}, "Clip Conv/1"),
    (
        "u = BatchNormalization (t, s, m, m2, q) r = Relu (u) y = Conv (r, v)",
        {"s": B, "m": B, "m2": B, "q": np.linspace(1, 2, 12, dtype=np.float32)},
        "BatchNormalization Relu Conv/1",
    ),
    ("u = Mul (s, t) r = Add (u, m) y = Conv (r, v)", {"s": (12, 1, 1), "m": (1, 12, 1, 1)}, "Mul Add Conv/1"),
    ("u = Sub (t, s) r = Div (u, m) y = Conv (r, v)", {"s": (4, 3), "m": np.float32(3)}, "Sub Div Conv/1"),
    ("u = PRelu (t, s) y = Conv (u, v)", {"s": (12, 1, 1)}, "PRelu Conv/1"),
    ("u = Add (t, s) y = Conv (u, v)", {"s": (1, 12, 4, 3)}, "Add Conv/1"),
    ("u = MaxPool <kernel_shape = [2, 2]> (t) y = Conv (u, v)", {}, "MaxPool Conv/1"),
    ("u = GlobalAveragePool (t) y = Conv (u, v)", {}, "GlobalAveragePool Conv/1"),
    ("u = Conv <group = 12> (t, k, c) y = Conv (u, v)", {"k": (12, 1, 2, 2), "c": B}, "Conv/12 Conv/1"),
]


@pytest.mark.parametrize(("behind", "constants", "becomes"), ABSORBED, ids=[case[0] for case in ABSORBED])
def test_the_convolution_behind_takes_the_order_in(behind: str, constants: Mapping[str, Any], becomes: str) -> None:
    model = program(f"{CONV} {behind}", x=X, **{"w": W, "b": B, "v": V, **constants})
    bits = "BatchNorm" not in behind and "Div" not in behind and "Average" not in behind  # those round on integers
    passed = check(model, PASS, becomes=f"{SPLIT} {becomes}", safety=Safety.EXACT, sizes=SIZES, integers=bits)
    (made,) = passed.rewrites
    assert made.site == "y"
    assert made.summary.endswith("their order in the weights behind")
    again = check(model, PASS, {"order": "absorb"}, sizes=SIZES, integers=bits)
    assert again.after == passed.after
    back = check(passed.after, BACK, sizes=SIZES, integers=bits, safety=Safety.EXACT)
    assert_same(model, back.after)
    report = rewriter.rewrite(model, [PASS]).report
    assert report.verdict == "equivalent", report.reason


def assert_same(model: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The same operators and attributes in the same order, and the same constants to the last bit."""

    def kinds(proto: onnx.ModelProto) -> list[tuple[str, list[bytes]]]:
        nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
        return [(n.op_type, sorted(entry.SerializeToString() for entry in n.attribute)) for n in nodes]

    def values(proto: onnx.ModelProto) -> list[bytes]:
        tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        tensors |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant"}
        names = [name for node in proto.graph.node for name in node.input if name in tensors]
        return [numpy_helper.to_array(tensors[name]).tobytes() for name in names]

    assert kinds(after) == kinds(model)
    assert values(after) == values(model)


def test_the_order_goes_where_the_weights_are() -> None:
    """By hand: 2 channels, multiplier 2; the convolution behind tells its four inputs apart."""
    w = np.array([1, 2, 3, 4], np.float32).reshape(4, 1, 1)
    v = np.array([10, 20, 30, 40], np.float32).reshape(1, 4, 1)
    model = program("t = Conv <group = 2> (x, w) y = Conv (t, v)", x="float[2,2,3]", w=w, v=v)
    passed = check(model, PASS)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in passed.after.graph.initializer}
    first, second, joined, last = passed.after.graph.node
    assert [constants[node.input[1]].reshape(-1).tolist() for node in (first, second)] == [[1, 3], [2, 4]]
    assert joined.op_type == "Concat"
    assert constants[last.input[1]].reshape(-1).tolist() == [10, 30, 20, 40]


@pytest.mark.parametrize("order", ["shuffle", "auto"])
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ("float[N,4,9]", (8, 1, 3), {}),
        ("float[2,4,5,5,4]", (8, 1, 3, 1, 2), {}),
        ("float16[N,4,6,5]", (8, 1, 3, 3), {"dtype": np.float16}),
        ("float[N,4,6,5]", (8, 1, 3, 3), {"opset": 7}),
        ("float[N,4,6,5]", (8, 1, 3, 3), {"opset": 7, "ir": 3}),
        ("float[N,4,6,5]", (8, 1, 3, 3), {"opset": 9, "ir": 3}),
        ("float[N,4,6,5]", (8, 1, 3, 3), {"opset": 21}),
        ("float[N,4,H,W]", (8, 1, 3, 3), {}),
        ("float[4,4,6,5]", (64, 1, 1, 1), {}),
    ],
)
def test_there_and_back(order: str, x: str, w: tuple[int, ...], options: dict[str, Any]) -> None:
    behind = (3, w[0], *[1] * (len(w) - 2))
    model = program(
        "t = Conv <group = 4> (x, w, b) u = Relu (t) y = Conv (u, v)", x=x, w=w, b=w[:1], v=behind, **options
    )
    sizes: list[Sizes] = (
        [{}] if "N" not in x else [{"x": (n, 4, 9)} if len(w) == 3 else {"x": (n, 4, 6, 5)} for n in (1, 3)]
    )
    there = check(model, PASS, {"order": order}, safety=Safety.EXACT, sizes=sizes)
    assert ("Gather" in there.text) == (order == "shuffle")
    back = check(there.after, BACK, safety=Safety.EXACT, sizes=sizes)
    assert_same(model, back.after)
    assert back.after.graph.output == model.graph.output


DECLINED: list[tuple[str, dict[str, Any], str]] = [
    ("y = Conv (x, w)", {"w": (4, 4, 1, 1)}, "It is dense (group 1), not depthwise."),
    ("y = Conv <group = 2> (x, w)", {"w": (4, 2, 1, 1)}, "It is not depthwise: 2 channels per group."),
    ("y = Conv <group = 4> (x, w)", {"w": (4, 1, 1, 1)}, "Its depthwise multiplier is 1 already."),
    (
        "v = Neg (w) y = Conv <group = 4> (x, v)",
        {"w": (8, 1, 1, 1)},
        "Its weight 'v' is computed by Neg from constants",
    ),
]


@pytest.mark.parametrize(("body", "constants", "reason"), DECLINED, ids=[case[2] for case in DECLINED])
def test_declines(body: str, constants: dict[str, Any], reason: str) -> None:
    declines(program(body, x=X, **constants), PASS, reason)


NOT_ABSORBED: list[tuple[str, str, dict[str, Any], str]] = [
    ("y", "y = Relu (t)", {}, "The channel order cannot go into the convolution behind: 'y' is a graph output."),
    ("y t", "y = Conv (t, v)", {}, "'t' is a graph output."),
    ("y z", "y = Conv (t, v) z = Relu (t)", {}, "'t' has 2 readers."),
    ("y", "u = Mul (t, t) y = Conv (u, v)", {}, "through Mul at 'u': it reads 't' twice."),
    ("y", "u = Softmax <axis = 1> (t) y = Conv (u, v)", {}, "Softmax at 'u': it is no operator that is known"),
    ("y", "u = Conv <group = 3> (t, k) y = Relu (u)", {"k": (3, 4, 1, 1)}, "come to another of its 3 groups."),
    (
        "y",
        "u = GlobalAveragePool (x) p = Conv (u, k) q = Add (t, p) y = Conv (q, v)",
        {"k": (12, 4, 1, 1)},
        "Add at 'q'",
    ),
    ("y", "u = Reshape (t, r) y = Conv (u, v)", {"r": [0, 12, 4, 3]}, "Reshape at 'u'"),
    ("y", "u = Transpose <perm = [0, 1, 3, 2]> (t) y = Conv (u, v)", {}, "Transpose at 'u'"),
]


@pytest.mark.parametrize(("y", "behind", "constants", "reason"), NOT_ABSORBED, ids=[c[1] for c in NOT_ABSORBED])
def test_absorbing_declines(y: str, behind: str, constants: dict[str, Any], reason: str) -> None:
    model = program(f"{CONV} {behind}", x=X, y=y, **{"w": W, "b": B, "v": V, **constants})
    if "v" not in behind:
        del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("v")]
    declines(model, PASS, reason, {"order": "absorb"})


def test_a_tensor_read_in_a_subgraph_is_not_permuted() -> None:
    body = f"{CONV} u = Relu (t) y = Conv (u, v) z = If <then_branch = a () => (float[N,12,4,3] p) {{ p = Neg (u) }}, "
    body += "else_branch = b () => (float[N,12,4,3] q) { q = Abs (u) }> (flag)"
    model = program(body, x=X, y="y z", w=W, b=B, v=V, flag=np.array(True))
    declines(model, PASS, "'u' is read inside a subgraph.", {"order": "absorb"})
    assert "Gather" in check(model, PASS, sizes=SIZES).text


def test_an_unknown_order_is_an_error() -> None:
    model = program("y = Conv <group = 4> (x, w)", x=X, w=W)
    for name in (PASS, BACK):
        with pytest.raises(BadInput, match="it must be one of auto, absorb, shuffle"):
            rewriter.rewrite(model, [name], settings={name: {"order": "first"}})


def test_what_is_worth_measuring() -> None:
    graph = Graph(Model.load(program("y = Conv <group = 4> (x, w)", x=X, w=W)))
    flat = Graph(Model.load(program("y = Conv <group = 4> (x, w)", x="float[1,4,9]", w=(8, 1, 3))))
    made = pass_named(PASS)
    assert made.candidates(graph, 0) == ({},)
    with pytest.raises(Declined, match="only 2-D float32"):
        made.candidates(flat, 0)
    assert made.candidates(replace(flat, provider="cuda"), 0) == ({},)
    there = Graph(Model.load(check(program("y = Conv <group = 4> (x, w)", x=X, w=W), PASS, sizes=SIZES).after))
    with pytest.raises(Declined, match="by name"):
        pass_named(BACK).candidates(there, 0)
    assert pass_named(BACK).candidates(replace(there, provider="cuda"), 0) == ({},)
