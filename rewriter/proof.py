"""Read a tracked state as a channel mix: which axes are batch, space and channels, and which channels mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

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
    dropped: tuple[str | int, ...] = ()
    """Batch and spatial axes that the tensor has not, all of size 1 for every input."""

    @property
    def perm(self) -> tuple[int, ...]:
        """The axes of the conv's `[N, M, *S]` in this order, channel axes taken as one, without the dropped ones."""
        order: list[int] = []
        for axis in self.axes:
            if place_of(axis) not in order:
                order.append(place_of(axis))
        return tuple(order)


def place_of(role: str | int) -> int:
    """The axis of `[N, M, *S]` that a role stands for."""
    return 0 if role == "n" else 1 if role == "c" else int(role) + 2


def read_layout(state: State, wide: Shape, fixed: Sequence[int | None] = ()) -> Layout:
    """Name each axis by what varies along it; declines when an axis mixes batch, space and channels.

    `wide` is the shape `[N, M, *S]` of the followed tensor, `fixed` its sizes that hold for every input (None
    elsewhere; empty when none is known).  An axis of size 1 takes a role that no other axis has, so that the batch and
    every spatial axis have exactly one, or none where they are of size 1 for every input.
    """
    roles: list[str | int | None] = [_role(state.index, axis, wide) for axis in range(len(state.shape))]
    everything: tuple[str | int, ...] = ("n", *range(len(wide) - 2))
    needed = [role for role in everything if role not in roles]
    ones = [role for role in reversed(needed) if _is_one(role, wide, fixed)]
    surplus = min(max(0, len(needed) - roles.count(None)), len(ones))
    choices = [(_filled(roles, needed, gone), gone) for gone in combinations(ones, surplus)]
    axes, gone = min(choices, key=lambda choice: _is_permuted(choice[0]))
    for role in everything:
        count = axes.count(role)
        kept = role in gone or count == 1
        require(kept, f"batch or space do not keep one axis each after it: {_lost(role, wide, count)}")
    channels = tuple(size for size, role in zip(state.shape, axes, strict=True) if role == "c")
    return Layout(axes, channels, tuple(role for role in everything if role in gone))


_Roles = Sequence[str | int]


def _filled(roles: Sequence[str | int | None], needed: _Roles, gone: _Roles) -> tuple[str | int, ...]:
    """The roles, axes of size 1 given the needed ones but those that are gone, in order, else taken as channels."""
    left = iter([role for role in needed if role not in gone])
    return tuple(next(left, "c") if role is None else role for role in roles)


def _is_permuted(axes: _Roles) -> bool:
    places = [place_of(role) for role in axes]
    return places != sorted(places)


def _is_one(role: str | int, wide: Shape, fixed: Sequence[int | None]) -> bool:
    """Whether the axis is of size 1 for every input, not only for the one looked at."""
    place = place_of(role)
    return wide[place] == 1 and place < len(fixed) and fixed[place] == 1


def _lost(role: str | int, wide: Shape, count: int) -> str:
    """What became of a batch or spatial axis that has `count` axes after the chain, none or several."""
    place = place_of(role)
    what = "the batch" if role == "n" else "a spatial axis"
    axis = f"axis {place} of its output, {what} of size {wide[place]},"
    if count:
        return f"{axis} becomes {count} axes"
    if wide[place] == 1:
        return f"{axis} is dropped, and other inputs may give it another size (make it 1 in the model's input shapes)"
    return f"{axis} has none of its own"


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


def prove(state: State, wide: Shape, fixed: Sequence[int | None] = ()) -> tuple[Layout, ChannelMix]:
    """The layout and the channel mix of a state; declines unless every batch entry and position stays in its place.

    Every element is checked, so the roles guessed by `read_layout` (which says what `fixed` is) need not be trusted.
    """
    layout = read_layout(state, wide, fixed)
    n, m, *space = wide
    order = sorted(range(len(layout.axes)), key=lambda axis: place_of(layout.axes[axis]))
    outputs = int(np.prod(layout.channels)) if layout.channels else 1
    terms = state.index.shape[-1]
    index = state.index.transpose(*order, len(order))
    sizes = [n, outputs, *space]
    kept = all(role == "c" or size == wide[place_of(role)] for role, size in zip(layout.axes, state.shape, strict=True))
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
