"""Approximate splits: the error foreseen from second moments is the error made, and the rank the smallest there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.emit import Array
from rewriter.conv import Approximation, ConvMap, Window, approximate, cost, energy, moments, multiplications
from test_conv_compose import evaluate

FORMS = ("depthwise", "pointwise", "spatial", "channels")


@st.composite
def seen_convs(draw: st.DrawFn) -> tuple[ConvMap, list[Array]]:
    """A convolution with singular values that fall off, and inputs whose channels go together."""
    rank, group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    i_per, o_per = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    sizes = st.tuples(*[st.integers(1, 3)] * rank)
    kernel = draw(sizes)
    window = Window(kernel, draw(sizes), draw(sizes), draw(sizes))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    flat = rng.standard_normal((group * o_per, i_per * int(np.prod(kernel))))
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    weight = ((u * (s * 0.4 ** np.arange(len(s)))) @ v).reshape(group * o_per, i_per, *kernel)
    bias = rng.standard_normal(group * o_per) if draw(st.booleans()) else None
    conv = ConvMap(weight, bias, group, draw(sizes), window)
    shape = tuple((size - 1) * step + 4 for size, step in zip(kernel, window.dilations, strict=True))
    together = rng.standard_normal((group * i_per, group * i_per)) * 0.5 ** np.arange(group * i_per)
    inputs = [np.einsum("cd,nd...->nc...", together, rng.standard_normal((n, group * i_per, *shape))) for n in (1, 2)]
    return conv, inputs


def outputs(conv: ConvMap, inputs: list[Array]) -> Array:
    return np.concatenate([evaluate(x, conv).ravel() for x in inputs])


def error_made(conv: ConvMap, found: Approximation, inputs: list[Array]) -> float:
    first, second = found.parts
    exact = outputs(conv, inputs)
    made = outputs(second, [evaluate(x, first) for x in inputs])
    return float(np.linalg.norm(made - exact) / np.linalg.norm(exact))


@given(seen_convs())
@settings(max_examples=60, deadline=None)
def test_energy_is_the_sum_of_squares(case: tuple[ConvMap, list[Array]]) -> None:
    conv, inputs = case
    seen = moments(inputs, conv.window, conv.strides, conv.group)
    assert energy(conv.weight, conv.bias, seen.all) == pytest.approx(
        float(np.sum(outputs(conv, inputs) ** 2)), rel=1e-9
    )


@given(seen_convs(), st.sampled_from([*FORMS, "all"]), st.sampled_from([0.3, 0.1, 0.01]))
@settings(max_examples=120, deadline=None)
def test_the_error_foreseen_is_the_error_made(case: tuple[ConvMap, list[Array]], form: str, most: float) -> None:
    conv, inputs = case
    seen = moments(inputs, conv.window, conv.strides, conv.group)
    found, beyond = approximate(conv, seen, most, FORMS if form == "all" else (form,), 10 * cost(conv))
    if found is None:
        assert all(miss.error > most for miss in beyond)
        return
    assert found.error <= most
    assert error_made(conv, found, inputs) == pytest.approx(found.error, rel=1e-5, abs=1e-7)
    shapes = [(part.weight.shape, part.strides) for part in found.parts]
    assert found.cost == multiplications(shapes)


@given(seen_convs())
@settings(max_examples=40, deadline=None)
def test_the_full_rank_leaves_no_error(case: tuple[ConvMap, list[Array]]) -> None:
    conv, inputs = case
    seen = moments(inputs, conv.window, conv.strides, conv.group)
    found, _ = approximate(conv, seen, 1e-6, ("channels",), 100 * cost(conv))
    assert found is not None
    assert found.error <= 1e-6


def test_the_smallest_rank_within_the_error_is_taken() -> None:
    """Of a weight of rank 3 up to 1e-3: rank 3 for an error of 1 %, fewer for more, more for less."""
    rng = np.random.default_rng(5)
    low = rng.standard_normal((16, 3)) @ rng.standard_normal((3, 8 * 9))
    weight = (low + 1e-3 * rng.standard_normal(low.shape)).reshape(16, 8, 3, 3)
    conv = ConvMap(weight, None, 1, (1, 1), Window((3, 3), (1, 1), (1, 1), (1, 1)))
    seen = moments([rng.standard_normal((1, 8, 12, 12))], conv.window, conv.strides, 1)

    def rank(most: float) -> int:
        found, _ = approximate(conv, seen, most, ("channels",), 2 * cost(conv))
        assert found is not None
        return found.rank

    assert rank(0.01) == 3
    assert rank(0.9) < 3
    assert rank(1e-5) > 3


def test_the_inputs_decide_not_the_weights() -> None:
    """Channels that never carry anything cost no rank, however large their weights are."""
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((16, 8, 1, 1))
    weight[:, 2:] *= 100
    conv = ConvMap(weight, None, 1, (1, 1), Window((1, 1), (1, 1), (0, 0), (0, 0)))
    x = rng.standard_normal((2, 8, 9, 9))
    x[:, 2:] = 0
    found, _ = approximate(conv, moments([x], conv.window, (1, 1), 1), 1e-6, FORMS, cost(conv))
    assert found is not None
    assert found.rank == 2
    assert found.weight_error > 0.9
    assert error_made(conv, found, [x]) < 1e-6


def test_what_cannot_be_reached_is_said() -> None:
    rng = np.random.default_rng(7)
    conv = ConvMap(rng.standard_normal((8, 8, 3, 3)), None, 1, (1, 1), Window((3, 3), (1, 1), (1, 1), (1, 1)))
    seen = moments([rng.standard_normal((1, 8, 16, 16))], conv.window, conv.strides, 1)
    found, beyond = approximate(conv, seen, 0.01, FORMS, cost(conv))
    assert found is None
    assert {miss.way.form for miss in beyond} == set(FORMS)
    assert all(miss.error > 0.01 for miss in beyond)


def test_weights_too_small_for_their_type_are_refused() -> None:
    conv = ConvMap(np.full((4, 4, 1, 1), 6e-8, np.float16), None, 1, (1, 1), Window((1, 1), (1, 1), (0, 0), (0, 0)))
    seen = moments([np.ones((1, 4, 2, 2))], conv.window, (1, 1), 1)
    found, _ = approximate(conv, seen, 0.5, FORMS, cost(conv))
    assert found is None or found.error <= 0.5
    narrow = replace(conv, weight=np.ones((4, 4, 1, 1), np.float16))
    found, _ = approximate(narrow, seen, 0.5, FORMS, cost(conv))
    assert found is not None
    assert found.parts[0].weight.dtype == np.float16
