"""A convolution of a convolution as one effective convolution, in float64: weights, geometry, and the border.

Per spatial axis, with the inner convolution's stride s₁, dilation d₁ and begin padding p₁, and the outer one's s₂, d₂
and p₂, element k₂ of the outer kernel and k₁ of the inner one read the entering tensor at

    o·s₁·s₂ + k₂·d₂·s₁ + k₁·d₁ − p₂·s₁ − p₁

for output position o: stride s₁·s₂, and weights that sum W₂·W₁ over the channels in between.  Where the outer one reads
its padding, zeros take the place of what the inner one would have computed there: the two are one convolution only if
that would have been zero as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from scipy import sparse

from rewriter.constants import Array
from rewriter.equivalence.forms import Floats, Integers, Unsupported
from rewriter.shapes import Shape

_LARGEST: Final = 1 << 26
"""Elements of an effective weight."""
_SPARSE: Final = 0.1
"""Share of nonzeros below which a matrix is multiplied as a sparse one."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A convolution: weight `[M, C/G, *K]`, and its geometry per spatial axis, padding resolved."""

    weight: Array
    group: int
    strides: Shape
    dilations: Shape
    pads: Shape
    """Begin padding."""
    sources: Integers
    """`[C]`: what each input channel is; negative for a channel of zeros."""
    terms: Floats | None = None
    """`[M, C/G, *K]`: products summed in each weight, where it is effective itself; None: a plain weight."""
    magnitude: Floats | None = None
    """The same: Σ|·| of these products."""

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Offset of each kernel element from the position of the output, padding included, in row-major order."""
        steps = product(*map(range, self.weight.shape[2:]))
        return [tuple(k * d - p for k, d, p in zip(step, self.dilations, self.pads, strict=True)) for step in steps]


@dataclass(frozen=True, eq=False)
class Mix:
    """How each input channel of the outer convolution is made: `channel`, `coef` `[C, T]` of an inner one's channels.

    `stage` `[C, T]` says which of the inner convolutions; negative for a term that is not there.
    """

    stage: Integers
    channel: Integers
    coef: Floats | None


def compose(outer: Stage, inner: Sequence[Stage], mix: Mix, sizes: Sequence[Shape]) -> Stage:
    """The effective convolution; `sizes` are the spatial sizes of what enters, of what is between, and of the output.

    `outer.sources` is not used.  Raises Unsupported where there is none, or where it would be too large.
    """
    used = [stage for number, stage in enumerate(inner) if (mix.stage == number).any()]
    if not used:
        raise Unsupported("a convolution reads nothing but zeros")
    if not all(np.isfinite(stage.weight).all() for stage in (outer, *used)):
        raise Unsupported("infinity or NaN is among the weights of convolutions in a row")  # 0 · infinity is no zero
    if any(stage.strides != used[0].strides for stage in used):
        raise Unsupported("a convolution reads others of different strides")
    for stage in used:
        _require_same_border(outer, stage, sizes)
    between = used[0].strides
    sources = np.unique(np.concatenate([stage.sources for stage in used]))
    sources = sources[sources >= 0]
    outer_taps = [tuple(t * s for t, s in zip(tap, between, strict=True)) for tap in outer.taps]
    inner_taps = sorted({tap for stage in used for tap in stage.taps})
    box = _Box.of([_plus(a, b) for a in outer_taps for b in inner_taps])
    outputs, inputs = outer.weight.shape[0], sources.size
    if outputs * inputs * math.prod(box.shape) > _LARGEST:
        raise Unsupported("the convolutions are too large to be composed")
    values, magnitudes, terms = (np.zeros((math.prod(box.shape), outputs, inputs)) for _ in range(3))
    right = {tap: _matrices(inner, mix, tap, sources) for tap in inner_taps}
    for number, tap in enumerate(outer_taps):
        left = _dense(outer, number)
        for other, (weight, magnitude, count) in right.items():
            at = box.index(_plus(tap, other))
            values[at] += _times(left, weight)
            magnitudes[at] += _times(np.abs(left), magnitude)
            terms[at] += _times((left != 0).astype(np.float64), count)
    shape = (outputs, inputs, *box.shape)
    return Stage(
        np.moveaxis(values, 0, -1).reshape(shape),
        1,
        tuple(a * b for a, b in zip(outer.strides, between, strict=True)),
        box.steps,
        tuple(-start for start in box.start),
        sources,
        np.moveaxis(terms, 0, -1).reshape(shape),
        np.moveaxis(magnitudes, 0, -1).reshape(shape),
    )


def _require_same_border(outer: Stage, inner: Stage, sizes: Sequence[Shape]) -> None:
    """Raise Unsupported unless the inner convolution, continued into the outer one's padding, is zero there."""
    entering, between, output = sizes
    for axis, (size, middle, last) in enumerate(zip(entering, between, output, strict=True)):
        kernel = np.arange(outer.weight.shape[2 + axis]) * outer.dilations[axis] - outer.pads[axis]
        read = np.unique(np.arange(last)[:, None] * outer.strides[axis] + kernel)
        padding = read[(read < 0) | (read >= middle)]
        taps = np.arange(inner.weight.shape[2 + axis]) * inner.dilations[axis] - inner.pads[axis]
        reached = padding[:, None] * inner.strides[axis] + taps
        if ((reached >= 0) & (reached < size)).any():
            raise Unsupported(
                "a padded convolution reads another one, so that together they have a border of their own"
            )


@dataclass(frozen=True)
class _Box:
    """The smallest regular grid of offsets that holds all that are used."""

    start: tuple[int, ...]
    steps: Shape
    shape: Shape

    @classmethod
    def of(cls, offsets: Sequence[tuple[int, ...]]) -> _Box:
        columns = list(zip(*offsets, strict=True))
        start = tuple(min(column) for column in columns)
        steps = tuple(
            math.gcd(*(value - low for value in column)) or 1 for column, low in zip(columns, start, strict=True)
        )
        shape = tuple((max(column) - low) // step + 1 for column, low, step in zip(columns, start, steps, strict=True))
        return cls(start, steps, shape)

    def index(self, offset: tuple[int, ...]) -> int:
        at = tuple((o - low) // step for o, low, step in zip(offset, self.start, self.steps, strict=True))
        return int(np.ravel_multi_index(at, self.shape))


def _plus(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _dense(stage: Stage, tap: int, values: Floats | Array | None = None) -> Floats:
    """The matrix `[M, C]` of one kernel element (`tap` counts in row-major order), zeros between groups."""
    weight = stage.weight if values is None else values
    outputs, per_group = weight.shape[:2]
    each = outputs // stage.group
    slab = weight.reshape(outputs, per_group, -1)[:, :, tap].astype(np.float64)
    if stage.group == 1:
        return slab
    matrix = np.zeros((outputs, per_group * stage.group))
    column = (np.arange(outputs) // each)[:, None] * per_group + np.arange(per_group)
    np.put_along_axis(matrix, column, slab, axis=1)
    return matrix


def _matrices(
    inner: Sequence[Stage], mix: Mix, tap: tuple[int, ...], sources: Integers
) -> tuple[Floats, Floats, Floats]:
    """Weights, magnitudes and numbers of products `[C, U]` from the sources to the channels between, at one offset."""
    channels = mix.channel.shape[0]
    totals = tuple(np.zeros((channels, sources.size)) for _ in range(3))
    coef = np.ones(mix.channel.shape) if mix.coef is None else mix.coef
    for number, stage in enumerate(inner):
        if tap not in stage.taps or not (mix.stage == number).any():
            continue
        at = stage.taps.index(tap)
        live = stage.sources >= 0
        place = np.searchsorted(sources, stage.sources[live])
        onto = sparse.csr_array((np.ones(place.size), (np.arange(place.size), place)), (place.size, sources.size))
        plain = _dense(stage, at)
        kinds = (
            plain,
            np.abs(plain) if stage.magnitude is None else _dense(stage, at, stage.magnitude),
            (plain != 0).astype(np.float64) if stage.terms is None else _dense(stage, at, stage.terms),
        )
        for total, kind, factor in zip(totals, kinds, (coef, np.abs(coef), (coef != 0) * 1.0), strict=True):
            for column in range(mix.channel.shape[1]):
                rows = np.flatnonzero(mix.stage[:, column] == number)
                part = kind[mix.channel[rows, column]][:, live] * factor[rows, column][:, None]
                total[rows] += part @ onto  # a source may be there twice
    return totals[0], totals[1], totals[2]


def _times(a: Floats, b: Floats) -> Floats:
    if np.count_nonzero(b) < _SPARSE * b.size:
        return np.asarray(a @ sparse.csr_array(b))
    return a @ b
