"""A convolution followed by a mix of its channels, as one convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.conv.types import Array, Floats, Ints


@dataclass(frozen=True)
class ChannelMix:
    """`y[m] = offset[m] + sum_t coef[m, t] * wide[index[m, t]]`: what bookkeeping after a conv does to its channels.

    `index` is `[M', T]`; `coef` `[M', T]` or None for ones; `offset` `[M']` or None for zeros; `rounded` says that an
    offset was computed from several constants.
    """

    index: Ints
    coef: Floats | None = None
    offset: Floats | None = None
    rounded: bool = False


@dataclass(frozen=True)
class Grouped:
    """A conv map in grouped form: conv(x[inputs]) in `group` groups, then `y = out[outputs]`; None where in order."""

    weight: Array
    bias: Array | None
    group: int
    inputs: Ints | None
    outputs: Ints | None
    combined: bool
    """Whether weights were combined (rounded) rather than only moved."""


class NotGrouped(ValueError):
    """The mixed conv map has no grouped form; the message is a clause that says why."""


def mix(weight: Array, bias: Array | None, group: int, mixing: ChannelMix) -> Grouped:
    """The grouped form of a conv followed by a channel mix.  Raises NotGrouped when its blocks are not of one size."""
    m, i_per, *kernel = weight.shape
    o_per = m // group
    wide = mixing.index
    outputs, terms = wide.shape
    reads = (wide // o_per)[:, :, None] * i_per + np.arange(i_per)
    reads = reads.reshape(outputs, terms * i_per)
    order = np.argsort(reads, axis=1, kind="stable")
    sorted_reads = np.take_along_axis(reads, order, axis=1)
    fresh = np.ones_like(sorted_reads, dtype=bool)
    fresh[:, 1:] = sorted_reads[:, 1:] != sorted_reads[:, :-1]
    counts = fresh.sum(axis=1)
    if (counts != counts[0]).any():
        raise NotGrouped(f"its outputs read different numbers of input channels ({counts.min()} to {counts.max()})")
    distinct = sorted_reads[fresh].reshape(outputs, int(counts[0]))
    groups, members = _blocks(distinct)
    taps = _move(weight, wide, order, i_per)
    combined = int(counts[0]) != terms * i_per
    if mixing.coef is not None:
        scale = np.take_along_axis(np.repeat(mixing.coef, i_per, axis=1), order, axis=1)
        taps = taps.astype(np.float64) * scale.reshape(*scale.shape, *[1] * len(kernel))
        combined = True
    if int(counts[0]) != terms * i_per:
        starts = np.flatnonzero(fresh.reshape(-1))
        flat = taps.astype(np.float64).reshape(outputs * terms * i_per, *kernel)
        taps = np.add.reduceat(flat, starts, axis=0).reshape(outputs, int(counts[0]), *kernel)
    inputs = distinct[members[:, 0]].reshape(-1)
    rows = members.reshape(-1)
    channels = m // o_per * i_per
    return Grouped(
        weight=np.ascontiguousarray(_narrow(taps[rows], weight.dtype)),
        bias=_mixed_bias(bias, mixing, rows, weight.dtype),
        group=groups,
        inputs=None if np.array_equal(inputs, np.arange(channels)) else inputs,
        outputs=None if np.array_equal(rows, np.arange(outputs)) else np.argsort(rows),
        combined=combined or mixing.rounded or _bias_is_combined(bias, mixing),
    )


def _move(weight: Array, wide: Ints, order: Ints, i_per: int) -> Array:
    """Taps `[M', T*I, *K]` of each output's inputs in ascending order: weights moved, not computed."""
    outputs, terms = wide.shape
    row = np.take_along_axis(np.repeat(wide, i_per, axis=1), order, axis=1)
    column = np.take_along_axis(np.tile(np.arange(i_per), (outputs, terms)), order, axis=1)
    moved: Array = weight[row, column]
    return moved


def _blocks(reads: Ints) -> tuple[int, Ints]:
    """Number of groups and their outputs `[G, M'/G]`, from the sorted inputs `[M', D]` each output reads."""
    sets, first, inverse, sizes = np.unique(reads, axis=0, return_index=True, return_inverse=True, return_counts=True)
    if np.unique(sets).size != sets.size:
        raise NotGrouped("its outputs read overlapping but different sets of input channels")
    if (sizes != sizes[0]).any():
        raise NotGrouped(f"its blocks have different numbers of outputs ({sizes.min()} to {sizes.max()})")
    rank = np.argsort(np.argsort(first))
    members = np.argsort(rank[inverse.reshape(-1)], kind="stable").reshape(len(sets), int(sizes[0]))
    return len(sets), members


def _mixed_bias(bias: Array | None, mixing: ChannelMix, rows: Ints, dtype: np.dtype[np.generic]) -> Array | None:
    if bias is None and mixing.offset is None:
        return None
    if mixing.offset is None and mixing.coef is None and mixing.index.shape[1] == 1 and bias is not None:
        moved: Array = bias[mixing.index[:, 0]][rows]
        return moved
    total = np.zeros(mixing.index.shape[0]) if mixing.offset is None else mixing.offset
    if bias is not None:
        terms = bias.astype(np.float64)[mixing.index]
        total = total + (terms if mixing.coef is None else terms * mixing.coef).sum(axis=1)
    return _narrow(total[rows], dtype)


def _narrow(values: Array, dtype: np.dtype[np.generic]) -> Array:
    """The values in the weights' own type.  Raises NotGrouped where finite ones become infinite in it."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        narrow: Array = values.astype(dtype)
    if (np.isinf(narrow.astype(np.float64)) & np.isfinite(values)).any():
        raise NotGrouped(f"its combined weights are too large for {dtype}")
    return narrow


def _bias_is_combined(bias: Array | None, mixing: ChannelMix) -> bool:
    if bias is None:
        return False
    return mixing.index.shape[1] > 1 or mixing.coef is not None or mixing.offset is not None
