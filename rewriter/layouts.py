"""What Transpose, Reshape, Squeeze and Unsqueeze do to the axes of a tensor, for every size its free axes can take.

A layout says which factors of a source's axes each axis of a tensor is made of, from the outer to the inner one: of a
source `[N, 6, H]`, a Reshape to `[N, 2, 3*H]` is `(N) (2 of 6) (3 of 6, H)`.  Sizes are numbers where they hold for
every input, else names; a Reshape that cannot be followed with them is not followed at all, so that nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Dim = int | str
"""The size of an axis: a number, or the name of a size that may differ from input to input."""
Perm = tuple[int | None, ...]
"""For each axis of a tensor the source's axis that it is, None for a new axis of size 1."""


class Size(NamedTuple):
    """A product of a number and of named sizes, in order of name."""

    number: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, dim: Dim) -> Size:
        return cls(dim) if isinstance(dim, int) else cls(1, (dim,))

    def times(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.names + other.names)))

    def over(self, other: Size) -> Size | None:
        """The quotient, or None where it is no such product."""
        left = list(self.names)
        for name in other.names:
            if name not in left:
                return None
            left.remove(name)
        exact = other.number > 0 and self.number % other.number == 0
        return Size(self.number // other.number, tuple(left)) if exact else None

    @property
    def dim(self) -> Dim | None:
        """As one number or one name, where it is no more."""
        if not self.names:
            return self.number
        return self.names[0] if self.number == 1 and len(self.names) == 1 else None


class Factor(NamedTuple):
    """`size` positions of the source's axis, `step` apart."""

    axis: int
    step: int
    size: Dim


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class AxisLayout:
    """A tensor that has the elements of a source of sizes `source`; an axis without factors is of size 1."""

    source: tuple[Dim, ...]
    axes: tuple[Axis, ...]

    @classmethod
    def start(cls, source: Iterable[Dim]) -> AxisLayout:
        """The source itself."""
        sizes = tuple(source)
        return cls(sizes, _whole(sizes))

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple(_product(axis) for axis in self.axes)

    @property
    def is_identity(self) -> bool:
        """Whether the tensor is its source."""
        return len(self.axes) == len(self.source) and self.is_moved_by(tuple(range(len(self.source))))

    def transposed(self, perm: Sequence[int]) -> AxisLayout:
        return AxisLayout(self.source, tuple(self.axes[axis] for axis in perm))

    def unsqueezed(self, axes: Sequence[int]) -> AxisLayout:
        """With axes of size 1 at these places of the result; negative ones count from its end."""
        rank = len(self.axes) + len(axes)
        new, old = {axis % rank for axis in axes}, iter(self.axes)
        return AxisLayout(self.source, tuple(() if axis in new else next(old) for axis in range(rank)))

    def squeezed(self, axes: Sequence[int]) -> AxisLayout | None:
        """Without these axes, which are of size 1 since the model does it; None where they cannot be."""
        gone = {axis % len(self.axes) for axis in axes}
        if any(self.sizes[axis].number != 1 for axis in gone):
            return None
        return AxisLayout(self.source, tuple(axis for place, axis in enumerate(self.axes) if place not in gone))

    def reshaped(self, target: Sequence[Size | None]) -> AxisLayout | None:
        """Of sizes `target`, where at most one is None, the rest; None where the factors do not fall in with it."""
        flat = [factor for axis in self.axes for factor in axis][::-1]
        sizes = _filled(target, _product(flat))
        if sizes is None:
            return None
        axes = []
        for size in sizes:
            axis = _take(flat, size)
            if axis is None:
                return None
            axes.append(axis)
        return None if flat else AxisLayout(self.source, tuple(axes))

    @property
    def perm(self) -> Perm | None:
        """Which axis of the source each axis is, None where some is made of parts or of several.

        Axes of size 1 look alike: they are taken in order.
        """
        whole = _whole(self.source)
        found: list[int | None] = [whole.index(axis) if axis and axis in whole else None for axis in self.axes]
        if any(axis and place is None for axis, place in zip(self.axes, found, strict=True)):
            return None
        left = iter([place for place in range(len(whole)) if place not in found])
        return tuple(next(left, None) if not axis else place for axis, place in zip(self.axes, found, strict=True))

    def is_moved_by(self, perm: Perm) -> bool:
        """Whether each axis is the source's axis that `perm` says, or as good: of size 1 as well."""
        if len(perm) != len(self.axes):
            return False
        there = {factor.axis for axis in self.axes for factor in axis}
        whole = [axis if place in there else () for place, axis in enumerate(_whole(self.source))]
        rest = set(range(len(whole))) - set(perm)
        wanted = tuple(() if place is None else whole[place] for place in perm)
        return self.axes == wanted and not any(whole[place] for place in rest)


def moved(source: Iterable[Dim], perm: Perm) -> AxisLayout:
    """The layout of a tensor whose axes are those of the source that `perm` says."""
    sizes = tuple(source)
    whole = _whole(sizes)
    return AxisLayout(sizes, tuple(() if place is None else whole[place] for place in perm))


def broadcast(several: Sequence[Sequence[Dim]], name: str) -> tuple[Dim, ...]:
    """The sizes of tensors of one rank broadcast against each other; what is not known gets a name of its own."""
    found: list[Dim] = []
    for place, sizes in enumerate(zip(*several, strict=True)):
        wide = list(dict.fromkeys(size for size in sizes if size != 1))
        number: Dim = next((size for size in wide if isinstance(size, int)), f"{name}:{place}")
        found.append(1 if not wide else wide[0] if len(wide) == 1 else number)
    return tuple(found)


def _whole(sizes: Sequence[Dim]) -> tuple[Axis, ...]:
    return tuple(() if size == 1 else (Factor(axis, 1, size),) for axis, size in enumerate(sizes))


def _product(factors: Iterable[Factor]) -> Size:
    total = Size(1)
    for factor in factors:
        total = total.times(Size.of(factor.size))
    return total


def _filled(target: Sequence[Size | None], total: Size) -> list[Size] | None:
    """The sizes with the missing one filled in."""
    known = Size(1)
    for size in target:
        known = known.times(size or Size(1))
    rest = total.over(known)
    if rest is None or list(target).count(None) > 1 or (None not in target and rest != Size(1)):
        return None
    return [rest if size is None else size for size in target]


def _take(flat: list[Factor], size: Size) -> Axis | None:
    """The factors, from the end of `flat`, that make up an axis of this size; the last may be split in two."""
    taken: list[Factor] = []
    while size != Size(1):
        if not flat:
            return None
        factor = flat.pop()
        rest = size.over(Size.of(factor.size))
        if rest is None:
            count = size.dim
            if not isinstance(count, int) or not isinstance(factor.size, int) or factor.size % count:
                return None
            inner = factor.size // count
            flat.append(Factor(factor.axis, factor.step, inner))
            factor, rest = Factor(factor.axis, factor.step * inner, count), Size(1)
        size = rest
        last = taken[-1] if taken else None
        if last and last.axis == factor.axis and _follows(last, factor):
            assert isinstance(last.size, int)
            assert isinstance(factor.size, int)
            taken[-1] = Factor(factor.axis, factor.step, last.size * factor.size)
        else:
            taken.append(factor)
    return tuple(taken)


def _follows(outer: Factor, inner: Factor) -> bool:
    """Whether the second factor of an axis is what lies within one step of the first."""
    return isinstance(inner.size, int) and isinstance(outer.size, int) and outer.step == inner.step * inner.size
