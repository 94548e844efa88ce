"""Affine maps per channel, `a*x + b`, folded into the convolution behind or before them.

Behind: `a*(W*x + c) + b = (a*W)*x + (a*c + b)`, row by row.  Before: `W*(a*x + b) + c` has the weight `W[m, i]*a[i]`
and the bias `c[m] + sum_ik W[m, i, k]*b[i]`, where every tap reads a position of x.  A tap in the padding reads 0, not
`b`: with a shift, the convolution must not be padded (the padding would have to be -b/a).  Everything is computed in
float64 and rounded once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rewriter.conv.rounding import rounded
from rewriter.conv.types import Array, Floats


@dataclass(frozen=True)
class Affine:
    """`scale*x + shift`, each `[C]`, or `[1]` for all channels."""

    scale: Floats
    shift: Floats

    @property
    def shifts(self) -> bool:
        """Whether it moves zero."""
        return bool(np.any(self.shift))

    @property
    def finite(self) -> bool:
        """Whether all of its numbers are."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def channels(self) -> int:
        """How many channels it tells apart: 1 where it is the same for all."""
        return max(len(self.scale), len(self.shift))

    def part(self, begin: int, end: int) -> Affine:
        """That of channels `begin` to `end - 1`."""
        pick = [value if len(value) == 1 else value[begin:end] for value in (self.scale, self.shift)]
        return Affine(*pick)


def batch_norm(scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float) -> Affine:
    """BatchNormalization in inference: `scale * (x - mean) / sqrt(variance + epsilon) + shift`, all `[C]`."""
    wide = [np.asarray(value, np.float64) for value in (scale, shift, mean, variance)]
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = wide[0] / np.sqrt(wide[3] + epsilon)
    return Affine(factor, wide[1] - wide[2] * factor)


@dataclass(frozen=True)
class Folding:
    """A conv map that takes affine maps in: weight `[M, C/G, *K]` and bias `[M]` or none, in float64."""

    weight: Floats
    bias: Floats | None
    group: int

    @classmethod
    def of(cls, weight: Array, bias: Array | None, group: int) -> Folding:
        """Begin with a convolution's own numbers."""
        return cls(weight.astype(np.float64), None if bias is None else bias.astype(np.float64), group)

    def behind(self, affine: Affine) -> Folding:
        """With an affine map of its outputs."""
        m = len(self.weight)
        scale = np.broadcast_to(affine.scale, m)
        shift = np.broadcast_to(affine.shift, m)
        weight = self.weight * scale.reshape(m, *[1] * (self.weight.ndim - 1))
        if self.bias is None and not affine.shifts:
            return replace(self, weight=weight)
        return replace(self, weight=weight, bias=shift if self.bias is None else scale * self.bias + shift)

    def before(self, affine: Affine) -> Folding:
        """With an affine map of its inputs; where that shifts, no tap may read padding."""
        m, i_per, *kernel = self.weight.shape
        reads = (np.arange(m) // (m // self.group))[:, None] * i_per + np.arange(i_per)
        scale, shift = (np.broadcast_to(value, self.group * i_per)[reads] for value in (affine.scale, affine.shift))
        weight = self.weight * scale.reshape(m, i_per, *[1] * len(kernel))
        if not affine.shifts:
            return replace(self, weight=weight)
        moved = (self.weight.reshape(m, i_per, -1).sum(axis=2) * shift).sum(axis=1)
        return replace(self, weight=weight, bias=moved if self.bias is None else self.bias + moved)

    def rounded(self, dtype: np.dtype[np.generic]) -> tuple[Array, Array | None]:
        """Weight and bias in a float type.  Raises NotRepresentable where it cannot hold them.

        A bias may lose digits that its row of weights, which are added to it, would drown.
        """
        weight = rounded(self.weight, dtype)
        if self.bias is None:
            return weight, None
        rows = np.concatenate([self.weight.reshape(len(self.weight), -1), self.bias[:, None]], axis=1)
        return weight, np.ascontiguousarray(rounded(rows, dtype)[:, -1])
