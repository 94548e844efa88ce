"""Channel shuffles go into the weights around them, or are copied less; what has to keep its order keeps it."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewriter
from funnel import check, declines, run
from programs import program
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Safety
from twins import feeds, integer_twin

PASS = "absorb-shuffle"
SIZES = [{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]
OPEN = {"x": "float[N,8,H,W]", "sizes": [{"x": (1, 8, 7, 6)}, {"x": (3, 8, 6, 9)}]}
HALF = {"x": "float16[N,8,5,5]", "dtype": np.float16}
SERIES = {"x": "float[N,8,9]", "sizes": [{"x": (1, 8, 9)}, {"x": (2, 8, 9)}]}
VIDEO = {"x": "float[N,8,3,4,5]", "sizes": [{"x": (2, 8, 3, 4, 5)}]}
W: dict[str, Any] = {"w": (8, 8, 1, 1), "v": (6, 8, 3, 3), "b": (8,)}
K: dict[str, Any] = {"k": [0, 2, 4, 5, 5], "l": [0, 8, 5, 5]}
ORDER = [3, 0, 7, 1, 6, 2, 5, 4]


def shuffled(x: str, y: str, tail: str = ", 3, 4", k: str = "k", back: str = "l") -> str:
    """`y` is `x` shuffled."""
    return (
        f"{y}_1 = Reshape ({x}, {k}) {y}_2 = Transpose <perm = [0, 2, 1{tail}]> ({y}_1) {y} = Reshape ({y}_2, {back})"
    )


PICKED = "s = Gather <axis = 1> (c, o)"
PLAIN = f"c = Conv (x, w, b) {shuffled('c', 's')} y = Conv (s, v)"
UNIT = f"h = Concat <axis = 1> (p, q) {shuffled('h', 's')} p1, q1 = Split <axis = 1> (s, half)"
NETWORK = (
    f"p = Conv (x, w) a = Conv (x, u) q = Relu (a) {UNIT} "
    f"a1 = Conv (q1, w1) r1 = Relu (a1) h1 = Concat <axis = 1> (p1, r1) {shuffled('h1', 's1')} "
    "p2, q2 = Split <axis = 1> (s1, half) a2 = Conv (q2, w2) r2 = Relu (a2) h2 = Concat <axis = 1> (p2, r2) "
    f"{shuffled('h2', 's2')} y = Conv (s2, w3)"
)
HALVES: dict[str, Any] = dict.fromkeys("wu", (4, 8, 1, 1)) | dict.fromkeys(("w1", "w2"), (4, 4, 1, 1))
HALVES |= {"w3": (5, 8, 1, 1), "half": [4, 4]} | K
STRIDED = "c = Conv <group = 2> (x, w) {} d = Conv <group = 8, strides = [2, 2]> (s, u) y = Conv <group = 2> (d, v)"
LATE = {"w": (8, 4, 1, 1), "u": (8, 1, 3, 3), "v": (6, 4, 1, 1)}

RIGHT: list[tuple[str, dict[str, Any], str]] = [
    # Into the columns behind.
    (PLAIN, W | K, "Conv/1 Conv/1"),
    (PLAIN, W | K | {"opset": 9}, "Conv/1 Conv/1"),
    (PLAIN, W | K | {"opset": 7, "ir": 3}, "Conv/1 Conv/1"),
    (PLAIN, W | K | HALF, "Conv/1 Conv/1"),
    (f"c = Conv (x, w) {PICKED} y = Conv (s, v)", W | OPEN | {"o": ORDER}, "Conv/1 Conv/1"),
    (
        f"c = Conv (x, w) {PICKED} y = Conv (s, v)",
        SERIES | {"w": (8, 8, 3), "v": (4, 8, 1), "o": ORDER},
        "Conv/1 Conv/1",
    ),
    (
        f"c = Conv (x, w) {PICKED} y = Conv (s, v)",
        VIDEO | {"w": (8, 8, 1, 1, 1), "v": (4, 8, 1, 3, 3), "o": ORDER},
        "Conv/1 Conv/1",
    ),
    (f"{shuffled('x', 's')} y = Conv (s, v)", W | K, "Conv/1"),
    (f"c = Conv <group = 2> (x, w) {shuffled('c', 's')} y = Conv (s, v)", W | K | {"w": (8, 4, 1, 1)}, "Conv/2 Conv/1"),
    # Through what keeps channels apart.
    (
        f"c = Conv (x, w) r = Relu (c) {shuffled('r', 's')} t = Mul (s, m) d = Conv <group = 8> (t, u) "
        "e = PRelu (d, n) y = Conv (e, v)",
        W | K | {"m": (8, 1, 1), "u": (8, 1, 3, 3), "n": (8, 1, 1), "v": (6, 8, 1, 1)},
        "Conv/1 Relu Mul Conv/8 PRelu Conv/1",
    ),
    (
        f"c = Conv (x, w) {shuffled('c', 's')} n = BatchNormalization (s, g, b, e, f) "
        "a = MaxPool <kernel_shape = [2, 2]> (n) y = Conv (a, v)",
        W | K | {"g": (8,), "e": (8,), "f": np.ones(8, np.float32)},
        "Conv/1 BatchNormalization MaxPool Conv/1",
    ),
    (
        f"c = Conv (x, w) {shuffled('c', 's')} d = Conv (x, u) {shuffled('d', 't')} a = Add (s, t) y = Conv (a, v)",
        W | K | {"u": (8, 8, 1, 1)},
        "Conv/1 Conv/1 Add Conv/1",
    ),
    (f"c = Conv (x, w) {shuffled('c', 's')} d = Conv (s, v) e = Conv (s, v) y = Add (d, e)", W | K, ""),
    # Into the rows before, where what is behind keeps its order.
    (
        f"c = Conv (x, w, b) {shuffled('c', 's')} y = Conv <group = 2> (s, v)",
        W | K | {"v": (6, 4, 3, 3)},
        "Conv/1 Conv/2",
    ),
    (f"c = Conv (x, w) {shuffled('c', 's')} t = Softmax <axis = 1> (s) y = Conv (t, v)", W | K, ""),
    # Two that undo each other, between what keeps its order.
    (
        f"c = Conv <group = 2> (x, w) {shuffled('c', 's')} {shuffled('s', 't', k='m')} y = Conv <group = 2> (t, v)",
        {"w": (8, 4, 1, 1), "v": (6, 4, 3, 3), "m": [0, 4, 2, 5, 5]} | K,
        "Conv/2 Conv/2",
    ),
    # The whole of a network's wiring.
    (NETWORK, HALVES, ""),
    (  # Two read the same half.
        f"c = Conv (x, w) {shuffled('c', 's')} p, q = Split <axis = 1> (s, half) o, n = Split <axis = 1> (s, half) "
        "d = Conv (p, u) e = Conv (q, u) f = Conv (o, u) g = Conv (n, u) y = Sum (d, e, f, g)",
        W | K | {"u": (5, 4, 1, 1), "half": [4, 4]},
        "",
    ),
    # Behind what makes it smaller.
    (STRIDED.format(shuffled("c", "s")), LATE | K, "Conv/2 Conv/8 Reshape Transpose Reshape Conv/2"),
    (
        f"c = Conv <group = 2> (x, w) {PICKED} d = MaxPool <kernel_shape = [3, 3]> (s) y = Conv <group = 2> (d, v)",
        LATE | {"o": ORDER},
        "Conv/2 MaxPool Gather Conv/2",
    ),
]


@pytest.mark.parametrize(("body", "given", "becomes"), RIGHT)
def test_right(body: str, given: dict[str, Any], becomes: str) -> None:
    given = dict(given)
    sizes = given.pop("sizes", SIZES)
    integers = "BatchNormalization" not in body
    passed = check(
        program(body, **given), PASS, becomes=becomes or None, safety=Safety.EXACT, sizes=sizes, integers=integers
    )
    assert len(passed.rewrites) == 1


@pytest.mark.parametrize("index", [0, 8, 10, 11, 13, 15, 16, 17])
def test_the_audit_shows_it_to_be_equivalent(index: int) -> None:
    body, given, _ = RIGHT[index]
    given = {key: value for key, value in given.items() if key != "sizes"}
    report = rewriter.rewrite(program(body, **given), [PASS]).report
    assert report.verdict == "equivalent", report.reason


def operators(passed: Any, *names: str) -> dict[str, int]:
    kinds = [node.op_type for node in passed.after.graph.node]
    return {name: kinds.count(name) for name in names}


@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("parts", {"Split": 3, "Concat": 3, "Transpose": 0, "Gather": 0}),
        ("gather", {"Split": 0, "Concat": 3, "Gather": 4}),
    ],
)
def test_ways_of_a_network(way: str, left: dict[str, int]) -> None:
    passed = check(program(NETWORK, **HALVES), PASS, {"way": way}, safety=Safety.EXACT, sizes=SIZES)
    assert operators(passed, *left) == left


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("y = Conv (x, w)", W, "no channel shuffle before or behind it"),
    (
        "c = Conv (x, w) s = Slice (c, k, l, m) y = Conv (s, v)",
        W | {"v": (6, 4, 1, 1), "k": [0], "l": [4], "m": [1]},
        "no",
    ),
    (
        f"{STRIDED.replace('strides = [2, 2]', 'pads = [1, 1, 1, 1]')}",
        LATE | K,
        "copies 8 channels, and 8 are copied now",
    ),
    (
        f"{shuffled('x', 's')} y = Conv <group = 2> (s, v)",
        {"v": (6, 4, 3, 3)} | K,
        "are copied now: 's' keeps its order, because Conv 'y' has 2 groups",
    ),
    (
        f"c = Conv (x, w) {shuffled('c', 's')} t = Softmax <axis = 1> (c) d = Conv <group = 2> (s, v) "
        "y = Concat <axis = 1> (t, d)",
        W | K | {"v": (6, 4, 3, 3)},
        "are copied now",
    ),
    (
        f"a = Conv (x, w) b = Conv (x, u) h = Concat <axis = 1> (a, b) {shuffled('h', 's')} "
        "t = Gather <axis = 1> (s, o) y = Conv (t, v)",
        HALVES | {"o": [0, 2, 4], "v": (5, 3, 1, 1)},
        "obody would need 'b' any more",
    ),
    (PLAIN, W | K | {"k": [0, 2, 4, 5, -1], "l": [0, 4, 10, 5], "v": (6, 4, 3, 3)}, "no channel shuffle"),
    (
        f"c = Conv (x, w) {shuffled('c', 's')} y = Conv (s, v) z = Identity (s_1)",
        W | K | {"y": "y z"},
        "no channel shuffle",
    ),
]


@pytest.mark.parametrize(("body", "given", "reason"), WRONG)
def test_declines(body: str, given: dict[str, Any], reason: str) -> None:
    declines(program(body.replace("{}", shuffled("c", "s")), **given), PASS, reason)


def test_a_shuffled_output_keeps_its_name_and_order() -> None:
    passed = check(
        program(f"c = Conv (x, w) {shuffled('c', 'y')}", **W, **K), PASS, becomes="Conv/1 Identity", sizes=SIZES
    )
    assert passed.safeties == {Safety.EXACT}


def test_weights_that_may_be_replaced_keep_their_order() -> None:
    model = program(PLAIN, **W, **K)
    for name in ("w", "v"):
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tensor.dims))
    declines(model, PASS, "")


def test_what_a_subgraph_reads_keeps_its_order() -> None:
    model = program(f"c = Conv (x, w) {shuffled('c', 's')} d = Conv (s, v) y = Relu (d)", **W, **K)
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["s"], ["inner"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    flag = onnx.numpy_helper.from_array(np.array(True), "flag")
    model.graph.initializer.append(flag)
    model.graph.node.append(onnx.helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 8, 5, 5]))
    passed = check(model, PASS, sizes=SIZES)
    assert operators(passed, "Transpose", "Identity") == {"Transpose": 0, "Identity": 1}


def test_others_are_looked_at_where_the_first_one_is() -> None:
    attempts = sweep(Model.load(program(PLAIN, **W, **K)), Step(pass_named(PASS)), {})[2]
    assert [attempt.reason for attempt in attempts] == [
        "Its channel shuffles are connected with those at 'c', and looked at there."
    ]


def test_late_declines_where_nothing_is_smaller_behind() -> None:
    declines(program(PLAIN, **W, **K), PASS, "has fewer positions", {"way": "late"})


def test_a_way_is_one_of_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"absorb-shuffle\.way"):
        pass_named(PASS).check({"way": "bogus"})


def drawn(seed: int) -> onnx.ModelProto:
    """Convolutions, dense and grouped, with channels brought from one to the next by random selections."""
    rng = random.Random(seed)
    body: list[str] = []
    constants: dict[str, Any] = {}
    tensors = [("x", 8)]

    def add(width: int, operator: str, *inputs: str) -> None:
        name = f"t{len(body)}"
        body.append(f"{name} = {operator} ({', '.join(inputs)})")
        tensors.append((name, width))

    def held(value: Any) -> str:
        name = f"k{len(constants)}"
        constants[name] = value
        return name

    for _ in range(rng.randint(5, 14)):
        x, width = rng.choice(tensors[-4:])
        match rng.choice(
            ["conv", "conv", "grouped", "depthwise", "relu", "gather", "gather", "concat", "slice", "add"]
        ):
            case "conv":
                made = rng.choice([4, 6, 8])
                add(made, "Conv", x, held((made, width, 1, 1)))
            case "grouped":
                add(width, "Conv <group = 2>", x, held((width, width // 2, 1, 1)))
            case "depthwise":
                add(width, f"Conv <group = {width}, pads = [1, 1, 1, 1]>", x, held((width, 1, 3, 3)))
            case "relu":
                add(width, "Relu", x)
            case "gather":
                picks = rng.sample(range(width), rng.choice([width, width, max(2, width // 4 * 2)]))
                add(len(picks), "Gather <axis = 1>", x, held(picks))
            case "concat":
                other, more = rng.choice(tensors[-4:])
                add(width + more, "Concat <axis = 1>", x, other)
            case "slice" if width > 2:
                add(width // 4 * 2 or 2, "Slice", x, held([0]), held([width // 4 * 2 or 2]), held([1]))
            case _:
                same = [name for name, others in tensors if others == width]
                add(width, "Add", x, rng.choice(same))
    add(3, "Conv", tensors[-1][0], held((3, tensors[-1][1], 1, 1)))
    needed = {tensors[-1][0]}
    for line in reversed(body):  # what nobody reads is not there
        name, _, call = line.partition(" = ")
        needed |= set(re.findall(r"\b[tk]\d+", call)) if name in needed else set()
    kept = [line for line in body if line.partition(" = ")[0] in needed]
    held_ones = {name: value for name, value in constants.items() if name in needed}
    return program(" ".join(kept), y=tensors[-1][0], **held_ones)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_wirings(seed: int) -> None:
    """What is drawn is computed alike, in integers bit for bit; it may be that still less has to be copied then."""
    model = drawn(seed)
    way = random.Random(seed).choice(["auto", "parts", "gather"])
    applied = sweep(Model.load(model), Step(pass_named(PASS), {"way": way}), {})[1]
    if applied:
        check(model, PASS, {"way": way}, safety=Safety.EXACT, sizes=[{"x": (2, 8, 5, 5)}], integers=False, again=True)
        check_integers(model, way)


def check_integers(model: onnx.ModelProto, way: str) -> None:
    twin = integer_twin(model)
    after = sweep(Model.load(twin), Step(pass_named(PASS), {"way": way}), {})[0].to_proto()
    inputs = feeds(twin, {"x": (2, 8, 5, 5)}, integers=True)
    first, second = run(twin, inputs, "all"), run(after, inputs, "all")
    for name, expected in first.items():
        if np.abs(expected).max() < 2**24:
            assert np.array_equal(expected, second[name])
