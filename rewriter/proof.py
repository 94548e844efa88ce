"""Read a tracked state as a channel mix: which axes are batch, space and channels, and which channels mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewriter.conv import ChannelMix
from rewriter.rule import Declined, require
from rewriter.shapes import Shape
from rewriter.track import State


@dataclass(frozen=True)
class Layout:
    """What each axis of a tensor is: `n`, `c`, or the number of a spatial axis; with the sizes of its channel axes."""

    axes: tuple[str | int, ...]
    channels: tuple[int, ...]

    @property
    def perm(self) -> tuple[int, ...]:
        """The permutation from the conv's `[N, M, *S]` to this order, channel axes taken as one."""
        order: list[int] = []
        for axis in self.axes:
            place = 0 if axis == "n" else 1 if axis == "c" else int(axis) + 2
            if place not in order:
                order.append(place)
        return tuple(order)


def read_layout(state: State, wide: Shape) -> Layout:
    """Name each axis by what varies along it; declines when an axis mixes batch, space and channels.

    `wide` is the shape `[N, M, *S]` of the followed tensor.  An axis of size 1 takes a role that no other axis has, so
    that every spatial axis and the batch have exactly one.
    """
    roles: list[str | int | None] = [_role(state.index, axis, wide) for axis in range(len(state.shape))]
    needed: list[str | int] = [role for role in ("n", *range(len(wide) - 2)) if role not in roles]
    for axis, role in enumerate(roles):
        if role is None and needed and ("c" in roles or state.shape[axis] == 1):
            roles[axis] = needed.pop(0)
    axes = tuple("c" if role is None else role for role in roles)
    for role in ("n", *range(len(wide) - 2)):
        require(axes.count(role) == 1, "batch or space do not keep one axis each after it")
    return Layout(axes, tuple(size for size, role in zip(state.shape, axes, strict=True) if role == "c"))


def _role(index: NDArray[np.int32], axis: int, wide: Shape) -> str | int | None:
    """What changes with one step along the axis: `n`, `c` or a spatial axis; None for an axis of size 1."""
    if index.shape[axis] == 1:
        return None
    origin = [0] * (index.ndim - 1)
    step = list(origin)
    step[axis] = 1
    here = np.unravel_index(int(index[(*origin, 0)]), wide)
    there = np.unravel_index(int(index[(*step, 0)]), wide)
    changed = [place for place, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]
    if changed == [0]:
        return "n"
    if 1 in changed or not changed:
        return "c"
    if len(changed) == 1:
        return changed[0] - 2
    raise Declined("it mixes spatial positions")


def prove(state: State, wide: Shape) -> tuple[Layout, ChannelMix]:
    """The layout and the channel mix of a state; declines unless every batch entry and position stays in its place.

    Every element is checked, so the roles guessed by `read_layout` need not be trusted.
    """
    layout = read_layout(state, wide)
    n, m, *space = wide
    order = sorted(range(len(layout.axes)), key=lambda axis: _rank(layout.axes[axis]))
    outputs = int(np.prod(layout.channels)) if layout.channels else 1
    terms = state.index.shape[-1]
    index = state.index.transpose(*order, len(order))
    sizes = [n, outputs, *space]
    kept = all(role == "c" or size == wide[_rank(role)] for role, size in zip(layout.axes, state.shape, strict=True))
    require(kept, "batch or space change their size after it")
    index = index.reshape(*sizes, terms)
    first = index[(slice(0, 1), slice(None), *[slice(0, 1)] * len(space))]
    stride = int(np.prod(space))
    channel = first // stride % m
    expected = channel * np.int32(stride)
    for axis in range(len(sizes)):
        if axis != 1:
            step = int(np.prod(wide[axis + 1 :]))
            expected = expected + (_along(sizes[axis], axis, index.ndim) * step).astype(np.int32)
    if not np.array_equal(index, expected):
        _explain(index, wide)
    coef = _per_channel(state.coef, state.index.shape, (*order, len(order)), (*sizes, terms), len(space))
    offset = _per_channel(state.offset, state.shape, tuple(order), tuple(sizes), len(space))
    return layout, ChannelMix(
        channel.reshape(outputs, terms).astype(np.int64),
        None if coef is None else coef.reshape(outputs, terms),
        None if offset is None else offset.reshape(outputs),
        state.rounded,
    )


def _explain(index: NDArray[np.int32], wide: Shape) -> None:
    """Decline, saying which of batch, space and position does not stay put; `index` is `[N, M', *S, T]`."""
    batch, _, *places = np.unravel_index(index, wide)
    require((batch == _along(wide[0], 0, index.ndim)).all(), "it mixes the batch into channels")
    for axis, place in enumerate(places):
        require(
            (place == _along(wide[axis + 2], axis + 2, index.ndim)).all(), "it mixes spatial positions into channels"
        )
    raise Declined("which channels it sums depends on the position")


def _rank(role: str | int) -> int:
    return 0 if role == "n" else 1 if role == "c" else int(role) + 2


def _along(size: int, axis: int, ndim: int) -> NDArray[np.int64]:
    return np.arange(size).reshape([-1 if place == axis else 1 for place in range(ndim)])


def _per_channel(
    array: NDArray[np.float64] | None, full: Shape, order: tuple[int, ...], sizes: Shape, space: int
) -> NDArray[np.float64] | None:
    """One value per channel of a coefficient or offset; declines when it differs between positions or batch entries."""
    if array is None:
        return None
    whole = np.broadcast_to(array, full).transpose(order).reshape(sizes)
    first = whole[(slice(0, 1), slice(None), *[slice(0, 1)] * space)]
    require((whole == first).all(), "a constant is added or multiplied per position, not per channel")
    return first
