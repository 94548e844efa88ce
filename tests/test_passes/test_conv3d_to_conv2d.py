"""conv3d-to-conv2d: temporal runs over [N, C, D, H*W], spatial ones over [N*D, C, H, W]; one change of layout each."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from funnel import Sizes, check, declines
from models.zoo.refill import zoo_model
from programs import program
from rewriter import BadInput, Safety
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named

PASS = "conv3d-to-conv2d"
FREE, FIXED = "float[N,4,D,H,W]", "float[2,4,5,6,7]"
SIZES: list[Sizes] = [{"x": (1, 4, 5, 6, 7)}, {"x": (3, 4, 6, 8, 5)}]
T, F, P = (4, 4, 3, 1, 1), (4, 4, 1, 3, 3), (4, 4, 1, 1, 1)
TEMPORAL, SPATIAL = "Reshape {} Reshape", "Transpose Reshape {} Reshape Transpose"

# (body, constants, what it becomes where all sizes are fixed); x is [N, 4, D, H, W].
RUNS: dict[str, tuple[str, dict[str, Any], str]] = {
    "temporal": ("y = Conv (x, w)", {"w": T}, TEMPORAL.format("Conv/1")),
    "temporal, padded": (
        "y = Conv <pads = [1, 0, 0, 2, 0, 0], strides = [2, 1, 1]> (x, w, b)",
        {"w": T, "b": (4,)},
        TEMPORAL.format("Conv/1"),
    ),
    "temporal, dilated": ("y = Conv <dilations = [2, 3, 3]> (x, w)", {"w": T}, TEMPORAL.format("Conv/1")),
    "temporal, depthwise": ("y = Conv <group = 4> (x, w)", {"w": (4, 1, 3, 1, 1)}, TEMPORAL.format("Conv/4")),
    "temporal, same": (
        'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 1, 1]> (x, w)',
        {"w": (4, 4, 2, 1, 1)},
        TEMPORAL.format("Conv/1"),
    ),
    "spatial": ("y = Conv (x, w)", {"w": F}, SPATIAL.format("Conv/1")),
    "spatial, padded": (
        "y = Conv <pads = [0, 1, 0, 0, 2, 1], strides = [1, 2, 1]> (x, w, b)",
        {"w": (6, 4, 1, 3, 2), "b": (6,)},
        SPATIAL.format("Conv/1"),
    ),
    "spatial, grouped": (
        'y = Conv <group = 2, auto_pad = "SAME_LOWER", strides = [1, 2, 3]> (x, w)',
        {"w": (4, 2, 1, 3, 3)},
        SPATIAL.format("Conv/2"),
    ),
    "pointwise": ("y = Conv (x, w)", {"w": P}, TEMPORAL.format("Conv/1")),
    "pointwise, then spatial": (
        "c = Conv (x, w) d = Relu (c) y = Conv (d, v)",
        {"w": P, "v": F},
        SPATIAL.format("Conv/1 Relu Conv/1"),
    ),
    "two temporal": (
        "c = Conv (x, w) d = Relu (c) e = Mul (d, k) y = Conv (e, v)",
        {"w": T, "v": P, "k": (4, 1, 1, 1)},
        TEMPORAL.format("Conv/1 Relu Mul Conv/1"),
    ),
    "two spatial": (
        "c = Conv (x, w) d = Add (k, c) e = Mul (d, l) y = Conv (e, v)",
        {"w": F, "v": (2, 4, 1, 1, 2), "k": (1, 4, 1, 1, 1), "l": (1, 1, 1, 1, 1)},
        SPATIAL.format("Conv/1 Add Mul Conv/1"),
    ),
    "r2plus1d": (
        "c = Conv <pads = [0, 1, 1, 0, 1, 1]> (x, w) d = Relu (c) "
        "e = Conv <pads = [1, 0, 0, 1, 0, 0]> (d, v) f = Add (e, x) y = Relu (f)",
        {"w": F, "v": T},
        "Transpose Reshape Conv/1 Relu Reshape Transpose Reshape Reshape Conv/1 Add Relu Reshape",
    ),
    "concatenated frames": (
        "c = Conv <pads = [0, 1, 1, 0, 1, 1]> (x, w) d = Concat <axis = -4> (x, c) y = Conv (d, v)",
        {"w": F, "v": (2, 8, 1, 2, 2)},
        "Transpose Reshape Conv/1 Concat Conv/1 Reshape Transpose",
    ),
    "split": (
        "c = Conv (x, w) p, q = Split <axis = 1> (c, k) s = Relu (q) g = Add (p, s) y = Conv (g, v)",
        {"w": T, "k": [2, 2], "v": (4, 2, 1, 1, 1)},
        TEMPORAL.format("Conv/1 Split Relu Add Conv/1"),
    ),
    "pooled in time between": (
        "c = Conv (x, w) d = ReduceMax (c, a) y = Conv <pads = [1, 0, 0, 1, 0, 0]> (d, v)",
        {"w": T, "v": T, "a": [2]},
        "Reshape Conv/1 Reshape ReduceMax Reshape Conv/1 Reshape",
    ),
    "sampled in space": (
        "y = Conv <strides = [2, 2, 2]> (x, w, b)",
        {"w": P, "b": (4,)},
        f"Slice {TEMPORAL.format('Conv/1')}",
    ),
    "sampled in width, automatic": (
        'y = Conv <strides = [2, 1, 3], auto_pad = "SAME_UPPER"> (x, w)',
        {"w": T},
        f"Slice {TEMPORAL.format('Conv/1')}",
    ),
    "sampled in time": (
        "y = Conv <strides = [2, 2, 2], pads = [0, 1, 1, 0, 1, 1]> (x, w)",
        {"w": F},
        f"Slice {SPATIAL.format('Conv/1')}",
    ),
    "a shortcut that is sampled": (
        "a = Relu (x) c = Conv <pads = [0, 1, 1, 0, 1, 1], strides = [1, 2, 2]> (a, f) d = Relu (c) "
        "e = Conv <pads = [1, 0, 0, 1, 0, 0], strides = [2, 1, 1]> (d, t) s = Conv <strides = [2, 2, 2]> (a, p) "
        "z = Add (e, s) y = Relu (z)",
        {"f": F, "t": T, "p": P},
        "Relu Transpose Reshape Conv/1 Relu Reshape Transpose Slice Reshape Conv/1 Reshape Conv/1 Add Relu Reshape",
    ),
    "two that are sampled": (
        "c = Conv <strides = [2, 2, 2]> (x, p) d = Conv <strides = [2, 2, 2]> (x, q) y = Add (c, d)",
        {"p": P, "q": P},
        "Slice Slice Reshape Conv/1 Reshape Conv/1 Add Reshape",
    ),
    "one sampled behind another": (
        "c = Conv <strides = [2, 2, 2]> (x, p) d = Relu (c) e = Conv <strides = [2, 2, 2]> (d, q) y = Relu (e)",
        {"p": P, "q": P},
        "Slice Reshape Conv/1 Relu Reshape Slice Reshape Conv/1 Relu Reshape",
    ),
    "per position": (
        "c = Conv (x, w) y = Mul (c, k)",
        {"w": P, "k": (6, 7)},
        "Reshape Conv/1 Reshape Mul",
    ),
    "broadcast": (
        "g = ReduceMax (x, a) c = Conv (x, w) d = Mul (c, g) y = Conv (d, v)",
        {"w": P, "v": T, "a": [2, 3, 4]},
        "ReduceMax Reshape Conv/1 Reshape Mul Reshape Conv/1 Reshape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_fixed_sizes(name: str) -> None:
    body, constants, becomes = RUNS[name]
    passed = check(program(body, x=FIXED, **constants), PASS, becomes=becomes, safety=Safety.EXACT)
    assert {len(tensor.dims) for tensor in passed.after.graph.initializer if tensor.name.endswith("weight")} == {4}


@pytest.mark.parametrize("name", [name for name in RUNS if name != "per position"])
def test_runs_of_free_sizes(name: str) -> None:
    body, constants, becomes = RUNS[name]
    passed = check(program(body, x=FREE, **constants), PASS, safety=Safety.EXACT, sizes=SIZES)
    assert _without_shapes(passed.text) == _without_shapes(becomes)


def _without_shapes(text: str) -> str:
    """Without what computes shapes, a product of sizes before a Reshape among it."""
    words = [word for word in text.split() if word not in ("Shape", "Gather", "Concat")]
    return re.sub("(Mul )+Reshape", "Reshape", " ".join(words))


def test_no_shape_is_read_where_one_size_alone_is_free() -> None:
    model = program("y = Conv (x, w)", x="float[N,4,5,6,7]", w=F)
    check(model, PASS, becomes=SPATIAL.format("Conv/1"), sizes=[{"x": (n, 4, 5, 6, 7)} for n in (1, 3)])
    model = program("y = Conv (x, w)", x="float[2,4,D,H,7]", w=T)
    check(model, PASS, becomes=TEMPORAL.format("Conv/1"), sizes=[{"x": (2, 4, d, 6, 7)} for d in (5, 8)])


def test_an_empty_batch_runs() -> None:
    for weight in (T, F):
        model = program("y = Conv (x, w)", x="float[N,4,D,H,W]", w=weight)
        passed = check(model, PASS, sizes=SIZES)
        plain = onnxruntime.SessionOptions()  # optimizing, it puts a -1 back that it cannot infer then
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(passed.after.SerializeToString(), plain)
        (y,) = session.run(None, {"x": np.zeros((0, 4, 5, 6, 7), np.float32)})
        assert y.shape[0] == 0


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (12, None), (13, None), (18, None), (21, None)])
@pytest.mark.parametrize("weight", [T, F])
def test_opsets(weight: tuple[int, ...], opset: int, ir: int | None) -> None:
    body = "c = Conv (x, w, b) d = Mul (k, c) y = Relu (d)"
    model = program(body, x=FREE, w=weight, b=(4,), k=(4, 1, 1, 1), opset=opset, ir=ir)
    check(model, PASS, sizes=SIZES)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("weight", [T, F])
def test_types(weight: tuple[int, ...], dtype: type) -> None:
    kind = "float16" if dtype is np.float16 else "double"
    check(program("y = Conv (x, w)", x=f"{kind}[N,4,D,H,W]", w=weight, dtype=dtype), PASS, sizes=SIZES)


def test_what_others_need_comes_out_under_its_name() -> None:
    body = "c = Conv (x, w) d = Relu (c) p = ReduceMax (d, a) y = Conv (d, v)"
    passed = check(program(body, x=FIXED, y="y c p", w=F, v=F, a=[3]), PASS)
    assert passed.text == (
        "Transpose Reshape Conv/1 Relu Conv/1 Reshape Transpose Reshape Transpose Reshape Transpose ReduceMax"
    )


@pytest.mark.parametrize(("kind", "left"), [("temporal", 1), ("spatial", 1), ("any", 0)])
def test_one_kind_alone(kind: str, left: int) -> None:
    body, constants, _ = RUNS["r2plus1d"]
    passed = check(program(body, x=FIXED, **constants), PASS, {"kind": kind})
    weights = {tensor.name: len(tensor.dims) for tensor in passed.after.graph.initializer}
    assert [weights[node.input[1]] for node in passed.after.graph.node if node.op_type == "Conv"].count(5) == left


@pytest.mark.parametrize(
    ("body", "weight", "reason"),
    [
        ("y = Conv (x, w)", (4, 4, 3, 3, 3), "Its kernel 3x3x3 with stride 1 and its pads join time and space."),
        (
            "y = Conv <pads = [1, 1, 1, 1, 1, 1], strides = [2, 2, 2]> (x, w)",
            P,
            "Its kernel 1x1x1 with stride [2, 2, 2] and its pads join",
        ),
        ("y = Conv <pads = [0, 1, 0, 0, 0, 0], strides = [2, 1, 1]> (x, w)", T, "and its pads join time and space."),
        ("y = Conv <pads = [0, 0, 0, 1, 0, 0]> (x, w)", F, "and its pads join time and space."),
        (
            "y = Conv <pads = [0, 0, 1, 0, 0, 0], strides = [1, 1, 2]> (x, w)",
            T,
            "with stride [1, 1, 2] and its pads join",
        ),
    ],
)
def test_declines(body: str, weight: tuple[int, ...], reason: str) -> None:
    declines(program(body, x=FIXED, w=weight), PASS, reason)


@pytest.mark.parametrize(("x", "weight", "rank"), [("float[N,8,L]", (8, 8, 3), 1), ("float[N,8,5,5]", (8, 8, 3, 3), 2)])
def test_other_ranks_decline(x: str, weight: tuple[int, ...], rank: int) -> None:
    declines(program("y = Conv (x, w)", x=x, w=weight), PASS, f"It is {rank}-D, not 3-D.")


def test_another_kind_is_an_error_and_a_kind_not_wanted_declines() -> None:
    model = program("y = Conv (x, w)", x=FIXED, w=T)
    declines(model, PASS, "It is temporal, and conv3d-to-conv2d.kind is spatial.", {"kind": "spatial"})
    with pytest.raises(BadInput, match="kind is 'time': it must be one of any, temporal, spatial"):
        pass_named(PASS).propose(Graph(Model.load(model)), 0, {"kind": "time"})


def test_slices_have_no_steps_before_opset_10() -> None:
    model = program("y = Conv <strides = [2, 2, 2]> (x, w)", x=FREE, w=P, opset=9)
    declines(
        model, PASS, "Its kernel 1x1x1 with stride [2, 2, 2] needs a Slice with steps, which there is from opset 10"
    )
    check(program("y = Conv <strides = [2, 2, 2]> (x, w)", x=FREE, w=P, opset=10), PASS, sizes=SIZES)


def test_what_is_sampled_is_not_made_by_the_run() -> None:
    """Where all sizes in space are 1 a stride changes none of them: what is sampled could be in the run itself."""
    sampled = "s = Conv <strides = [1, 2, 2], pads = [1, 0, 0, 1, 0, 0]> (c, t)"
    body = f"e = Conv (x, q) c = Conv (x, q) {sampled} a = Add (e, s) y = Add (a, c)"
    becomes = "Reshape Conv/1 Reshape Slice Reshape Reshape Conv/1 Reshape Conv/1 Add Add Reshape"
    check(program(body, x="float[2,4,9,1,1]", t=T, q=P), PASS, becomes=becomes, safety=Safety.EXACT)


def test_r2plus1d_of_the_zoo() -> None:
    model, applied, attempts = sweep(Model.load(zoo_model("video_r2plus1d_18")), Step(pass_named(PASS), {}), {})
    assert len(applied) == 34
    # Its downsampling convolutions, 1x1x1 with stride 2 in time and space, are in runs of others.
    assert [attempt.reason.partition(" that")[0] for attempt in attempts] == ["It is part of the run"] * 3
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    ranks = {tensor.name: len(tensor.dims) for tensor in after.graph.initializer}
    assert {ranks[node.input[1]] for node in after.graph.node if node.op_type == "Conv"} == {4}
