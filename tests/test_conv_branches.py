"""Branches against direct evaluation of convolutions: in exact integers, and in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.emit import Array
from models.reference import grouped_conv
from rewriter.conv import (
    Branch,
    Grouped,
    NotGrouped,
    Window,
    common_window,
    merge_branches,
    split_groups,
    widen,
)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], integers: bool) -> Array:
    drawn: Array = rng.integers(-4, 5, shape).astype(float) if integers else rng.standard_normal(shape)
    return drawn


def plain(x: Array, weight: Array, bias: Array | None, group: int) -> Array:
    ones, zeros = [1] * (weight.ndim - 2), [0] * (weight.ndim - 2)
    return grouped_conv(x, weight, bias, group, ones, ones, zeros, zeros)


def as_said(x: Array, made: Grouped) -> Array:
    """What the record says is computed."""
    y = plain(x if made.inputs is None else x[:, made.inputs], made.weight, made.bias, made.group)
    return y if made.outputs is None else y[:, made.outputs]


@given(st.integers(0, 2**32), st.booleans(), st.data())
@settings(max_examples=60)
def test_parts_of_a_grouped_conv_side_by_side_are_the_conv(seed: int, integers: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    parts, per_part, i_per, o_per = (int(n) for n in rng.integers(1, 4, 4))
    group = parts * per_part
    kernel = tuple(int(n) for n in rng.integers(1, 3, rng.integers(1, 4)))
    weight = numbers(rng, (group * o_per, i_per, *kernel), integers)
    bias = numbers(rng, (group * o_per,), integers) if data.draw(st.booleans()) else None
    x = numbers(rng, (2, group * i_per, *[4] * len(kernel)), integers)
    pieces = split_groups(weight, bias, group, parts)
    outputs = [plain(part, w, b, per_part) for part, (w, b) in zip(np.split(x, parts, axis=1), pieces, strict=True)]
    found, expected = np.concatenate(outputs, axis=1), plain(x, weight, bias, group)
    assert np.array_equal(found, expected) if integers else np.allclose(found, expected, rtol=1e-12, atol=1e-12)
    width = group * i_per // parts
    branches = [Branch(w, b, per_part, np.arange(at * width, (at + 1) * width)) for at, (w, b) in enumerate(pieces)]
    back = merge_branches(branches, group * i_per)
    assert back.group == group
    assert back.inputs is None
    assert back.outputs is None
    assert np.array_equal(back.weight, weight)
    assert (back.bias is None) == (bias is None)
    assert bias is None or np.array_equal(back.bias, bias)  # type: ignore[arg-type]  # not None, as said above


def test_parts_that_do_not_divide_the_groups_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 parts do not divide 4 groups"):
        split_groups(np.ones((4, 1, 1)), None, 4, 3)


@st.composite
def some_branches(draw: st.DrawFn, integers: bool) -> tuple[list[Branch], Array]:
    """Branches that read any channels, in any order, of an input, and the input."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.integers(1, 8))
    kernel = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    branches = []
    for _ in range(draw(st.integers(1, 4))):
        read = draw(st.permutations(range(channels)))[: draw(st.integers(1, channels))]
        group = draw(st.sampled_from([n for n in range(1, len(read) + 1) if len(read) % n == 0]))
        m = group * draw(st.integers(1, 2))
        bias = numbers(rng, (m,), integers) if draw(st.booleans()) else None
        branches.append(Branch(numbers(rng, (m, len(read) // group, *kernel), integers), bias, group, np.asarray(read)))
    return branches, numbers(rng, (2, channels, *[3] * len(kernel)), integers)


@pytest.mark.parametrize("integers", [True, False])
@given(st.data())
@settings(max_examples=120)
def test_branches_filled_with_zeros_are_one_conv(integers: bool, data: st.DataObject) -> None:
    branches, x = data.draw(some_branches(integers))
    outputs = [plain(x[:, branch.inputs], branch.weight, branch.bias, branch.group) for branch in branches]
    expected = np.concatenate(outputs, axis=1)
    found = as_said(x, merge_branches(branches, x.shape[1], fill=True))
    assert np.array_equal(found, expected) if integers else np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@given(st.data())
@settings(max_examples=120)
def test_without_zeros_it_is_the_same_conv_of_the_same_weights_or_refused(data: st.DataObject) -> None:
    branches, x = data.draw(some_branches(True))
    try:
        made = merge_branches(branches, x.shape[1])
    except NotGrouped:
        filled = merge_branches(branches, x.shape[1], fill=True)
        assert filled.weight.size > sum(branch.weight.size for branch in branches)
        return
    weights = np.concatenate([branch.weight.reshape(-1) for branch in branches])
    assert np.array_equal(np.sort(made.weight, axis=None), np.sort(weights))
    outputs = [plain(x[:, branch.inputs], branch.weight, branch.bias, branch.group) for branch in branches]
    assert np.array_equal(as_said(x, made), np.concatenate(outputs, axis=1))


def branch(m: int, read: list[int], group: int = 1) -> Branch:
    return Branch(np.ones((m, len(read) // group, 1)), None, group, np.asarray(read))


@pytest.mark.parametrize(
    ("branches", "group", "inputs", "outputs"),
    [
        ([branch(3, [0, 1]), branch(3, [2, 3])], 2, None, None),
        ([branch(3, [2, 3]), branch(3, [0, 1])], 2, [2, 3, 0, 1], None),
        ([branch(3, [1, 0]), branch(3, [3, 2])], 2, None, None),  # in the weights
        ([branch(4, [0, 1, 2, 3], 2), branch(2, [4, 5])], 3, None, None),
        ([branch(1, [0, 1]), branch(5, [0, 1])], 1, None, None),
        ([branch(2, [0, 1], 2), branch(2, [0, 1], 2)], 2, None, [0, 2, 1, 3]),
        ([branch(1, [0]), branch(1, [2])], 2, [0, 2], None),
        ([branch(1, [2, 1])], 1, [1, 2], None),
    ],
)
def test_which_groups_and_orders(
    branches: list[Branch], group: int, inputs: list[int] | None, outputs: list[int] | None
) -> None:
    channels = 1 + max(int(one.inputs.max()) for one in branches)
    made = merge_branches(branches, channels)
    assert made.group == group
    assert (None if made.inputs is None else made.inputs.tolist()) == inputs
    assert (None if made.outputs is None else made.outputs.tolist()) == outputs
    assert not made.combined


@pytest.mark.parametrize(
    ("branches", "reason"),
    [
        ([branch(1, [0]), branch(2, [1])], "groups of different sizes (1 in and 1 out, 1 in and 2 out)"),
        ([branch(2, [0, 1]), branch(2, [1, 2])], "overlapping but different input channels"),
        ([branch(2, [0, 0])], "reads an input channel twice"),
    ],
)
def test_what_needs_zeros_is_refused(branches: list[Branch], reason: str) -> None:
    with pytest.raises(NotGrouped) as refused:
        merge_branches(branches, 3)
    assert reason in str(refused.value)


@st.composite
def some_windows(draw: st.DrawFn) -> tuple[list[Window], list[int], tuple[int, ...]]:
    """Windows whose outputs have one size at any input, strides, and an input size that they all fit."""
    rank = draw(st.integers(1, 2))
    windows = []
    margins = [draw(st.integers(-2, 1)) for _ in range(rank)]
    for _ in range(draw(st.integers(1, 3))):
        axes = []
        for margin in margins:
            kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
            total = margin + (kernel - 1) * dilation
            assume(total >= 0)
            begin = draw(st.integers(0, total))
            axes.append((kernel, dilation, begin, total - begin))
        windows.append(Window(*(tuple(axis[at] for axis in axes) for at in range(4))))
    return windows, [draw(st.integers(1, 3)) for _ in range(rank)], tuple(draw(st.integers(4, 9)) for _ in range(rank))


def at_window(x: Array, weight: Array, window: Window, strides: list[int]) -> Array:
    return grouped_conv(x, weight, None, 1, strides, window.dilations, window.begin, window.end)


@pytest.mark.parametrize("integers", [True, False])
@given(some_windows(), st.integers(0, 2**32))
@settings(max_examples=120)
def test_a_kernel_in_the_common_window_is_the_same_conv(
    integers: bool, drawn: tuple[list[Window], list[int], tuple[int, ...]], seed: int
) -> None:
    windows, strides, space = drawn
    rng = np.random.default_rng(seed)
    into = common_window(windows)
    x = numbers(rng, (1, 2, *space), integers)
    for window in windows:
        weight = numbers(rng, (3, 2, *window.kernel), integers)
        wide = widen(weight, window, into)
        assert wide.shape[2:] == into.kernel
        assert np.array_equal(np.sort(wide[wide != 0]), np.sort(weight[weight != 0]))
        found, expected = at_window(x, wide, into, strides), at_window(x, weight, window, strides)
        assert np.array_equal(found, expected) if integers else np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("windows", "common"),
    [
        ([(3, 1, 1, 1), (5, 1, 2, 2), (7, 1, 3, 3)], (7, 1, 3, 3)),
        ([(1, 1, 0, 0), (3, 2, 2, 2)], (3, 2, 2, 2)),
        ([(3, 6, 6, 6), (3, 12, 12, 12)], (5, 6, 12, 12)),
        ([(3, 2, 2, 2), (3, 3, 3, 3)], (7, 1, 3, 3)),
        ([(1, 5, 0, 0)], (1, 5, 0, 0)),
        ([(2, 1, 1, 0), (2, 1, 0, 1)], (3, 1, 1, 1)),
        ([(4, 3, 2, 1)], (4, 3, 2, 1)),
    ],
)
def test_which_window_is_common(windows: list[tuple[int, ...]], common: tuple[int, ...]) -> None:
    def of(numbers: tuple[int, ...]) -> Window:
        return Window(*((number,) for number in numbers))

    assert common_window([of(one) for one in windows]) == of(common)


def test_outputs_of_different_sizes_have_no_common_window() -> None:
    windows = [Window((3, 3), (1, 1), (1, 1), (1, 1)), Window((3, 3), (1, 1), (1, 1), (1, 0))]
    with pytest.raises(NotGrouped, match="their outputs differ in size on spatial axis 1"):
        common_window(windows)
