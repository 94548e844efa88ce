"""Programs of convolutions side by side, their outputs concatenated: x is [N, 8, 5, 5] unless they say otherwise."""

from __future__ import annotations

import re
from typing import Any

import onnx

from programs import program

SPLIT = "a, b = Split <axis = 1> (x, s)"
TWO = "p = Conv (a, v) q = Conv (b, w)"
JOIN = "y = Concat <axis = 1> (p, q)"
S, W = [4, 4], (3, 4, 3, 3)


def build(body: str, **constants: Any) -> onnx.ModelProto:
    """A program with the constants that it reads."""
    given: dict[str, Any] = {"s": S, "v": W, "w": W, "c": (3,), "d": (3,)} | constants
    options = {name: given.pop(name) for name in ("x", "y", "opset", "ir", "dtype") if name in given}
    operands = {name for part in re.findall(r"\(([^()]*)\)", body) for name in part.split(", ")}
    read = operands & given.keys()
    return program(body, **options, **{name: value for name, value in given.items() if name in read})


KERNELS = f"{SPLIT} p = Conv <pads = [1,1,1,1]{{0}}> (a, v) q = Conv <pads = [2,2,2,2]{{0}}> (b, w) {JOIN}"
LARGER = {"w": (3, 4, 5, 5)}
SWAPPED = f"{SPLIT} {TWO} y = Concat <axis = 1> (q, p)"
BEFORE = f"k = Conv (x, u) h = Relu (k) a, b = Split <axis = 1> (h, s) {TWO} y = Concat <axis = 1> (q, p)"
INTERLEAVED = {"i": [0, 2, 4, 6], "j": [1, 3, 5, 7]}
PICKED = f"a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) {TWO} {JOIN}"
