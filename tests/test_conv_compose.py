"""Two convolutions as one, against evaluating one after the other: in exact integers, and in float64."""

from __future__ import annotations

from math import gcd

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.emit import Array
from models.reference import grouped_conv
from rewriter.conv import ConvMap, NotComposable, NotRepresentable, Window, bias_through, composed, multiplications
from rewriter.conv import rounded as in_type


def evaluate(x: Array, conv: ConvMap) -> Array:
    window = conv.window
    return grouped_conv(x, conv.weight, conv.bias, conv.group, conv.strides, window.dilations, window.begin, window.end)


@st.composite
def maps(draw: st.DrawFn, rank: int, group: int, i_per: int, o_per: int, integers: bool = True) -> ConvMap:
    def axes(least: int, most: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(least, most)] * rank))

    kernel = axes(1, 3)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = [(group * o_per, i_per, *kernel), (group * o_per,)]
    weight, bias = (rng.integers(-4, 5, s).astype(float) if integers else rng.standard_normal(s) for s in shapes)
    window = Window(kernel, axes(1, 2), axes(0, 2), axes(0, 2))
    return ConvMap(weight, bias if draw(st.booleans()) else None, group, axes(1, 3), window)


@st.composite
def pairs(draw: st.DrawFn, integers: bool = True) -> tuple[ConvMap, ConvMap, Array]:
    """Two convolutions, the second reading what the first makes, and an input large enough for both."""
    rank = draw(st.integers(1, 2))
    group1, group2 = draw(st.sampled_from([(1, 1), (1, 6), (6, 1), (2, 3), (6, 6), (2, 4), (4, 2), (3, 6), (6, 4)]))
    middle = np.lcm(group1, group2) * draw(st.integers(1, 2))
    first = draw(maps(rank, group1, draw(st.integers(1, 2)), middle // group1, integers))
    second = draw(maps(rank, group2, middle // group2, draw(st.integers(1, 2)), integers))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (2, first.c, *draw(st.tuples(*[st.integers(17, 20)] * rank)))
    return first, second, rng.integers(-4, 5, shape).astype(float) if integers else rng.standard_normal(shape)


def border_holds(first: ConvMap, second: ConvMap) -> bool:
    padded = [b or e for b, e in zip(second.window.begin, second.window.end, strict=True)]
    wide = any(pad and size > 1 for pad, size in zip(padded, first.kernel, strict=True))
    biased = first.bias is not None and first.bias.any() and any(padded)
    return not wide and not biased


@given(pairs())
@settings(max_examples=300)
def test_two_are_one_or_the_border_would_differ(pair: tuple[ConvMap, ConvMap, Array]) -> None:
    first, second, x = pair
    if not border_holds(first, second):
        with pytest.raises(NotComposable, match=r"the border would differ|its border depends"):
            composed(first, second)
        return
    one = composed(first, second)
    assert one.group == gcd(first.group, second.group)
    assert one.weight.shape == (second.m, first.c // one.group, *one.kernel)
    assert np.array_equal(evaluate(x, one), evaluate(evaluate(x, first), second))


@given(pairs(integers=False))
def test_in_float64_they_differ_by_rounding_only(pair: tuple[ConvMap, ConvMap, Array]) -> None:
    first, second, x = pair
    if not border_holds(first, second):
        return
    expected = evaluate(evaluate(x, first), second)
    assert np.abs(evaluate(x, composed(first, second)) - expected).max() <= 1e-12 * max(np.abs(expected).max(), 1)


@given(pairs())
@settings(max_examples=200)
def test_a_bias_at_a_padded_border_is_a_constant(pair: tuple[ConvMap, ConvMap, Array]) -> None:
    """Of any two: what the second makes of the bias; and together with the weights, where those compose."""
    first, second, x = pair
    rank = len(first.kernel)
    bias = np.arange(1.0, first.m + 1)
    middle = evaluate(x, ConvMap(first.weight, None, first.group, first.strides, first.window))
    plain = ConvMap(second.weight, None, second.group, second.strides, second.window)
    whole = evaluate(middle + bias.reshape(-1, *[1] * rank), plain)
    constant = bias_through(bias, second, middle.shape[2:])
    padded = [b or e for b, e in zip(second.window.begin, second.window.end, strict=True)]
    assert constant.shape[2:] == tuple(s if p else 1 for s, p in zip(whole.shape[2:], padded, strict=True))
    assert np.array_equal(evaluate(middle, plain) + constant, whole)


def test_the_border_really_differs() -> None:
    """What is refused is wrong: a padded second convolution after a wide one, and after a bias."""
    x = np.ones((1, 1, 5))
    plain = Window((3,), (1,), (0,), (0,))
    padded = Window((3,), (1,), (1,), (1,))
    ones = np.ones((1, 1, 3))
    two = ConvMap(ones, None, 1, (1,), padded)
    there = evaluate(evaluate(x, ConvMap(ones, None, 1, (1,), padded)), two)
    assert there.reshape(-1).tolist() == [5, 8, 9, 8, 5]
    assert grouped_conv(x, np.array([[[1, 2, 3, 2, 1.0]]]), None, 1, [1], [1], [2], [2]).reshape(-1).tolist() == [
        *(6, 8, 9, 8, 6)
    ]
    with pytest.raises(NotComposable, match=r"the second is padded \(\[1, 1\]\) where the first is wider than 1 \(3\)"):
        composed(ConvMap(ones, None, 1, (1,), plain), two)


def test_taps_of_even_spacing_become_a_dilation() -> None:
    first = ConvMap(np.ones((1, 1, 3)), None, 1, (2,), Window((3,), (2,), (0,), (0,)))
    second = ConvMap(np.ones((1, 1, 2)), None, 1, (1,), Window((2,), (2,), (0,), (0,)))
    one = composed(first, second)  # taps at 0 2 4 and 4 6 8
    assert (one.window, one.strides) == (Window((5,), (2,), (0,), (0,)), (2,))
    assert one.weight.reshape(-1).tolist() == [1, 1, 2, 1, 1]


def test_channels_that_do_not_fit_are_an_error() -> None:
    pointwise = ConvMap(np.ones((2, 3, 1)), None, 1, (1,), Window((1,), (1,), (0,), (0,)))
    with pytest.raises(ValueError, match="the second reads 3 channels, the first gives 2"):
        composed(pointwise, pointwise)


def test_multiplications_by_hand() -> None:
    assert multiplications([((8, 1, 3, 3), (1, 1)), ((16, 8, 1, 1), (1, 1))]) == 72 + 128
    assert multiplications([((8, 1, 3, 3), (5, 5)), ((16, 8, 1, 1), (2, 2))]) == 4 * 72 + 128


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
def test_rounding_refuses_what_the_type_cannot_hold(dtype: type) -> None:
    kind = np.dtype(dtype)
    values = np.array([[1.0, 1 / 3], [0.0, 0.0]])
    assert np.array_equal(in_type(values, kind), values.astype(kind))
    if kind == np.float64:
        return
    with pytest.raises(NotRepresentable, match="too large for"):
        in_type(values * 1e39, kind)
    with pytest.raises(NotRepresentable, match="too small for"):
        in_type(values * 1e-41, kind)
    with pytest.raises(NotRepresentable, match="not finite"):
        in_type(np.array([np.inf]), kind)
    small = in_type(np.array([[1.0, 1e-41]]), kind)  # beside a large one it does not matter
    assert small[0, 0] == 1
