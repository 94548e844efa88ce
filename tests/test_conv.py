"""The weight algebra against direct evaluation of convolutions: in exact integers, and in float64."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.emit import Array
from models.reference import grouped_conv
from rewriter.conv import ChannelMix, NotGrouped, grouped_to_depthwise, mix, regroup

TYPES = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
SIZE = 4  # positions per axis of the inputs


@dataclass(frozen=True)
class Case:
    """A grouped convolution with small integers or normal numbers: weight [M, C/G, *K], bias [M] or none, input x."""

    group: int
    weight: Array
    bias: Array | None
    x: Array

    @property
    def o_per(self) -> int:
        return len(self.weight) // self.group

    @property
    def i_per(self) -> int:
        return int(self.weight.shape[1])


@st.composite
def cases(draw: st.DrawFn, integers: bool = True) -> Case:
    group, i_per, o_per = (draw(st.integers(1, most)) for most in (6, 3, 4))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = [(group * o_per, i_per, *kernel), (group * o_per,), (2, group * i_per, *[SIZE] * len(kernel))]
    weight, bias, x = (
        rng.integers(-4, 5, shape).astype(float) if integers else rng.standard_normal(shape) for shape in shapes
    )
    return Case(group, weight, bias if draw(st.booleans()) else None, x)


def same_values(first: Array, second: Array) -> bool:
    """Whether one is the other in another order."""
    return np.array_equal(np.sort(first, axis=None), np.sort(second, axis=None))


def evaluate(x: Array, weight: Array, bias: Array | None, group: int) -> Array:
    ones, zeros = [1] * (weight.ndim - 2), [0] * (weight.ndim - 2)
    return grouped_conv(x, weight, bias, group, ones, ones, zeros, zeros)


# --- grouped to depthwise, and back ---


@given(cases())
def test_the_depthwise_outputs_summed_over_each_groups_inputs_are_the_grouped_conv(case: Case) -> None:
    wide = grouped_to_depthwise(case.weight, case.group)
    channels = case.group * case.i_per
    assert wide.shape == (channels * case.o_per, 1, *case.weight.shape[2:])
    assert same_values(wide, case.weight)
    y = evaluate(case.x, wide, None, channels)
    split = y.reshape(2, case.group, case.i_per, case.o_per, *y.shape[2:])
    assert np.array_equal(split.sum(2).reshape(2, -1, *y.shape[2:]), evaluate(case.x, case.weight, None, case.group))


def test_depthwise_weights_by_hand() -> None:
    weight = np.arange(8).reshape(4, 2, 1)  # 2 groups of 2 inputs and 2 outputs; rows [[0 1] [2 3]] and [[4 5] [6 7]]
    assert grouped_to_depthwise(weight, 2).reshape(-1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@given(case=cases(integers=False))
@settings(max_examples=20)
def test_summing_the_depthwise_channels_gives_back_every_bit(case: Case, dtype: np.dtype, interleaved: bool) -> None:
    group, i_per, o_per = case.group, case.i_per, case.o_per
    weight = case.weight.astype(dtype)
    wide = grouped_to_depthwise(weight, group)
    index = np.arange(len(wide)).reshape(group, i_per, o_per).transpose(0, 2, 1).reshape(-1, i_per)
    order = np.arange(group * i_per)
    if interleaved:  # input channel i·G + g belongs to group g
        order = order.reshape(group, i_per).T.reshape(-1)
        wide = wide.reshape(group * i_per, o_per, *wide.shape[1:])[order].reshape(wide.shape)
        index = np.arange(len(wide)).reshape(i_per, group * o_per).T
    back = mix(wide, None, group * i_per, ChannelMix(index))
    assert (back.group, back.outputs, back.bias, back.combined) == (group, None, None, False)
    assert back.weight.dtype == dtype
    assert back.weight.tobytes() == np.ascontiguousarray(weight).tobytes()
    assert np.array_equal(np.arange(len(order)) if back.inputs is None else back.inputs, np.argsort(order))
    assert (back.inputs is None) == np.array_equal(order, np.arange(len(order)))


# --- regroup ---


@given(cases(), st.data())
def test_regrouping_fills_with_zeros_and_changes_nothing(case: Case, data: st.DataObject) -> None:
    divisors = [number for number in range(1, case.group + 1) if case.group % number == 0]
    groups = data.draw(st.sampled_from(divisors))
    factor = case.group // groups
    wide = regroup(case.weight, case.group, groups)
    assert wide.shape == (case.weight.shape[0], factor * case.i_per, *case.weight.shape[2:])
    assert np.array_equal(
        evaluate(case.x, wide, case.bias, groups), evaluate(case.x, case.weight, case.bias, case.group)
    )
    # Ones in place of the weights show where they went: one block of ones per old group, zeros elsewhere.
    places = regroup(np.ones_like(case.weight), case.group, groups)
    assert places.sum() == case.weight.size
    assert np.array_equal(wide[places == 1], case.weight.reshape(-1))
    assert not wide[places == 0].any()


@given(cases(), st.data())
def test_regrouping_in_two_steps_is_regrouping_in_one(case: Case, data: st.DataObject) -> None:
    divisors = [number for number in range(1, case.group + 1) if case.group % number == 0]
    middle = data.draw(st.sampled_from(divisors))
    steps = regroup(regroup(case.weight, case.group, middle), middle, 1)
    assert np.array_equal(steps, regroup(case.weight, case.group, 1))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_regrouping_keeps_the_type(dtype: np.dtype) -> None:
    assert regroup(np.ones((4, 1, 3), dtype), 4, 2).dtype == dtype


@pytest.mark.parametrize("groups", [4, 5, 7, 12])
def test_regrouping_to_groups_that_do_not_divide_is_an_error(groups: int) -> None:
    with pytest.raises(ValueError, match=f"{groups} groups do not divide 6"):
        regroup(np.ones((6, 1, 3)), 6, groups)


# --- mix ---


@st.composite
def mixings(draw: st.DrawFn, case: Case, integers: bool = True) -> ChannelMix:
    """Any mixing of the conv's channels: blocks of equal size more often than chance would have them."""
    channels = case.weight.shape[0]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["blocks", "strided", "any", "shuffled blocks"]))
    if kind == "any":
        index = rng.integers(0, channels, draw(st.tuples(st.integers(1, 6), st.integers(1, 3))))
    else:
        terms = draw(st.sampled_from([number for number in range(1, channels + 1) if channels % number == 0]))
        index = np.arange(channels).reshape(-1, terms)
        index = index.reshape(terms, -1).T if kind == "strided" else index
        index = rng.permutation(index) if kind == "shuffled blocks" else index

    def numbers(*shape: int) -> Array:
        return rng.integers(-3, 4, shape).astype(float) if integers else rng.standard_normal(shape)

    coef = numbers(*index.shape) if draw(st.booleans()) else None
    offset = numbers(len(index)) if draw(st.booleans()) else None
    return ChannelMix(np.ascontiguousarray(index), coef, offset)


def mixed(y: Array, mixing: ChannelMix) -> Array:
    """What `mixing` means, term by term, for y [N, M, *S]."""
    coef = np.ones(mixing.index.shape) if mixing.coef is None else mixing.coef
    offset = np.zeros(len(mixing.index)) if mixing.offset is None else mixing.offset
    rows = [
        sum((coef[row, term] * y[:, channel] for term, channel in enumerate(channels)), np.full_like(y[:, 0], first))
        for row, (channels, first) in enumerate(zip(mixing.index, offset, strict=True))
    ]
    return np.stack(rows, axis=1)


def has_grouped_form(case: Case, mixing: ChannelMix) -> bool:
    """Whether the sets of inputs the outputs read are equal or disjoint, of one size, and equally often read."""
    inputs = [
        frozenset(channel // case.o_per * case.i_per + i for channel in channels.tolist() for i in range(case.i_per))
        for channels in mixing.index
    ]
    sets = set(inputs)
    apart = sum(map(len, sets)) == len(frozenset().union(*sets))
    return apart and len({len(entry) for entry in sets}) == 1 and len({inputs.count(entry) for entry in sets}) == 1


def lowered(case: Case, mixing: ChannelMix) -> Array:
    """The mixed convolution in its grouped form, evaluated."""
    found = mix(case.weight, case.bias, case.group, mixing)
    x = case.x if found.inputs is None else case.x[:, found.inputs]
    y = evaluate(x, found.weight, found.bias, found.group)
    return y if found.outputs is None else y[:, found.outputs]


@given(st.data())
@settings(max_examples=300)
def test_a_mixed_conv_is_its_grouped_form_or_has_none(data: st.DataObject) -> None:
    case = data.draw(cases())
    mixing = data.draw(mixings(case))
    if not has_grouped_form(case, mixing):
        with pytest.raises(NotGrouped, match=r"its (outputs read|blocks have)"):
            mix(case.weight, case.bias, case.group, mixing)
        return
    expected = mixed(evaluate(case.x, case.weight, case.bias, case.group), mixing)
    assert np.array_equal(lowered(case, mixing), expected)


@given(st.data())
def test_a_mixed_conv_in_float64_differs_by_rounding_only(data: st.DataObject) -> None:
    case = data.draw(cases(integers=False))
    mixing = data.draw(mixings(case, integers=False))
    if not has_grouped_form(case, mixing):
        return
    expected = mixed(evaluate(case.x, case.weight, case.bias, case.group), mixing)
    assert np.abs(lowered(case, mixing) - expected).max() <= 1e-13 * np.abs(expected).max() + 1e-13


@given(st.data())
def test_weights_that_are_not_combined_only_moved(data: st.DataObject) -> None:
    case = data.draw(cases(integers=False))
    mixing = data.draw(mixings(case))
    if not has_grouped_form(case, mixing):
        return
    found = mix(case.weight, case.bias, case.group, mixing)
    repeated = any(len(set(row // case.o_per)) < len(row) for row in mixing.index)
    bias_moved = case.bias is None or (mixing.index.shape[1] == 1 and mixing.offset is None)
    assert found.combined == (repeated or mixing.coef is not None or not bias_moved)
    if not found.combined:
        assert same_values(found.weight, case.weight[mixing.index])
        if case.bias is not None:
            assert found.bias is not None
            assert same_values(found.bias, case.bias[mixing.index])


@example(True)
@example(False)
@given(st.booleans())
def test_a_rounded_offset_makes_the_whole_combined(rounded: bool) -> None:
    mixing = ChannelMix(np.arange(4).reshape(4, 1), None, np.ones(4), rounded)
    assert mix(np.ones((4, 1, 3)), None, 4, mixing).combined is rounded


@pytest.mark.parametrize(
    ("index", "group", "reason"),
    [
        ([[0, 1], [2, 3], [3, 4]], 6, "read overlapping but different sets of input channels"),
        ([[0, 1], [2, 3], [2, 3]], 6, r"blocks have different numbers of outputs \(1 to 2\)"),
        ([[0, 1], [2, 2]], 6, r"read different numbers of input channels \(1 to 2\)"),
    ],
)
def test_mixings_without_a_grouped_form(index: list[list[int]], group: int, reason: str) -> None:
    with pytest.raises(NotGrouped, match=reason):
        mix(np.ones((6, 1, 3)), None, group, ChannelMix(np.array(index)))


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.float16, 6e4), (np.float32, 3e38), (ml_dtypes.bfloat16, 3e38)], ids=str
)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_sums_too_large_for_the_type_are_refused_not_made_infinite(dtype: np.dtype, largest: float, which: str) -> None:
    weight, bias = np.ones((4, 1, 1), dtype), np.ones(4, dtype)
    (weight if which == "weight" else bias)[:] = largest
    twice_each = ChannelMix(np.array([[0, 1], [2, 3]]))
    with pytest.raises(NotGrouped, match="too large for"):
        mix(weight, bias, 2, twice_each)
    (weight if which == "weight" else bias)[:] = largest / 2
    assert np.isfinite(mix(weight, bias, 2, twice_each).weight.astype(float)).all()


def test_an_infinite_weight_is_no_overflow() -> None:
    found = mix(
        np.array([np.inf, 1, 2, 3], np.float16).reshape(4, 1, 1), None, 2, ChannelMix(np.array([[0, 1], [2, 3]]))
    )
    assert found.weight.reshape(-1).tolist() == [np.inf, 5]


def test_nothing_given_is_changed() -> None:
    weight, bias, index = np.arange(12.0).reshape(4, 1, 3), np.arange(4.0), np.array([[1], [0], [3], [2]])
    copies = [array.copy() for array in (weight, bias, index)]
    mix(weight, bias, 4, ChannelMix(index, np.full((4, 1), 2.0), np.ones(4)))
    mix(weight, bias, 4, ChannelMix(index.reshape(2, 2)))
    regroup(weight, 4, 2)
    grouped_to_depthwise(weight, 2)
    assert all(np.array_equal(array, copy) for array, copy in zip((weight, bias, index), copies, strict=True))
