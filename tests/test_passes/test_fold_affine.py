"""fold-affine: what stands before, behind and behind a Concat of convolutions; the border; what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from funnel import Sizes, check, declines, run
from models.zoo.refill import zoo_model
from programs import program
from rewriter import Safety
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Declined

PASS = "fold-affine"
SIZES: list[Sizes] = [{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]
W, K = (8, 8, 3, 3), (8, 1, 1)
POSITIVE = np.random.default_rng(5).uniform(0.5, 2, (8, 1, 1)).astype(np.float32)
TWO, HALF = np.float32(2), np.array([[[0.5]]], np.float32)
NORM: dict[str, Any] = {"s": (8,), "t": (8,), "mu": (8,), "var": np.linspace(0.5, 2, 8, dtype=np.float32)}
BN = "BatchNormalization <epsilon = 0.01> ({}, s, t, mu, var)"
PADS = [0, 0, 1, 2, 0, 0, 0, 1]

# (body, constants): all of it becomes one Conv.
ONE_CONV: dict[str, tuple[str, dict[str, Any]]] = {
    "norm behind": ("c = Conv (x, w) y = " + BN.format("c"), {"w": W, **NORM}),
    "norm behind, with bias": (
        "c = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = " + BN.format("c"),
        {"w": W, "b": (8,), **NORM},
    ),
    "scale behind": ("c = Conv (x, w) y = Mul (c, k)", {"w": W, "k": K}),
    "scale behind, left": ("c = Conv (x, w, b) y = Mul (k, c)", {"w": W, "b": (8,), "k": (1, 8, 1, 1)}),
    "scalar behind": ("c = Conv (x, w, b) y = Mul (c, k)", {"w": W, "b": (8,), "k": TWO}),
    "one number of three axes": ("c = Conv (x, w) y = Mul (c, k)", {"w": W, "k": HALF}),
    "shift behind": ("c = Conv (x, w) y = Add (k, c)", {"w": W, "k": K}),
    "difference": ("c = Conv (x, w, b) y = Sub (c, k)", {"w": W, "b": (8,), "k": K}),
    "difference, left": ("c = Conv (x, w, b) y = Sub (k, c)", {"w": W, "b": (8,), "k": K}),
    "quotient": ("c = Conv (x, w, b) y = Div (c, k)", {"w": W, "b": (8,), "k": POSITIVE}),
    "chain behind": (
        "c = Conv (x, w) d = Mul (k, c) e = Add (d, l) y = Div (e, m)",
        {"w": W, "k": K, "l": K, "m": TWO},
    ),
    "grouped": ("c = Conv <group = 4> (x, w) y = " + BN.format("c"), {"w": (8, 2, 3, 3), **NORM}),
    "scale before": ("d = Mul (x, k) y = Conv <pads = [1, 1, 1, 1]> (d, w)", {"w": W, "k": K}),
    "scale before, grouped": (
        "d = Div (x, k) y = Conv <group = 4> (d, w, b)",
        {"w": (4, 2, 3, 3), "b": (4,), "k": POSITIVE},
    ),
    "scale before, depthwise": ("d = Mul (x, k) y = Conv <group = 8> (d, w)", {"w": (16, 1, 3, 3), "k": K}),
    "shift before": ("d = Add (x, k) y = Conv (d, w)", {"w": W, "k": K}),
    "shift before, with bias": ("d = Sub (k, x) y = Conv <strides = [2, 2]> (d, w, b)", {"w": W, "b": (8,), "k": K}),
    "norm before": (f"d = {BN.format('x')} y = Conv (d, w)", {"w": W, **NORM}),
    "norm before, grouped": (f"d = {BN.format('x')} y = Conv <group = 2> (d, w)", {"w": (4, 4, 3, 3), **NORM}),
    "shift before, valid": ('d = Add (x, k) y = Conv <auto_pad = "VALID"> (d, w)', {"w": W, "k": K}),
    "shift before, same of nothing": (
        'd = Add (x, k) y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (d, w)',
        {"w": (8, 8, 1, 1), "k": K},
    ),
    "scale before, same": ('d = Mul (x, k) y = Conv <auto_pad = "SAME_LOWER"> (d, w)', {"w": W, "k": K}),
    "both sides": (
        "d = Add (x, k) c = Conv (d, w, b) y = " + BN.format("c"),
        {"w": W, "b": (8,), "k": K, **NORM},
    ),
    "normalized image": ("d = Sub (x, k) e = Div (d, l) y = Conv (e, w)", {"w": W, "k": K, "l": POSITIVE}),
    "pad and scale": (
        "d = Pad (x, p) e = Mul (d, k) y = Conv <pads = [1, 0, 0, 1]> (e, w)",
        {"w": W, "k": K, "p": PADS},
    ),
    "shift behind a pad": ("d = Pad (x, p) e = Add (d, k) y = Conv (e, w)", {"w": W, "k": K, "p": PADS}),
    "scale before a pad": ("d = Mul (x, k) e = Pad (d, p) y = Conv (e, w)", {"w": W, "k": K, "p": PADS}),
}  # fmt: skip
PAD_ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "pad": ("d = Pad (x, p) y = Conv (d, w)", {"w": W, "p": PADS}),
    "pads of its own": (
        "d = Pad (x, p, z) y = Conv <pads = [0, 1, 2, 0]> (d, w, b)",
        {"w": W, "b": (8,), "p": PADS, "z": np.float32(0)},
    ),
    "valid": (
        'd = Pad (x, p) y = Conv <auto_pad = "VALID", strides = [2, 1], dilations = [1, 2]> (d, w)',
        {"w": W, "p": PADS},
    ),
    "axes": ("d = Pad (x, p, z, a) y = Conv (d, w)", {"w": W, "p": [1, 2, 0, 1], "z": np.float32(0), "a": [-1, 2]}),
    "wider than the kernel": ("d = Pad (x, p) y = Conv (d, w)", {"w": (8, 8, 1, 1), "p": [0, 0, 3, 0, 0, 0, 0, 2]}),
    "two": ("d = Pad (x, p) e = Pad (d, p) y = Conv (e, w)", {"w": W, "p": PADS}),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_CONV)
def test_all_of_it_becomes_one_convolution(name: str) -> None:
    body, constants = ONE_CONV[name]
    passed = check(program(body, **constants), PASS, safety=Safety.ROUNDING, sizes=SIZES)
    assert passed.text.partition("/")[0] == "Conv"
    assert len(passed.after.graph.node) == 1


@pytest.mark.parametrize("name", PAD_ALONE)
def test_a_pad_alone_leaves_the_weights_as_they_are(name: str) -> None:
    body, constants = PAD_ALONE[name]
    passed = check(program(body, **constants), PASS, becomes="Conv/1", safety=Safety.EXACT, sizes=SIZES)
    (conv,) = passed.after.graph.node
    assert list(conv.input[1:]) == ["w", "b"][: len(conv.input) - 1]


CONCAT = "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Conv <pads = [0, 0, 0, 0]> (x, v, u) c = Concat <axis = {}> (a, b) "
PARTS: dict[str, Any] = {"w": (3, 8, 3, 3), "v": (5, 8, 1, 1), "u": (5,)}


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize(
    ("behind", "constants"),
    [
        ("y = " + BN.format("c"), NORM),
        ("y = Mul (k, c)", {"k": K}),
        ("d = Add (c, k) y = Mul (d, l)", {"k": K, "l": TWO}),
    ],
)
def test_behind_a_concat(behind: str, constants: dict[str, Any], axis: int) -> None:
    model = program(CONCAT.format(axis) + behind, **PARTS, **constants)
    passed = check(model, PASS, becomes="Conv/1 Conv/1 Concat", safety=Safety.ROUNDING, sizes=SIZES)
    assert [attempt.reason for attempt in passed.attempts] == [
        "It is folded together with 'a', which Concat 'c' joins it with."
    ]


def test_a_concat_of_convolutions_with_affine_nodes_of_their_own() -> None:
    body = (
        "n = Mul (x, k) a = Conv <pads = [1, 1, 1, 1]> (n, w) r = Relu (a) s, t = Split <axis = 1> (r, q) "
        "e = Conv <group = 4> (s, g) f = Mul (e, h) i = Conv <group = 4, pads = [1, 1, 1, 1]> (t, j) "
        "c = Concat <axis = 1> (f, i) o = Sub (c, l) y = Relu (o)"
    )
    model = program(
        body, k=K, w=W, q=[4, 4], g=(4, 1, 1, 1), h=(4, 1, 1), j=(4, 1, 3, 3), l=(8, 1, 1)
    )  # fmt: skip
    check(model, PASS, becomes="Conv/1 Relu Split Conv/4 Conv/4 Concat Relu", sizes=SIZES)


def test_a_concat_that_nothing_follows_leaves_each_to_itself() -> None:
    body = "a = Conv (x, w) d = Mul (a, k) b = Conv (x, v) c = Concat <axis = 1> (d, b) y = Relu (c)"
    check(program(body, w=W, v=W, k=K), PASS, becomes="Conv/1 Conv/1 Concat Relu", sizes=SIZES)


@pytest.mark.parametrize(
    ("x", "weight", "k"), [("float[N,8,L]", (8, 8, 3), (8, 1)), ("float[N,8,5,5,5]", (8, 8, 3, 1, 2), (8, 1, 1, 1))]
)
def test_other_ranks(x: str, weight: tuple[int, ...], k: tuple[int, ...]) -> None:
    body = f"d = Add (k, x) c = Conv (d, w) e = Mul (k, c) y = {BN.format('e')}"
    sizes: list[Sizes] = [{"x": (n, 8, *[5] * (len(weight) - 2))} for n in (1, 3)]
    check(program(body, x=x, w=weight, k=k, **NORM), PASS, becomes="Conv/1", sizes=sizes)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_types(dtype: type) -> None:
    body = f"d = Mul (k, x) c = Conv <pads = [1, 1, 1, 1]> (d, w, b) y = {BN.format('c')}"
    kind = "float16" if dtype is np.float16 else "double"
    norm = {**NORM, "var": np.linspace(0.5, 2, 8).astype(dtype)}
    model = program(body, x=f"{kind}[N,8,5,5]", w=W, b=(8,), k=K, dtype=dtype, **norm)
    check(model, PASS, becomes="Conv/1", sizes=SIZES)


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (12, None), (14, None), (15, None), (21, None)])
def test_opsets(opset: int, ir: int | None) -> None:
    pad = "Pad (x, p)" if opset >= 11 else f"Pad <pads = {PADS}> (x)"
    last = BN.format("c") if opset >= 14 else "Add (k, c)"
    body = f"d = {pad} e = Mul (k, d) c = Conv (e, w) y = {last}"
    constants = ({"p": PADS} if opset >= 11 else {}) | (NORM if opset >= 14 else {})
    check(program(body, w=W, k=K, opset=opset, ir=ir, **constants), PASS, becomes="Conv/1", sizes=SIZES)


@pytest.mark.parametrize("opset", [7, 8, 9, 13])
def test_older_norms(opset: int) -> None:
    """ONNX's own evaluator has no BatchNormalization before opset 14 in inference: ONNX Runtime says what it means."""
    model = program(f"c = Conv (x, w) y = {BN.format('c')}", w=W, opset=opset, **NORM)
    after = check(model, PASS, becomes="Conv/1", compute=False).after
    x = {"x": np.random.default_rng(0).standard_normal((2, 8, 5, 5)).astype(np.float32)}
    first, second = (run(one, x, "disable")["y"] for one in (model, after))
    assert np.abs(first - second).max() <= 2.0**-23 * 74 * 2 * np.abs(first).max()


def test_a_bias_is_made_only_where_something_shifts() -> None:
    scaled = check(program("c = Conv (x, w) y = Mul (c, k)", w=W, k=K), PASS, sizes=SIZES)
    shifted = check(program("c = Conv (x, w) y = Add (c, k)", w=W, k=K), PASS, sizes=SIZES)
    assert [len(made.after.graph.node[0].input) for made in (scaled, shifted)] == [2, 3]


def test_shared_weights_and_constants_stay_for_the_others() -> None:
    body = "c = Conv (x, w) d = Mul (c, k) e = Relu (d) f = Conv (e, w) g = Sigmoid (f) y = Mul (g, k)"
    check(program(body, w=W, k=K), PASS, becomes="Conv/1 Relu Conv/1 Sigmoid Mul", sizes=SIZES)


def test_what_cannot_be_folded_stays_and_the_rest_goes() -> None:
    """The chain stops at the shift, at the second reader and at the graph output; what is nearer is folded."""
    body = "d = Add (x, k) e = Mul (d, l) y = Conv <pads = [1, 1, 1, 1]> (e, w)"
    check(program(body, w=W, k=K, l=K), PASS, becomes="Add Conv/1", sizes=SIZES)
    body = "d = Mul (x, k) e = Mul (d, l) c = Conv (e, w) f = Mul (c, k) y = Add (f, l) z = Relu (d) v = Neg (f)"
    check(program(body, y="y z v", w=W, k=K, l=K), PASS, becomes="Mul Conv/1 Add Relu Neg", sizes=SIZES)


def test_the_smallest_channel_count_is_not_broadcast() -> None:
    """[N, 1, H, W] times [8, 1, 1] has 8 channels: the Conv behind it does not read the one channel."""
    body = "d = Mul (x, k) y = Conv (d, w)"
    declines(program(body, x="float[N,1,5,5]", w=W, k=K), PASS, "'x' is not known to have 4 axes and 8 channels.")
    body = "c = Conv (x, w) y = Mul (c, k)"
    declines(program(body, w=(1, 8, 3, 3), k=K), PASS, "a constant of shape [8, 1, 1], which is none per channel.")
    body = "d = Add (x, k) y = Conv (d, w)"
    declines(program(body, x="float[8,5,5]", w=W, k=(1, 8, 1, 1)), PASS, "'x' is not known to have 4 axes")


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("y = Conv (x, w)", {}, "No affine node and no Pad stands before or behind it."),
        ("d = Relu (x) c = Conv (d, w) y = Relu (c)", {}, "No affine node and no Pad stands before or behind it."),
        ("c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Add (c, x)", {}, "No affine node and no Pad stands"),
        (
            "d = Add (x, k) y = Conv <pads = [0, 0, 0, 1]> (d, w)",
            {"k": K},
            "Add 'd' shifts what it pads: the padding would have to be -b/a, not 0.",
        ),
        ('d = Add (x, k) y = Conv <auto_pad = "SAME_UPPER"> (d, w)', {"k": K}, "Add 'd' shifts what it pads"),
        ("d = Add (x, k) e = Pad (d, p) y = Conv (e, w)", {"k": K, "p": PADS}, None),
        (f"d = {BN.format('x')} y = Conv <pads = [1, 1, 1, 1]> (d, w)", NORM, "BatchNormalization 'd' shifts what"),
        ("c = Conv (x, w) y = Div (k, c)", {"k": POSITIVE}, "Div 'y' divides a constant by it: that is not affine."),
        ("c = Conv (x, w) y = Div (c, k)", {"k": np.zeros((8, 1, 1), np.float32)}, "by a number that is not finite."),
        ("c = Conv (x, w) y = Mul (c, k)", {"k": (3,)}, "a constant of shape [3], which is none per channel."),
        ("c = Conv (x, w) y = Mul (c, k)", {"k": (3, 3)}, "a constant of shape [3, 3], which is none per channel."),
        ("c = Conv (x, w) y = Mul (c, k)", {"k": (1, 1, 8, 1, 1)}, "which is none per channel."),
        ("c = Conv (x, w) y = Mul (c, k) z = Relu (c)", {"k": K}, "'c' has 2 readers, not one."),
        ("d = Mul (x, k) y = Conv (d, w) z = Relu (d)", {"k": K}, "'d' has 2 readers, not one."),
        ("d = Pad (x, p, v) y = Conv (d, w)", {"p": PADS, "v": TWO}, "Pad 'd' does not fill with 0, as a Conv does."),
        ('d = Pad <mode = "reflect"> (x, p) y = Conv (d, w)', {"p": PADS}, "Pad 'd' repeats or reflects"),
        ("d = Pad (x, p) y = Conv (d, w)", {"p": [0, 0, -1, 0, 0, 0, 1, 1]}, "Pad 'd' crops."),
        ("d = Pad (x, p) y = Conv (d, w)", {"p": [0, 0, 0, 0, 1, 0, 1, 1]}, "Pad 'd' pads the batch or the channels."),
        ('d = Pad (x, p) y = Conv <auto_pad = "SAME_UPPER"> (d, w)', {"p": PADS}, "Its auto_pad SAME depends on"),
        (
            "c = Conv <pads = [1, 1, 1, 1]> (x, w) d = Concat <axis = 1> (c, x) y = Mul (d, k)",
            {"k": (16, 1, 1)},
            "Concat 'd' joins it with 'x', which no convolution makes (an input).",
        ),
        (
            "c = Conv (x, w) d = Concat <axis = 1> (c, c) y = Mul (d, k)",
            {"k": (16, 1, 1)},
            "Concat 'd' joins a tensor with itself.",
        ),
        (
            "c = Conv (x, w) e = Conv (x, v) z = Relu (e) d = Concat <axis = 1> (c, e) y = Mul (d, k)",
            {"v": W, "k": (16, 1, 1)},
            "'e' has 2 readers, not one.",
        ),
    ],
)  # fmt: skip
def test_declines(body: str, constants: dict[str, Any], reason: str | None) -> None:
    outputs = "y z" if "z = " in body else "y"
    model = program(body, y=outputs, w=W, **constants)
    if reason is None:  # the Pad goes, the shift before it stays
        check(model, PASS, becomes="Add Conv/1", safety=Safety.EXACT, sizes=SIZES)
        return
    declines(model, PASS, reason)


@pytest.mark.parametrize(("factor", "reason"), [(6e4, "too large for float16"), (6e-8, "too small for float16")])
def test_numbers_that_float16_cannot_hold(factor: float, reason: str) -> None:
    model = program(
        "c = Conv (x, w) y = Mul (c, k)", x="float16[N,8,5,5]", w=W, k=np.float16(factor), dtype=np.float16
    )  # fmt: skip
    declines(model, PASS, reason)


def test_a_graph_output_inside_declines() -> None:
    model = program("c = Conv (x, w) y = Mul (c, k)", y="y c", w=W, k=K)
    declines(model, PASS, "'c' is a graph output, so it must stay.")


def test_a_norm_in_training_declines() -> None:
    body = "c = Conv (x, w) y, m2, v2 = BatchNormalization <training_mode = 1> (c, s, t, mu, var)"
    declines(program(body, y="y m2 v2", w=W, **NORM), PASS, "BatchNormalization 'y' is in training mode.")


@pytest.mark.parametrize(
    ("body", "constants", "offered"),
    [
        (*ONE_CONV["norm behind"], False),
        (*ONE_CONV["scale behind"], False),
        (*PAD_ALONE["pad"], False),
        ("c = Conv (x, w) d = Mul (c, k) y = Add (d, k)", {"w": W, "k": K}, False),
        (*PAD_ALONE["valid"], True),
        (*ONE_CONV["scale behind, left"], True),
        (*ONE_CONV["one number of three axes"], True),
        (*ONE_CONV["shift behind"], True),
        (*ONE_CONV["difference"], True),
        (*ONE_CONV["quotient"], True),
        (*ONE_CONV["scale before"], True),
        (*ONE_CONV["pad and scale"], True),
        (CONCAT.format(1) + "y = " + BN.format("c"), {**PARTS, **NORM}, True),
    ],
)
def test_what_is_worth_measuring_is_what_onnx_runtime_leaves(
    body: str, constants: dict[str, Any], offered: bool
) -> None:
    model = program(body, **constants)
    graph, rule = Graph(Model.load(model)), pass_named(PASS)
    (node, *_) = rule.sites(graph)
    assert (left_by_onnx_runtime(model) > body.count("Conv ") + body.count("Concat ")) == offered
    if offered:
        assert rule.candidates(graph, node) == ({},)
        return
    with pytest.raises(Declined, match="ONNX Runtime folds what is beside it by itself"):
        rule.candidates(graph, node)


def left_by_onnx_runtime(model: onnx.ModelProto) -> int:
    """Nodes of the model that ONNX Runtime makes of it at level 1."""
    import tempfile
    from pathlib import Path

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return len(onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("name", "gone", "count"), [("timm_mixnet_s", "BatchNormalization", 34), ("keras_mobilenet", "Mul", 13)]
)
def test_networks_of_the_zoo(name: str, gone: str, count: int) -> None:
    model, applied, _ = sweep(Model.load(zoo_model(name)), Step(pass_named(PASS), {}), {})
    assert len(applied) == count
    assert gone not in {node.op_type for node in model.nodes}
    onnx.checker.check_model(model.to_proto(), full_check=True)
