"""Depthwise multipliers and permuted input channels, against direct evaluation: in exact integers and in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.emit import Array
from models.reference import grouped_conv
from rewriter.conv import merge_multiplier, multiplier_order, permute_inputs, split_multiplier

SIZE = 4  # positions per axis of the inputs


@st.composite
def kernels(draw: st.DrawFn) -> tuple[list[int], np.random.Generator, bool]:
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return kernel, np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.booleans())


def drawn(rng: np.random.Generator, shape: list[int], integers: bool) -> Array:
    return rng.integers(-4, 5, shape).astype(float) if integers else rng.standard_normal(shape)


def evaluate(x: Array, weight: Array, bias: Array | None, group: int) -> Array:
    ones, zeros = [1] * (weight.ndim - 2), [0] * (weight.ndim - 2)
    return grouped_conv(x, weight, bias, group, ones, ones, zeros, zeros)


@given(kernels(), st.integers(1, 4), st.integers(1, 4))
def test_the_parts_side_by_side_are_the_depthwise_conv_in_another_order(
    case: tuple[list[int], np.random.Generator, bool], channels: int, multiplier: int
) -> None:
    kernel, rng, integers = case
    weight = drawn(rng, [channels * multiplier, 1, *kernel], integers)
    bias = drawn(rng, [channels * multiplier], integers)
    x = drawn(rng, [2, channels, *[SIZE] * len(kernel)], integers)
    parts = zip(split_multiplier(weight, multiplier), split_multiplier(bias, multiplier), strict=True)
    joined = np.concatenate([evaluate(x, part, added, channels) for part, added in parts], axis=1)
    # Each output is one input's filter on both sides, the same products in the same order: float64 agrees to the bit.
    assert np.array_equal(joined, evaluate(x, weight, bias, channels)[:, multiplier_order(channels, multiplier)])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str)
@given(case=kernels(), channels=st.integers(1, 4), multiplier=st.integers(1, 4))
def test_there_and_back_gives_the_same_bits(
    case: tuple[list[int], np.random.Generator, bool], channels: int, multiplier: int, dtype: type
) -> None:
    kernel, rng, _ = case
    weight: np.ndarray[Any, Any] = rng.standard_normal([channels * multiplier, 1, *kernel]).astype(dtype)
    parts = split_multiplier(weight, multiplier)
    assert [part.shape for part in parts] == [(channels, 1, *kernel)] * multiplier
    back = merge_multiplier(parts)
    assert back.dtype == weight.dtype
    assert back.shape == weight.shape
    assert back.tobytes() == weight.tobytes()


def test_a_multiplier_by_hand() -> None:
    weight: Array = np.arange(6).reshape(6, 1, 1)  # 3 input channels, 2 filters each
    assert [part.reshape(-1).tolist() for part in split_multiplier(weight, 2)] == [[0, 2, 4], [1, 3, 5]]
    assert multiplier_order(3, 2).tolist() == [0, 2, 4, 1, 3, 5]
    with pytest.raises(ValueError, match="no multiple"):
        split_multiplier(weight, 4)


@given(kernels(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_permuted_inputs_read_a_permuted_tensor(
    case: tuple[list[int], np.random.Generator, bool], group: int, i_per: int, o_per: int, integers: bool
) -> None:
    kernel, rng, _ = case
    weight = drawn(rng, [group * o_per, i_per, *kernel], integers)
    x = drawn(rng, [2, group * i_per, *[SIZE] * len(kernel)], integers)
    order = np.concatenate([block * i_per + rng.permutation(i_per) for block in range(group)])
    moved = permute_inputs(weight, group, order)
    assert np.array_equal(np.sort(moved, axis=None), np.sort(weight, axis=None))
    expected, found = evaluate(x, weight, None, group), evaluate(x[:, order], moved, None, group)
    assert np.array_equal(found, expected) if integers else np.allclose(found, expected, rtol=0, atol=1e-12)


def test_channels_stay_in_their_group() -> None:
    with pytest.raises(ValueError, match="another group"):
        permute_inputs(np.zeros((2, 2, 1)), 2, np.array([0, 2, 1, 3]))
    with pytest.raises(ValueError, match="an order of 3 channels for 4"):
        permute_inputs(np.zeros((2, 2, 1)), 2, np.array([0, 1, 2]))
