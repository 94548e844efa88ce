"""Changes of layout that undo each other around convolutions go; what others need, or what is not proven, stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewriter
from funnel import check, declines
from layout_models import TO_FIRST, TO_LAST, layout_models
from programs import program
from rewriter.layout_nodes import constant_before
from rewriter.layouts import AxisLayout, Size
from rewriter.rule import Safety

PASS = "cancel-layout-pairs"
W = (8, 8, 3, 3)
V = (4, 8, 1, 1)
SIZES = [{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]
FREE = [{"x": (1, 8, 7, 6)}, {"x": (3, 8, 6, 9)}]
C = "c = Conv (x, w)"
OVER = f"{C} t = {TO_LAST} (c)"
SERIES = {"x": "float[N,8,9]", "w": (8, 8, 3), "sizes": [{"x": (1, 8, 9)}, {"x": (2, 8, 9)}]}
VIDEO = {"x": "float[N,8,3,4,5]", "w": (8, 8, 1, 1, 1), "sizes": [{"x": (2, 8, 3, 4, 5)}]}
HALF = {"x": "float16[N,8,5,5]", "dtype": np.float16}
OPEN = {"x": "float[N,8,H,W]", "sizes": FREE}

RIGHT: list[tuple[str, dict[str, Any], str]] = [
    # Directly behind each other.
    (f"{OVER} u = {TO_FIRST} (t) y = Relu (u)", {}, "Conv/1 Relu"),
    (f"{OVER} y = {TO_FIRST} (t)", {}, "Conv/1"),
    (f"{OVER} i = Identity (t) u = {TO_FIRST} (i) y = Relu (u)", {}, "Conv/1 Relu"),
    (f"{OVER} u = {TO_LAST} (t) y = Relu (u)", {}, "Conv/1 Transpose Relu"),
    (f"{C} t = Transpose (c) y = Transpose (t)", SERIES, "Conv/1"),
    (f"{C} y = Transpose <perm = [0, 1, 2, 3]> (c)", {}, "Conv/1"),
    (f"t = {TO_LAST} (x) u = {TO_FIRST} (t) y = Conv (u, w)", {}, "Conv/1"),
    (f"t = {TO_LAST} (x) u = {TO_FIRST} (t) c = Conv (u, w) d = Conv (u, w) y = Add (c, d)", {}, ""),
    (f"{C} f = Reshape (c, k) y = Relu (f)", {"k": [0, 8, 3, 3]}, "Conv/1 Relu"),
    (f"{C} f = Reshape (c, k) y = Relu (f)", {"k": [-1, 8, 3, 3], "opset": 14}, "Conv/1 Relu"),
    (f"{C} f = Reshape (c, k) y = Relu (f)", OPEN | {"k": [0, 8, 0, -1]}, "Conv/1 Relu"),
    (f"{C} f = Reshape (c, k) g = Reshape (f, l) y = Relu (g)", {"k": [0, -1], "l": [-1, 8, 3, 3]}, "Conv/1 Relu"),
    (f"{C} f = Reshape (c, k) g = Reshape (f, l) y = Relu (g)", {"k": [-1, 3], "l": [-1, 8, 3, 3]}, "Conv/1 Relu"),
    (f"{C} f = Flatten (c) s = Shape (c) y = Reshape (f, s)", OPEN, "Conv/1"),
    ("s = Shape (x) f = Flatten <axis = -1> (x) g = Reshape (f, s) y = Conv (g, w)", OPEN, "Conv/1"),
    (
        f"{C} s = Shape (c) n = Slice (s, a, b) z = Gather (s, o) h = Unsqueeze (z, a) q = Concat <axis = 0> (n, h, m) "
        "f = Flatten (c) y = Reshape (f, q)",
        OPEN | {"a": [0], "b": [2], "o": np.int64(2), "m": [-1]},
        "Conv/1",
    ),
    (
        f"{C} f = Flatten <axis = 2> (c) g = Reshape (f, k) y = Reshape (g, l)",
        {"k": [0, 3, 3], "l": [-1, 8, 3, 3]},
        "Conv/1",
    ),
    (f"{C} f = Unsqueeze (c, k) y = Squeeze (f, k)", {"k": [2]}, "Conv/1"),
    (f"{C} f = Unsqueeze (c, k) y = Squeeze (f, l)", {"k": [-1], "l": [4], "opset": 13}, "Conv/1"),
    (f"{C} f = Unsqueeze <axes = [1, 3]> (c) y = Squeeze <axes = [1, 3]> (f)", {"opset": 7, "ir": 3}, "Conv/1"),
    (
        f"{C} f = Unsqueeze <axes = [2]> (c) y = Reshape (f, k)",
        {"opset": 9, "ir": 3, "k": [0, 8, 3, 3], "bad_twin": True},
        "Conv/1",
    ),
    ("g = GlobalAveragePool (x) s = Squeeze (g, k) f = Unsqueeze (s, k) y = Conv (f, v)", {"k": [2, 3], "v": V}, ""),
    (
        f"{C} f = Reshape (c, k) t = Transpose <perm = [0, 2, 1]> (f) u = Transpose <perm = [0, 2, 1]> (t) "
        "y = Reshape (u, l)",
        {"k": [0, 8, 9], "l": [0, 8, 3, 3]},
        "Conv/1",
    ),
    ("y1 = ConvTranspose (x, w) t = Transpose (y1) y = Transpose (t)", {}, "ConvTranspose/1"),
    # The batch is 1, so that either axis is as good.
    (
        f"{C} f = Unsqueeze (c, k) y = Squeeze (f, l)",
        {"x": "float[1,8,5,5]", "k": [0], "l": [1], "sizes": [{}]},
        "Conv/1",
    ),
    # With nodes between.
    (f"{OVER} r = Relu (t) u = {TO_FIRST} (r) y = Conv (u, v)", {"v": V}, "Conv/1 Relu Conv/1"),
    (f"{OVER} r = Relu (t) u = {TO_FIRST} (r) y = Conv (u, v)", {"v": V} | HALF, "Conv/1 Relu Conv/1"),
    (f"{OVER} a = Add (b, t) r = Relu (a) y = {TO_FIRST} (r)", {"b": (8,)}, "Conv/1 Add Relu"),
    (f"{OVER} a = Mul (t, b) y = {TO_FIRST} (a)", {"b": (3, 1, 8)}, "Conv/1 Mul"),
    (f"{OVER} a = Sub (t, b) y = {TO_FIRST} (a)", {"b": np.float32(2)}, "Conv/1 Sub"),
    (f"{OVER} a = Sub (t, b) y = {TO_FIRST} (a)", {"b": (8,), "opset": 7, "ir": 3}, "Conv/1 Sub"),
    (f"{OVER} p = PRelu (t, b) y = {TO_FIRST} (p)", {"b": (8,)}, "Conv/1 PRelu"),
    (f"{OVER} p = PRelu (t, b) y = {TO_FIRST} (p)", {"b": (1, 1, 8), "opset": 8}, "Conv/1 PRelu"),
    (f"{OVER} p = Clip (t, l, h) y = {TO_FIRST} (p)", {"l": np.float32(-1), "h": np.float32(6)}, "Conv/1 Clip"),
    (f"{OVER} m = Mul (t, t) y = {TO_FIRST} (m)", {}, "Conv/1 Mul"),
    (
        f"{OVER} g = GlobalAveragePool (c) s = {TO_LAST} (g) m = Mul (t, s) y = {TO_FIRST} (m)",
        {},
        "Conv/1 GlobalAveragePool Mul",
    ),
    (
        f"{OVER} d = Conv (x, v) s = {TO_LAST} (d) q = Concat <axis = -1> (t, s) y = {TO_FIRST} (q)",
        {"v": (3, 8, 3, 3)},
        "Conv/1 Conv/1 Concat",
    ),
    (
        f"{C} t = Transpose <perm = [0, 2, 1]> (c) a = Add (t, b) y = Transpose <perm = [0, 2, 1]> (a)",
        SERIES | {"b": (8,)},
        "Conv/1 Add",
    ),
    (
        f"{C} t = Transpose <perm = [0, 2, 3, 4, 1]> (c) a = Add (t, b) y = Transpose <perm = [0, 4, 1, 2, 3]> (a)",
        VIDEO | {"b": (8,)},
        "Conv/1 Add",
    ),
    (f"{C} f = Unsqueeze (c, k) a = Add (f, b) y = Squeeze (a, k)", {"k": [2], "b": (8, 1, 1, 3)}, "Conv/1 Add"),
    (f"{C} f = Reshape (c, k) r = Relu (f) y = Reshape (r, l)", {"k": [0, 8, 9], "l": [0, 8, 3, 3]}, "Conv/1 Relu"),
    (
        f"{C} d = Conv (x, w) f = Reshape (c, k) g = Reshape (d, k) a = Add (f, g) y = Reshape (a, l)",
        {"k": [0, 8, 9], "l": [0, 8, 3, 3]},
        "Conv/1 Conv/1 Add",
    ),
    (
        f"{C} f = Unsqueeze (c, k) a = Abs (f) t = Transpose (a) r = Relu (t) u = Transpose (r) n = Neg (u) "
        "y = Squeeze (n, k)",
        {"k": [2]},
        "Conv/1 Abs Relu Neg",
    ),
    # Constants of equal sizes, which are others once they are moved; one of them for two changes.
    (f"{OVER} a = Mul (t, b) y = {TO_FIRST} (a)", {"b": (3, 3, 3), "w": (3, 8, 3, 3)}, "Conv/1 Mul"),
    (
        f"{OVER} a = Mul (t, b) u = Transpose <perm = [0, 2, 3, 1]> (a) e = Mul (u, b) "
        "y = Transpose <perm = [0, 2, 3, 1]> (e)",
        {"b": (3, 3, 3), "w": (3, 8, 3, 3)},
        "Conv/1 Mul Mul",
    ),
    # Others need something between.
    (f"{OVER} u = {TO_FIRST} (t) y = Relu (u)", {"y": "t y"}, "Conv/1 Transpose Relu"),
    (f"{OVER} u = {TO_FIRST} (t) z = Softmax (t) y = Relu (u)", {"y": "z y"}, "Conv/1 Transpose Softmax Relu"),
    (f"{OVER} u = {TO_FIRST} (t) y = Relu (u)", {"y": "c y"}, "Conv/1 Relu"),
    (f"{OVER} u = {TO_FIRST} (t) z = Relu (u) y = Neg (u)", {"y": "z y c"}, "Conv/1 Identity Relu Neg"),
    (f"{OVER} y = {TO_FIRST} (t)", {"y": "y c"}, "Conv/1 Identity"),
    (f"{OVER} u = {TO_FIRST} (t) y = Relu (u)", {"y": "u y c"}, "Conv/1 Identity Relu"),
    (
        f"{OVER} r = Relu (t) u = {TO_FIRST} (r) z = Conv (u, v) y = Softmax (r)",
        {"v": V, "y": "z y"},
        "Conv/1 Relu Transpose Conv/1 Softmax",
    ),
    (f"{OVER} r = Relu (t) u = {TO_FIRST} (r) v1 = {TO_FIRST} (r) y = Add (u, v1)", {}, "Conv/1 Relu Identity Add"),
]


@pytest.mark.parametrize(("body", "options", "becomes"), RIGHT, ids=[f"{n} {case[0]}" for n, case in enumerate(RIGHT)])
def test_pairs_go(body: str, options: dict[str, Any], becomes: str) -> None:
    options = {"opset": 17, "w": W, **options}
    sizes = options.pop("sizes", SIZES)
    integers = not options.pop("bad_twin", False)
    used = {key: value for key, value in options.items() if key in ("x", "y", "opset", "ir", "dtype") or key in body}
    model = program(body, **used)
    passed = check(model, PASS, becomes=becomes or None, safety=Safety.EXACT, sizes=sizes, integers=integers)
    assert all(" -> " in made.summary for made in passed.rewrites)


def test_a_constant_per_channel_gets_axes_behind() -> None:
    model = program(f"{OVER} a = Add (t, b) y = {TO_FIRST} (a)", opset=17, w=W, b=(8,))
    assert check(model, PASS, sizes=SIZES).initializer("constant").shape == (8, 1, 1)


def in_a_subgraph(name: str) -> onnx.ModelProto:
    """c -> t -> u -> y, and an If whose branches read the tensor of that name."""
    branch = f"b () => (float[N, A, B, D] o) {{ o = Identity ({name}) }}"
    return program(
        f"{OVER} u = {TO_FIRST} (t) y = Relu (u) z = If <then_branch = {branch}, else_branch = {branch}> (k)",
        opset=17,
        w=W,
        y="y z",
        k=np.array(True),
    )


@pytest.mark.parametrize(("name", "becomes"), [("c", "Conv/1 Relu If"), ("t", "Conv/1 Transpose Relu If"),
                                               ("u", "Conv/1 Relu If")])  # fmt: skip
def test_what_a_subgraph_reads_stays(name: str, becomes: str) -> None:
    check(in_a_subgraph(name), PASS, becomes=becomes, sizes=SIZES)


NO = "No change of layout near it is undone by another one."
DECLINES: list[tuple[str, dict[str, Any], str]] = [
    (f"{OVER} y = Transpose <perm = [0, 2, 1, 3]> (t)", {"y": "t y"}, "As many changes of layout would stay"),
    (f"{OVER} y = Relu (t)", {}, NO),
    (f"{OVER} b = BatchNormalization (t, n, n, n, p) y = {TO_FIRST} (b)",
     {"x": "float[1,10,5,3]", "w": (3, 10, 3, 1), "n": (3,), "p": np.ones(3, np.float32)}, NO),
    (f"{OVER} s = Softmax (t) y = {TO_FIRST} (s)", {}, NO),
    (f"{OVER} m = MatMul (t, m) y = {TO_FIRST} (m)", {"m": (8, 8)}, NO),
    (f"{OVER} a = Add (t, x) y = {TO_FIRST} (a)", {"x": "float[N,3,3,8]", "w": (8, 3, 1, 1)}, NO),
    (f"{OVER} r = Relu (t) u = {TO_FIRST} (r) y = Softmax (r)", {"y": "t y u"}, "others need 't', 'r' as"),
    (f"s = Softmax (x) t = {TO_LAST} (s) u = {TO_FIRST} (t) p = Softmax (u) y = Conv (p, w)", {},
     "The layout is changed and changed back at 'u', but no convolution is near."),
    (f"{OVER} u = {TO_FIRST} (t) y = Relu (c)", {}, "Nothing reads what it is changed to."),
    (f"{C} i = Identity (c) y = Relu (i)", {}, NO),
    (f"{C} f = Reshape (c, k) r = Relu (f) y = Reshape (r, l)", {"y": "r y", "k": [0, 8, 9], "l": [0, 8, 3, 3]},
     "'r' is needed as it lies, and is no Transpose of its source."),
    (f"{OVER} m = ReduceMean <axes = [2, 3], keepdims = 0> (c) s = Unsqueeze (m, k) e = Mul (t, s) y = {TO_FIRST} (e)",
     {"k": [1, 2]}, NO),
    (f"{C} d = Conv (x, v) f = Reshape (c, k) g = Reshape (d, k) a = Add (f, g) y = Reshape (a, l)",
     {"x": "float[N,8,9,5]", "w": (8, 8, 7, 3), "v": (8, 8, 1, 5), "k": [0, 8, 9], "l": [0, 8, 3, 3]}, NO),
    # A shape that is right for one size of the input only, or for the size of another input.
    (f"{C} f = Reshape (c, k) g = Reshape (f, l) y = Relu (g)", OPEN | {"k": [0, 8, 49], "l": [0, 8, 7, 7]}, NO),
    (f"{C} f = Reshape (c, k) y = Relu (f)", OPEN | {"k": [0, 8, 3, 3]}, NO),
    (f"{C} f = Reshape (c, k) y = Relu (f)", {"k": [1, 8, 3, 3]}, NO),
    (f"{C} f = Reshape <allowzero = 1> (c, k) y = Relu (f)", {"k": [0, 8, 3, 3]}, NO),
    (f"{C} f = Flatten (c) s = Shape (x) g = Reshape (f, s) y = Relu (g)", OPEN, NO),
    (f"{C} f = Squeeze (c) g = Unsqueeze (f, k) y = Relu (g)", {"w": (8, 8, 5, 5), "k": [2, 3]}, NO),
    # What moves data within is no change of layout.
    (f"{C} f = Reshape (c, k) t = Transpose <perm = [0, 2, 1, 3, 4]> (f) y = Reshape (t, l)",
     {"k": [0, 2, 4, 3, 3], "l": [0, 8, 3, 3]}, NO),
    (f"{C} f = Unsqueeze (c, k) a = Add (f, b) y = Squeeze (a, k)",
     {"k": [2], "b": np.ones((1, 1, 1, 1, 1, 1), np.float32)}, NO),
    (f"{C} f = Reshape (c, k) a = Add (f, b) y = Reshape (a, l)", {"k": [0, 8, 9], "l": [0, 8, 3, 3], "b": (8, 1)}, NO),
]  # fmt: skip


@pytest.mark.parametrize(("body", "options", "reason"), DECLINES, ids=[f"{n} {c[0]}" for n, c in enumerate(DECLINES)])
def test_declines(body: str, options: dict[str, Any], reason: str) -> None:
    options = {"opset": 17, "w": W, **options}
    used = {key: value for key, value in options.items() if key != "sizes"}
    declines(program(body, **used), PASS, reason)


def test_sizes_of_two_inputs_are_not_taken_for_one() -> None:
    """Whatever the sizes that a proof would choose: the second input may be of others."""
    text = (
        '<ir_version: 8, opset_import: ["": 17]> two (float[N,8,H,W] x, float[M,8,P,Q] z) => (float[A,B,D,E] y) '
        "{ c = Relu (x) f = Flatten (c) s = Shape (z) g = Reshape (f, s) y = Conv (g, w) }"
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(W, np.float32), "w"))
    declines(model, PASS, NO)


def test_another_domain_s_transpose_is_none() -> None:
    model = program(f"{OVER} u = {TO_FIRST} (t) y = Relu (u)", opset=17, w=W)
    model.graph.node[1].domain = "custom"
    model.opset_import.add(domain="custom", version=1)
    declines(model, PASS, NO)


@pytest.mark.parametrize("name", layout_models())
def test_the_models_of_the_laws_are_proven(name: str) -> None:
    model, sizes = layout_models()[name]
    report = rewriter.rewrite(model, [PASS]).report
    assert report.verdict == "equivalent", report.reason
    text = check(model, PASS, sizes=sizes).text
    assert "Transpose " not in text.replace("ConvTranspose", "")
    assert "Reshape" not in text


def test_a_tensorflow_block_needs_none_of_its_changes_once_it_is_grouped() -> None:
    """`depthwise-sum-to-grouped` leaves a Transpose on either side of the activation; this takes both."""
    body = (
        f"c = Conv <group = 8> (x, w) t = {TO_LAST} (c) f = Reshape (t, k) s = ReduceSum <keepdims = 0> (f, o) "
        f"g = Reshape (s, l) r = Relu (g) u = {TO_FIRST} (r) y = Conv (u, v)"
    )
    model = program(body, opset=17, w=(16, 1, 3, 3), k=[-1, 3, 3, 4, 2, 2], o=[4], l=[-1, 3, 3, 8], v=(4, 8, 1, 1))
    report = rewriter.rewrite(model, ["depthwise-sum-to-grouped", PASS])
    assert report.report.verdict == "equivalent", report.report.reason
    assert [node.op_type for node in report.model.graph.node] == ["Conv", "Relu", "Conv"]


def test_a_constant_along_a_new_axis_cannot_be_before_it() -> None:
    assert constant_before(np.ones((2, 1)), (0, None), 1) is not None
    assert constant_before(np.ones((2, 3)), (0, None), 1) is None


@st.composite
def _chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, list[int]]]]:
    """Sizes of a tensor, and changes of its layout that fit."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    array, steps = np.zeros(shape), []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["transpose", "reshape", "unsqueeze", "back"]))
        if kind == "transpose":
            given = draw(st.permutations(range(array.ndim)))
            array = array.transpose(given)
        elif kind == "unsqueeze":
            given = [draw(st.integers(0, array.ndim))]
            array = np.expand_dims(array, given[0])
        else:
            given = list(shape) if kind == "back" else _factors(draw, array.size)
            kind, array = "reshape", array.reshape(given)
        steps.append((kind, [int(number) for number in given]))
    return shape, steps


def _factors(draw: st.DrawFn, size: int) -> list[int]:
    found = []
    while size > 1:
        found.append(draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= found[-1]
    return found or [1]


@given(_chains())
def test_a_layout_says_what_numpy_does(chain: tuple[tuple[int, ...], list[tuple[str, list[int]]]]) -> None:
    shape, steps = chain
    source = np.arange(int(np.prod(shape))).reshape(shape)
    layout, array = AxisLayout.start(shape), source
    for kind, numbers in steps:
        if kind == "transpose":
            layout, array = layout.transposed(numbers), array.transpose(numbers)
        elif kind == "unsqueeze":
            layout, array = layout.unsqueezed(numbers), np.expand_dims(array, numbers[0])
        else:
            after = layout.reshaped([Size.of(number) for number in numbers])
            if after is None:  # not followed
                return
            layout, array = after, array.reshape(numbers)
        assert layout.sizes == tuple(Size(size) for size in array.shape)
        assert layout.is_identity == (array.shape == shape and np.array_equal(array, source))
        perm = layout.perm
        if perm is not None and layout.is_moved_by(perm):
            kept = [place for place in perm if place is not None]
            rest = [place for place in range(source.ndim) if place not in kept]
            ordered = source.transpose(*kept, *rest).reshape([shape[place] for place in kept])
            wide = ordered.reshape([1 if place is None else shape[place] for place in perm])
            assert np.array_equal(wide, array)
