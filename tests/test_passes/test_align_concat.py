"""align-concat: every way to keep the fast layout where channels are concatenated, split and sliced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from funnel import Passed, Sizes, check
from programs import program
from rewriter import Safety
from rewriter.census import census, nchwc_block
from rewriter.engine import rewrite
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Step
from rewriter.registry import pass_named
from rewriter.session import Runtime

PASS = "align-concat"
X = "float[N,8,7,9]"
SIZES: list[Sizes] = [{"x": (2, 8, 7, 9)}, {"x": (1, 8, 7, 9)}]
BLOCK = {"block": 4}
TWO = "a = Conv (x, w1) b = Conv (x, w2, c)"
W2: dict[str, Any] = {"w1": (6, 8, 1, 1), "w2": (3, 8, 1, 1), "c": (3,)}
JOINED = f"{TWO} z = Concat <axis = 1> (a, b)"
LAST: dict[str, Any] = {"v": (5, 9, 1, 1)}
GHOST = (
    "a = Conv (x, w1) r = Relu (a) d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, k, e) s = Relu (d) "
    "z = Concat <axis = 1> (r, s)"
)
GHOSTS: dict[str, Any] = {"w1": (6, 8, 1, 1), "k": (6, 1, 3, 3), "e": (6,)}
ALL: dict[str, Any] = {"zero": [0], "one": [1], "many": [12]}
HALVES = "p, q = Split <axis = 1> (r, s)"


def made(body: str, way: str, becomes: str | None, safety: Safety, **constants: Any) -> Passed:
    model = program(body, x=constants.pop("x", X), y=constants.pop("y", "y"), **constants)
    exact = "Sigmoid" not in body and "BatchNormalization" not in body
    return check(model, PASS, {"way": way, **BLOCK}, becomes=becomes, safety=safety, sizes=SIZES, integers=exact)


@pytest.mark.parametrize(
    ("body", "constants", "widths"),
    [
        (f"{JOINED} y = Conv (z, v)", {**W2, **LAST}, [8, 4, 12]),
        # Through what keeps channels apart: before, behind, and across.
        (
            f"{TWO} r = Sigmoid (a) t = Mul (r, a) z = Concat <axis = -3> (t, b) "
            "n = BatchNormalization (z, g, g, g, h) y = Conv (n, v)",
            {**W2, **LAST, "g": (9,), "h": np.arange(1, 10, dtype=np.float32)},
            [8, 4, 12],
        ),
        (f"{GHOST} y = Conv (z, v)", {**GHOSTS, "v": (5, 12, 1, 1)}, [8, 1, 16]),
        # A Slice that takes everything, and a residual addition behind it: both Concats, together.
        (
            f"{GHOST} l = Slice (z, zero, many, one) u = Conv (l, v) i = Concat <axis = 1> (u, u) "
            "f = Slice (i, zero, many, one) g = Add (f, l) y = Conv (g, w)",
            {**GHOSTS, **ALL, "v": (6, 12, 1, 1), "w": (5, 12, 1, 1)},
            [8, 1, 8, 16],
        ),
        # Half of what is concatenated is read, and the halves are no longer in the middle.
        (
            f"{JOINED} p, q = Split <axis = 1> (z, s) t = Conv (p, v) y = Conv (t, u)",
            {**W2, "s": [6, 3], "v": (5, 6, 1, 1), "u": (4, 5, 1, 1)},
            [8, 4, 8],
        ),
        # What goes into the Concat is picked from a wider tensor: more of that is read.
        (
            "p, q = Split <axis = 1> (x, s) d = Conv <group = 6> (p, k) z = Concat <axis = 1> (d, q) y = Conv (z, v)",
            {"s": [6, 2], "k": (6, 1, 1, 1), "v": (5, 8, 1, 1)},
            [8, 12],
        ),
    ],
)
def test_inputs_of_a_concat_are_filled_up(body: str, constants: dict[str, Any], widths: list[int]) -> None:
    passed = made(body, "pad", None, Safety.FINITE, **constants)
    nodes = passed.after.graph.node
    shapes = {tensor.name: tuple(tensor.dims) for tensor in passed.after.graph.initializer}
    rows = [shapes[node.input[1]][0] for node in nodes if node.op_type == "Conv"]
    columns = [shapes[node.input[1]][1] for node in nodes if node.op_type == "Conv"]
    for width in widths:
        assert width in rows + columns, (rows, columns)
    assert not [node for node in nodes if node.op_type == "Gather"]


def test_what_the_new_channels_carry_is_never_used() -> None:
    passed = made(f"{JOINED} y = Conv (z, v)", "pad", "Conv/1 Conv/1 Concat Conv/1", Safety.FINITE, **W2, **LAST)
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in passed.after.graph.initializer}
    first, second, last = (node for node in passed.after.graph.node if node.op_type == "Conv")
    assert not after[first.input[1]][6:].any()
    assert not after[second.input[1]][3:].any()
    assert not after[last.input[1]][:, [6, 7, 11]].any()
    assert after[last.input[1]][:, :6].all()


def test_both_concats_of_a_stage_are_padded_in_one_rewrite() -> None:
    body = f"{GHOST} u = Conv (z, v) i = Concat <axis = 1> (u, a) g = Add (i, z) y = Conv (g, w)"
    passed = made(body, "pad", None, Safety.FINITE, **GHOSTS, v=(6, 12, 1, 1), w=(5, 12, 1, 1))
    (only,) = passed.rewrites
    assert only.summary == "2 Concats of 6 channels -> 8"


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        # Rows of the convolution, through activations.
        (
            f"t = Conv (x, w, c) u = Sigmoid (t) r = Mul (t, u) {HALVES} d = Conv <group = 5> (p, k) "
            "y = Concat <axis = 1> (d, q)",
            {"w": (8, 8, 1, 1), "c": (8,), "s": [5, 3], "k": (5, 1, 1, 1)},
            "Conv Conv Sigmoid Sigmoid Mul Mul Conv Concat",
        ),
        # A depthwise convolution, a scale and a norm with a number per channel.
        (
            "t = Conv (x, w) f = Conv <group = 8> (t, h) m = Mul (f, c) r = BatchNormalization (m, g, g, g, b) "
            f"{HALVES} d = Conv (p, k) e = Conv (q, l) y = Add (d, e)",
            {
                "w": (8, 8, 1, 1),
                "h": (8, 1, 1, 1),
                "c": (8, 1, 1),
                "g": (8,),
                "b": np.arange(1, 9, dtype=np.float32),
                "s": [5, 3],
                "k": (4, 5, 1, 1),
                "l": (4, 3, 1, 1),
            },
            "Conv Conv Conv Conv Mul Mul BatchNormalization BatchNormalization Conv Conv Add",
        ),
        # A Concat is cut where it was put together: nothing is computed in pieces but the Relu.
        (
            f"{TWO} z = Concat <axis = 1> (a, b) r = Relu (z) {HALVES} y = Conv (p, v) z2 = Conv (q, u)",
            {**W2, "s": [6, 3], "v": (4, 6, 1, 1), "u": (4, 3, 1, 1), "y": "y z2"},
            "Conv Conv Relu Relu Conv Conv",
        ),
        # And elsewhere: a part of one of its inputs, and the rest put together anew.
        (
            f"{TWO} r = Concat <axis = 1> (a, b) {HALVES} y = Conv (p, v) z2 = Conv (q, u)",
            {**W2, "s": [4, 5], "v": (4, 4, 1, 1), "u": (4, 5, 1, 1), "y": "y z2"},
            "Conv Conv Conv Concat Conv Conv",
        ),
        # Everything is taken: the Slice goes, and who read it reads what is there.
        (
            f"{JOINED} l = Slice (z, zero, many, one) r = Relu (l) g = Add (r, z) y = Conv (g, v)",
            {**W2, **ALL, **LAST},
            "Conv Conv Concat Relu Add Conv",
        ),
        # Both inputs of the Concat, though it stays for another reader.
        (
            f"{TWO} r = Concat <axis = 1> (a, b) {HALVES} d = Conv (p, v) e = Conv (q, u) f = Conv (r, o) "
            "y = Sum (d, e, f)",
            {**W2, "s": [6, 3], "v": (4, 6, 1, 1), "u": (4, 3, 1, 1), "o": (4, 9, 1, 1)},
            "Conv Conv Concat Conv Conv Conv Sum",
        ),
        # A Concat that stays for another reader, and is made once more for a part of its channels.
        (
            f"{TWO} t = Concat <axis = 1> (a, b) r = Concat <axis = 1> (t, x) {HALVES} d = Conv (p, v) e = Conv (q, u) "
            "f = Conv (r, o) y = Sum (d, e, f)",
            {**W2, "s": [9, 8], "v": (4, 9, 1, 1), "u": (4, 8, 1, 1), "o": (4, 17, 1, 1)},
            "Conv Conv Concat Concat Conv Conv Conv Sum",
        ),
        (
            f"{TWO} r = Concat <axis = 1> (a, b, x) {HALVES} d = Conv (p, v) e = Conv (q, u) f = Conv (r, o) "
            "y = Sum (d, e, f)",
            {**W2, "s": [9, 8], "v": (4, 9, 1, 1), "u": (4, 8, 1, 1), "o": (4, 17, 1, 1)},
            "Conv Conv Concat Concat Conv Conv Conv Sum",
        ),
        # A Split of an output of another one.
        (
            "r = Conv (x, w) p, q = Split <axis = 1> (r, s) i, j = Split <axis = 1> (p, t) "
            "d = Conv (i, v) e = Conv (j, v) f = Conv (q, u) y = Sum (d, e, f)",
            {"w": (9, 8, 1, 1), "s": [4, 5], "t": [2, 2], "v": (4, 2, 1, 1), "u": (4, 5, 1, 1)},
            None,
        ),
    ],
)
def test_pieces_are_computed_one_by_one(body: str, constants: dict[str, Any], becomes: str | None) -> None:
    passed = made(body, "pieces", None, Safety.EXACT, **constants)
    kinds = [node.op_type for node in passed.after.graph.node if node.op_type != "Constant"]
    assert not {"Split", "Slice"} & set(kinds)
    if becomes is not None:
        assert sorted(kinds) == sorted(becomes.split())


@pytest.mark.parametrize(
    ("body", "constants", "convs"),
    [
        (f"r = Relu (x) {HALVES} d = Conv (p, v) e = Conv (q, u) y = Add (d, e)", {"s": [5, 3]}, 2),
        (
            "r = Relu (x) p = Slice (r, three, eight, one) d = Conv (p, v, b) e = Conv (p, v) y = Add (d, e)",
            {"three": [3], "eight": [8], "one": [1], "b": (4,)},
            2,
        ),
        ("p = Gather <axis = 1> (x, i) y = Conv (p, v)", {"i": [7, 0, 3, 4, 2]}, 1),
    ],
)
def test_a_convolution_reads_everything(body: str, constants: dict[str, Any], convs: int) -> None:
    passed = made(body, "columns", None, Safety.FINITE, v=(4, 5, 1, 1), u=(4, 3, 1, 1), **constants)
    kinds = [node.op_type for node in passed.after.graph.node]
    assert not {"Split", "Slice", "Gather"} & set(kinds)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in passed.after.graph.initializer}
    wide = [shapes[node.input[1]] for node in passed.after.graph.node if node.op_type == "Conv"]
    assert wide == [(4, 8, 1, 1)] * convs


TWICE = "d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, k, e)"


@pytest.mark.parametrize(
    ("body", "becomes"),
    [
        (f"a = Conv (x, w) r = Relu (a) {TWICE} s = Relu (d) y = Concat <axis = 1> (r, s)", "Conv/1 Relu Conv/12 Relu"),
        (f"a = Conv (x, w, e) r = Abs (a) {TWICE} y = Concat <axis = -3> (d, r)", "Conv/1 Abs Conv/12"),
        (f"r = Conv (x, w) {TWICE} z = Concat <axis = 1> (r, d) y = Sigmoid (z)", "Conv/1 Conv/12 Sigmoid"),
        (
            'r = Conv (x, w) d = Conv <group = 6, auto_pad = "SAME_UPPER"> (r, k) y = Concat <axis = 1> (r, d)',
            "Conv/1 Conv/12",
        ),
    ],
)
def test_channels_are_made_twice(body: str, becomes: str) -> None:
    weights = {"w": (6, 8, 1, 1), "k": (6, 1, 3, 3), "e": (6,)}
    used = {name: value for name, value in weights.items() if name in "wk" or " e)" in body}
    made(body, "repeat", becomes, Safety.FINITE, **used)


def test_columns_are_where_their_channels_are() -> None:
    passed = made(
        "p = Gather <axis = 1> (x, i) y = Conv (p, v)", "columns", "Conv/1", Safety.FINITE, i=[7, 0], v=(4, 2, 1, 1)
    )
    (conv,) = passed.after.graph.node
    (wide,) = [numpy_helper.to_array(t) for t in passed.after.graph.initializer if t.name == conv.input[1]]
    old = {t.name: numpy_helper.to_array(t) for t in passed.before.graph.initializer}["v"]
    assert np.array_equal(wide[:, [7, 0]], old)
    assert not wide[:, 1:7].any()


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
@pytest.mark.parametrize("way", ["pad", "pieces", "columns"])
def test_every_operator_set(way: str, opset: int) -> None:
    split = "p, q = Split <axis = 1> (r, s)" if opset > 11 else "p, q = Split <axis = 1, split = [6, 3]> (r)"
    tail = f"{split} d = Conv (p, v) e = Conv (q, u) y = Add (d, e)"
    body = f"{TWO} z = Concat <axis = 1> (a, b) r = Relu (z) {tail}"
    constants: dict[str, Any] = {**W2, "v": (4, 6, 1, 1), "u": (4, 3, 1, 1)}
    constants |= {"s": [6, 3]} if opset > 11 else {}
    model = program(body, x=X, opset=opset, ir=3 if opset == 7 else None, **constants)
    check(model, PASS, {"way": way, **BLOCK}, sizes=SIZES)


@pytest.mark.parametrize(
    ("way", "middle", "grade"),
    [
        ("pad", "i = Relu (a) j = Relu (b) z = Concat <axis = 1> (i, j) r = Sigmoid (z)", "finite"),
        ("pieces", "i = Relu (a) j = Relu (b) r = Concat <axis = 1> (i, j)", "exact"),
        ("pieces", "r = Conv (x, w3)", "exact"),
        ("columns", "i = Relu (a) j = Relu (b) z = Concat <axis = 1> (i, j) r = Sigmoid (z)", "finite"),
    ],
)
def test_the_audit_proves_it(way: str, middle: str, grade: str) -> None:
    body = f"{TWO} {middle} {HALVES} d = Conv (p, v) e = Conv (q, u) g = Add (d, e) y = Relu (g)"
    weights = {**W2, "w3": (9, 8, 3, 3), "s": [6, 3], "v": (4, 6, 1, 1), "u": (4, 3, 1, 1)}
    used = {name: value for name, value in weights.items() if name in body}
    model = program(body, x="float[1,8,7,9]", **used)
    done = rewrite(Model.load(model), [Step(pass_named(PASS), {"way": way, **BLOCK})], RunOptions())
    assert done.verdict == "equivalent"
    assert done.grade == grade


def test_the_audit_proves_that_channels_are_made_twice() -> None:
    body = f"a = Conv (x, w) r = Relu (a) {TWICE} s = Relu (d) z = Concat <axis = 1> (r, s) y = Sigmoid (z)"
    model = program(body, x=X, w=(6, 8, 1, 1), k=(6, 1, 3, 3), e=(6,))
    done = rewrite(Model.load(model), [Step(pass_named(PASS), {"way": "repeat"})], RunOptions())
    assert done.verdict == "equivalent"


def test_what_is_worth_measuring_is_what_applies() -> None:
    body = f"{JOINED} y = Conv (z, v)"
    model = program(body, x=X, **W2, **LAST)
    graph = Graph(Model.load(model))
    rule = pass_named(PASS)
    ways = [settings["way"] for settings in rule.candidates(graph, 0)]
    assert ways == (["pad"] if nchwc_block() > 1 else [])


@pytest.mark.skipif(nchwc_block() < 8, reason="this machine has no fast path for a block of channels")
def test_no_reorder_is_left_between_what_was_aligned() -> None:
    """What it is for: ONNX Runtime's own optimized model."""
    body = (
        "a = Conv (x, w1) r = Relu (a) d = Conv <group = 20, pads = [1, 1, 1, 1]> (r, k) "
        "z = Concat <axis = 1> (r, d) l = Slice (z, zero, many, one) y = Conv (l, v)"
    )
    weights: dict[str, Any] = {"w1": (20, 16, 1, 1), "k": (20, 1, 3, 3), "v": (16, 40, 1, 1)}
    model = program(body, x="float[1,16,8,8]", zero=[0], many=[40], one=[1], **weights)
    before = census(model, Runtime())
    aligned = model
    for way in ("pieces", "pad"):
        aligned = check(aligned, PASS, {"way": way}).after
    after = census(aligned, Runtime())
    reorders = "com.microsoft.nchwc:ReorderInput", "com.microsoft.nchwc:ReorderOutput"
    assert sum(before[kind] for kind in reorders) > 2
    assert sum(after[kind] for kind in reorders) == 2
