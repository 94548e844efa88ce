"""Affine maps folded into convolutions, against direct evaluation: exact on integers, and to rounding in each type."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.emit import Array
from models.reference import grouped_conv
from rewriter.conv import Affine, Folding, NotRepresentable, batch_norm


@dataclass(frozen=True)
class Case:
    """A grouped convolution of integers, stride 1, with the same padding everywhere."""

    weight: Array
    bias: Array | None
    group: int
    pad: int
    x: Array

    def evaluate(self, x: Array, folded: Folding | None = None) -> Array:
        weight, bias = (self.weight, self.bias) if folded is None else (folded.weight, folded.bias)
        rank = weight.ndim - 2
        return grouped_conv(x, weight, bias, self.group, [1] * rank, [1] * rank, [self.pad] * rank, [self.pad] * rank)

    @property
    def folding(self) -> Folding:
        return Folding.of(self.weight, self.bias, self.group)


@st.composite
def cases(draw: st.DrawFn, pads: bool = True) -> Case:
    group, i_per, o_per = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.integers(-4, 5, (group * o_per, i_per, *kernel))
    bias = rng.integers(-4, 5, group * o_per) if draw(st.booleans()) else None
    x = rng.integers(-4, 5, (2, group * i_per, *[4] * len(kernel)))
    return Case(weight, bias, group, draw(st.integers(0, 2)) if pads else 0, x)


def drawn(seed: int, channels: int, *, shifts: bool = True, alone: bool = False) -> Affine:
    rng = np.random.default_rng(seed)
    scale, shift = rng.integers(-4, 5, (2, 1 if alone else channels)).astype(float)
    return Affine(scale, shift if shifts else np.zeros(1))


def column(values: Array, rank: int) -> Array:
    return values.reshape(-1, *[1] * (rank - 2))


def applied(affine: Affine, y: Array) -> Array:
    return column(affine.scale, y.ndim) * y + column(affine.shift, y.ndim)


@given(cases(), st.integers(0, 2**32), st.booleans())
def test_behind(case: Case, seed: int, alone: bool) -> None:
    affine = drawn(seed, len(case.weight), alone=alone)
    expected = applied(affine, case.evaluate(case.x))
    assert np.array_equal(case.evaluate(case.x, case.folding.behind(affine)), expected)


@given(cases(), st.integers(0, 2**32), st.booleans())
def test_a_scale_before_whatever_the_padding(case: Case, seed: int, alone: bool) -> None:
    affine = drawn(seed, case.x.shape[1], shifts=False, alone=alone)
    folded = case.folding.before(affine)
    assert np.array_equal(case.evaluate(case.x, folded), case.evaluate(applied(affine, case.x)))
    assert (folded.bias is None) == (case.bias is None)


@given(cases(pads=False), st.integers(0, 2**32), st.booleans())
def test_a_shift_before_where_nothing_is_padded(case: Case, seed: int, alone: bool) -> None:
    affine = drawn(seed, case.x.shape[1], alone=alone)
    assert np.array_equal(case.evaluate(case.x, case.folding.before(affine)), case.evaluate(applied(affine, case.x)))


def test_a_shift_before_padding_would_be_wrong() -> None:
    """Why the border rule is there: at the border the folded shift is too much."""
    case = Case(np.ones((1, 1, 3)), None, 1, 1, np.zeros((1, 1, 4)))
    affine = Affine(np.ones(1), np.ones(1))
    assert case.evaluate(applied(affine, case.x)).tolist() == [[[2, 3, 3, 2]]]
    assert case.evaluate(case.x, case.folding.before(affine)).tolist() == [[[3, 3, 3, 3]]]


@given(cases(pads=False), st.integers(0, 2**31))
def test_one_after_the_other(case: Case, seed: int) -> None:
    first, second = drawn(seed, case.x.shape[1]), drawn(seed + 1, len(case.weight))
    folded = case.folding.before(first).behind(second)
    assert np.array_equal(case.evaluate(case.x, folded), applied(second, case.evaluate(applied(first, case.x))))


def test_part_of_an_affine_map() -> None:
    affine = Affine(np.arange(6.0), np.array([7.0]))
    part = affine.part(2, 5)
    assert (part.scale.tolist(), part.shift.tolist(), part.channels, affine.channels) == ([2, 3, 4], [7], 3, 6)


def test_batch_normalization_is_affine() -> None:
    rng = np.random.default_rng(0)
    scale, shift, mean, x = rng.standard_normal((4, 5)).astype(np.float32)
    variance = rng.uniform(0.5, 2, 5).astype(np.float32)
    affine = batch_norm(scale, shift, mean, variance, 1e-3)
    wide = [value.astype(np.float64) for value in (scale, shift, mean, variance, x)]
    expected = wide[0] * (wide[4] - wide[2]) / np.sqrt(wide[3] + 1e-3) + wide[1]
    assert np.allclose(affine.scale * wide[4] + affine.shift, expected, rtol=1e-14, atol=0)
    assert affine.finite
    assert not batch_norm(scale, shift, mean, -variance, 0.0).finite


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_numbers_are_rounded_once(kind: type) -> None:
    dtype = np.dtype(kind)
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((4, 3, 3)).astype(dtype), rng.standard_normal(4).astype(dtype)
    affine = Affine(rng.uniform(0.5, 2, 4), rng.standard_normal(4))
    made, moved = Folding.of(weight, bias, 1).behind(affine).rounded(dtype)
    assert moved is not None
    assert (made.dtype, moved.dtype) == (dtype, dtype)
    assert np.array_equal(made, (weight.astype(float) * affine.scale[:, None, None]).astype(dtype))
    assert np.array_equal(moved, (bias.astype(float) * affine.scale + affine.shift).astype(dtype))


@pytest.mark.parametrize(("factor", "what"), [(1e6, "too large for float16"), (1e-7, "too small for float16")])
def test_numbers_that_a_type_cannot_hold(factor: float, what: str) -> None:
    weight = np.random.default_rng(0).standard_normal((2, 2, 1)).astype(np.float16)
    with pytest.raises(NotRepresentable, match=what):
        Folding.of(weight, None, 1).behind(Affine(np.full(1, factor), np.zeros(1))).rounded(np.dtype(np.float16))


def test_a_bias_may_be_small_beside_its_weights() -> None:
    weight, bias = np.ones((1, 1, 1), np.float16), np.full(1, 2.0**-26, np.float64)
    assert Folding(weight.astype(float), bias, 1).rounded(np.dtype(np.float16))[1] == [0]
