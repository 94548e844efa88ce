"""expand-gate: which products have a gate, at every rank and operator set, what is filled up inside, what declines."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rewriter
from funnel import Sizes, check, declines
from programs import program
from rewriter import Safety
from rewriter.candidates import candidates
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named

PASS = "expand-gate"
SE = "g = GlobalAveragePool (c) r = Conv (g, d, e) a = Relu (r) u = Conv (a, f) s = Sigmoid (u) m = Mul (c, s) "
WEIGHTS: dict[str, Any] = {"w": (8, 8, 3, 3), "d": (8, 8, 1, 1), "e": (8,), "f": (8, 8, 1, 1), "v": (4, 8, 1, 1)}
RAGGED: dict[str, Any] = {**WEIGHTS, "d": (6, 8, 1, 1), "e": (6,), "f": (8, 6, 1, 1)}
NET = f"c = Conv <pads = [1, 1, 1, 1]> (x, w) {SE} y = Conv (m, v)"
SIZES: list[Sizes] = [{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]

RIGHT: list[tuple[str, dict[str, Any], Safety]] = [
    (NET, WEIGHTS, Safety.EXACT),
    (NET, RAGGED, Safety.FINITE),
    (NET.replace("Mul (c, s)", "Mul (s, c)"), RAGGED, Safety.FINITE),
    (NET, {**RAGGED, "opset": 10}, Safety.FINITE),
    (NET, {**RAGGED, "opset": 11}, Safety.FINITE),
    (NET, {**RAGGED, "opset": 12}, Safety.FINITE),
    (NET, {**RAGGED, "opset": 21}, Safety.FINITE),
    (f"c = Conv <pads = [1, 1, 1, 1]> (x, w) {SE} y = Relu (m)", WEIGHTS, Safety.EXACT),
    (
        NET.replace("pads = [1, 1, 1, 1]", "pads = [1, 1]"),
        {
            "x": "float[N,8,9]",
            **{key: (*shape[:2], 3 if key == "w" else 1) for key, shape in WEIGHTS.items()},
            "e": (8,),
        },
        Safety.EXACT,
    ),
    (NET, {"x": "float16[N,8,5,5]", "dtype": np.float16, **WEIGHTS}, Safety.EXACT),
]


@pytest.mark.parametrize(("body", "options", "safety"), RIGHT, ids=range(len(RIGHT)))
def test_gates_are_spread(body: str, options: dict[str, Any], safety: Safety) -> None:
    model = program(body, **{"opset": 17, **options})
    sizes = [{"x": (n, 8, 9)} for n in (1, 3)] if "8,9]" in options.get("x", "") else SIZES
    passed = check(model, PASS, safety=safety, sizes=sizes)
    assert "Resize Mul" in passed.text
    inside = {8} if safety is Safety.FINITE else {options["d"][0]}
    assert {made.dims[0] for made in passed.after.graph.initializer if made.dims[1:2] == [8]} >= inside


def test_channels_inside_are_left_with_multiple_0() -> None:
    passed = check(program(NET, opset=17, **RAGGED), PASS, {"multiple": 0}, safety=Safety.EXACT, sizes=SIZES)
    assert all(not made.initializers[1:] for made in passed.rewrites)


@pytest.mark.parametrize(
    ("body", "options", "reason"),
    [
        ("c = Conv (x, w) y = Relu (c)", {}, "No product with a gate of one value per channel is near it."),
        (NET, {"opset": 9}, "There is no Resize before operator set 10."),
        (NET, {"x": "float[N,8,H,W]"}, "The sizes of 'c' are free."),
        (NET, {"x": "float[N,8,1,1]"}, "Both operands of its product have one position."),
        ("c = Conv (x, w) m = Mul (c, x) y = Conv (m, v)", {"w": (8, 8, 1, 1)}, "Neither operand of its product is of"),
        ("c = Conv (x, w) m = Mul (c, k) y = Conv (m, v)", {"k": (8, 1, 1)}, "Its product has a constant operand"),
        (
            "c = Conv (x, w) g = GlobalAveragePool (c) h = ReduceMean <axes = [1]> (g) m = Mul (c, h) y = Conv (m, v)",
            {},
            "The operands of its product differ in channels, or they are not known.",
        ),
        (NET, {"x": "double[N,8,5,5]", "dtype": np.float64}, "ONNX Runtime resizes only float32 and float16."),
        (
            NET,
            {"x": "bfloat16[N,8,5,5]", "dtype": ml_dtypes.bfloat16, "opset": 22},
            "ONNX Runtime resizes only float32 and float16.",
        ),
    ],
)
def test_declines(body: str, options: dict[str, Any], reason: str) -> None:
    declines(program(body, **{"opset": 17, **WEIGHTS, **options}), PASS, reason)


def test_nothing_is_measured_on_a_gpu() -> None:
    model = Model.load(program(NET, opset=17, **WEIGHTS))
    rules = {PASS: pass_named(PASS)}
    assert not candidates(Graph(model, {}, "cuda"), rules, {})[0]
    assert candidates(Graph(model, {}, "cpu"), rules, {})[0]


@pytest.mark.parametrize(("weights", "grade"), [(WEIGHTS, "exact"), (RAGGED, "finite")])
def test_what_the_audit_says(weights: dict[str, Any], grade: str) -> None:
    report = rewriter.rewrite(program(NET, opset=17, **weights), [PASS]).report
    assert (report.verdict, report.grade) == ("equivalent", grade), report.reason
