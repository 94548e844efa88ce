"""merge-multiplier: depthwise convolutions side by side as one; the way there and back is in test_split_multiplier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rewriter
from funnel import Sizes, check, declines
from programs import program
from rewriter import Safety

PASS = "merge-multiplier"
X = "float[N,4,6,5]"
SIZES: list[Sizes] = [{"x": (1, 4, 6, 5)}, {"x": (3, 4, 6, 5)}]
W, B, V = (4, 1, 3, 3), (4,), (5, 8, 1, 1)
PAIR = "a = Conv <group = 4> (x, w) b = Conv <group = 4> (x, w2)"
BIASED = "a = Conv <group = 4> (x, w, c) b = Conv <group = 4> (x, w2, c2)"

RIGHT: list[tuple[str, dict[str, Any], str]] = [
    (f"{PAIR} y = Concat <axis = 1> (a, b)", {}, "Conv/4 Gather"),
    (f"{BIASED} y = Concat <axis = -3> (b, a)", {"c": B, "c2": B}, "Conv/4 Gather"),
    (f"{PAIR} t = Concat <axis = 1> (a, b) y = Conv (t, v)", {"v": V}, "Conv/4 Conv/1"),
    (f"{PAIR} t = Concat <axis = 1> (a, b) r = Relu (t) y = Conv (r, v)", {"v": V}, "Conv/4 Relu Conv/1"),
    (  # the opposite order goes away
        f"{PAIR} t = Concat <axis = 1> (a, b) y = Gather <axis = 1> (t, o)",
        {"o": [0, 4, 1, 5, 2, 6, 3, 7]},
        "Conv/4",
    ),
    (  # another order does not
        f"{PAIR} t = Concat <axis = 1> (a, b) y = Gather <axis = 1> (t, o)",
        {"o": [0, 4, 1, 5, 2, 6, 7, 3]},
        "Conv/4 Gather Gather",
    ),
]


@pytest.mark.parametrize(("body", "constants", "becomes"), RIGHT, ids=[case[0] for case in RIGHT])
def test_convolutions_side_by_side_become_one(body: str, constants: dict[str, Any], becomes: str) -> None:
    model = program(body, x=X, **{"w": W, "w2": W, **constants})
    check(model, PASS, becomes=becomes, safety=Safety.EXACT, sizes=SIZES)
    assert rewriter.rewrite(model, [PASS]).report.verdict == "equivalent"


def test_by_hand() -> None:
    w, w2 = (np.array(numbers, np.float32).reshape(2, 1, 1) for numbers in ([1, 3], [2, 4]))
    body = "a = Conv <group = 2> (x, w) b = Conv <group = 2> (x, w2) y = Concat <axis = 1> (a, b)"
    passed = check(program(body, x="float[2,2,3]", w=w, w2=w2), PASS)
    assert passed.initializer("weight").reshape(-1).tolist() == [1, 2, 3, 4]
    assert passed.initializer("indices").tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        (f"{PAIR} y = Add (a, b)", {}, "It goes into Add, not Concat."),
        (f"{PAIR} y = Concat <axis = 2> (a, b)", {}, "The Concat behind it does not join channels."),
        (f"{PAIR} y = Concat <axis = 1> (x, a, b)", {}, "It is no first input of its Concat: 'x' is."),
        (f"{PAIR} r = Relu (b) y = Concat <axis = 1> (a, r)", {}, "joins 'r', which is no convolution's output."),
        (f"{PAIR} t = Concat <axis = 1> (a, b) m = Neg (b) y = Concat <axis = 1> (t, m)", {}, "'b' has 2 readers"),
        ("a = Conv <group = 4> (x, w) y = Concat <axis = 1> (a)", {"w2": None}, "joins nothing else."),
        (
            "a = Conv <group = 4> (x, w) r = Relu (x) b = Conv <group = 4> (r, w2) y = Concat <axis = 1> (a, b)",
            {},
            "'b' comes from another tensor or a convolution of another shape.",
        ),
        (
            "a = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w) "
            "b = Conv <group = 4, pads = [2, 2, 2, 2], dilations = [2, 2]>"
            " (x, w2) y = Concat <axis = 1> (a, b)",
            {},
            "The convolution of 'b' has other attributes.",
        ),
        (
            "a = Conv <group = 4> (x, w, c) b = Conv <group = 4> (x, w2) y = Concat <axis = 1> (a, b)",
            {"c": B},
            "One of 'a' and 'b' has a bias and the other has none.",
        ),
        (
            "a = Conv (x, w) b = Conv (x, w2) y = Concat <axis = 1> (a, b)",
            {"w": (4, 4, 3, 3), "w2": (4, 4, 3, 3)},
            "no depthwise",
        ),
    ],
)
def test_declines(body: str, constants: dict[str, Any], reason: str) -> None:
    given = {name: value for name, value in {"w": W, "w2": W, **constants}.items() if value is not None}
    declines(program(body, x="float[3,4,5,5]" if "(x, a, b)" in body else X, **given), PASS, reason)


def test_an_output_in_the_middle_stays() -> None:
    model = program(f"{PAIR} y = Concat <axis = 1> (a, b)", x=X, y="y b", w=W, w2=W)
    declines(model, PASS, "'b' is a graph output, so it must stay.")
