"""What the elements of a tensor read: channels of convolutions at positions, in the numbering of their family."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewriter.equivalence.alignment import Aligned, align
from rewriter.equivalence.convs import ConvUse, Family
from rewriter.equivalence.forms import NOTHING, Floats, Form, Integers, Unsupported
from rewriter.equivalence.kernels import Mixing, Refuted
from rewriter.equivalence.linear import Evaluation
from rewriter.equivalence.rows import parts, same_rows

_MIXED: Final = "an element of '{}' mixes several positions or batches"


def mixings_of(
    name: str, a: Reading, b: Reading, rows: Integers, others: Integers | None = None
) -> tuple[Mixing, Mixing]:
    """How the output channels of both sides mix their convolutions' channels; `rows` `[Q, J]` are elements by position.

    `others` `[Q, J']` are those of the second side, where it has more or fewer channels.  Raises Unsupported or Refuted
    where they are not the same at all positions, or read at other ones.
    """
    others = rows if others is None else others
    positions = a.position[rows[:, 0]]
    _require_same_positions(name, b, others)
    aligned = align((a.convs, positions), (b.convs, b.position[others[:, 0]]))
    shifts = _shifts(*aligned)
    if b.mixed:  # steps of equal length, as of a kernel taken apart, or they would have been refuted
        raise Unsupported(_MIXED.format(name))
    found: list[Mixing] = []
    for reading, side, shift, own in zip((a, b), aligned, shifts, (rows, others), strict=True):
        channel, coef, uniform = reading.classes(own)
        if not uniform and reading is a:
            raise Unsupported(f"'{name}' is not computed the same way at every position")
        if not uniform:
            raise Refuted(f"'{name}' reads other channels at some positions or batches than at the first.")
        found.append(Mixing(channel, coef, side.convs, shift))
    return found[0], found[1]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the elements of a leaving tensor read: `channel` `[E, T]` in a family's numbering, −1 for no term."""

    run: Evaluation
    form: Form
    direct: Integers
    """`[E, T]`, or `[1, 1]` where all is NOTHING: the terms that read entering tensors without a convolution."""
    family: Family | None
    channel: Integers
    position: Integers
    """`[E]`: n·P + p on the family's grid, the last one read; −1 for elements that read no convolution."""
    mixed: bool = False
    """Whether an element reads several positions: then `channel` tells nothing."""

    @property
    def count(self) -> int:
        return int(self.channel.shape[0])

    @property
    def convs(self) -> tuple[ConvUse, ...]:
        """The convolutions it reads."""
        read = np.unique(self.channel)
        return tuple(
            conv
            for conv in self.run.convs
            if conv.family is self.family and ((read >= conv.first) & (read < conv.first + len(conv.weight))).any()
        )

    @classmethod
    def of(cls, name: str, run: Evaluation, form: Form) -> Reading:
        index = np.ascontiguousarray(form.index).reshape(-1, form.terms)
        if form.coef is not None:
            index = np.where(form.coef.reshape(index.shape) == 0, NOTHING, index)
        top = int(index.max(initial=NOTHING))
        first = min((family.first for family in run.families.values()), default=top + 1)
        if top < first:
            return cls(run, form, index, None, index, np.full(len(index), -1))
        family = next(family for family in run.families.values() if top in family)
        channel, position = np.empty_like(index), np.empty(len(index), index.dtype)
        pure, mixed = True, False
        for part in parts(*index.shape):
            inside, live = index[part] - family.first, index[part] >= first
            if (live & (inside < 0)).any():
                raise Unsupported(f"'{name}' adds convolutions of different output sizes")
            pure = pure and bool(live.all())
            at = np.where(live, inside // family.channels, -1)
            position[part] = highest = functools.reduce(np.maximum, at.T)
            if (live & (at != highest[:, None])).any():
                if run.side.name == "before":
                    raise Unsupported(_MIXED.format(name))
                mixed = True
            channel[part] = np.where(live, inside - at * family.channels, NOTHING)
        direct = np.full((1, 1), NOTHING) if pure else np.where(index < first, index, NOTHING)
        return cls(run, form, direct, family, channel, position, mixed)

    def classes(self, rows: Integers) -> tuple[Integers, Floats | None, bool]:
        """Channels and coefficients `[J, T]` of the output channels, and whether all positions have the same."""
        uniform = same_rows(self.channel, rows)
        channel = self.channel[rows[0]]
        if self.form.coef is None:
            return channel, None, uniform
        coef = self.form.coef.reshape(self.channel.shape)
        return channel, coef[rows[0]], uniform and same_rows(coef, rows)


def _require_same_positions(name: str, reading: Reading, rows: Integers) -> None:
    position = reading.position[rows]
    if (position != position[:, :1]).any():
        if reading.mixed:
            raise Unsupported(_MIXED.format(name))
        raise Refuted(f"Elements of '{name}' that shared a position before the rewrite do not afterwards.")


def _shifts(old: Aligned, new: Aligned) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Where each convolution's kernel begins, relative to the first old one's; raises Refuted where that varies.

    Convolutions that read the same channel must read the same batch entry of it at every position.
    """
    found: list[tuple[tuple[int, ...], ...]] = []
    bases: list[Integers] = []
    base_of: dict[int, int] = {}
    for side in (old, new):
        shifts = []
        for conv, corner, base in zip(side.convs, side.corners, side.bases, strict=True):
            number = next((at for at, known in enumerate(bases) if np.array_equal(base, known)), len(bases))
            bases += [base] if number == len(bases) else []
            sources = conv.sources[conv.sources >= 0].tolist()
            if any(base_of.setdefault(source, number) != number for source in sources):
                if side is old:
                    raise Unsupported(f"the batch entries that '{conv.output}' reads are not those of its neighbours")
                raise Refuted(f"'{conv.output}' reads other batch entries than before, or in another order.")
            shift = corner - old.corners[0]
            if (shift != shift[:1]).any():
                has = f"strides {list(conv.strides)} and begin pads {list(conv.pads)}"
                raise Refuted(f"The stride or the positions of a convolution differ: '{conv.output}' has {has}.")
            shifts.append(tuple(int(step) for step in shift[0]))
        found.append(tuple(shifts))
    return found[0], found[1]
