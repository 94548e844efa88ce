"""Convolutions split in two: the two give what the one gives, and the rank is the one that was put in."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.emit import Array
from rewriter.conv import ConvMap, NotRepresentable, Split, Window, composed, cost, factorize, multiplications, splits
from rewriter.conv import factor as factor_module
from test_conv_compose import evaluate

ZERO = {1: (0,), 2: (0, 0), 3: (0, 0, 0)}


def conv_of(weight: Array, group: int = 1, **changes: object) -> ConvMap:
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    made = ConvMap(weight, None, group, ones, Window(kernel, ones, ZERO[len(kernel)], ZERO[len(kernel)]))
    return replace(made, **changes)  # type: ignore[arg-type]


@st.composite
def separable(draw: st.DrawFn, dtype: type = np.float64) -> tuple[ConvMap, str, int]:
    """A convolution put together from a split of a known form and rank; strided, dilated and padded."""
    form, rank = draw(st.sampled_from(["depthwise", "pointwise", "spatial"])), draw(st.integers(1, 2))
    group, i, o = draw(st.sampled_from([1, 2])), draw(st.integers(3, 5)), draw(st.integers(3, 5))
    kernel = draw(st.sampled_from([(3,), (3, 3), (3, 1), (2, 4), (1, 3, 3), (3, 2, 2)]))
    if form == "spatial" and sum(size > 1 for size in kernel) < 2:
        kernel = (3, 3)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    letters = "abc"[: len(kernel)]
    if form == "depthwise":
        w = np.einsum(
            f"gir{letters},goir->goi{letters}",
            rng.standard_normal((group, i, rank, *kernel)),
            rng.standard_normal((group, o, i, rank)),
        )
    elif form == "pointwise":
        w = np.einsum(
            f"goir,gor{letters}->goi{letters}",
            rng.standard_normal((group, o, i, rank)),
            rng.standard_normal((group, o, rank, *kernel)),
        )
    else:
        near, far = letters[0], letters[1:]
        if kernel[0] == 1:
            near, far = letters[:2], letters[2:]
        w = np.einsum(
            f"gir{near},gro{far}->goi{letters}",
            rng.standard_normal((group, i, rank, *kernel[: len(near)])),
            rng.standard_normal((group, rank, o, *kernel[len(near) :])),
        )
    axes = [st.tuples(*[st.integers(least, most)] * len(kernel)) for least, most in ((1, 2), (1, 2), (0, 2), (0, 2))]
    strides, dilations, begin, end = (draw(entry) for entry in axes)
    weight = w.reshape(group * o, i, *kernel).astype(dtype)
    bias: Array | None = rng.standard_normal(group * o).astype(dtype) if draw(st.booleans()) else None
    return ConvMap(weight, bias, group, strides, Window(kernel, dilations, begin, end)), form, rank


def error(conv: ConvMap, split: Split) -> float:
    """Largest difference of the two from the one, over the largest output."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, conv.c, *[9] * len(conv.kernel)))
    first, second = factorize(conv, split)
    assert first.bias is None
    expected = evaluate(x, conv)
    return float(np.abs(evaluate(evaluate(x, first), second) - expected).max() / np.abs(expected).max())


@given(separable())
@settings(max_examples=100, deadline=None)
def test_the_rank_put_in_is_found_and_the_two_are_the_one(case: tuple[ConvMap, str, int]) -> None:
    conv, form, rank = case
    found = [split for split in splits(conv) if split.form == form and split.rank == rank]
    assert found
    assert error(conv, found[0]) < 1e-11


@given(separable(np.float32))
@settings(max_examples=50, deadline=None)
def test_in_float32_too_where_rounding_made_the_rank_full(case: tuple[ConvMap, str, int]) -> None:
    conv, form, rank = case
    found = [split for split in splits(conv) if split.form == form and split.rank == rank]
    assert found
    assert error(conv, found[0]) < 1e-5
    for part in factorize(conv, found[0]):
        assert part.weight.dtype == np.float32


@given(separable())
@settings(max_examples=100, deadline=None)
def test_every_split_is_one_and_costs_what_it_says(case: tuple[ConvMap, str, int]) -> None:
    """Whatever the rank; and composing the two gives the weights back."""
    conv, _, _ = case
    found = splits(conv)
    assert [split.cost for split in found] == sorted(split.cost for split in found)
    for split in found:
        first, second = factorize(conv, split)
        assert split.cost == multiplications([(part.weight.shape, part.strides) for part in (first, second)])
        assert split.saves == (split.cost < cost(conv))
        back = composed(first, second)
        assert (back.strides, back.window.begin, back.window.end) == (conv.strides, conv.window.begin, conv.window.end)
        assert error(conv, split) < 1e-10


def test_the_criterion_is_the_one_stated() -> None:
    """Singular values 1 and t: rank 1 as long as t is within epsilon of the norm."""
    eps = 2.0**-23
    for tail, rank in ((0.5 * eps, 1), (0.99 * eps, 1), (1.01 * eps, 2), (4 * eps, 2)):
        weight = np.zeros((2, 1, 2), np.float32)
        weight[0, 0, 0], weight[1, 0, 1] = 1, tail
        (depthwise,) = [split for split in splits(conv_of(weight)) if split.form == "depthwise"]
        assert depthwise.rank == rank
        np.testing.assert_allclose(depthwise.singular, [1, tail], rtol=1e-6)


def test_random_weights_have_full_rank() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)
    ranks = {(split.form, split.axes): split.rank for split in splits(conv_of(weight))}
    assert ranks == {
        ("depthwise", (0, 1)): 9,
        ("pointwise", ()): 8,
        ("spatial", (0,)): 24,
        ("spatial", (1,)): 24,
    }
    assert not any(split.saves for split in splits(conv_of(weight)))


@pytest.mark.parametrize("rank", [5, 40, 150])
def test_the_short_way_for_wide_matrices_finds_what_the_long_one_finds(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    product = rng.standard_normal((150, rank)) @ rng.standard_normal((rank, 165))
    weight = product.reshape(50, 3, 55, 3).transpose(2, 0, 1, 3).astype(np.float32)
    (short,) = [split for split in splits(conv_of(weight)) if split.axes == (0,)]
    monkeypatch.setattr(factor_module, "_SMALL", 1000)
    (long,) = [split for split in splits(conv_of(weight)) if split.axes == (0,)]
    assert long.rank == rank
    assert short.saves == long.saves == (rank == 5 or rank == 40)
    assert short.rank == (rank if short.saves else short.most + 1)
    assert bool(short.singular) == short.saves


def test_ones_stay_ones() -> None:
    conv = conv_of(np.ones((2, 2, 1, 3), np.float32))
    for split in splits(conv):
        for part in factorize(conv, split):
            assert (part.weight == 1).all()


def test_what_has_nothing_to_separate_has_no_split() -> None:
    assert splits(conv_of(np.ones((4, 4, 1, 1)))) == []
    assert splits(conv_of(np.ones((4, 1, 3)), 4)) == []


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_short_types(dtype: type) -> None:
    rng = np.random.default_rng(1)
    weight: Array = (rng.standard_normal((6, 1, 1)) * rng.standard_normal((1, 5, 3))).astype(dtype)
    (split,) = [split for split in splits(conv_of(weight)) if split.form == "spatial" or split.form == "pointwise"]
    assert error(conv_of(weight), split) < 0.02


def test_the_smallest_numbers_of_a_type_split_and_numbers_that_are_none_do_not() -> None:
    weight = np.full((4, 4, 3), 2.0**-24, np.float16)  # the smallest there is: balanced factors hold it
    split = splits(conv_of(weight))[0]
    assert error(conv_of(weight), split) < 1e-15
    with pytest.raises(NotRepresentable, match="not finite"):
        splits(conv_of(np.full((4, 4, 3), np.nan, np.float32)))


def test_zeros_have_rank_one() -> None:
    conv = conv_of(np.zeros((4, 4, 3), np.float32))
    split = splits(conv)[0]
    assert split.rank == 1
    assert not any(part.weight.any() for part in factorize(conv, split)[1:])


def test_factors_that_do_not_give_the_weights_are_refused() -> None:
    """As those of a rank too low."""
    weight = np.random.default_rng(0).standard_normal((4, 4, 3)).astype(np.float32)
    (split,) = [split for split in splits(conv_of(weight)) if split.form == "depthwise"]
    assert split.rank == 3
    with pytest.raises(NotRepresentable, match="rounded to float32, the factors no longer give its weights"):
        factorize(conv_of(weight), replace(split, rank=2))
