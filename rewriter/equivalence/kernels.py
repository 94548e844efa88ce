"""Effective kernels: for each output channel, the weight with which it reads each input channel at each offset.

Sparse and in float64: an entry is (output channel, source channel, absolute tap offset) → value.  Offsets are relative
to a reference position in the entering tensor, so a 1×1 kernel and a 3×3 kernel with a border of zeros are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewriter.equivalence.convs import ConvUse
from rewriter.equivalence.forms import Floats, Integers, Unsupported
from rewriter.equivalence.precision import smallest_number

_CHUNK = 1 << 21  # entries built at once
_MOST = 0.25  # n·u, for a bound
_NO_KEY = np.iinfo(np.int64).max
_Flags = NDArray[np.bool_]
_Describe = Callable[[int], str]


class Refuted(Exception):
    """The two regions compute different functions; the message is a sentence saying where."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """How output channels mix channels of a family's convolutions: `channel`, `coef` `[J, T]`; channel −1: no term."""

    channel: Integers
    coef: Floats | None
    convs: tuple[ConvUse, ...]
    shifts: tuple[tuple[int, ...], ...]
    """Per convolution: where its kernel begins, relative to the reference position, per spatial axis."""


@dataclass
class Tally:
    """What the comparison of kernels met."""

    taps: int = 0
    inserted: int = 0
    dropped: int = 0
    cleared: int = 0
    """Weights of -0.0 that are 0.0 afterwards: as one that is left out, and whose place is filled in again."""
    combined: int = 0
    rounded: int = 0
    merged: int = 0
    """Entries that one side computes of more products than the other, whether the result is rounded or not."""
    skipped: bool = False
    """Whether convolutions were composed that multiply zeros: an infinity there would show, the composed weight not."""
    products: int = 0
    """Most products that one output element sums, on either side."""
    worst: float = 0.0
    """Largest difference as a fraction of the stated rounding bound."""

    def add(self, other: Tally) -> None:
        """Take in what another part of the comparison met."""
        self.taps += other.taps
        self.inserted += other.inserted
        self.dropped += other.dropped
        self.cleared += other.cleared
        self.combined += other.combined
        self.rounded += other.rounded
        self.merged += other.merged
        self.skipped |= other.skipped
        self.products = max(self.products, other.products)
        self.worst = max(self.worst, other.worst)


@dataclass(frozen=True, eq=False)
class Entries:
    """Sorted unique keys, their values, Σ|·| and number of the summands, and whether more than a move made them."""

    keys: Integers
    values: Floats
    magnitudes: Floats
    counts: Integers
    combined: _Flags

    def select(self, mask: _Flags) -> Entries:
        return Entries(
            self.keys[mask], self.values[mask], self.magnitudes[mask], self.counts[mask], self.combined[mask]
        )


def gamma(n: NDArray[np.floating] | float, unit: float) -> Floats:
    """γ(n) = n·u / (1 − n·u), the relative error of n roundings (Higham, Accuracy and Stability, section 3.1).

    Infinity from n·u = 1/4 on: what allows an error of a third shows nothing.
    """
    total = np.asarray(n, np.float64) * unit
    return np.where(total < _MOST, total / (1 - np.minimum(total, _MOST)), np.inf)


def compare_kernels(before: Mixing, after: Mixing, unit: float) -> Tally:
    """Compare the effective kernels of all output channels; raises Refuted at the first that differs."""
    coding = _Coding.of((before, after))
    tally = Tally()
    for start, stop in _chunks(before, after):

        def describe(key: int, first: int = start) -> str:
            return coding.describe(key, first, before, after)

        old, new = (coding.entries(mixing, start, stop) for mixing in (before, after))
        tally.add(_compare(old, new, unit, describe))
        tally.products = max(tally.products, coding.most_products(old), coding.most_products(new))
    return tally


def signatures(before: Mixing, after: Mixing) -> tuple[Floats, Floats]:
    """A number for every output channel, equal up to rounding where the kernels are: `[J]` and `[J']`."""
    coding = _Coding.of((before, after))
    width = len(coding.sources) * len(coding.taps)
    by = np.random.default_rng(0).standard_normal(width)
    found = (np.zeros(before.channel.shape[0]), np.zeros(after.channel.shape[0]))
    for mixing, total in zip((before, after), found, strict=True):
        for start, stop in _chunks(mixing):
            entries = coding.entries(mixing, start, stop)
            np.add.at(total[start:stop], entries.keys // width, entries.values * by[entries.keys % width])
    return found


def _chunks(*mixings: Mixing) -> Iterator[tuple[int, int]]:
    rows = mixings[0].channel.shape[0]
    cost = max(max((conv.weight[0].size for conv in m.convs), default=1) * m.channel.shape[1] for m in mixings)
    step = max(1, _CHUNK // max(1, cost))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


@dataclass(frozen=True, eq=False)
class _Coding:
    """Keys: (row · sources + source) · taps + tap, with rows counted from the chunk's first."""

    sources: Integers
    taps: tuple[tuple[int, ...], ...]
    code: dict[tuple[int, ...], int]

    @classmethod
    def of(cls, mixings: Sequence[Mixing]) -> _Coding:
        convs = [(conv, shift) for m in mixings for conv, shift in zip(m.convs, m.shifts, strict=True)]
        sources = np.unique(np.concatenate([conv.sources for conv, _ in convs]))
        taps = sorted({tap for conv, shift in convs for tap in _taps(conv, shift)})
        return cls(sources[sources >= 0], tuple(taps), {tap: code for code, tap in enumerate(taps)})

    def entries(self, mixing: Mixing, start: int, stop: int) -> Entries:
        """The entries of output channels start … stop − 1."""
        channel = mixing.channel[start:stop]
        keys: list[Integers] = [np.zeros(0, np.int64)]
        values, scaled = [np.zeros(0)], [np.zeros(0, bool)]
        magnitudes, counts = [np.zeros(0)], [np.zeros(0, np.int64)]
        for conv, shift in zip(mixing.convs, mixing.shifts, strict=True):
            row, term = np.nonzero((channel >= conv.first) & (channel < conv.first + conv.weight.shape[0]))
            if not row.size:
                continue
            by = np.ones(row.size) if mixing.coef is None else mixing.coef[start:stop][row, term]
            local = channel[row, term].astype(np.int64) - conv.first
            key, value = self._of_conv(conv, shift, row, local, by)
            keys.append(key.reshape(-1))
            values.append(value.reshape(-1))
            computed = np.broadcast_to((by != 1)[:, None, None], key.shape)
            scaled.append((computed if conv.terms is None else np.ones_like(computed)).reshape(-1))
            magnitudes.append(np.abs(value).reshape(-1) if conv.magnitude is None else _each(conv.magnitude, local, by))
            counts.append(np.ones(key.size, np.int64) if conv.terms is None else _each(conv.terms, local).astype(int))
        columns = (np.concatenate(values), np.concatenate(scaled), np.concatenate(magnitudes), np.concatenate(counts))
        return _gathered(np.concatenate(keys), *columns)

    def _of_conv(
        self, conv: ConvUse, shift: tuple[int, ...], row: Integers, local: Integers, by: Floats
    ) -> tuple[Integers, Floats]:
        """Keys and values `[pairs, I, K]` of (row, channel of the conv) pairs; no key where an input channel is 0."""
        outputs, inputs = conv.weight.shape[:2]
        value = conv.weight.reshape(outputs, inputs, -1)[local].astype(np.float64)
        if (by != 1).any():
            value = value * by[:, None, None]
        group = local // (outputs // conv.group)
        source = conv.sources[group[:, None] * inputs + np.arange(inputs)]
        rank = np.searchsorted(self.sources, source)
        tap = np.asarray([self.code[entry] for entry in _taps(conv, shift)], np.int64)
        key = (row[:, None] * len(self.sources) + rank)[:, :, None] * len(self.taps) + tap
        # A channel of zeros adds nothing, whatever its weight.
        key = key if source.min() >= 0 else np.where((source >= 0)[:, :, None], key, _NO_KEY)
        if conv.terms is not None:
            key = np.where(conv.terms.reshape(outputs, inputs, -1)[local] > 0, key, _NO_KEY)
        return key, value

    def most_products(self, entries: Entries) -> int:
        """Most products summed into one output element."""
        rows = entries.keys // (len(self.sources) * len(self.taps))
        return int(np.bincount(rows, entries.counts).max()) if rows.size else 0

    def describe(self, key: int, first: int, *mixings: Mixing) -> str:
        tap, rest = self.taps[key % len(self.taps)], key // len(self.taps)
        row, source = rest // len(self.sources) + first, rest % len(self.sources)
        weights = " and ".join(dict.fromkeys(f"'{_weight_name(m, row)}'" for m in mixings))
        offset = f", tap offset {list(tap)}" if tap else ""  # a matrix, or a kernel of one element, has no taps
        return f"output channel {row}, input channel {source}{offset} (weight {weights})"


def _weight_name(mixing: Mixing, row: int) -> str:
    channels = mixing.channel[row][mixing.channel[row] >= 0]
    for conv in mixing.convs:
        if channels.size and conv.first <= channels[0] < conv.first + conv.weight.shape[0]:
            return conv.weight_name
    return "none"


def _taps(conv: ConvUse, shift: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Offset of each kernel element from the reference position, in the weight's row-major order."""
    steps = np.ndindex(*conv.weight.shape[2:])
    return [tuple(s + k * d for s, k, d in zip(shift, step, conv.dilations, strict=True)) for step in steps]


def _each(of_weights: Floats, local: Integers, by: Floats | None = None) -> Floats:
    """What is known of each weight, for the (row, channel of the conv) pairs, flat; scaled by |by|."""
    found = of_weights.reshape(of_weights.shape[0], -1)[local]
    return np.asarray(found if by is None else found * np.abs(by)[:, None]).reshape(-1)


def _gathered(keys: Integers, values: Floats, scaled: _Flags, magnitudes: Floats, counts: Integers) -> Entries:
    """Entries sorted by key, those of equal key summed."""
    if not np.all(keys[1:] > keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, values, scaled = keys[order], values[order], scaled[order]
        magnitudes, counts = magnitudes[order], counts[order]
    stop = int(np.searchsorted(keys, _NO_KEY))
    keys, values, scaled = keys[:stop], values[:stop], scaled[:stop]
    magnitudes, counts = magnitudes[:stop], counts[:stop]
    starts = np.flatnonzero(np.concatenate([keys[:1] == keys[:1], keys[1:] != keys[:-1]]))
    if starts.size == keys.size:
        return Entries(keys, values, magnitudes, counts, scaled)
    several = np.diff(np.append(starts, keys.size)) > 1
    return Entries(
        keys[starts],
        np.add.reduceat(values, starts),
        np.add.reduceat(magnitudes, starts),
        np.add.reduceat(counts, starts),
        several | np.logical_or.reduceat(scaled, starts),
    )


def _compare(old: Entries, new: Entries, unit: float, describe: _Describe) -> Tally:
    in_new = np.isin(old.keys, new.keys, assume_unique=True)
    in_old = np.isin(new.keys, old.keys, assume_unique=True)
    a, b, gone, come = old.select(in_new), new.select(in_old), old.select(~in_new), new.select(~in_old)
    combined = a.combined | b.combined
    same = a.values.view(np.int64) == b.values.view(np.int64)
    # A zero may be left out, whatever its sign, and 0.0 be filled in: two rewrites in a row that nobody looks between.
    cleared = ~same & ~combined & (a.values == 0) & np.signbit(a.values) & (b.values == 0)
    wrong = ~same & ~combined & ~cleared
    if wrong.any():
        at = int(np.argmax(wrong))
        raise Refuted(
            f"A weight changed at {describe(int(a.keys[at]))}: {a.values[at]:.9g} became {b.values[at]:.9g}, "
            "and no weights were combined there."
        )
    _require_zero(gone, unit, describe, "is used before but not after")
    _require_zero(come, unit, describe, "is used after but not before")
    negative = (come.values == 0) & np.signbit(come.values) & ~come.combined
    if negative.any():
        raise Refuted(f"A weight of -0.0 was inserted at {describe(int(come.keys[np.argmax(negative)]))}.")
    error = np.where(combined, deviation(a.values, b.values), 0.0)
    bound = gamma(8.0 + a.counts + b.counts, unit) * np.maximum(a.magnitudes, b.magnitudes)
    return Tally(
        taps=a.keys.size - int(cleared.sum()),
        inserted=come.keys.size,
        dropped=gone.keys.size,
        cleared=int(cleared.sum()),
        combined=int(combined.sum() + gone.combined.sum() + come.combined.sum()),
        rounded=int((error > 0).sum()),
        merged=int((a.counts != b.counts).sum()),
        worst=within(error, bound, unit, lambda at: describe(int(a.keys[at]))),
    )


def deviation(a: Floats, b: Floats) -> Floats:
    """|a − b|; 0 where both are the same infinity or both NaN, infinity where only one is not finite."""
    with np.errstate(all="ignore"):
        error = np.abs(a - b)
    if np.isfinite(error).all():
        return error
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def within(error: Floats, bound: Floats, unit: float, describe: _Describe) -> float:
    """The largest error as a fraction of its bound; raises Refuted where one exceeds it (or is not a number).

    Below the normal numbers of the type whose unit roundoff is `unit`, roundings err by its smallest number instead.
    """
    bound = bound + smallest_number(unit)
    _require_bound(error, bound, describe)
    with np.errstate(all="ignore"):
        ratio = np.where(error == 0, 0.0, error / bound)
    wrong = ~(ratio <= 1)
    if wrong.any():
        at = int(np.argmax(wrong))
        if not np.isfinite(error[at]):
            raise Refuted(f"Infinity or NaN is used at {describe(at)} on one side only.")
        raise Refuted(
            f"Combining the constants does not give what is used at {describe(at)}: the difference is "
            f"{error[at]:.3g}, rounding explains {bound[at]:.3g}."
        )
    return float(ratio.max(initial=0.0))


def _require_bound(error: Floats, bound: Floats, describe: _Describe) -> None:
    """Raise Unsupported where there is an error and any would be allowed."""
    free = (error != 0) & np.isfinite(error) & ~np.isfinite(bound)
    if free.any():
        where = describe(int(np.argmax(free)))
        raise Unsupported(f"too many constants are combined for a bound in their type, at {where}")


def _require_zero(extra: Entries, unit: float, describe: _Describe, how: str) -> None:
    with np.errstate(invalid="ignore"):
        bound = np.where(extra.combined, gamma(8.0 + extra.counts, unit) * extra.magnitudes, 0.0)
    _require_bound(extra.values, bound, describe)
    wrong = ~((np.abs(extra.values) <= bound) & np.isfinite(extra.values))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise Refuted(f"A weight of {extra.values[at]:.9g} {how}, at {describe(int(extra.keys[at]))}.")
