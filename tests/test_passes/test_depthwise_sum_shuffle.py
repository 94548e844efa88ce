"""depthwise-sum-to-grouped: the channel shuffle that interleaved groups need, and where it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from depthwise_sums import BATCHES, PASS, SUM, WIDE, plain, sizes
from funnel import check, declines
from models.grouped import GroupedConv, grouped_conv_model
from rewriter import Safety

CARDINAL = f"{WIDE} split = Reshape (wide, s) y = ReduceSum <keepdims = 0> (split, one)"
INTERLEAVED: dict[str, Any] = {"s": [0, 4, 4, 5, 5], "one": [1]}  # [N, I, G·O, H, W]
SPEC = GroupedConv("depthwise_sum", groups=3, in_per_group=2, out_per_group=4, spatial=(5, 6))
PRODUCED = CARDINAL.replace("(x, w)", "(a, w)")


@pytest.mark.parametrize(
    ("how", "becomes"),
    [
        ("auto", "Gather Conv/2"),
        ("gather", "Gather Conv/2"),
        ("reshape", "Reshape Transpose Reshape Conv/2"),
    ],
)
def test_the_shuffle_of_a_graph_input(how: str, becomes: str) -> None:
    model = plain(CARDINAL, **INTERLEAVED)
    check(model, PASS, {"shuffle": how}, becomes=becomes, safety=Safety.EXACT, sizes=BATCHES)


@pytest.mark.parametrize("how", ["gather", "reshape"])
def test_the_shuffle_at_sizes_known_only_at_run_time(how: str) -> None:
    spec = replace(SPEC, order="interleaved", shapes="dynamic")
    passed = check(grouped_conv_model(spec), PASS, {"shuffle": how}, safety=Safety.EXACT, sizes=sizes(spec))
    assert passed.text.endswith("Reshape Conv/3" if how == "reshape" else "Gather Conv/3")


@pytest.mark.parametrize(
    ("before", "becomes"),
    [
        ("a = Conv (x, v)", "Conv/1 Conv/2"),
        ("a = Conv (x, v, b)", "Conv/1 Conv/2"),
        ("c = Conv (x, v, b) a = Relu (c)", "Conv/1 Relu Conv/2"),
        ("c = Conv (x, v) d = Clip (c, low, high) a = Sigmoid (d)", "Conv/1 Clip Sigmoid Conv/2"),
        ("v1 = Identity (v) a = Conv (x, v1)", "Conv/1 Conv/2"),
        # Not through these, nor where somebody else reads: then by a Gather.
        ("c = Conv (x, v) a = Softmax <axis = 1> (c)", "Conv/1 Softmax Gather Conv/2"),
        ("c = Conv (x, v) a = PRelu (c, slope)", "Conv/1 PRelu Gather Conv/2"),
        ("a = Conv <group = 2> (x, v4)", "Conv/2 Gather Conv/2"),
        ("v1 = Neg (v) a = Conv (x, v1)", "Neg Conv/1 Gather Conv/2"),
        ("a = MaxPool <kernel_shape = [1,1]> (x)", "MaxPool Gather Conv/2"),
        ("c = Conv (x, v) a = Dropout (c, half, no)", "Conv/1 Dropout Gather Conv/2"),
    ],
)
def test_the_shuffle_in_the_weights_before(before: str, becomes: str) -> None:
    constants: dict[str, Any] = {
        "v": (8, 8, 1, 1), "v4": (8, 4, 1, 1), "b": (8,), "low": np.float32(-1), "high": np.float32(2),
        "slope": np.arange(8, dtype=np.float32).reshape(8, 1, 1) / 10, "half": np.float32(0.5), "no": np.array(False),
    }  # fmt: skip
    model = plain(f"{before} {PRODUCED}", **INTERLEAVED, **constants)
    folds = "Gather" not in becomes
    exact = not {"Sigmoid", "Softmax"} & set(becomes.split())
    check(model, PASS, becomes=becomes, safety=Safety.EXACT, sizes=BATCHES, integers=exact)
    if folds:
        check(model, PASS, {"shuffle": "producer"}, becomes=becomes, sizes=BATCHES, integers=False)
        check(model, PASS, {"shuffle": "gather"}, sizes=BATCHES, integers=False)
    else:
        declines(model, PASS, "", {"shuffle": "producer"})


@pytest.mark.parametrize(
    ("body", "y", "reason"),
    [
        (f"a = Conv (x, v) {PRODUCED} z = Relu (a)", "y z", "'a' has other readers"),
        (f"c = Conv (x, v) a = Relu (c) {PRODUCED} z = Neg (c)", "y z", "'c' has other readers"),
        (f"a = Conv (x, v) {PRODUCED}", "y a", "'a' is a graph output"),
        (f"c = Conv (x, v) a = Softmax (c) {PRODUCED}", "y", "Softmax at 'a' stands between the shuffle and"),
        (f"a = Relu (x) {PRODUCED}", "y", "No convolution comes before 'x' to take the shuffle"),
        (f"a = Conv <group = 2> (x, u) {PRODUCED}", "y", "The convolution before has 2 groups"),
        (CARDINAL, "y", "'x' has other readers"),
    ],
)
def test_what_the_convolution_before_cannot_take(body: str, y: str, reason: str) -> None:
    also = " z = Relu (x)" if body == CARDINAL else ""
    y = "y z" if also else y
    model = plain(body + also, y=y, v=(8, 8, 1, 1), u=(8, 4, 1, 1), **INTERLEAVED)
    declines(model, PASS, reason, {"shuffle": "producer"})
    passed = check(model, PASS, sizes=BATCHES, integers="Softmax" not in body)
    assert "Gather Conv/2" in passed.text


def test_shape_arithmetic_on_the_input_does_not_keep_the_shuffle_out_of_the_weights_before() -> None:
    body = f"""
        a = Conv (x, v) {WIDE.replace("(x, w)", "(a, w)")} shape = Shape (a) n = Slice (shape, zero, one, zero)
        four = Concat <axis = 0> (n, rest) split = Reshape (wide, four) y = ReduceSum <keepdims = 0> (split, one)"""
    model = plain(body, v=(8, 8, 1, 1), zero=[0], one=[1], rest=[4, 4, 5, 5])
    check(model, PASS, becomes="Conv/1 Conv/2", safety=Safety.EXACT, sizes=BATCHES)


def test_an_irregular_order_has_no_reshape_and_a_choice_of_channels_neither() -> None:
    body = f"{WIDE} g = Gather <axis = 1> (wide, p) t = Reshape (g, s) y = ReduceSum <keepdims = 0> (t, two)"
    irregular = plain(body, p=[0, 6, 4, 2, 8, 10, 12, 14], s=[0, 2, 4, 5, 5])
    # Channels 0, 2, 1 and 3 of 8 look like an interleave of 4.
    choice = plain(body, p=[0, 2, 4, 6], s=[0, 2, 2, 5, 5])
    crossed = plain(body, p=[0, 4, 2, 6], s=[0, 2, 2, 5, 5])
    check(crossed, PASS, {"shuffle": "gather"}, becomes="Gather Conv/2", sizes=BATCHES)
    check(choice, PASS, {"shuffle": "auto"}, becomes="Gather Conv/2", sizes=BATCHES)
    for model in (choice, crossed):
        declines(model, PASS, "no regular interleave", {"shuffle": "reshape"})
    check(irregular, PASS, {"shuffle": "reshape"}, becomes="Conv/2", sizes=BATCHES)


def test_without_a_shuffle_those_that_need_one_are_left_alone() -> None:
    inputs = plain(CARDINAL, **INTERLEAVED)
    declines(inputs, PASS, "Its groups need a channel shuffle, and its setting shuffle is none", {"shuffle": "none"})
    outputs = plain(f"{SUM} t = Transpose <perm = [0, 2, 1, 3, 4]> (sum) y = Reshape (t, m)")
    check(outputs, PASS, becomes="Conv/2 Gather", sizes=BATCHES)
    declines(outputs, PASS, f"Its outputs need a channel shuffle, and {PASS}.shuffle is none", {"shuffle": "none"})
