"""Small models of convolutions side by side and of block-diagonal weights: what the laws try passes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from programs import program

_SPLIT = "a, b, c = Split <axis = 1> (r, s)"
_MIXED = (
    "p = Conv <group = 4, pads = [1, 1, 1, 1]> (a, w3) q = Conv <group = 2, pads = [2, 2, 2, 2]> (b, w5) "
    "t = Conv <group = 2> (c, w1) z = Concat <axis = 1> (p, q, t)"
)
_SLICES = "a = Slice (r, zero, four, one) b = Slice (r, four, eight, one)"
_SWAPPED = "p = Conv <strides = [2, 2]> (a, v, d) q = Conv <strides = [2, 2]> (b, w) y = Concat <axis = 1> (q, p)"


def branch_models() -> dict[str, onnx.ModelProto]:
    """By name; x is [N, 8, 7, 9]."""
    x = "float[N,8,7,9]"
    narrow = (6, 4, 3, 3)
    bounds: dict[str, Any] = {"zero": [0], "one": [1], "four": [4], "eight": [8]}
    return {
        "mixed kernels": program(
            f"r = Relu (x) {_SPLIT} {_MIXED} y = Relu (z)",
            x=x,
            s=[4, 2, 2],
            w3=(4, 1, 3, 3),
            w5=(2, 1, 5, 5),
            w1=(2, 1, 1, 1),
        ),
        "swapped slices": program(
            f"r = Conv (x, u) {_SLICES} {_SWAPPED}", x=x, u=(8, 8, 1, 1), v=narrow, w=narrow, d=(6,), **bounds
        ),
        "one input": program(
            "p = Conv (x, v) q = Conv (x, w) z = Concat <axis = 1> (p, q) y = Relu (z)",
            x=x,
            v=(3, 8, 3, 3),
            w=(5, 8, 3, 3),
        ),
        "block diagonal": program("y = Conv <strides = [2, 1]> (x, w, b)", x=x, w=_shuffled_blocks(), b=(8,)),
    }


def _shuffled_blocks() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A dense weight `[8, 8, 3, 3]` of four blocks, its inputs interleaved."""
    rng = np.random.default_rng(5)
    weight = np.zeros((8, 8, 3, 3), np.float32)
    for block in range(4):
        rows = slice(2 * block, 2 * block + 2)
        weight[rows, [block, block + 4]] = rng.standard_normal((2, 2, 3, 3))
    return weight


BRANCHED = frozenset({"dense-to-grouped", "merge-split-groups"})
"""Passes that apply to these models, where the laws' own have nothing for them."""
EXACT_ON_INTEGERS = frozenset({"mixed kernels", "swapped slices", "one input"})
"""Models that stay what they are when every weight is an integer that is not zero."""
