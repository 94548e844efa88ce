"""conv1d-to-conv2d: one change of layout per run, whatever lies between its convolutions, and every Conv1D at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from funnel import Sizes, check, declines
from models.zoo.refill import zoo_model
from programs import program
from rewriter import BadInput, Safety
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Declined

PASS = "conv1d-to-conv2d"
SIZES: list[Sizes] = [{"x": (1, 8, 13)}, {"x": (3, 8, 16)}]
W, DEEP = (8, 8, 3), (8, 1, 5)
ONE = "Unsqueeze Conv/1 Squeeze"
TWO = "Unsqueeze Conv/1 {} Conv/1 Squeeze"
GELU = "d = Div (c, r) e = Erf (d) f = Add (e, k) g = Mul (c, f) h = Mul (g, m)"
SCALARS: dict[str, Any] = {"r": np.float32(1.4), "k": np.float32(1), "m": np.float32(0.5)}
NORM: dict[str, Any] = {"s": (8,), "t": (8,), "mu": (8,), "var": np.full(8, 1.5, np.float32)}

BRANCHES = [("then_branch", "Relu"), ("else_branch", "Neg")]

# (body, constants, what it becomes); x is [N, 8, L], both free.
RUNS: dict[str, tuple[str, dict[str, Any], str]] = {
    "one": ("y = Conv (x, w)", {"w": W}, ONE),
    "bias": ("y = Conv (x, w, b)", {"w": W, "b": (8,)}, ONE),
    "depthwise": ("y = Conv <group = 8, pads = [2, 2]> (x, w)", {"w": DEEP}, "Unsqueeze Conv/8 Squeeze"),
    "grouped": ("y = Conv <group = 2> (x, w)", {"w": (6, 4, 3)}, "Unsqueeze Conv/2 Squeeze"),
    "stride": ("y = Conv <strides = [2], pads = [0, 1]> (x, w)", {"w": W}, ONE),
    "dilation": ("y = Conv <dilations = [3], kernel_shape = [3]> (x, w)", {"w": W}, ONE),
    "same upper": ('y = Conv <auto_pad = "SAME_UPPER", strides = [2]> (x, w)', {"w": W}, ONE),
    "same lower": ('y = Conv <auto_pad = "SAME_LOWER", strides = [3]> (x, w)', {"w": (8, 8, 4)}, ONE),
    "valid": ('y = Conv <auto_pad = "VALID"> (x, w)', {"w": W}, ONE),
    "relu": ("c = Conv (x, w) d = Relu (c) y = Conv (d, v)", {"w": W, "v": W}, TWO.format("Relu")),
    "behind the last": ("c = Conv (x, w) y = Relu (c)", {"w": W}, "Unsqueeze Conv/1 Relu Squeeze"),
    "gelu": (
        f"c = Conv (x, w) {GELU} y = Conv (h, v)",
        {"w": W, "v": W, **SCALARS},
        TWO.format("Div Erf Add Mul Mul"),
    ),
    "per channel": ("c = Conv (x, w) d = Mul (c, k) y = Conv (d, v)", {"w": W, "v": W, "k": (8, 1)}, TWO.format("Mul")),
    "per channel, left": (
        "c = Conv (x, w) d = Sub (k, c) y = Conv (d, v)",
        {"w": W, "v": W, "k": (1, 8, 1)},
        TWO.format("Sub"),
    ),
    "ones of three axes": (
        "c = Conv (x, w) d = Mul (c, k) y = Conv (d, v)",
        {"w": W, "v": W, "k": (1, 1, 1)},
        TWO.format("Mul"),
    ),
    "slopes": ("c = Conv (x, w) d = PRelu (c, k) y = Conv (d, v)", {"w": W, "v": W, "k": (8, 1)}, TWO.format("PRelu")),
    "norm": (
        "c = Conv (x, w) d = BatchNormalization (c, s, t, mu, var) y = Conv (d, v)",
        {"w": W, "v": W, **NORM},
        TWO.format("BatchNormalization"),
    ),
    "clip": (
        "c = Conv (x, w) d = Clip (c, , k) y = Conv (d, v)",
        {"w": W, "v": W, "k": np.float32(1)},
        TWO.format("Clip"),
    ),
    "residual": (
        "c = Conv <pads = [1, 1]> (x, w) d = Add (c, x) y = Conv (d, v)",
        {"w": W, "v": W},
        TWO.format("Add"),
    ),
    "residual from elsewhere": (
        "n = ReduceMax (x, a) c = Conv <pads = [1, 1]> (x, w) d = Add (n, c) y = Conv (d, v)",
        {"w": W, "v": W, "a": [2]},
        "ReduceMax Unsqueeze Unsqueeze Conv/1 Add Conv/1 Squeeze",
    ),
    "gated": (
        "c = Conv (x, w) p, q = Split <axis = 1> (c, k) s = Sigmoid (q) g = Mul (p, s) y = Conv <group = 4> (g, v)",
        {"w": (8, 8, 3), "k": [4, 4], "v": (4, 1, 3)},
        "Unsqueeze Conv/1 Split Sigmoid Mul Conv/4 Squeeze",
    ),
    "concatenated": (
        "c = Conv <pads = [1, 1]> (x, w) d = Concat <axis = -2> (c, x) y = Conv (d, v)",
        {"w": W, "v": (4, 16, 3)},
        TWO.format("Concat"),
    ),
    "two branches": (
        "c = Conv (x, w) d = Conv (x, v) e = Relu (d) y = Add (c, e)",
        {"w": W, "v": W},
        "Unsqueeze Conv/1 Conv/1 Relu Add Squeeze",
    ),
    "squeezed and excited": (
        "c = Conv (x, w) g = GlobalAveragePool (c) e = Conv (g, v) h = Sigmoid (e) m = Mul (c, h) y = Conv (m, u)",
        {"w": W, "v": (8, 8, 1), "u": W},
        "Unsqueeze Conv/1 Squeeze GlobalAveragePool Unsqueeze Unsqueeze Conv/1 Sigmoid Mul Conv/1 Squeeze",
    ),
    "pooled between": (
        "c = Conv (x, w) p = MaxPool <kernel_shape = [2]> (c) y = Conv (p, v)",
        {"w": W, "v": W},
        f"{ONE} MaxPool {ONE}",
    ),
    "constants behind it": (
        "c = Conv (x, w) k = Constant <value = float {2.0}> ()  d = Mul (c, k) y = Conv (d, v)",
        {"w": W, "v": W},
        TWO.format("Mul"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("axis", ["w", "h"])
@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, axis: str) -> None:
    body, constants, becomes = RUNS[name]
    passed = check(
        program(body, x="float[N,8,L]", **constants),
        PASS,
        {"axis": axis},
        becomes=becomes,
        safety=Safety.EXACT,
        sizes=SIZES,
        integers=name not in ("gelu", "norm", "gated", "squeezed and excited"),  # these leave the integers
    )
    long = 3 if axis == "w" else 2
    for tensor in passed.after.graph.initializer:
        if len(tensor.dims) == 4 and tensor.name.endswith("weight"):
            assert tensor.dims[5 - long] == 1, tensor.name


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (12, None), (13, None), (18, None), (21, None)])
def test_opsets(opset: int, ir: int | None) -> None:
    body = "c = Conv (x, w, b) d = Mul (k, c) e = Relu (d) y = Conv (e, v)"
    model = program(body, x="float[N,8,L]", w=W, b=(8,), v=W, k=(8, 1), opset=opset, ir=ir)
    becomes = TWO.format("Mul Relu")
    if ir == 3 and opset < 9:
        becomes = check(model, PASS, sizes=SIZES).text
        assert becomes.replace("Cast ", "") == TWO.format("Mul Relu")
        return
    check(model, PASS, becomes=becomes, sizes=SIZES)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_types(kind: str) -> None:
    dtype = np.float16 if kind == "float16" else np.float64
    body = "c = Conv (x, w) d = Relu (c) y = Conv (d, v)"
    model = program(body, x=f"{kind}[N,8,L]", w=(8, 8, 3), v=(4, 8, 2), dtype=dtype)
    check(model, PASS, becomes=TWO.format("Relu"), sizes=SIZES)


def test_all_sizes_fixed() -> None:
    check(program("y = Conv (x, w)", x="float[2,8,9]", w=W), PASS, becomes=ONE)


def test_what_others_need_comes_out_under_its_name() -> None:
    """A graph output, a second reader, and a shape inside the run."""
    body = "c = Conv (x, w) d = Relu (c) s = Shape (d) t = Cast <to = 1> (s) n = ReduceMax (d, a) y = Conv (d, v)"
    model = program(body, x="float[N,8,L]", y="y c t n", w=W, v=W, a=[2])
    passed = check(model, PASS, sizes=SIZES)
    assert passed.text == "Unsqueeze Conv/1 Relu Conv/1 Squeeze Squeeze Squeeze Shape Cast ReduceMax"


def test_a_reader_in_a_subgraph_finds_its_tensor() -> None:
    branches = [
        f"{name} = {name}_graph () => (float[N,8,M] {name}_y) {{ {name}_y = {op} (c) }}" for name, op in BRANCHES
    ]
    body = f"c = Conv (x, w) y = Conv (c, v) k = Constant <value = bool {{1}}> () z = If <{', '.join(branches)}> (k)"
    model = program(body, x="float[N,8,L]", y="y z", w=W, v=W)
    passed = check(model, PASS, sizes=SIZES)
    assert passed.text == "Unsqueeze Conv/1 Conv/1 Squeeze Squeeze If"


def test_a_run_stands_before_the_subgraph_that_reads_it() -> None:
    """Behind the If comes what the second convolution needs: both cannot be in one run."""
    branches = [
        f"{name} = {name}_graph () => (float[N,8,M] {name}_y) {{ {name}_y = {op} (c) }}" for name, op in BRANCHES
    ]
    first = "k = Constant <value = bool {1}> () c = Conv (x, w) z = If <" + ", ".join(branches) + "> (k) "
    body = first + "n = ReduceMax (x, a) s = Add (c, n) y = Conv (s, v)"
    passed = check(program(body, x="float[N,8,L]", y="y z", w=W, v=W, a=[2]), PASS, sizes=SIZES)
    assert passed.text == "Unsqueeze Conv/1 Squeeze If ReduceMax Add Unsqueeze Conv/1 Squeeze"


def test_a_run_has_one_place() -> None:
    """What stands between two convolutions and is needed by the second keeps them apart."""
    body = "c = Conv (x, w) n = ReduceMax (c, a) d = Add (c, n) y = Conv (d, v)"
    passed = check(program(body, x="float[N,8,L]", w=W, v=W, a=[2]), PASS, sizes=SIZES)
    assert passed.text == "Unsqueeze Conv/1 Squeeze ReduceMax Add Unsqueeze Conv/1 Squeeze"


def test_a_shared_weight_is_kept_for_the_others() -> None:
    body = "c = Conv (x, w) d = Conv (c, w) n = Neg (w) s = ReduceSum <keepdims = 0> (n) y = Add (d, s)"
    check(
        program(body, x="float[N,8,L]", w=W),
        PASS,
        sizes=SIZES,
        becomes="Unsqueeze Conv/1 Conv/1 Squeeze Neg ReduceSum Add",
    )


def test_only_the_first_convolution_of_a_run_proposes_it() -> None:
    model = program("c = Conv (x, w) d = Relu (c) y = Conv (d, v)", x="float[N,8,L]", w=W, v=W)
    rule, graph = pass_named(PASS), Graph(Model.load(model))
    assert [dict(one) for one in rule.candidates(graph, 0)] == [{"axis": "w"}, {"axis": "h"}]
    with pytest.raises(Declined, match="it is part of the run that begins at 'c', and is rewritten with it"):
        rule.candidates(graph, 2)
    assert [attempt.reason for attempt in check(model, PASS, sizes=SIZES).attempts] == [
        "It is part of the run that begins at 'c', and is rewritten with it."
    ]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (program("y = Conv (x, w)", w=(8, 8, 3, 3)), "It is 2-D, not 1-D."),
        (program("y = Conv (x, w)", x="float[N,8,5,5,5]", w=(8, 8, 3, 3, 3)), "It is 3-D, not 1-D."),
        (program("w = Neg (v) y = Conv (x, w)", x="float[N,8,L]", v=W), "is computed by Neg from constants"),
        (program("c = Conv (x, w) y = Relu (x)", x="float[N,8,L]", w=W), "Nothing reads what it computes."),
    ],
)
def test_declines(model: onnx.ModelProto, reason: str) -> None:
    declines(model, PASS, reason)


def test_another_axis_is_an_error() -> None:
    model = Graph(Model.load(program("y = Conv (x, w)", x="float[N,8,L]", w=W)))
    with pytest.raises(BadInput, match=r"conv1d-to-conv2d\.axis is 'd': it must be one of h, w"):
        pass_named(PASS).propose(model, 0, {"axis": "d"})


@pytest.mark.parametrize("axis", ["w", "h"])
def test_the_conformer_of_the_zoo(axis: str) -> None:
    model, applied, _ = sweep(Model.load(zoo_model("hf_conformer")), Step(pass_named(PASS), {"axis": axis}), {})
    assert len(applied) == 5
    onnx.checker.check_model(model.to_proto(), full_check=True)
    convs = [node for node in model.nodes if node.op_type == "Conv"]
    assert {len(model.headers[node.input[1]].dims) for node in convs} == {4}
