"""Axes put in and taken out of convolutions, against direct evaluation: the same integers, whatever the layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.emit import Array
from models.reference import grouped_conv
from rewriter.conv import (
    channel_constant,
    drop_attribute_axis,
    drop_weight_axis,
    insert_attribute_axis,
    insert_axis,
    insert_weight_axis,
    is_flat,
)

ATTRIBUTES = ("strides", "dilations", "pads")


@dataclass(frozen=True)
class Case:
    """A convolution of integers with attributes as ONNX has them; `flat` are the axes where it is flat."""

    weight: Array
    group: int
    attributes: dict[str, list[int]]
    x: Array

    def evaluate(self) -> Array:
        return evaluate(self.x, self.weight, self.group, self.attributes)


def evaluate(x: Array, weight: Array, group: int, attributes: dict[str, list[int]]) -> Array:
    pads = attributes["pads"]
    half = len(pads) // 2
    ends = (pads[:half], pads[half:])
    return grouped_conv(x, weight, None, group, attributes["strides"], attributes["dilations"], *ends)


@st.composite
def cases(draw: st.DrawFn, rank: int, flat: tuple[int, ...] = ()) -> Case:
    group, i_per, o_per = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = [1 if axis in flat else draw(st.integers(1, 3)) for axis in range(rank)]
    strides = [1 if axis in flat else draw(st.integers(1, 3)) for axis in range(rank)]
    pads = [0 if at % rank in flat else draw(st.integers(0, 2)) for at in range(2 * rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.integers(-4, 5, (group * o_per, i_per, *kernel))
    x = rng.integers(-4, 5, (draw(st.integers(1, 3)), group * i_per, *(draw(st.integers(5, 6)) for _ in range(rank))))
    return Case(weight, group, {"strides": strides, "dilations": dilations, "pads": pads}, x)


@given(cases(rank=1), st.integers(0, 1))
def test_a_1d_convolution_is_a_2d_one(case: Case, at: int) -> None:
    wide = {name: insert_attribute_axis(name, values, at) for name, values in case.attributes.items()}
    weight = insert_weight_axis(case.weight, at)
    y = evaluate(np.expand_dims(case.x, 2 + at), weight, case.group, wide)
    assert np.array_equal(np.squeeze(y, 2 + at), case.evaluate())


@given(cases(rank=3, flat=(1, 2)))
def test_a_temporal_convolution_is_a_2d_one_over_merged_space(case: Case) -> None:
    narrow = {name: drop_attribute_axis(name, values, 2) for name, values in case.attributes.items()}
    y = evaluate(case.x.reshape(*case.x.shape[:3], -1), drop_weight_axis(case.weight, 2), case.group, narrow)
    expected = case.evaluate()
    assert np.array_equal(y.reshape(*y.shape[:3], *case.x.shape[3:]), expected)


@given(cases(rank=3, flat=(0,)))
def test_a_spatial_convolution_is_a_2d_one_over_frames(case: Case) -> None:
    n, c, depth, *space = case.x.shape
    narrow = {name: drop_attribute_axis(name, values, 0) for name, values in case.attributes.items()}
    frames = case.x.swapaxes(1, 2).reshape(n * depth, c, *space)
    y = evaluate(frames, drop_weight_axis(case.weight, 0), case.group, narrow)
    assert np.array_equal(y.reshape(n, depth, *y.shape[1:]).swapaxes(1, 2), case.evaluate())


@given(cases(rank=2), st.integers(0, 2))
def test_an_axis_put_in_can_be_taken_out(case: Case, at: int) -> None:
    assert np.array_equal(drop_weight_axis(insert_weight_axis(case.weight, at), at), case.weight)
    for name, values in case.attributes.items():
        wide = insert_attribute_axis(name, values, at)
        assert drop_attribute_axis(name, wide, at) == values
    strides, pads = (insert_attribute_axis(name, case.attributes[name], at) for name in ("strides", "pads"))
    assert is_flat(at, insert_weight_axis(case.weight, at).shape[2:], strides, pads)


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "flat"),
    [
        ((1, 3), (1, 2), (0, 1, 0, 1), True),
        ((1, 3), (), (), True),
        ((3, 1), (1, 1), (0, 0, 0, 0), False),
        ((1, 1), (2, 1), (0, 0, 0, 0), False),
        ((1, 1), (1, 1), (1, 0, 0, 0), False),
        ((1, 1), (1, 1), (0, 0, 1, 0), False),
    ],
)
def test_flat_axes(kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], flat: bool) -> None:
    assert is_flat(0, kernel, strides, pads) == flat


def test_a_kernel_that_is_not_one_stays() -> None:
    with pytest.raises(ValueError, match="is not 1 on spatial axis 1"):
        drop_weight_axis(np.zeros((2, 2, 1, 3)), 1)
    assert insert_attribute_axis("group", [4], 0) == drop_attribute_axis("group", [4], 0) == [4]


@given(st.lists(st.sampled_from([1, 3]), max_size=3), st.integers(0, 1), st.integers(0, 2**32))
def test_constants_follow_an_axis_put_in(shape: list[int], at: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    value, x = rng.integers(-9, 9, shape), rng.integers(-9, 9, (3, 3, 3))
    wide = np.expand_dims(x, 2 + at) * insert_axis(value, 3, 2 + at).astype(np.int64)
    assert np.array_equal(np.squeeze(wide, 2 + at), x * value)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((), 1), ((1,), 1), ((3, 1, 1), 3), ((1, 3, 1, 1), 3), ((3,), 0), ((2, 3, 1, 1), 0), ((1, 1, 1, 1, 1), 0)],
)
def test_constants_per_channel(shape: tuple[int, ...], channels: int) -> None:
    """Of four axes: `channels` numbers, 0 where it is none per channel."""
    found = channel_constant(np.arange(np.prod(shape, dtype=int)).reshape(shape), 4)
    assert (0 if found is None else len(found)) == channels
