"""One convolution as two smaller ones, exactly: weights of low rank.

Three ways to read `W [M, C/G, *K]` as a stack of matrices `[first side, second side]`, each of which gives a split when
every matrix of the stack has rank r at most:

    depthwise   per input channel   [K, M/G]           depthwise of multiplier r, then 1x1 in G groups
    pointwise   per output channel  [C/G, K]           1x1 in G groups to r channels per output, then M groups of r
    spatial     per group           [C/G*KA, M/G*KB]   kernel KA on the axes A, 1 elsewhere, to r channels; then KB

Stride, dilation and padding go with the axes; the second of a split is padded only where the first is 1 wide without a
bias, which is exact.  Every convolution splits so for r large enough: it is worth something if it saves products.

Rank: the smallest r for which the singular values from the (r+1)th on have a root sum of squares of at most epsilon of
the weights' type times the matrix's Frobenius norm.  Rounding a matrix of rank r to the type puts it no further away
than half of that, so that nothing is counted as rank which rounding may have put there.  For float64 it is 2^-40, since
the singular values are computed in float64 themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

from rewriter.conv.branches import Window
from rewriter.conv.compose import ConvMap, Sizes, multiplications
from rewriter.conv.rounding import NotRepresentable, epsilon, rounded
from rewriter.conv.types import Array, Floats, Ints

_FLOOR = 2.0**-40
"""Relative size below which float64 arithmetic, that of the decomposition included, cannot tell rank from rounding."""
_SMALL = 96
"""Matrices up to this wide are decomposed at once; of wider ones a cheaper factorization shows most ranks too high."""
_SURELY_FULL = 1e-9
"""Smallest over largest eigenvalue of A·Aᵀ from which rounding in float64 cannot hide a lower rank."""


@dataclass(frozen=True)
class Split:
    """One way to split a convolution: the form, the first one's axes, the rank, and what it costs."""

    form: str
    """`depthwise`, `pointwise` or `spatial`: see above."""
    axes: tuple[int, ...]
    """Spatial axes that the first convolution takes, with their stride, dilation and padding; the second takes the
    others."""
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


def splits(conv: ConvMap) -> list[Split]:
    """Every way to split the convolution, the cheapest first; raises NotRepresentable for weights not finite."""
    if not np.isfinite(conv.weight.astype(np.float64)).all():
        raise NotRepresentable("its weights are not finite")
    found = [_measure(conv, form, axes) for form, axes in _ways(conv)]
    return sorted(found, key=lambda split: split.cost)


def factorize(conv: ConvMap, split: Split) -> tuple[ConvMap, ConvMap]:
    """The two convolutions of a split: factors from float64, each rounded to the weights' type once.

    Raises NotRepresentable where the rounded factors do not give the weights to the precision of their type.
    """
    stack = _stack(conv, split.form, split.axes)
    u, s, v = np.linalg.svd(stack, full_matrices=False)
    ranks = _ranks(s, _tolerance(conv))
    r = split.rank
    kept = np.where(np.arange(r) < ranks[:, None], s[:, :r], 0.0)
    left, right = _balanced(u[:, :, :r] * kept[:, None, :], v[:, :r] * (kept > 0)[:, :, None])
    first, second = (rounded(side, conv.weight.dtype) for side in _as_weights(conv, split, left, right))
    wide1, wide2 = _from_weights(conv, split, first, second)
    error = np.linalg.norm(wide1 @ wide2 - stack, axis=(1, 2))
    allowed = 2 * (1 + np.sqrt(r)) * _tolerance(conv) * np.linalg.norm(stack, axis=(1, 2))
    if (error > allowed).any():
        raise NotRepresentable(f"rounded to {conv.weight.dtype}, the factors no longer give its weights")
    groups = _groups(conv, split.form)
    near, far = split.axes, _others(conv, split.axes)
    return (
        ConvMap(first, None, groups[0], _only(conv.strides, near, 1), _window(conv.window, near)),
        ConvMap(second, conv.bias, groups[1], _only(conv.strides, far, 1), _window(conv.window, far)),
    )


def _window(window: Window, axes: Sequence[int]) -> Window:
    """The window on these axes; on the others a kernel of 1 without dilation or padding."""
    kernel, dilations = _only(window.kernel, axes, 1), _only(window.dilations, axes, 1)
    return Window(kernel, dilations, _only(window.begin, axes, 0), _only(window.end, axes, 0))


def _only(values: Sizes, axes: Sequence[int], other: int) -> Sizes:
    return tuple(value if axis in axes else other for axis, value in enumerate(values))


def _ways(conv: ConvMap) -> list[tuple[str, tuple[int, ...]]]:
    """Forms and axes of the first that are worth a look: where both parts do something."""
    everything = tuple(range(len(conv.kernel)))
    wide = [axis for axis in everything if conv.kernel[axis] > 1]
    if not wide:
        return []
    ways: list[tuple[str, tuple[int, ...]]] = []
    if conv.m > conv.group:
        ways.append(("depthwise", everything))
    if conv.c > conv.group:
        ways.append(("pointwise", ()))
    for count in range(1, len(wide)):
        for chosen in combinations(wide, count):
            # An axis of kernel 1 may have a stride, which the first takes so that the second has fewer positions.
            ways.append(("spatial", tuple(axis for axis in everything if axis in chosen or axis not in wide)))
    return ways


def _others(conv: ConvMap, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(conv.kernel)) if axis not in axes)


def _tolerance(conv: ConvMap) -> float:
    return max(epsilon(conv.weight.dtype), _FLOOR)


def _groups(conv: ConvMap, form: str) -> tuple[int, int]:
    if form == "depthwise":
        return conv.c, conv.group
    return conv.group, conv.m if form == "pointwise" else conv.group


def _measure(conv: ConvMap, form: str, axes: tuple[int, ...]) -> Split:
    stack = _stack(conv, form, axes)
    each = _cost(conv, form, axes, 1)
    most = (cost(conv) - 1) // each
    rank, singular = _rank(stack, _tolerance(conv), most)
    return Split(form, axes, rank, each * rank, most, singular)


def _cost(conv: ConvMap, form: str, axes: tuple[int, ...], rank: int) -> int:
    """Multiply-adds per output position of the two: proportional to the rank."""
    i_per = conv.c // conv.group
    made, read, again = {
        "depthwise": (conv.c, 1, i_per),
        "pointwise": (conv.m, i_per, 1),
        "spatial": (conv.group, i_per, 1),
    }[form]  # channels between, read by each of them, and read of them by each output, all for rank 1
    near = prod(conv.kernel[axis] for axis in axes)
    later = _only(conv.strides, _others(conv, axes), 1)
    first, second = (made * rank, read, near), (conv.m, again * rank, prod(conv.kernel) // near)
    return multiplications([(first, ()), (second, later)])


def _stack(conv: ConvMap, form: str, axes: tuple[int, ...]) -> Floats:
    """The stack of matrices `[n, first side, second side]` in float64."""
    blocks, order, sides = _layout(conv, form, axes)
    return np.ascontiguousarray(conv.weight.astype(np.float64).reshape(blocks).transpose(order)).reshape(sides)


def _layout(
    conv: ConvMap, form: str, axes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int]]:
    """W as `[g, o, i, *K]`, its axes in the order (stack, first side, second side), and the sizes of these three."""
    blocks = (conv.group, conv.m // conv.group, conv.c // conv.group, *conv.kernel)
    near, far = tuple(3 + axis for axis in axes), tuple(3 + axis for axis in _others(conv, axes))
    parts: dict[str, tuple[tuple[int, ...], ...]] = {
        "depthwise": ((0, 2), near, (1,)),
        "pointwise": ((0, 1), (2,), far),
        "spatial": ((0,), (2, *near), (1, *far)),
    }
    n, p, q = (prod(blocks[axis] for axis in part) for part in parts[form])
    return blocks, tuple(axis for part in parts[form] for axis in part), (n, p, q)


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
        return np.linalg.svd(stack, compute_uv=False).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(_gram(stack))
    doubtful = eigenvalues[:, 0] <= _SURELY_FULL * eigenvalues[:, -1]
    s: Floats = np.sqrt(np.maximum(eigenvalues[:, ::-1], 0.0))
    if doubtful.any():
        s[doubtful] = np.linalg.svd(stack[doubtful], compute_uv=False)
    return s


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


def _balanced(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """The factors `[n, p, r]` and `[n, r, q]` scaled so that weights which are plain numbers stay such.

    The largest entry of each column on the left is 1 times the power of two that makes both sides about as large.
    """
    column = np.take_along_axis(left, np.abs(left).argmax(axis=1, keepdims=True), axis=1)  # [n, 1, r]
    column = np.where(column == 0, 1.0, column)
    left, right = left / column, right * column.swapaxes(1, 2)
    size = np.abs(right).max(axis=2, keepdims=True)  # [n, r, 1]
    power = 2.0 ** np.round(np.log2(np.where(size > 0, size, 1.0)) / 2)
    return left * power.swapaxes(1, 2), right / power


def _as_weights(conv: ConvMap, split: Split, left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Factors as the weights of the two convolutions, `[M1, C/G1, *K1]` and `[M, M1/G2, *K2]`."""
    r, g = split.rank, conv.group
    o, i = conv.m // g, conv.c // g
    near = tuple(size if axis in split.axes else 1 for axis, size in enumerate(conv.kernel))
    far = tuple(1 if axis in split.axes else size for axis, size in enumerate(conv.kernel))
    outer = left.swapaxes(1, 2)  # [n, r, first side]
    if split.form == "depthwise":  # n = (g, i), right [n, r, o]
        inner = right.reshape(g, i, r, o).transpose(0, 3, 1, 2)
        return outer.reshape(g * i * r, 1, *near), inner.reshape(conv.m, i * r, *far)
    if split.form == "pointwise":  # n = (g, o), right [n, r, K]
        return outer.reshape(conv.m * r, i, *near), right.reshape(conv.m, r, *far)
    inner = right.reshape(g, r, o, *far).swapaxes(1, 2)  # n = g, right [n, r, (o, KB)]
    return outer.reshape(g * r, i, *near), inner.reshape(conv.m, r, *far)


def _from_weights(conv: ConvMap, split: Split, first: Array, second: Array) -> tuple[Floats, Floats]:
    """The inverse of `_as_weights`, in float64: factors `[n, p, r]` and `[n, r, q]`."""
    r, g = split.rank, conv.group
    o, i = conv.m // g, conv.c // g
    n = {"depthwise": g * i, "pointwise": conv.m, "spatial": g}[split.form]
    left = first.astype(np.float64).reshape(n, r, -1).swapaxes(1, 2)
    wide = second.astype(np.float64)
    if split.form == "depthwise":
        return left, wide.reshape(g, o, i, r).transpose(0, 2, 3, 1).reshape(n, r, o)
    if split.form == "pointwise":
        return left, wide.reshape(n, r, -1)
    return left, wide.reshape(g, o, r, -1).swapaxes(1, 2).reshape(n, r, -1)
