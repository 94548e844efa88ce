"""depthwise-sum-to-grouped: axes of size 1 that come and go, as in a 1-D convolution written as a 2-D one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from depthwise_sums import PASS, plain
from funnel import Sizes, check, declines, run
from models.emit import Array
from rewriter import Safety

FLAT: dict[str, Any] = {"w": (16, 1, 1, 3), "s": [0, 2, 4, 2, -1], "m": [0, 4, -1], "two": [2]}
WIDTHS: list[Sizes] = [{"x": (2, 8, 7)}, {"x": (1, 8, 40)}, {"x": (5, 8, 9)}, {"x": (3, 8, 1)}]
ROW = "u = Unsqueeze (x, two) wide = Conv <group = 8, pads = [0,1,0,1]> (u, w)"
TAIL = "sum = ReduceSum <keepdims = 0> (split, two) y = Reshape (sum, m)"
LAST = [{"x": (2, 7, 8)}, {"x": (1, 40, 8)}, {"x": (5, 9, 8)}]
LAST_ROW = f"""
    e = Unsqueeze (x, one) u = Transpose <perm = [0,3,1,2]> (e)
    {ROW.partition(" ")[2].partition(") ")[2]} t = Transpose <perm = [0,2,3,1]> (wide)"""
POINT = "wide = Conv <group = 8> (x, w)"
POINTS = [{"x": (2, 8, 3, 3)}, {"x": (1, 8, 3, 3)}, {"x": (7, 8, 3, 3)}]
ONE = [{"x": (1, 8, 5, 7)}, {"x": (1, 8, 40, 3)}]


@pytest.mark.parametrize(
    ("body", "options", "becomes", "sizes"),
    [
        # A 1-D convolution as a 2-D one: the height dropped before the sum, by a Squeeze or a Reshape, or after it.
        (f"{ROW} q = Squeeze (wide, two) split = Reshape (q, s) {TAIL}", FLAT, "Unsqueeze Conv/2 Squeeze", WIDTHS),
        (f"{ROW} split = Reshape (wide, s) {TAIL}", FLAT, "Unsqueeze Conv/2 Squeeze", WIDTHS),
        (f"{ROW} split = Reshape (wide, s) sum = ReduceSum <keepdims = 0> (split, two) z = Reshape (sum, m)"
         " y = Squeeze (z, two)", FLAT | {"s": [0, 2, 4, 2, 1, -1], "m": [0, 4, 1, -1]}, "Unsqueeze Conv/2 Squeeze",
         WIDTHS),
        # Dropped in the middle only.
        (f"{ROW} q = Squeeze (wide, two) split = Reshape (q, s) {TAIL}", FLAT | {"m": [0, 4, 1, -1]},
         "Unsqueeze Conv/2", WIDTHS),
        # The channels stay in two axes, before and behind a width of its own size at each run.
        (f"{ROW} q = Squeeze (wide, two) split = Reshape (q, s) y = ReduceSum <keepdims = 0> (split, two)",
         {name: FLAT[name] for name in ("w", "s", "two")}, "Unsqueeze Conv/2 Reshape", WIDTHS),
        (f"{ROW} q = Squeeze (wide, two) split = Reshape (q, s) z = ReduceSum <keepdims = 0> (split, two)"
         " y = Transpose <perm = [0,3,1,2]> (z)", {name: FLAT[name] for name in ("w", "s", "two")},
         "Unsqueeze Conv/2 Transpose Reshape", WIDTHS),
        # No channel axis is left at all.
        (f"{ROW} q = Squeeze (wide, two) y = ReduceSum <keepdims = 0> (q, one)", {"w": FLAT["w"], "two": [2],
         "one": [1]}, "Unsqueeze Conv/1 Transpose Reshape", WIDTHS),
        # Channels last, the form of TensorFlow.
        (f"{LAST_ROW} q = Squeeze (t, one) split = Reshape (q, s) sum = ReduceSum <keepdims = 0> (split, three)"
         " y = Reshape (sum, m)", {"w": FLAT["w"], "s": [0, 0, 2, 4, 2], "m": [0, 0, 4], "one": [1], "three": [3]},
         "Unsqueeze Transpose Conv/2 Transpose Squeeze", LAST),
        # A head of 1×1 positions.
        (f"{POINT} split = Reshape (wide, s) {TAIL}", {"s": [0, 2, 4, 2], "m": [0, 4]}, "Conv/2 Squeeze", POINTS),
        (f"{POINT} split = Reshape (wide, s) y = ReduceSum <keepdims = 0> (split, two)", {"s": [0, 2, 4, 2]},
         "Conv/2 Reshape", POINTS),
        (f"{POINT} split = Reshape (wide, s) {TAIL}", {"s": [0, 2, 4, 2, 1], "m": [0, 4, 1]}, "Conv/2 Squeeze", POINTS),
        # A batch of one.
        (f"{POINT} split = Reshape (wide, s) sum = ReduceSum <keepdims = 0> (split, one) n = Shape <start = 2> (wide)"
         " k = Concat <axis = 0> (m, n) y = Reshape (sum, k)", {"s": [2, 4, 2, -1], "m": [4], "one": [1]},
         "Conv/2 Squeeze", ONE),
    ],
)  # fmt: skip
def test_axes_of_size_one_for_every_input_may_go(
    body: str, options: dict[str, Any], becomes: str, sizes: list[Sizes]
) -> None:
    shape = {3: "N,8,W", 4: "N,8,3,3"}[len(sizes[0]["x"])]
    shape = "N,W,8" if sizes is LAST else "1,8,H,W" if sizes is ONE else shape
    safety = Safety.ROUNDING if "Conv/1" in becomes else Safety.EXACT  # all of a channel's filters are summed
    check(plain(body, f"float[{shape}]", **options), PASS, becomes=becomes, safety=safety, sizes=sizes)


@pytest.mark.parametrize("opset", [11, 13, 22])
def test_axes_of_the_squeeze_are_written_as_the_opset_has_them(opset: int) -> None:
    axes = opset < 13
    squeeze, total = ("Squeeze <axes = [2]> (wide)", "<keepdims = 0, axes = [2]> (split)") if axes else (
        "Squeeze (wide, two)", "<keepdims = 0> (split, two)")  # fmt: skip
    unsqueeze = "Unsqueeze <axes = [2]> (x)" if axes else "Unsqueeze (x, two)"
    body = f"""
        u = {unsqueeze} wide = Conv <group = 8, pads = [0,1,0,1]> (u, w) q = {squeeze}
        split = Reshape (q, s) sum = ReduceSum {total} y = Reshape (sum, m)"""
    model = plain(body, "float[N,8,W]", opset=opset, **FLAT)
    check(model, PASS, becomes="Unsqueeze Conv/2 Squeeze", sizes=WIDTHS)


def test_a_size_that_is_one_for_some_inputs_only_is_not_dropped() -> None:
    """Height H // 1000 + 1: one where it is proved, two for a tall input, whose rows then follow each other."""
    body = f"""
        shape = Shape <start = 2, end = 3> (x) thousands = Div (shape, thousand) height = Add (thousands, one)
        rows = Slice (x, zero, height, two) wide = Conv <group = 8, pads = [0,1,0,1]> (rows, w)
        split = Reshape (wide, s) {TAIL}"""
    given = FLAT | {"thousand": [1000], "one": [1], "zero": [0]}
    model = plain(body, "float[N,8,H,W]", **given)
    declines(
        model,
        PASS,
        "Batch or space do not keep one axis each after it: axis 2 of its output, a spatial axis of size 1, is "
        "dropped, and other inputs may give it another size",
    )
    assert [result.shape for result in results(model, (1, 8, 9, 5), (2, 8, 1000, 5))] == [(1, 4, 5), (2, 4, 10)]
    check(plain(body, "float[2,8,9,5]", **given), PASS)


def results(model: onnx.ModelProto, *shapes: tuple[int, ...]) -> list[Array]:
    return [run(model, {"x": np.ones(shape, np.float32)}, "all")["y"] for shape in shapes]


def test_a_batch_of_one_by_the_constants_alone_is_not_dropped() -> None:
    """The model takes any batch, and its Reshape mixes batch and positions where that is not 1."""
    body = f"{POINT} split = Reshape (wide, s) sum = ReduceSum <keepdims = 0> (split, one) y = Reshape (sum, m)"
    options: dict[str, Any] = {"s": [2, 4, 2, -1], "m": [4, -1], "one": [1]}
    model = plain(body, "float[N,8,3,3]", **options)
    declines(model, PASS, "axis 0 of its output, the batch of size 3, has none of its own")
    check(plain(body, "float[1,8,3,3]", **options), PASS, becomes="Conv/2 Squeeze", sizes=[{}])


@pytest.mark.parametrize(("tensor", "expected"), [("q", [16, 9]), ("split", [2, 4, 2, 9])])
def test_the_shape_of_a_tensor_without_the_axis_is_made_again(tensor: str, expected: list[int]) -> None:
    body = f"""
        {ROW} q = Squeeze (wide, two) split = Reshape (q, s) {TAIL}
        n = Shape ({tensor}) z = Expand (c, n)"""
    model = plain(body, "float[N,8,W]", y="y z", c=np.full(1, 1.5, np.float32), **FLAT)
    passed = check(model, PASS, compute=False)
    assert "Conv/2" in passed.text
    for batch in (1, 4):
        feed = {"x": np.ones((batch, 8, 9), np.float32)}
        assert list(run(passed.after, feed, "all")["z"].shape) == [batch, *expected]
