"""Convolutions of different ranks side by side: which of their spatial axes are the same axis of what enters.

An axis is known by how far apart its neighbours are among the entering elements.  One along which a convolution has a
kernel of 1 and no padding only selects, as the batch does; the others read, and both sides must read along the same
axes.  So a 1-D convolution can be compared with a 2-D one, or one over depth with one whose depth is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rewriter.equivalence.convs import ConvUse
from rewriter.equivalence.forms import Integers, Unsupported
from rewriter.shapes import Shape

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Aligned:
    """One side's convolutions over the common axes, and where each output position begins to read."""

    convs: tuple[ConvUse, ...]
    """With the axes that read only, in the common order; weights `[M, C/G, *K]` over these."""
    corners: tuple[Integers, ...]
    """Per convolution `[Q, R]`: the coordinate that the first kernel element reads."""
    bases: tuple[Integers, ...]
    """Per convolution `[Q]`: how far the selected element of the batch and of the other axes is from that of the first.

    `sources` of the convolutions are what the first of the output positions selects.
    """


def align(old: tuple[Sequence[ConvUse], Integers], new: tuple[Sequence[ConvUse], Integers]) -> tuple[Aligned, Aligned]:
    """Both sides over common axes, from their convolutions and their outputs' flat positions `[Q]` on their grids.

    Raises Unsupported where there are no common axes.
    """
    steps = {
        conv.upsampling if max(conv.upsampling, default=1) > 1 else () for convs, _ in (old, new) for conv in convs
    }
    if len(steps) > 1:
        raise Unsupported("there are transposed convolutions of different strides")
    sides = [([_squeezed(conv) for conv in convs], positions) for convs, positions in (old, new)]
    every = [conv for convs, _ in sides for conv in convs]
    if any(conv.upsampling for conv in every) or not all(map(_is_regular, every)):
        return _unaligned(*sides[0], every), _unaligned(*sides[1], every)
    reading = sorted({key for conv in every for key in _reading(conv)}, reverse=True)
    first, second = (_over(convs, positions, reading) for convs, positions in sides)
    _require_apart(first.convs, second.convs, reading)
    return first, second


def _require_apart(old: Sequence[ConvUse], new: Sequence[ConvUse], reading: Sequence[tuple[int, int]]) -> None:
    """Raise Unsupported where one channel is read from other beginnings: its elements would have two names."""
    sides = [np.unique(np.concatenate([conv.sources for conv in convs])).astype(np.int64) for convs in (old, new)]
    one, other = (mine[(mine >= 0) & ~np.isin(mine, yours)] for mine, yours in (sides, sides[::-1]))
    for mine, every in ((one, sides[1]), (other, sides[0])):
        for source in mine:
            if _within(every[every >= 0] - source, list(reading)).any():
                raise Unsupported("the convolutions read parts of what enters that begin at different places")


def _within(distance: Integers, axes: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Whether as many steps along the axes as they are long at most make the distance."""
    if not axes:
        return np.asarray(distance == 0)
    (step, size), *rest = sorted(axes, key=lambda axis: -abs(axis[0]))
    if step == 0:
        return _within(distance, rest)
    least = distance // abs(step)
    found = np.zeros(distance.shape, bool)
    for count in (least, least + 1):
        found |= (np.abs(count) < size) & _within(distance - count * abs(step), rest)
    return found


def _squeezed(conv: ConvUse) -> ConvUse:
    """Along an axis of one element, the kernel element that reads it stands for all where the output is one, too."""
    for axis, (size, last) in enumerate(zip(conv.grid.shape[1:], conv.family.grid[1:], strict=True)):
        kernel = conv.weight.shape[2 + axis]
        if size != 1 or last != 1 or kernel == 1:
            continue
        at, rest = divmod(conv.pads[axis], conv.dilations[axis])
        if rest or not 0 <= at < kernel:
            continue
        pick = (slice(None),) * (2 + axis) + (slice(at, at + 1),)
        conv = replace(
            conv,
            weight=conv.weight[pick],
            pads=_with(conv.pads, axis, 0),
            terms=None if conv.terms is None else conv.terms[pick],
            magnitude=None if conv.magnitude is None else conv.magnitude[pick],
        )
    return conv


def _with(values: Shape, axis: int, value: int) -> Shape:
    return (*values[:axis], value, *values[axis + 1 :])


def _steps(conv: ConvUse) -> list[int]:
    """Per spatial axis: the distance of neighbours among the entering elements; 0 along an axis of one element."""
    origin = conv.grid[(0,) * conv.grid.ndim]
    found = []
    for axis, size in enumerate(conv.grid.shape[1:], start=1):
        one = [0] * conv.grid.ndim
        one[axis] = 1
        found.append(int(conv.grid[tuple(one)] - origin) if size > 1 else 0)
    return found


def _is_regular(conv: ConvUse) -> bool:
    """Whether neighbours along an axis are equally far apart everywhere, and axes are not mistaken for each other."""
    steps = _steps(conv)
    spatial = conv.grid.shape[1:]
    ramps = sum(
        (np.arange(size) * step).reshape([-1 if a == axis else 1 for a in range(len(spatial))])
        for axis, (size, step) in enumerate(zip(spatial, steps, strict=True))
    )
    batch = conv.grid.reshape(len(conv.grid), -1)[:, 0].reshape(-1, *[1] * len(spatial))
    moving = [step for step in steps if step]
    return len(set(moving)) == len(moving) and np.array_equal(conv.grid, batch + ramps)


def _selects(conv: ConvUse, axis: int) -> bool:
    last = (conv.family.grid[1 + axis] - 1) * conv.strides[axis]
    return conv.weight.shape[2 + axis] == 1 and conv.pads[axis] == 0 and last < conv.grid.shape[1 + axis]


def _reading(conv: ConvUse) -> list[tuple[int, int]]:
    """(step, size) of the axes that it reads along."""
    sizes = conv.grid.shape[1:]
    return [
        (step, size)
        for axis, (step, size) in enumerate(zip(_steps(conv), sizes, strict=True))
        if not _selects(conv, axis)
    ]


def _over(convs: Sequence[ConvUse], positions: Integers, reading: Sequence[tuple[int, int]]) -> Aligned:
    made, corners, bases = [], [], []
    for conv in convs:
        keys = list(zip(_steps(conv), conv.grid.shape[1:], strict=True))
        if any(keys.count(key) != 1 for key in reading):
            raise Unsupported("the convolutions read along different axes of what enters")
        axes = [keys.index(key) for key in reading]
        at = np.stack(np.unravel_index(positions, conv.family.grid), axis=1)
        begin = at[:, 1:] * np.asarray(conv.strides, np.int64)
        corners.append((begin - np.asarray(conv.pads, np.int64))[:, axes])
        selected = begin.copy()
        selected[:, axes] = 0
        base = conv.grid[(at[:, 0], *selected.T)]
        bases.append(base - base[0])
        sources = np.where(conv.sources >= 0, conv.sources + base[0], conv.sources)
        made.append(replace(_restricted(conv, axes), sources=sources))
    return Aligned(tuple(made), tuple(corners), tuple(bases))


def _restricted(conv: ConvUse, axes: Sequence[int]) -> ConvUse:
    """The convolution with the given axes only, in that order; along the others its kernel is 1."""

    def moved(values: NDArray[T]) -> NDArray[T]:
        rest = [2 + axis for axis in range(values.ndim - 2) if axis not in axes]
        wide = values.transpose([0, 1, *(2 + axis for axis in axes), *rest])
        return wide.reshape(wide.shape[: 2 + len(axes)])

    return replace(
        conv,
        weight=moved(conv.weight),
        strides=tuple(conv.strides[axis] for axis in axes),
        dilations=tuple(conv.dilations[axis] for axis in axes),
        pads=tuple(conv.pads[axis] for axis in axes),
        terms=None if conv.terms is None else moved(conv.terms),
        magnitude=None if conv.magnitude is None else moved(conv.magnitude),
    )


def _unaligned(convs: Sequence[ConvUse], positions: Integers, every: Sequence[ConvUse]) -> Aligned:
    """As they are, which is possible where all read their input in the same order, whatever that is."""
    if any(not np.array_equal(conv.grid, every[0].grid) for conv in every[1:]):
        raise Unsupported("the convolutions read their inputs in different spatial orders")
    corners, bases = [], []
    for conv in convs:
        at = np.stack(np.unravel_index(positions, conv.family.grid), axis=1)
        corners.append(at[:, 1:] * np.asarray(conv.strides, np.int64) - np.asarray(conv.pads, np.int64))
        bases.append(at[:, 0])
    return Aligned(tuple(convs), tuple(corners), tuple(bases))
