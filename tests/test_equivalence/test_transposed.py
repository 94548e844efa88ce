"""Right rewrites of transposed convolutions: each is called equivalent, with its grade, by every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.equivalence.oracle import cut_of
from rewriter.equivalence.rounding import estimate
from test_equivalence.nets import Array, audited, by_name_only, caught, chain
from test_equivalence.wrong_transposed import (
    STRIDED,
    apart,
    as_convolution,
    deconv,
    dense,
    net,
    weights,
)

GEOMETRIES: list[dict[str, Any]] = [
    {},
    STRIDED,
    {"dilations": [2, 3]},
    {"strides": [3, 1], "dilations": [1, 2], "output_padding": [2, 0]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [3, 3], "output_shape": [13, 16], "auto_pad": "SAME_UPPER"},
    {"auto_pad": "VALID", "strides": [2, 2]},
]


def levels(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[str, str | None, list[str]]:
    result = audited(before, after)
    return result.verdict, result.grade, [level.outcome for region in result.regions for level in region.levels]


@pytest.mark.parametrize("attributes", GEOMETRIES, ids=str)
def test_groups_merged_and_split(attributes: dict[str, Any]) -> None:
    before = deconv(**attributes)
    assert levels(before, dense(**attributes)) == ("equivalent", "finite", ["pass"] * 3)
    assert levels(before, apart((0, 1, 2, 3), (0, 1, 2, 3), **attributes)) == ("equivalent", "exact", ["pass"] * 3)


def test_what_is_cut_off_can_be_said_in_two_ways() -> None:
    one = deconv(strides=[2, 2], output_padding=[1, 1], pads=[1, 1, 1, 1])
    other = deconv(strides=[2, 2], pads=[1, 1, 0, 0])
    assert levels(one, other) == ("equivalent", "exact", ["pass"] * 3)


def test_a_kernel_widened_by_zeros() -> None:
    found = weights()
    wide = {"v": np.pad(found["w"], [(0, 0), (0, 0), (1, 1), (0, 0)]), "b": found["b"]}
    after = deconv(wide, strides=[2, 2], pads=[1, 0, 1, 0])
    assert levels(deconv(strides=[2, 2]), after) == ("equivalent", "finite", ["pass"] * 3)


def test_of_stride_1_it_is_a_convolution() -> None:
    assert levels(deconv(), as_convolution(flip=True)) == ("equivalent", "exact", ["pass"] * 3)


def test_a_scale_behind_is_folded_into_the_weights() -> None:
    found = weights()
    scale = np.linspace(0.5, 2, 8).astype(np.float32)
    values: dict[str, Array] = {"w": found["w"], "s": scale.reshape(1, -1, 1, 1)}
    first = helper.make_node("ConvTranspose", ["x", "w"], ["u"], group=4, **STRIDED)
    before = net([first, helper.make_node("Mul", ["u", "s"], ["t"])], values)
    by = np.repeat(scale.reshape(4, 1, 2), 2, axis=1).reshape(8, 2, 1, 1)
    after = deconv({"v": found["w"] * by}, **STRIDED)
    verdict, grade, outcomes = levels(before, after)
    assert (verdict, grade, outcomes[0], outcomes[2]) == ("equivalent", "rounding", "pass", "pass")
    spoilt = found["w"] * by
    spoilt[3, 1, 2, 0] *= np.float32(1.00001)
    wrong = audited(before, deconv({"v": spoilt}, **STRIDED))
    assert (wrong.verdict, caught(wrong)) == ("different", "L1")


def test_a_bias_behind_is_folded_into_its_own() -> None:
    """The weights only move, so that the integers decide on them, biases left out."""
    found = weights()
    more = np.linspace(-1, 1, 8).astype(np.float32)
    values: dict[str, Array] = {**found, "c": more.reshape(1, -1, 1, 1)}
    first = helper.make_node("ConvTranspose", ["x", "w", "b"], ["u"], group=4, **STRIDED)
    before = net([first, helper.make_node("Add", ["u", "c"], ["t"])], values)
    after = deconv({"w": found["w"], "d": found["b"] + more}, **STRIDED)
    assert levels(before, after) == ("equivalent", "rounding", ["pass"] * 3)


def test_its_roundings_are_counted() -> None:
    """C/G · K products, and the bias; not M/G · K."""
    found = weights()
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2)
    model = chain([node], {"w": found["w"]}, (2, 8, 5, 6))
    assert estimate(cut_of(model)) == 8 + 4 * 9 + 2


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    rng = np.random.default_rng(0)
    kernel, shape = (3,) * rank, (2, 4, *range(4, 4 + rank))
    weight = rng.standard_normal((4, 3, *kernel)).astype(np.float32)
    wide = np.zeros((4, 6, *kernel), np.float32)
    wide[:2, :3], wide[2:, 3:] = weight[:2], weight[2:]

    def model(value: Array, group: int) -> onnx.ModelProto:
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=group, strides=[2] * rank)
        return chain([node], {"w": value}, shape)

    assert levels(model(weight, 2), model(wide, 1)) == ("equivalent", "finite", ["pass"] * 3)


def test_one_that_grows_from_a_single_position() -> None:
    """As the first layer of a generator does."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 4, 4)).astype(np.float32)
    parts = {"v": weight[:2], "u": weight[2:]}
    first = chain([helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2)], {"w": weight}, ("N", 4, 1, 1))
    nodes = [
        helper.make_node("Split", ["x"], ["p", "q"], axis=1),
        helper.make_node("ConvTranspose", ["p", "v"], ["a"]),
        helper.make_node("ConvTranspose", ["q", "u"], ["c"]),
        helper.make_node("Concat", ["a", "c"], ["y"], axis=1),
    ]
    assert levels(first, chain(nodes, parts, ("N", 4, 1, 1))) == ("equivalent", "exact", ["pass"] * 3)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (["Conv", "ConvTranspose"], "comes from a convolution"),
        (["ConvTranspose", "Conv"], "comes from a ConvTranspose"),
        (["Add", "ConvTranspose"], "is shifted"),
        (["Pad", "ConvTranspose"], "is partly padding"),
    ],
)
@by_name_only()
def test_what_l1_does_not_cover_it_says(nodes: list[str], why: str) -> None:
    """One of them inside a region: the others decide."""
    rng = np.random.default_rng(0)
    values: dict[str, Array] = {
        "v": rng.standard_normal((4, 4, 2, 2)).astype(np.float32),
        "w": rng.standard_normal((4, 4, 2, 2)).astype(np.float32),
        "e": rng.standard_normal((1, 4, 1, 1)).astype(np.float32),
        "p": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
    }

    def model(inner: str) -> onnx.ModelProto:
        operand = {"Add": "e", "Pad": "p"}.get(nodes[0], "v")
        made = [
            helper.make_node(nodes[0], ["x", operand], [inner]),
            helper.make_node(nodes[1], [inner, "w"], ["y"]),
        ]
        used = {name: value for name, value in values.items() if name in (operand, "w")}
        if inner == "other":  # another spelling, so that something differs
            made.insert(0, helper.make_node("Identity", ["x"], ["same"]))
            made[1].input[0] = "same"
        return chain(made, {"w": used.pop("w"), **used}, (2, 4, 5, 5))

    result = audited(model("inner"), model("other"))
    assert result.verdict == "equivalent", result.reason
    details = [level.detail for region in result.regions for level in region.levels]
    assert any(why in detail for detail in details), details
