"""reduce-mean-to-global-pool: which means are pools, at every rank and operator set, and what declines."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rewriter
from funnel import Sizes, check, declines
from programs import program
from rewriter import Safety

PASS = "reduce-mean-to-global-pool"
SIZES: list[Sizes] = [{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]
W = (8, 8, 1, 1)
BF16 = ml_dtypes.bfloat16

RIGHT: list[tuple[str, dict[str, Any], str]] = [
    ("c = Conv (x, w) y = ReduceMean <axes = [2, 3]> (c)", {}, "Conv/1 GlobalAveragePool"),
    ("c = Conv (x, w) y = ReduceMean <axes = [-1, 2], keepdims = 1> (c)", {}, "Conv/1 GlobalAveragePool"),
    ("c = Conv (x, w) y = ReduceMean <axes = [2, 3], keepdims = 0> (c)", {}, "Conv/1 GlobalAveragePool Squeeze"),
    ("m = ReduceMean <axes = [2, 3]> (x) y = Conv (m, w)", {}, "GlobalAveragePool Conv/1"),
    (
        "c = Conv (x, w) r = Relu (c) a = Add (r, x) m = ReduceMean <axes = [2, 3]> (a) y = Sigmoid (m)",
        {},
        "Conv/1 Relu Add GlobalAveragePool Sigmoid",
    ),
    ("c = Conv (x, w) y = ReduceMean (c, s)", {"opset": 18, "s": [2, 3]}, "Conv/1 GlobalAveragePool"),
    (
        "c = Conv (x, w) y = ReduceMean <keepdims = 0> (c, s)",
        {"opset": 21, "s": [-1, -2]},
        "Conv/1 GlobalAveragePool Squeeze",
    ),
    ("c = Conv (x, w) y = ReduceMean <axes = [2, 3], keepdims = 0> (c)", {"opset": 7, "ir": 3}, ""),
    ("c = Conv (x, w) y = ReduceMean <axes = [2], keepdims = 0> (c)", {"x": "float[2,8,9]", "w": (8, 8, 3)}, ""),
    ("c = Conv (x, w) y = ReduceMean <axes = [2, 3, 4]> (c)", {"x": "float[2,8,3,4,5]", "w": (8, 8, 1, 1, 1)}, ""),
    ("c = Conv (x, w) y = ReduceMean <axes = [2, 3]> (c)", {"x": "float16[N,8,5,5]", "dtype": np.float16}, ""),
    ("c = Conv (x, w) y = ReduceMean <axes = [2, 3]> (c)", {"x": "float[N,8,H,W]"}, "Conv/1 GlobalAveragePool"),
]


@pytest.mark.parametrize(("body", "options", "becomes"), RIGHT, ids=[str(case[:2]) for case in RIGHT])
def test_means_over_all_positions_are_pools(body: str, options: dict[str, Any], becomes: str) -> None:
    model = program(body, **{"opset": 17, "w": W, **options})
    sizes = SIZES if "N" in options.get("x", "N") else [{}]
    passed = check(model, PASS, becomes=becomes or None, safety=Safety.ROUNDING, sizes=sizes)
    assert "ReduceMean" not in passed.text
    assert ("Squeeze" in passed.text) == ("keepdims = 0" in body)


def test_bfloat16() -> None:
    """Nothing here can run it."""
    model = program("c = Conv (x, w) y = ReduceMean (c, s)", x="bfloat16[N,8,5,5]", opset=22, dtype=BF16, w=W, s=[2, 3])
    check(model, PASS, becomes="Conv/1 GlobalAveragePool", compute=False)


@pytest.mark.parametrize(
    ("body", "options", "reason"),
    [
        (
            "c = Conv (x, w) y = ReduceMean <axes = [2]> (c)",
            {},
            "the mean over axes [2], not over all spatial axes [2, 3]",
        ),
        ("c = Conv (x, w) y = ReduceMean <axes = [1, 2, 3]> (c)", {}, "It is the mean over axes [1, 2, 3], not over"),
        ("c = Conv (x, w) y = ReduceMean (c)", {}, "It is the mean over no axes that are known, not over"),
        ("c = Conv (x, w) f = Flatten (c) y = ReduceMean <axes = [1]> (f)", {}, "No mean over positions is near it."),
        ("s = Softmax (x) m = ReduceMean <axes = [2, 3]> (s) r = Softmax (m) y = Conv (r, w)", {}, "No mean over"),
    ],
)
def test_declines(body: str, options: dict[str, Any], reason: str) -> None:
    declines(program(body, **{"opset": 17, "w": W, **options}), PASS, reason)


def test_what_the_audit_says() -> None:
    model = program("c = Conv (x, w) y = ReduceMean <axes = [2, 3]> (c)", opset=17, w=W)
    report = rewriter.rewrite(model, [PASS]).report
    assert report.verdict == "equivalent", report.reason
