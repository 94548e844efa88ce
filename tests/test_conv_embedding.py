"""Convolutions with channels in other places, against evaluating them where the channels were: in exact integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.emit import Array
from rewriter.conv import (
    ConvMap,
    Ints,
    NotGrouped,
    Window,
    embed,
    embed_weight,
    identity,
    is_identity,
    joined,
    most_groups,
    pad_groups,
    pad_tail,
)
from test_conv_compose import evaluate


@st.composite
def embeddings(draw: st.DrawFn, channels: int, twice: bool = True) -> Ints:
    """Every channel once, others without any, in any order; some channels once more."""
    places = [*range(channels), *[-1] * draw(st.integers(0, 4))]
    if twice:
        places += draw(st.lists(st.integers(0, channels - 1), max_size=2))
    return np.array(draw(st.permutations(places)), np.int64)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ConvMap, Array]:
    """Dense, grouped or depthwise, and an input; no weight is 0, so that each counts."""
    rank, group = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    i_per, o_per = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bias = numbers(rng, group * o_per) if draw(st.booleans()) else None
    window = Window(kernel, (1,) * rank, (1,) * rank, (0,) * rank)
    conv = ConvMap(
        numbers(rng, group * o_per, i_per, *kernel), bias, group, draw(st.tuples(*[st.integers(1, 2)] * rank)), window
    )
    return conv, numbers(rng, 2, conv.c, *[5] * rank)


def numbers(rng: np.random.Generator, *shape: int) -> Array:
    drawn: Array = (rng.integers(1, 5, shape) * rng.choice([-1, 1], shape)).astype(float)
    return drawn


def embedded(conv: ConvMap, inputs: Ints, outputs: Ints, group: int) -> ConvMap:
    bias = None if conv.bias is None else embed(conv.bias, outputs, 0, 0.0)
    return replace(conv, weight=embed_weight(conv.weight, conv.group, inputs, outputs, group), bias=bias, group=group)


def garbage(x: Array, inputs: Ints) -> Array:
    """The channels in their new places, and large numbers where there is none: they must not matter."""
    rng = np.random.default_rng(1)
    wide = embed(x, inputs, 1, 0.0)
    wide[:, inputs < 0] = numbers(rng, *wide[:, inputs < 0].shape) * 10**6
    return wide


def holds(y: Array, wide: Array, outputs: Ints) -> bool:
    """Whether each new channel is the old one it holds, and zero where it holds none."""
    return np.array_equal(wide, embed(y, outputs, 1, 0.0))


@given(convolutions(), st.data())
@settings(max_examples=300)
def test_any_places_in_as_many_groups_as_possible(case: tuple[ConvMap, Array], data: st.DataObject) -> None:
    conv, x = case
    inputs, outputs = data.draw(embeddings(conv.c)), data.draw(embeddings(conv.m))
    most = most_groups(conv.m // conv.group, conv.weight.shape[1], inputs, outputs)
    group = data.draw(st.sampled_from([count for count in range(1, most + 1) if most % count == 0]))
    made = embedded(conv, inputs, outputs, group)
    assert made.weight.shape == (len(outputs), len(inputs) // group, *conv.kernel)
    assert holds(evaluate(x, conv), evaluate(garbage(x, inputs), made), outputs)
    assert np.count_nonzero(made.weight) == conv.weight[0].size * np.count_nonzero(outputs >= 0)


@given(convolutions(), st.data())
@settings(max_examples=150)
def test_more_groups_than_the_most_are_refused(case: tuple[ConvMap, Array], data: st.DataObject) -> None:
    """`most_groups` is what the channels allow: of all larger numbers not one is computed."""
    conv, _ = case
    inputs, outputs = data.draw(embeddings(conv.c)), data.draw(embeddings(conv.m))
    most = most_groups(conv.m // conv.group, conv.weight.shape[1], inputs, outputs)
    for group in range(most + 1, max(len(inputs), len(outputs)) + 1):
        with pytest.raises(NotGrouped, match=r"groups do not divide|are in other groups than it is"):
            embed_weight(conv.weight, conv.group, inputs, outputs, group)


@given(convolutions(), st.data())
@settings(max_examples=150)
def test_groups_filled_up_stay_groups(case: tuple[ConvMap, Array], data: st.DataObject) -> None:
    conv, x = case
    i_per, o_per = conv.weight.shape[1], conv.m // conv.group
    groups = conv.group + data.draw(st.integers(0, 3))
    merge = data.draw(st.sampled_from([count for count in range(1, groups + 1) if groups % count == 0]))
    wide_in, wide_out = (size + data.draw(st.integers(0, 3)) for size in (i_per, o_per))
    inputs = pad_groups(conv.c, conv.group, wide_in, groups)
    outputs = pad_groups(conv.m, conv.group, wide_out, groups)
    assert (len(inputs), len(outputs)) == (groups * wide_in, groups * wide_out)
    assert most_groups(o_per, i_per, inputs, outputs) >= groups
    made = embedded(conv, inputs, outputs, groups // merge)
    assert made.weight.shape[:2] == (groups * wide_out, merge * wide_in)
    assert holds(evaluate(x, conv), evaluate(garbage(x, inputs), made), outputs)


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 3))
def test_a_depthwise_convolution_stays_one(channels: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    conv = ConvMap(numbers(rng, channels, 1, 3), None, channels, (1,), Window((3,), (1,), (1,), (1,)))
    places = rng.permutation(pad_tail(channels, channels + more))
    x = numbers(rng, 2, channels, 5)
    made = embedded(conv, places, places, len(places))
    assert made.weight.shape == (channels + more, 1, 3)
    assert holds(evaluate(x, conv), evaluate(garbage(x, places), made), places)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_parts_joined_are_the_concatenation(sizes: list[int], data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    parts = [(data.draw(embeddings(size)), size) for size in sizes]
    values = [numbers(rng, 2, size, 3) for size in sizes]
    apart = np.concatenate([embed(one, places, 1, 7.0) for one, (places, _) in zip(values, parts, strict=True)], 1)
    assert np.array_equal(apart, embed(np.concatenate(values, 1), joined(parts), 1, 7.0))


@given(st.integers(1, 5), st.integers(0, 2), st.sampled_from([np.float32, np.float16, np.int64]), st.data())
def test_values_in_their_places(channels: int, axis: int, dtype: type[np.generic], data: st.DataObject) -> None:
    """By the definition, element by element; of the type they were, and not the array they came in."""
    shape = [2, 3, 2]
    shape[axis] = channels
    values = np.arange(12 * channels)[: np.prod(shape)].reshape(shape).astype(dtype)
    kept = values.copy()
    places = data.draw(embeddings(channels))
    made = embed(values, places, axis, 5.0)
    assert (made.dtype, made.shape[axis]) == (values.dtype, len(places))
    for at, old in enumerate(places):
        expected = np.full_like(values.take(0, axis), 5) if old < 0 else values.take(old, axis)
        assert np.array_equal(made.take(at, axis), expected)
    made[...] = 9
    assert np.array_equal(values, kept)


def test_by_hand() -> None:
    assert pad_tail(3, 5).tolist() == [0, 1, 2, -1, -1]
    assert pad_tail(3, 3).tolist() == identity(3).tolist() == [0, 1, 2]
    assert pad_groups(4, 2, 3, 3).tolist() == [0, 1, -1, 2, 3, -1, -1, -1, -1]
    assert joined([(np.array([1, -1, 0]), 2), (np.array([-1, 0]), 1)]).tolist() == [1, -1, 0, -1, 2]
    assert joined([]).tolist() == []
    assert is_identity(np.arange(3), 3)
    assert not is_identity(np.arange(3), 2)
    assert not is_identity(np.array([0, 2, 1]), 3)
    assert not is_identity(np.array([0, 1, -1]), 3)
    weight = np.array([[1.0, 2], [3, 4]])
    places = np.array([1, -1, 0])
    assert embed_weight(weight, 1, places, np.array([-1, 0, 1]), 1).tolist() == [[0, 0, 0], [2, 0, 1], [4, 0, 3]]
    assert embed_weight(weight.reshape(4, 1), 4, np.array([2, 3, 0, 1]), np.array([2, 3, 0, 1]), 2).tolist() == [
        [3, 0],
        [0, 4],
        [1, 0],
        [0, 2],
    ]


def test_a_channel_in_several_places_is_read_once() -> None:
    """Were it read from each, it would count twice."""
    weight = np.array([[5.0]])
    assert embed_weight(weight, 1, np.array([0, 0]), np.array([0]), 1).sum() == 5
    assert embed_weight(np.array([[1.0], [2.0]]), 2, np.array([0, 1, 0]), np.array([1, 0, 0]), 1).sum(1).tolist() == [
        *(2, 1, 1)
    ]
    both = np.array([0, 1, 0, 1])  # each group has its own copy of what it needs
    made = embed_weight(np.ones((4, 2)), 1, both, np.arange(4), 2)
    assert made.tolist() == [[1, 1]] * 4


@pytest.mark.parametrize(
    ("inputs", "outputs", "group", "reason"),
    [
        ([0, 1, 2, 3], [0, 2, 1, 3], 2, "output channel 2 needs input channels that are in other groups than it is"),
        ([0, 2, 1, 3], [0, 1, 2, 3], 2, "output channel 0 needs input channels that are in other groups than it is"),
        ([0, 1, 2, 3, -1], [0, 1, 2, 3], 2, "2 groups do not divide 5 and 4 channels"),
        ([0, 1, 2, 3], [0, 1, 2, 3, -1], 2, "2 groups do not divide 4 and 5 channels"),
        ([0, 1, 2], [0, 1, 2, 3], 1, "output channel 2 needs input channels"),
    ],
)
def test_refusals(inputs: list[int], outputs: list[int], group: int, reason: str) -> None:
    with pytest.raises(NotGrouped, match=reason):
        embed_weight(np.ones((4, 2, 1)), 2, np.array(inputs), np.array(outputs), group)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_the_most_groups_are_the_most(i_per: int, o_per: int, group: int, data: st.DataObject) -> None:
    """Unchanged channels keep at least their groups, whole groups in another order too."""
    order = data.draw(st.permutations(range(group)))
    inputs, outputs = (np.concatenate([np.arange(g * per, (g + 1) * per) for g in order]) for per in (i_per, o_per))
    assert most_groups(o_per, i_per, inputs, outputs) == group
