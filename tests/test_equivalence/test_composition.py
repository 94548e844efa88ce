"""Effective convolutions against running both: weights, stride, dilation, padding, groups, channel mixes, borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewriter.equivalence import composition
from rewriter.equivalence.composition import Mix, Stage, compose
from rewriter.equivalence.forms import Unsupported
from rewriter.equivalence.oracle import convolve

Array = np.ndarray[Any, Any]


def run(stage: Stage, x: Array, end: tuple[int, ...]) -> Array:
    pads = [*stage.pads, *end]
    attributes = {"strides": stage.strides, "dilations": stage.dilations, "pads": pads}
    return np.asarray(convolve(x, stage.weight.astype(np.float64), None, attributes, stage.group))


@st.composite
def stages(draw: st.DrawFn, channels: int, axes: int, padded: bool) -> tuple[Stage, tuple[int, ...]]:
    group = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    outputs = group * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weight = rng.integers(-4, 5, (outputs, channels // group, *kernel)).astype(np.float64)
    strides, dilations = (tuple(draw(st.integers(1, 2)) for _ in range(axes)) for _ in range(2))
    pads, end = (tuple(draw(st.integers(0, 2)) if padded else 0 for _ in range(axes)) for _ in range(2))
    return Stage(weight, group, strides, dilations, pads, np.arange(channels)), end


def plain(channels: int) -> Mix:
    return Mix(np.zeros((channels, 1), int), np.arange(channels)[:, None], None)


@given(st.data())
def test_two_convolutions_are_their_effective_one_wherever_that_is_accepted(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))
    inner, inner_end = data.draw(stages(data.draw(st.sampled_from([2, 4])), axes, True))
    outer, outer_end = data.draw(stages(inner.weight.shape[0], axes, data.draw(st.booleans())))
    size = tuple(data.draw(st.integers(7, 11)) for _ in range(axes))
    x = np.random.default_rng(0).integers(-4, 5, (2, inner.sources.size, *size)).astype(np.float64)
    try:
        between = run(inner, x, inner_end)
        expected = run(outer, between, outer_end)
    except ValueError:
        assume(False)
    assume(expected.size > 0)
    sizes = size, between.shape[2:], expected.shape[2:]
    try:
        whole = compose(outer, [inner], plain(inner.weight.shape[0]), sizes)
    except Unsupported:
        assert any(outer.pads) or any(outer_end)
        return
    needed = [
        (n - 1) * s + (k - 1) * d + 1 - p - n_in
        for n, s, k, d, p, n_in in zip(
            expected.shape[2:], whole.strides, whole.weight.shape[2:], whole.dilations, whole.pads, size, strict=True
        )
    ]
    # Negative padding: the effective kernel begins inside.
    inside = (slice(None), slice(None), *(slice(max(-p, 0), None) for p in whole.pads))
    shifted = x[inside]
    begin = tuple(max(p, 0) for p in whole.pads)
    padded = Stage(whole.weight, 1, whole.strides, whole.dilations, begin, whole.sources)
    got = run(padded, shifted, tuple(max(n, 0) for n in needed))
    cut = got[(slice(None), slice(None), *(slice(0, n) for n in expected.shape[2:]))]
    assert np.array_equal(cut, expected)
    assert whole.terms is not None
    assert whole.magnitude is not None
    assert np.array_equal(whole.terms > 0, whole.magnitude > 0)
    assert (np.abs(whole.weight) <= whole.magnitude).all()


def conv(weight: Array, pads: int = 0, group: int = 1) -> Stage:
    rank = weight.ndim - 2
    return Stage(weight, group, (1,) * rank, (1,) * rank, (pads,) * rank, np.arange(weight.shape[1] * group))


def test_a_padded_convolution_of_a_wider_one_has_a_border_of_its_own() -> None:
    inner, outer = conv(np.ones((2, 2, 3)), pads=1), conv(np.ones((2, 2, 3)), pads=1)
    with pytest.raises(Unsupported, match="border of their own"):
        compose(outer, [inner], plain(2), ((8,), (8,), (8,)))
    assert compose(outer, [conv(np.ones((2, 2, 1)))], plain(2), ((8,), (8,), (8,))).pads == (1,)


def test_the_padding_at_the_end_counts_too() -> None:
    """The output is one longer than without it: the last position reads what the inner one never computed."""
    inner, outer = conv(np.ones((1, 1, 3))), conv(np.ones((1, 1, 3)))
    compose(outer, [inner], plain(1), ((8,), (6,), (4,)))
    with pytest.raises(Unsupported, match="border"):
        compose(outer, [inner], plain(1), ((8,), (6,), (5,)))


def test_mixes_of_several_convolutions_are_summed() -> None:
    rng = np.random.default_rng(1)
    a, b = conv(rng.standard_normal((3, 2, 3))), conv(rng.standard_normal((3, 2, 1)))
    shifted = Stage(b.weight, 1, (1,), (1,), (-1,), np.array([1, 2]))  # reads channels 1 and 2, one position on
    mix = Mix(np.array([[0, 1], [0, -1]]), np.array([[0, 2], [1, 0]]), np.array([[2.0, -1.0], [1.0, 0.0]]))
    outer = conv(rng.standard_normal((4, 2, 1)))
    x = rng.standard_normal((1, 3, 9))
    first, second = run(a, x[:, :2], (0,)), run(Stage(b.weight, 1, (1,), (1,), (0,), b.sources), x[:, 1:, 1:-1], (0,))
    between = np.stack([2 * first[:, 0] - second[:, 2], first[:, 1]], axis=1)
    whole = compose(outer, [a, shifted], mix, ((9,), (7,), (7,)))
    assert whole.sources.tolist() == [0, 1, 2]
    assert whole.pads == (0,)
    np.testing.assert_allclose(run(whole, x, (0,)), run(outer, between, (0,)), rtol=1e-12, atol=1e-12)


def test_what_is_too_large_or_reads_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = conv(np.ones((1, 1, 1)))
    with pytest.raises(Unsupported, match="nothing but zeros"):
        compose(one, [one], Mix(np.full((1, 1), -1), np.zeros((1, 1), int), None), ((4,),) * 3)
    monkeypatch.setattr(composition, "_LARGEST", 11)
    compose(conv(np.ones((2, 1, 1))), [conv(np.ones((1, 1, 5)))], plain(1), ((9,), (5,), (5,)))
    with pytest.raises(Unsupported, match="too large"):
        compose(conv(np.ones((2, 1, 2))), [conv(np.ones((1, 1, 5)))], plain(1), ((9,), (5,), (4,)))
