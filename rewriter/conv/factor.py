"""One convolution as two smaller ones, exactly: weights of low rank.

Each way of `separation` gives a split when every matrix of its stack has rank r at most.  Every convolution splits so
for r large enough: it is worth something if it saves products.

Rank: the smallest r for which the singular values from the (r+1)th on have a root sum of squares of at most epsilon of
the weights' type times the matrix's Frobenius norm.  Rounding a matrix of rank r to the type puts it no further away
than half of that, so that nothing is counted as rank which rounding may have put there.  For float64 it is 2^-40, since
the singular values are computed in float64 themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from rewriter.conv.compose import ConvMap
from rewriter.conv.rounding import NotRepresentable, epsilon, rounded
from rewriter.conv.separation import (
    Way,
    as_weights,
    balanced,
    cost_of,
    from_weights,
    narrow_ways_of,
    stack_of,
    two_convs,
    unstacked,
    ways_of,
)
from rewriter.conv.types import Floats, Ints

_FLOOR = 2.0**-40
"""Relative size below which float64 arithmetic, that of the decomposition included, cannot tell rank from rounding."""
_ROUNDINGS = 9
"""Roundings besides those of the products summed that a weight may be off by, as the audit has it."""
_TURNS = 6
_CANCELS = 8.0
"""Times the weights that the products of the factors may be: where they cancel, sums are less accurate than before."""
_SMALL = 96
"""Matrices up to this wide are decomposed at once; of wider ones a cheaper factorization shows most ranks too high."""
_SURELY_FULL = 1e-9
"""Smallest over largest eigenvalue of A·Aᵀ from which rounding in float64 cannot hide a lower rank."""


@dataclass(frozen=True)
class Split(Way):
    """One way to split a convolution exactly: the rank, and what it costs."""

    rank: int
    """The rank; where `singular` is empty at least that, and more than `most`."""
    cost: int
    """Multiply-adds per output position with this rank."""
    most: int
    """The largest rank that would save anything; 0 where none does."""
    singular: tuple[float, ...]
    """Leading singular values of the matrix of the highest rank; empty where a rank too high was shown without."""

    @property
    def saves(self) -> bool:
        return self.rank <= self.most


def cost(conv: ConvMap) -> int:
    """Multiply-adds per output position: M·C/G·K."""
    return prod(conv.weight.shape)


def splits(conv: ConvMap, *, narrow: bool = False) -> list[Split]:
    """Every way to split the convolution, the cheapest first; raises NotRepresentable for weights not finite.

    `narrow`: through fewer channels, the kernel as a whole on one side; otherwise those that share the kernel out.
    """
    if not np.isfinite(conv.weight.astype(np.float64)).all():
        raise NotRepresentable("its weights are not finite")
    found = [_measure(conv, way) for way in (narrow_ways_of if narrow else ways_of)(conv)]
    return sorted(found, key=lambda split: split.cost)


def factorize(conv: ConvMap, split: Split) -> tuple[ConvMap, ConvMap]:
    """The two convolutions of a split: factors from float64, each rounded to the weights' type once.

    Raises NotRepresentable where the rounded factors do not give the weights to the precision of their type: as a
    whole, and each by itself, since an input may meet small weights alone.
    """
    stack = stack_of(conv, split)
    u, s, v = np.linalg.svd(stack, full_matrices=False)
    ranks = _ranks(s, _tolerance(conv))
    r = split.rank
    kept = np.where(np.arange(r) < ranks[:, None], s[:, :r], 0.0)
    left, right = balanced(u[:, :, :r] * kept[:, None, :], v[:, :r] * (kept > 0)[:, :, None])
    found = _as_convs(conv, split, left, right)
    if found is None:
        found = _as_convs(conv, split, *balanced(*_refined(left, right, stack)))
    if found is None:
        raise NotRepresentable(f"rounded to {conv.weight.dtype}, the factors no longer give its weights")
    return found


def _as_convs(conv: ConvMap, split: Split, left: Floats, right: Floats) -> tuple[ConvMap, ConvMap] | None:
    """The convolutions with these factors, rounded; None where they do not give every weight to its precision."""
    stack, r, unit = stack_of(conv, split), split.rank, _tolerance(conv) / 2
    first, second = (rounded(side, conv.weight.dtype) for side in as_weights(conv, split, left, right))
    wide1, wide2 = from_weights(conv, split, first, second)
    terms, error = np.abs(wide1) @ np.abs(wide2), np.abs(wide1 @ wide2 - stack)
    if (error > (_ROUNDINGS + r) * unit * np.maximum(terms, np.abs(stack))).any():
        return None
    outputs = tuple(range(1, conv.weight.ndim))
    sums, before = (np.abs(unstacked(conv, split, each)).sum(axis=outputs) for each in (terms, stack))
    return two_convs(conv, split, first, second) if (sums <= _CANCELS * before).all() else None


def _refined(left: Floats, right: Floats, stack: Floats) -> tuple[Floats, Floats]:
    """Factors `[n, p, r]` and `[n, r, q]` whose product is close to every entry, in proportion to its own size.

    The singular value decomposition is closest as a whole, so that small entries take what is rounding to large ones.
    Here each factor in turn is the least-squares solution with every entry weighted by what it is a sum of.
    """
    for _ in range(_TURNS):
        size = np.maximum(np.abs(left) @ np.abs(right), np.abs(stack))
        most = size.max(axis=(1, 2), keepdims=True)
        size = np.where(most > 0, size / np.where(most > 0, most, 1.0), 1.0)
        weight = 1 / np.maximum(size, _FLOOR) ** 2
        left = _solved(right, weight, stack)
        right = _solved(left.swapaxes(1, 2), weight.swapaxes(1, 2), stack.swapaxes(1, 2)).swapaxes(1, 2)
    return left, right


def _solved(right: Floats, weight: Floats, stack: Floats) -> Floats:
    """The left factor `[n, p, r]` that is best with the right one, under weights `[n, p, q]`."""
    gram = np.einsum("nrq,npq,nsq->nprs", right, weight, right, optimize=True)
    size = np.trace(gram, axis1=2, axis2=3)[..., None, None]
    limits = np.finfo(np.float64)
    ridge = (limits.eps * size + limits.tiny) * np.eye(right.shape[1])
    against = np.einsum("nrq,npq->npr", right, weight * stack, optimize=True)
    return np.asarray(np.linalg.solve(gram + ridge, against[..., None])[..., 0])


def _tolerance(conv: ConvMap) -> float:
    return max(epsilon(conv.weight.dtype), _FLOOR)


def _measure(conv: ConvMap, way: Way) -> Split:
    each = cost_of(conv, way, 1)
    most = (cost(conv) - 1) // each
    rank, singular = _rank(stack_of(conv, way), _tolerance(conv), most)
    return Split(way.form, way.axes, rank, each * rank, most, singular)


def _rank(stack: Floats, eps: float, most: int) -> tuple[int, tuple[float, ...]]:
    """The highest rank of the stack's matrices, and leading singular values of the one that has it.

    Of wide matrices without the latter: where it is more than `most`, so many rows of full rank show it.
    """
    small = min(stack.shape[1:])
    if most < small and small > _SMALL and _has_full_rows(stack[0], most + 1):
        return most + 1, ()
    s = _singular_values(stack)
    ranks = _ranks(s, eps)
    # Of those of the highest rank, the one whose smallest value of it is largest: the furthest from a lower one.
    highest = int(ranks.max())
    last = np.where(ranks == highest, s[:, max(highest, 1) - 1] / np.maximum(s[:, 0], np.finfo(float).tiny), -1.0)
    return max(highest, 1), tuple(s[int(last.argmax()), :4].tolist())


def _singular_values(stack: Floats) -> Floats:
    """`[n, min(p, q)]`, in descending order: from A·Aᵀ, which is cheap, where that is of full rank beyond doubt."""
    if min(stack.shape[1:]) > _SMALL:
        return np.stack([_singular_values_of_wide(matrix) for matrix in stack])
    eigenvalues = np.linalg.eigvalsh(_gram(stack))
    doubtful = eigenvalues[:, 0] <= _SURELY_FULL * eigenvalues[:, -1]
    s: Floats = np.sqrt(np.maximum(eigenvalues[:, ::-1], 0.0))
    if doubtful.any():
        s[doubtful] = np.linalg.svd(stack[doubtful], compute_uv=False)
    return s


def _singular_values_of_wide(matrix: Floats) -> Floats:
    """`[min(p, q)]`, in descending order: of the few leading directions alone, where nothing is left beside them.

    What is left bounds the values that are not computed (Eckart, Young 1936): they are given as equal parts of it.
    """
    size = min(matrix.shape)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    eigenvalues, vectors = np.linalg.eigh(tall.T @ tall)
    leading = vectors[:, eigenvalues > _SURELY_FULL * max(float(eigenvalues[-1]), 0.0)][:, ::-1]
    count = leading.shape[1]
    if 0 < count < size // 2:
        part = tall @ leading
        rest = float(np.linalg.norm(tall - part @ leading.T))
        if rest <= _FLOOR * float(np.linalg.norm(tall)):
            few = np.linalg.svd(part, compute_uv=False)
            return np.concatenate([few, np.full(size - count, rest / np.sqrt(size - count))])
    return np.linalg.svd(matrix, compute_uv=False).astype(np.float64)


def _gram(stack: Floats) -> Floats:
    """A·Aᵀ or Aᵀ·A of each matrix, the smaller one."""
    matrix = stack if stack.shape[1] <= stack.shape[2] else stack.swapaxes(1, 2)
    return matrix @ matrix.swapaxes(1, 2)


def _ranks(s: Floats, eps: float) -> Ints:
    """Rank of each matrix, from its singular values `[n, min(p, q)]` in descending order."""
    tails = np.sqrt(np.cumsum(s[:, ::-1] ** 2, axis=1))[:, ::-1]  # [n, k]: root sum of squares from the kth on
    ranks: Ints = (tails > eps * tails[:, :1]).sum(axis=1)
    return ranks


def _has_full_rows(matrix: Floats, count: int) -> bool:
    """Whether `count` evenly spaced rows (or columns) of it are surely independent.

    Then A·Aᵀ of them, less a part of its trace, has a Cholesky factor.
    """
    rows = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    chosen = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    gram = chosen @ chosen.T
    gram[np.diag_indices_from(gram)] -= _SURELY_FULL * np.trace(gram)
    try:
        np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return False
    return True
