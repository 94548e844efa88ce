"""Block-diagonal weights: which groups are found, and that the zeros that go change nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.emit import Array
from rewriter.conv import NotGrouped, blocks, dense_to_grouped, regroup
from test_conv_branches import as_said, numbers, plain


@pytest.mark.parametrize("integers", [True, False])
@given(st.integers(0, 2**32), st.data())
@settings(max_examples=80)
def test_a_shuffled_block_diagonal_weight_is_in_groups_again(integers: bool, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    group, i_per, o_per = (int(n) for n in rng.integers(1, 5, 3))
    kernel = (2,) * int(rng.integers(1, 3))
    first = data.draw(st.sampled_from([n for n in range(1, group + 1) if group % n == 0]))
    weight = numbers(rng, (group * o_per, i_per, *kernel), integers)
    weight[weight == 0] = 1
    m, c = group * o_per, group * i_per
    bias = numbers(rng, (m,), integers) if data.draw(st.booleans()) else None
    wide = regroup(weight, group, first)
    if first == 1:
        wide = wide[rng.permutation(m)][:, rng.permutation(c)]
    x = numbers(rng, (2, c, *[3] * len(kernel)), integers)
    if group == first:
        with pytest.raises(NotGrouped, match="no more blocks of one size"):
            dense_to_grouped(wide, bias, first)
        return
    made = dense_to_grouped(wide, bias, first)
    assert made.group == group
    assert np.array_equal(np.sort(made.weight, axis=None), np.sort(weight, axis=None)), "weights, and no zero left"
    found, expected = as_said(x, made), plain(x, wide, bias, first)
    assert np.array_equal(found, expected) if integers else np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=120)
def test_any_sparse_weight_keeps_its_meaning(seed: int, permute: bool) -> None:
    rng = np.random.default_rng(seed)
    group, o_per, i_per = (int(n) for n in rng.integers(1, [4, 7, 7]))
    shape = (group * o_per, i_per)
    weight = numbers(rng, (*shape, 2), True) * (rng.random((*shape, 1)) < rng.choice([0.05, 0.2, 0.5]))
    x = numbers(rng, (2, group * i_per, 4), True)
    try:
        made = dense_to_grouped(weight, None, group, permute=permute)
    except NotGrouped:
        return
    assert permute or (made.inputs is None and made.outputs is None)
    assert made.group > group
    assert np.array_equal(as_said(x, made), plain(x, weight, None, group))


def test_a_channel_of_another_group_that_fills_up_is_not_read() -> None:
    """Of inputs 3, 6 and 7, which nobody reads, two end up in blocks of outputs from the other group."""
    weight = np.zeros((8, 4, 1))
    for row, inputs in ((0, [0, 1]), (2, [2]), (4, [0]), (5, [0]), (6, [1]), (7, [1])):
        weight[row, inputs] = row + 1
    made = dense_to_grouped(weight, None, 2)
    x = numbers(np.random.default_rng(0), (1, 8, 3), True)
    assert made.group == 4
    assert np.array_equal(as_said(x, made), plain(x, weight, None, 2))


def test_bits_stay_and_negative_zero_is_zero() -> None:
    for kind in (np.float16, ml_dtypes.bfloat16, np.float32):
        weight = np.array([[1, -0.0], [0, 2]], kind)[..., None]
        made = dense_to_grouped(weight, None, 1)
        assert made.weight.dtype == kind
        assert made.weight.reshape(-1).tolist() == [1, 2]


def test_nan_is_no_zero() -> None:
    weight = np.array([[1, np.nan], [0, 2]])[..., None]
    with pytest.raises(NotGrouped):
        dense_to_grouped(weight, None, 1)


def reads(*rows: str) -> Array:
    return np.array([[tap == "x" for tap in row] for row in rows])


@pytest.mark.parametrize(
    ("pattern", "permute", "group", "inputs", "outputs"),
    [
        (reads("x.", ".x"), True, 2, [0, 1], [0, 1]),
        (reads(".x", "x."), True, 2, [1, 0], [0, 1]),
        (reads(".x", "x."), False, 1, [0, 1], [0, 1]),
        (reads("x.x.", ".x.x", "x.x.", ".x.x"), True, 2, [0, 2, 1, 3], [0, 2, 1, 3]),
        (reads("xx..", "xx..", "..xx", "..xx"), True, 2, [0, 1, 2, 3], [0, 1, 2, 3]),
        # Sizes 1, 1 and 2 go into two groups of two.
        (reads("x...", ".x..", "..xx", "..xx"), True, 2, [0, 1, 2, 3], [0, 1, 2, 3]),
        (reads("x...", "..x.", ".x.x", ".x.x"), True, 2, [0, 2, 1, 3], [0, 1, 2, 3]),
        # An input that nobody reads and an output that reads nothing fill up.
        (reads("....", ".xx.", "x..x", "x..x"), True, 2, [1, 2, 0, 3], [0, 1, 2, 3]),
        # Blocks of sizes that fit no groups.
        (reads("xx.", "xx.", "..x"), True, 1, [0, 1, 2], [0, 1, 2]),
        (reads("xx", "xx"), True, 1, [0, 1], [0, 1]),
        # A chain connects everything.
        (reads("xx..", ".xx.", "..xx", "...x"), True, 1, [0, 1, 2, 3], [0, 1, 2, 3]),
        (reads("..", ".."), True, 2, [0, 1], [0, 1]),
    ],
)
def test_which_blocks(pattern: Array, permute: bool, group: int, inputs: list[int], outputs: list[int]) -> None:
    found = blocks(pattern.astype(bool), permute=permute)
    assert (found.group, found.inputs.tolist(), found.outputs.tolist()) == (group, inputs, outputs)
