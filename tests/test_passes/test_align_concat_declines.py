"""align-concat: what it declines, and the sentence that it says."""

from __future__ import annotations

from typing import Any

import pytest

from funnel import declines
from programs import program

PASS = "align-concat"
X = "float[N,8,7,9]"
TWO = "a = Conv (x, w1) b = Conv (x, w2, c)"
W2: dict[str, Any] = {"w1": (6, 8, 1, 1), "w2": (3, 8, 1, 1), "c": (3,)}
JOINED = f"{TWO} z = Concat <axis = 1> (a, b)"
LAST: dict[str, Any] = {"v": (5, 9, 1, 1)}
HALVES = "p, q = Split <axis = 1> (r, s)"


@pytest.mark.parametrize(
    ("way", "body", "constants", "reason"),
    [
        ("pad", "y = Conv (x, w)", {"w": (4, 8, 1, 1)}, "Its channels go into no Concat"),
        ("pad", f"{JOINED} y = Conv (z, v)", {**W2, **LAST, "block": 3}, "has inputs of multiples of 3 channels"),
        ("pad", f"{JOINED} y = Relu (z)", W2, "'y' is a graph output"),
        ("pad", f"{JOINED} m = Softmax <axis = 1> (z) y = Conv (m, v)", {**W2, **LAST}, "Softmax is not known"),
        (
            "pad",
            f"{JOINED} m = Conv <group = 3> (z, g) y = Conv (m, v)",
            {**W2, **LAST, "g": (9, 3, 1, 1)},
            "A grouped convolution 'm' is in the component, and would be taken apart",
        ),
        (
            "pad",
            "a = Conv (x, w1) b = Conv (x, w2) z = Concat <axis = 1> (a, b, b, b) y = Conv (z, v)",
            {"w1": (1, 8, 1, 1), "w2": (1, 8, 1, 1), "v": (5, 4, 1, 1)},
            "more than 2 times the blocks",
        ),
        (
            "pad",
            f"{TWO} z = Concat <axis = 1> (a, b) o = Concat <axis = 1> (b, a) g = Add (z, o) y = Conv (g, v)",
            {**W2, **LAST},
            "would be padded in other places",
        ),
        ("pieces", f"{JOINED} y = Conv (z, v)", {**W2, **LAST}, "No Split, Slice or Gather of channels"),
        ("pieces", f"r = Relu (x) {HALVES} y = Conv (p, v)", {"s": [5, 3], "v": (4, 5, 1, 1)}, "made by a graph input"),
        (
            "pieces",
            f"r = Conv (x, w) {HALVES} d = Conv (p, v) e = Conv (q, u) f = Add (d, e) y = Add (f, r)",
            {"w": (8, 8, 1, 1), "s": [5, 3], "v": (8, 5, 1, 1), "u": (8, 3, 1, 1)},
            "It cannot be taken apart: 'r' is read by Add 'y', too",
        ),
        (
            "pieces",
            f"r = Conv (x, w) {HALVES} y = Conv (p, v)",
            {"w": (8, 8, 1, 1), "s": [5, 3], "v": (8, 5, 1, 1), "y": "y r"},
            "It cannot be taken apart: 'r' is a graph output, too",
        ),
        (
            "pieces",
            f"r = Conv <group = 2> (x, w) {HALVES} y = Conv (p, v)",
            {"w": (8, 4, 1, 1), "s": [5, 3], "v": (8, 5, 1, 1)},
            "'r' is made by Conv",
        ),
        (
            "pieces",
            f"{TWO} r = Concat <axis = 1> (a, b) {HALVES} y = Conv (q, u)",
            {**W2, "s": [6, 3], "u": (4, 3, 1, 1), "y": "y p"},
            "'p' is a graph output, so it must stay",
        ),
        (
            "columns",
            f"r = Relu (x) {HALVES} y = Conv <group = 5> (p, v)",
            {"s": [5, 3], "v": (5, 1, 1, 1)},
            "Conv 'y' reads it, and is no dense Conv",
        ),
        (
            "columns",
            f"r = Relu (x) {HALVES} d = Conv (p, v) e = Relu (q) y = Concat <axis = 1> (d, e)",
            {"s": [5, 3], "v": (4, 5, 1, 1)},
            "Relu 'e' reads it, and is no dense Conv",
        ),
        (
            "columns",
            f"r = Relu (x) {HALVES} y = Conv (p, v)",
            {"s": [1, 7], "v": (4, 1, 1, 1)},
            "Reading all 8 channels takes 8.0 times the multiplications, more than 4 times",
        ),
        ("repeat", "y = Conv (x, v)", {"v": (6, 8, 1, 1)}, "goes into no Concat beside a depthwise convolution"),
        (
            "repeat",
            "r = Conv (x, w) d = Conv <group = 6> (r, k) y = Concat <axis = 2> (r, d)",
            {"w": (6, 8, 1, 1), "k": (6, 1, 1, 1)},
            "The Concat is of other tensors as well",
        ),
        (
            "repeat",
            "r = Conv (x, w) d = Conv <group = 6> (r, k) y = Concat <axis = 1> (r, d, x)",
            {"w": (6, 8, 1, 1), "k": (6, 1, 1, 1)},
            "The Concat is of other tensors as well",
        ),
        (
            "repeat",
            "r = Conv (x, w) d = Conv <group = 2> (r, k) y = Concat <axis = 1> (r, d)",
            {"w": (6, 8, 1, 1), "k": (6, 3, 1, 1)},
            "is no depthwise convolution of it",
        ),
        (
            "repeat",
            "r = Conv (x, w) d = Conv <group = 6, pads = [2, 1, 0, 1], dilations = [2, 1]> (r, k) "
            "s = Sigmoid (d) y = Concat <axis = 1> (r, s)",
            {"w": (6, 8, 1, 1), "k": (6, 1, 2, 3)},
            "would go through the activation 's', too",
        ),
        (
            "repeat",
            "r = Conv (x, w) d = Conv <group = 6, pads = [1, 0, 1, 0], dilations = [2, 1]> (r, k) "
            "y = Concat <axis = 1> (r, d)",
            {"w": (6, 8, 1, 1), "k": (6, 1, 2, 1)},
            "does not keep the positions of what it reads",
        ),
        (
            "repeat",
            "r = Conv (x, w) d = Conv <group = 6> (r, k) y = Concat <axis = 1> (r, d)",
            {"w": (6, 8, 1, 1), "k": (6, 1, 1, 1), "y": "y d"},
            "'d' is read by others than Concat 'y'",
        ),
        (
            "columns",
            "p = Gather <axis = 1> (x, i) y = Conv (p, v)",
            {"i": [1, 1], "v": (4, 2, 1, 1)},
            "A channel is picked twice",
        ),
        (
            "columns",
            f"r = Relu (x) {HALVES} y = Conv (p, v)",
            {"s": [5, 3], "v": (4, 5, 1, 1), "y": "y p"},
            "'p' is a graph output, so it must stay",
        ),
    ],
)
def test_declines(way: str, body: str, constants: dict[str, Any], reason: str) -> None:
    constants = dict(constants)
    settings = {"way": way, "block": constants.pop("block", 4)}
    declines(program(body, x=X, y=constants.pop("y", "y"), **constants), PASS, reason, settings)
