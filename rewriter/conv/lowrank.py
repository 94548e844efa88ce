"""One convolution as two smaller ones, approximately: factors of lower rank, chosen by the error on given inputs.

For patches p with second moments R (see `seen`), weights W' are off by tr((W - W')·R·(W - W')ᵀ).  For each way to
read the weights as matrices A `[first side, second side]` (see `separation`):

1. The rank-r matrix nearest to A where rows are weighted by what their inputs are like, and columns by what theirs
   are: the singular value decomposition of Cᵀ·A·D with C·Cᵀ and D·Dᵀ the marginal moments of the two sides, taken back.
   Without D these are the principal components of the responses (Zhang et al., "Accelerating very deep convolutional
   networks for classification and detection", 2016, section 3.1).
2. The second convolution again, by least squares for all of R, with the first as it is.

The factors are fitted to one half of the inputs, and chosen by their error, as rounded to their type, on all of them
and on the other half: what fits nothing but few inputs is no use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.conv.compose import ConvMap
from rewriter.conv.rounding import NotRepresentable, rounded
from rewriter.conv.seen import Seen, energy
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
from rewriter.conv.types import Floats

_CHUNK = 1 << 23
"""Elements of a product of moments that are held at once."""
_HOPELESS = 3.0
"""Times the error allowed: what least squares does not make up for where the singular values foresee more."""
_VAGUE = 0.01
"""What singular values foresee below this says nothing: the ridge shows, and what only one side's moments know."""
_COARSE = 32
"""Ranks above this many are not told apart one by one."""
_RIDGE = 1e-9
"""Part of a moment matrix's mean diagonal that is added to it: few inputs leave it singular."""


@dataclass(frozen=True, eq=False)
class Approximation:
    """Two convolutions in place of one, the error they make on the inputs seen, and what they cost."""

    way: Way
    rank: int
    full_rank: int
    """That of the weights, were they of full rank in this way."""
    cost: int
    """Multiply-adds per output position."""
    error: float
    """Root mean square of the outputs' error over that of the outputs, bias included, on all inputs seen."""
    held_error: float
    """The same on those inputs that it was not fitted to."""
    weight_error: float
    """Norm of the error of the weights over theirs."""
    parts: tuple[ConvMap, ConvMap]


@dataclass(frozen=True)
class OutOfReach:
    """A way that saves nothing within the error allowed: the largest rank that would save, and its error."""

    way: Way
    rank: int
    """0 where no rank saves anything."""
    error: float


def approximate(
    conv: ConvMap, seen: Seen, most_error: float, forms: tuple[str, ...], cost_now: int
) -> tuple[Approximation | None, list[OutOfReach]]:
    """The cheapest split within the error allowed that costs less than `cost_now`, and the ways that have none.

    `most_error` is relative: see `Approximation.error`.  Of two that cost the same, the first one found is taken.
    """
    best: Approximation | None = None
    beyond: list[OutOfReach] = []
    ways = [way for way in (*ways_of(conv), *narrow_ways_of(conv)) if way.form in forms]
    for way in sorted(ways, key=lambda entry: cost_of(conv, entry, 1)):
        most = _full_rank(conv, way, (cost_now - 1) // cost_of(conv, way, 1))
        limit = most if best is None else min(most, (best.cost - 1) // cost_of(conv, way, 1))
        if not limit:
            beyond += [OutOfReach(way, 0, float("inf"))] if not most else []
            continue
        factors = _Factors(conv, way, seen)
        found = _smallest(factors, limit, most_error)
        if isinstance(found, Approximation):
            best = found
        elif limit == most:
            beyond.append(OutOfReach(way, most, found))
    return best, beyond


def _full_rank(conv: ConvMap, way: Way, most: int) -> int:
    """No more than the rank that any weights have."""
    _, p, q = stack_of(conv, way).shape
    return int(min(most, p, q))


def _smallest(factors: _Factors, limit: int, most_error: float) -> Approximation | float:
    """The split of the smallest rank within the error (high ranks to 3 %); or the error of the largest rank.

    Each try is a least-squares problem: the singular values say where to begin, and where not to.
    """
    if factors.foreseen[limit - 1] > _HOPELESS * max(most_error, _VAGUE):
        return float(factors.foreseen[limit - 1])
    best = factors.at(limit)
    if best is None or not max(best.error, best.held_error) <= most_error:
        return float("inf") if best is None else max(best.error, best.held_error)
    low, high = 0, limit  # the error of `high` is within, that of `low` is not
    middle = int(np.searchsorted(-factors.foreseen, -most_error)) + 1
    while high - low > max(1, high // _COARSE):
        middle = middle if low < middle < high else (low + high) // 2
        tried = factors.at(middle)
        if tried is not None and max(tried.error, tried.held_error) <= most_error:
            best, high = tried, middle
        else:
            low = middle
        middle = 0
    return best


class _Factors:
    """Factors of every rank of one way to read the weights."""

    def __init__(self, conv: ConvMap, way: Way, seen: Seen) -> None:
        self.conv, self.way, self.seen = conv, way, seen
        self.sizes = [energy(conv.weight, conv.bias, part) for part in (seen.all, seen.held)]
        self.moments = _blocks(conv, way, seen.fitted.shrunk())  # [G, J, p, B, J, p, B]
        self.stack = stack_of(conv, way)
        self.left, values = _leading(self.stack, self.moments)
        self.foreseen = np.sqrt(np.maximum(1 - np.cumsum(values) / max(values.sum(), np.finfo(float).tiny), 0.0))
        """The relative error of each rank, from 1 on, as far as the two sides' moments tell."""

    def at(self, rank: int) -> Approximation | None:
        """The split of this rank; None where its weights do not fit into their type."""
        conv, way = self.conv, self.way
        left = self.left[:, :, :rank]
        try:
            weights = as_weights(conv, way, *balanced(left, self._refitted(left)))
            first, second = (rounded(weight, conv.weight.dtype) for weight in weights)
        except NotRepresentable:
            return None
        wide1, wide2 = from_weights(conv, way, first, second)
        change = unstacked(conv, way, wide1 @ wide2) - conv.weight.astype(np.float64)
        return Approximation(
            way,
            rank,
            min(self.stack.shape[1:]),
            cost_of(conv, way, rank),
            _relative(energy(change, None, self.seen.all), self.sizes[0]),
            _relative(energy(change, None, self.seen.held), self.sizes[1]),
            float(np.linalg.norm(change) / max(np.linalg.norm(conv.weight.astype(np.float64)), np.finfo(float).tiny)),
            two_convs(conv, way, first, second),
        )

    def _refitted(self, left: Floats) -> Floats:
        """The second side `[n, r, q]` that is best for this first side `[n, p, r]`, by least squares.

        What the second convolution reads are features (j, r, b) = Σ_p left[j][p, r]·patch[j, p, b].
        """
        g, j, p, b = self.moments.shape[:4]
        r = left.shape[2]
        rest = j * p * b
        first = left.reshape(g, -1, j, p, r)  # a unit: what makes outputs that read the same features
        units = first.shape[1]
        outputs = self._outputs(g, units).reshape(g, units, -1, rest)
        right = np.empty((g, units, j * r * b, outputs.shape[2]))
        step = max(1, _CHUNK // (j * r * b * rest))
        for group in range(g):
            seen = self.moments[group].reshape(j, p, b * rest)
            for start in range(0, units, step):
                part = first[group, start : start + step]  # [c, J, p, R]
                c = len(part)
                half = part.transpose(1, 0, 3, 2).reshape(j, c * r, p) @ seen  # [j, c·r, b·rest]
                half = half.reshape(j, c, r, b, rest).swapaxes(0, 1).reshape(c, j * r * b, rest)
                places = half.reshape(c, j * r * b, j, p, b).transpose(0, 2, 1, 4, 3).reshape(c, j, -1, p)
                inner = (places @ part).reshape(c, j, j * r * b, b, r).transpose(0, 2, 1, 4, 3)  # [c, jrb, J, R, B]
                cross = half @ outputs[group, start : start + step].swapaxes(1, 2)  # [c, jrb, o]
                for unit in range(c):
                    matrix = _ridged(inner[unit].reshape(j * r * b, -1))
                    right[group, start + unit] = np.linalg.solve(matrix, cross[unit])
        return right.reshape(len(left) // j, j, r, b, -1).swapaxes(3, 4).reshape(len(left), r, -1)

    def _outputs(self, g: int, units: int) -> Floats:
        """The weights `[G, units, outputs, J, p, B]`."""
        _, j, p, b = self.moments.shape[:4]
        if self.way.form == "depthwise":  # stack [(g, i), K, o]
            return self.stack.reshape(g, 1, j, p, -1).transpose(0, 1, 4, 2, 3)[..., None]
        return self.stack.reshape(g, units, p, -1, b).swapaxes(2, 3)[:, :, :, None]


def _relative(off: float, size: float) -> float:
    """Root of a quotient of sums of squares; infinite where only the second is 0."""
    return float(np.sqrt(off / size)) if size else float(np.inf if off else 0.0)


def _blocks(conv: ConvMap, way: Way, second: Floats) -> Floats:
    """Moments `[G, J, p, B, J, p, B]`: J stacked matrices that feed the same outputs, their first side, and B places.

    B are the places of the second convolution's kernel.
    """
    g, i, rank = conv.group, conv.c // conv.group, len(conv.kernel)
    near = [2 + axis for axis in way.axes]
    far = [2 + axis for axis in range(rank) if axis not in way.axes]
    sizes = (g, i, *conv.kernel, i, *conv.kernel)
    order = [0, 1, *near, *far, *(1 + rank + axis for axis in (1, *near, *far))]
    a = int(np.prod([conv.kernel[axis] for axis in way.axes]))
    b = int(np.prod(conv.kernel)) // a
    j, p = (i, a) if way.form == "depthwise" else (1, i * a)
    return np.ascontiguousarray(second.reshape(sizes).transpose(order)).reshape(g, j, p, b, j, p, b)


def _leading(stack: Floats, blocks: Floats) -> tuple[Floats, Floats]:
    """First sides `[n, p, min(p, q)]` of the weighted decomposition, the most important column first.

    With them the squares of its singular values `[min(p, q)]`, of all matrices together.
    """
    rows = np.einsum("gjpbjPb->gjpP", blocks).reshape(-1, *blocks.shape[2:3] * 2)
    places = np.einsum("gjpbjpB->gjbB", blocks).reshape(-1, *blocks.shape[3:4] * 2)
    found, values = [], np.zeros(min(stack.shape[1:]))
    for number, matrix in enumerate(stack):
        which = number * len(rows) // len(stack)  # several output channels read one group
        place, row = _ridged(places[which]), _ridged(rows[which])
        p, q = matrix.shape
        weighted = (matrix.reshape(p, -1, len(place)) @ np.linalg.cholesky(place)).reshape(p, q)  # A·D
        if p <= q:
            root = np.linalg.cholesky(row)
            inner = root.T @ weighted
            squares, vectors = np.linalg.eigh(inner @ inner.T)
            found.append(np.linalg.solve(root.T, vectors[:, ::-1]))
        else:
            squares, vectors = np.linalg.eigh(weighted.T @ (row @ weighted))
            found.append(weighted @ vectors[:, ::-1])
        values += np.maximum(squares[::-1], 0.0)
    return np.stack(found), values


def _ridged(matrix: Floats) -> Floats:
    """The symmetric matrix with a little of its mean diagonal added to it, so that it is positive definite."""
    size = len(matrix)
    scale = float(np.trace(matrix)) / max(size, 1)
    ridged: Floats = matrix + np.eye(size) * (_RIDGE * scale if scale > 0 else 1.0)
    return ridged
