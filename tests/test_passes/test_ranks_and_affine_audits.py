"""What the audit says of right rewrites of conv1d-to-conv2d, conv3d-to-conv2d and fold-affine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from programs import program
from rewriter.api import rewrite

W1, WT, WF, W2 = (8, 8, 3), (8, 8, 3, 1, 1), (8, 8, 1, 3, 3), (8, 8, 3, 3)
SERIES, VIDEO, IMAGE = "float[2,8,40]", "float[2,8,4,9,9]", "float[2,8,11,11]"
NORM: dict[str, Any] = {"s": (8,), "t": (8,), "mu": (8,), "var": np.linspace(0.5, 2, 8, dtype=np.float32)}
ERF = "d = Div (c, r) e = Erf (d) f = Add (e, k) g = Mul (c, f) h = Mul (g, m)"
SCALARS: dict[str, Any] = {"r": np.float32(1.4), "k": np.float32(1), "m": np.float32(0.5)}
CONCAT = "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Conv (x, v) c = Concat <axis = 1> (a, b) "

# (pass, body, input, constants, grade).
Case = tuple[str, str, str, Mapping[str, Any], str]
CASES: dict[str, Case] = {
    "one series": ("conv1d-to-conv2d", "y = Conv (x, w)", SERIES, {"w": W1}, "exact"),
    "relu between": (
        *("conv1d-to-conv2d", "c = Conv (x, w) d = Relu (c) y = Conv (d, v)", SERIES),
        *({"w": W1, "v": W1}, "exact"),
    ),
    "gelu between": (
        *("conv1d-to-conv2d", f"c = Conv (x, w) {ERF} y = Conv (h, v)", SERIES),
        *({"w": W1, "v": W1, **SCALARS}, "exact"),
    ),
    "temporal": ("conv3d-to-conv2d", "c = Conv (x, w) y = Relu (c)", VIDEO, {"w": WT}, "exact"),
    "spatial": ("conv3d-to-conv2d", "c = Conv (x, w) y = Relu (c)", VIDEO, {"w": WF}, "exact"),
    "norm behind": (
        *("fold-affine", "c = Conv (x, w) y = BatchNormalization (c, s, t, mu, var)", IMAGE),
        *({"w": W2, **NORM}, "rounding"),
    ),
    "norm behind a concat": (
        *("fold-affine", CONCAT + "y = BatchNormalization (c, s, t, mu, var)", IMAGE),
        *({"w": (5, 8, 3, 3), "v": (3, 8, 1, 1), **NORM}, "rounding"),
    ),
    "scale before": (
        *("fold-affine", "d = Mul (x, k) y = Conv <pads = [1, 1, 1, 1]> (d, w)", IMAGE),
        *({"w": W2, "k": (8, 1, 1)}, "rounding"),
    ),
    "shift before": (
        *("fold-affine", "d = Add (x, k) y = Conv (d, w)", IMAGE),
        *({"w": W2, "k": (8, 1, 1)}, "rounding"),
    ),
    "norm before": (
        *("fold-affine", "d = BatchNormalization (x, s, t, mu, var) y = Conv (d, w)", IMAGE),
        *({"w": W2, **NORM}, "rounding"),
    ),
    "pad": (
        *("fold-affine", "d = Pad (x, p) y = Conv (d, w)", IMAGE),
        *({"w": W2, "p": [0, 0, 1, 1, 0, 0, 1, 1]}, "exact"),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_right_rewrite_is_proven(name: str) -> None:
    rule, body, x, constants, grade = CASES[name]
    report = rewrite(program(body, x=x, **constants), [rule]).report
    assert (report.verdict, report.grade) == ("equivalent", grade), report.reason
