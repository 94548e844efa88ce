"""The cases of the exactness probe leave kernels no excuse: right kernels are exact on them, wrong ones are caught."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.fft
from numpy.typing import NDArray

from rewriter import exactness as module
from rewriter.exactness import CaseResult, examine
from rewriter.exactness_cases import CASES, SIGNIFICAND, Case, Exercise, Precision, evaluate
from rewriter.exactness_cases import exercise as make_exercise
from rewriter.session import Runtime

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "float64")
BY_NAME = {case.name: case for case in CASES}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


def exercise(case: Case, precision: Precision) -> Exercise:
    return _exercise(case.name, precision)


@functools.cache
def _exercise(name: str, precision: Precision) -> Exercise:
    """Made once for all tests, with its answer."""
    return make_exercise(BY_NAME[name], precision)


# The integers


def multiplies(case: Case) -> bool:
    return bool(case.w)


def rounded(value: NDArray[Any], bits: int) -> NDArray[Any]:
    """To the nearest of `bits` significant bits."""
    fraction, exponent = np.frexp(value.astype(np.float64))
    return np.asarray(np.ldexp(np.rint(fraction * 2.0**bits), exponent - bits))


@every_precision
@every_case
def test_no_partial_sum_leaves_the_exact_integers_but_the_largest_come_near(case: Case, precision: Precision) -> None:
    asked = exercise(case, precision)
    limit = 2 ** SIGNIFICAND[precision]
    area = prod(case.x[2:]) if case.op == "GlobalAveragePool" else 1
    reached = np.abs(asked.answer.astype(np.float64) * area).max()

    assert asked.sums().max() <= limit
    if precision == "tf32" and not multiplies(case):
        limit = case.terms * 2047  # its operands are capped, its sums therefore short
    assert reached > limit / 2
    assert np.mean(asked.answer != 0) >= 0.3
    assert np.array_equal(asked.answer.astype(np.float64), evaluate(case, asked.operands))  # none was rounded


@every_case
def test_operands_need_more_bits_than_tf32_keeps_only_where_that_must_be_noticed(case: Case) -> None:
    for name in ("x", "w")[: 1 + multiplies(case)]:
        precise, reduced, half = (exercise(case, kind).operands[name] for kind in ("float32", "tf32", "float16"))
        assert np.mean(rounded(precise, 11) != precise) > 0.25
        assert np.abs(reduced).max() < 2**11
        assert np.abs(half).max() <= 2**11


@every_case
def test_the_same_integers_every_time(case: Case) -> None:
    first, second = make_exercise(case, "float32"), make_exercise(case, "float32")
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    onnx.checker.check_model(first.model, full_check=True)


def test_the_stream_of_integers_is_the_one_that_results_were_stored_for() -> None:
    x = exercise(BY_NAME["gemm"], "float32").operands["x"]
    assert (module.VERSION, x[0, :4].tolist(), int(np.abs(x).sum())) == (1, [7038, 8, 6989, 8], 50220494)


# Right kernels


@pytest.mark.parametrize("level", ["disable", "all"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@every_case
def test_the_cpu_provider_is_exact(case: Case, precision: Precision, level: Any) -> None:
    result = examine(exercise(case, precision), Runtime(level=level))
    assert result == CaseResult(
        name=case.name, precision=precision, level=level, exact=True, elements=exercise(case, precision).answer.size
    )


def test_a_missing_kernel_is_told_from_a_wrong_one() -> None:
    result = examine(exercise(BY_NAME["conv 1x1"], "float64"), Runtime())
    assert result.exact is None
    assert result.missing
    assert "Could not find an implementation for Conv" in result.reason


# Wrong kernels: each is the right answer but for one thing.

Fault = Callable[[Exercise], NDArray[Any]]


def answered_on(change: Callable[[NDArray[np.int64]], NDArray[Any]], *names: str) -> Fault:
    """The right answer to other operands."""

    def fault(asked: Exercise) -> NDArray[Any]:
        changed = {n: change(v).astype(np.int64) if n in names else v for n, v in asked.operands.items()}
        with np.errstate(over="ignore"):
            return evaluate(asked.case, changed).astype(asked.answer.dtype)

    return fault


def changed(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Fault:
    """Another answer of the same type."""

    def fault(asked: Exercise) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.asarray(change(asked.answer)).astype(asked.answer.dtype)

    return fault


def fewer_bits(asked: Exercise) -> NDArray[Any]:
    """Sums rounded to one bit less than the type has."""
    return rounded(asked.answer, SIGNIFICAND[asked.precision] - 1).astype(asked.answer.dtype)


def one_element(value: NDArray[Any]) -> NDArray[Any]:
    value = value.copy()
    value.flat[-1] = np.nextafter(value.flat[-1], value.dtype.type(np.inf))
    return value


def found_out(asked: Exercise, fault: Fault) -> CaseResult:
    return examine(asked, Runtime(), lambda model, feeds, runtime: fault(asked))


FAULTS: tuple[tuple[str, Fault, tuple[Precision, ...]], ...] = (
    ("relative error of 1e-6", changed(lambda y: y * (1 + 1e-6)), ("float32", "tf32", "float64")),
    ("inputs rounded to TF32", answered_on(lambda x: rounded(x, 11), "x"), ("float32",)),
    ("sums in float16", changed(lambda y: y.astype(np.float16)), ("float32", "tf32", "float64")),
    ("sums in float32", changed(lambda y: y.astype(np.float32)), ("float64",)),
    ("sums of one bit less", fewer_bits, ("float32", "float16", "float64")),
    ("one element, one unit in the last place", changed(one_element), PRECISIONS),
    ("inputs shifted by one", answered_on(lambda x: np.roll(x, 1), "x"), PRECISIONS),
    ("zeros", changed(np.zeros_like), PRECISIONS),
    ("NaN", changed(lambda y: np.where(np.arange(y.size).reshape(y.shape) == 3, np.nan, y)), PRECISIONS),
)


@pytest.mark.parametrize(
    ("fault", "precision"),
    [pytest.param(fault, kind, id=f"{name}, {kind}") for name, fault, kinds in FAULTS for kind in kinds],
)
@every_case
def test_a_wrong_kernel_is_caught(case: Case, fault: Fault, precision: Precision) -> None:
    asked = exercise(case, precision)
    assert found_out(asked, lambda asked: asked.answer).exact is True
    result = found_out(asked, fault)
    assert result.exact is False
    assert 0 < result.wrong <= result.elements
    assert result.largest_error > 0


@pytest.mark.parametrize("case", [case for case in CASES if multiplies(case)], ids=lambda case: case.name)
def test_weights_rounded_to_tf32_are_caught(case: Case) -> None:
    fault = answered_on(lambda w: rounded(w, 11), "w")
    assert found_out(exercise(case, "float32"), fault).exact is False
    assert found_out(exercise(case, "tf32"), fault).exact is True  # there it is allowed


def winograd(asked: Exercise, tile: int) -> NDArray[Any]:
    """F(tile², 3²) of Lavin and Gray 2016 in float32, of a 3×3 convolution with pads 1: Y = Aᵀ[Σ (GgGᵀ) ⊙ (BᵀdB)]A."""
    b, g, a = (np.array(matrix, np.float32) for matrix in TRANSFORMS[tile])
    x = np.pad(asked.operands["x"], [(0, 0), (0, 0), (1, 1), (1, 1)]).astype(np.float32)
    kernels = g @ asked.operands["w"].astype(np.float32) @ g.T
    samples, _, height, width = asked.operands["x"].shape
    y = np.zeros((samples, kernels.shape[0], height, width), np.float32)
    for i in range(0, height, tile):
        for j in range(0, width, tile):
            seen = b @ x[:, :, i : i + tile + 2, j : j + tile + 2] @ b.T
            products = np.zeros((samples, *kernels.shape[:1], *seen.shape[2:]), np.float32)
            for channel in range(kernels.shape[1]):
                products += kernels[None, :, channel] * seen[:, None, channel]
            y[:, :, i : i + tile, j : j + tile] = a @ products @ a.T
    return y + asked.operands["b"].astype(np.float32)[:, None, None]


TRANSFORMS: dict[int, tuple[list[list[float]], list[list[float]], list[list[float]]]] = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_is_caught(tile: int) -> None:
    asked = exercise(BY_NAME["conv 3x3"], "float32")
    y = winograd(asked, tile)
    right = asked.answer
    assert np.abs(y - right).max() < 1e-3 * np.abs(right).max()  # it is that convolution, only rounded
    assert found_out(asked, lambda asked: y).exact is False


def test_fft_is_caught() -> None:
    asked = exercise(BY_NAME["conv 7x7"], "float32")
    size = (asked.case.x[2] + 6 + 6,) * 2
    x = scipy.fft.rfft2(np.pad(asked.operands["x"], [(0, 0), (0, 0), (3, 3), (3, 3)]).astype(np.float32), size)
    w = scipy.fft.rfft2(asked.operands["w"][:, :, ::-1, ::-1].astype(np.float32), size)
    full = scipy.fft.irfft2(np.einsum("nchw,mchw->nmhw", x, w), size)
    y = full[:, :, 6:-6, 6:-6] + asked.operands["b"].astype(np.float32)[:, None, None]
    right = asked.answer
    assert y.dtype == np.float32
    assert np.abs(y - right).max() < 1e-3 * np.abs(right).max()
    assert found_out(asked, lambda asked: y).exact is False


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda asked: asked.answer[..., :-1], r"float32 \[64, 63\] instead of float32 \[64, 64\]"),
        (lambda asked: asked.answer.astype(np.float64), r"float64 .* instead of float32"),
    ],
)
def test_another_shape_or_type_is_wrong(fault: Fault, said: str) -> None:
    result = found_out(exercise(BY_NAME["gemm"], "float32"), fault)
    assert result.exact is False
    assert result.largest_error == np.inf
    assert re.search(said, result.reason)


def test_zeros_of_either_sign_are_equal() -> None:
    asked = exercise(BY_NAME["conv 3x3 and Relu"], "float32")
    assert (asked.answer == 0).any()
    assert found_out(asked, changed(lambda y: np.where(y == 0, -0.0, y))).exact is True
