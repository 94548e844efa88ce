"""Blocks of a convolution's weight: which output channels read which input channels, and the groups that follow."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from rewriter.conv.mixing import Grouped, NotGrouped
from rewriter.conv.types import Array, Ints

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Blocks:
    """Equal groups of channels: group g is inputs `inputs[g*I : (g+1)*I]` and outputs `outputs[g*O : (g+1)*O]`."""

    group: int
    inputs: Ints
    outputs: Ints


def dense_to_grouped(weight: Array, bias: Array | None, group: int, *, permute: bool = True) -> Grouped:
    """The conv of weight `[M, C/G, *K]` in as many groups as its zeros allow; these zeros are dropped.

    `permute` allows groups whose channels are not contiguous.  Raises NotGrouped when there are no more than G groups.
    """
    m, i_per, *kernel = weight.shape
    o_per, c = m // group, i_per * group
    found = blocks(pattern(weight, group), permute=permute)
    if found.group <= group:
        where = "" if permute else " that lie next to each other"
        raise NotGrouped(f"its weight has no more blocks of one size{where} than its groups: {group}")
    rows = found.outputs
    read = np.repeat(found.inputs.reshape(found.group, -1), m // found.group, axis=0)
    local = read - (rows // o_per * i_per)[:, None]
    inside = (local >= 0) & (local < i_per)
    moved = weight[rows[:, None], np.clip(local, 0, i_per - 1)]
    zeros = np.zeros((), weight.dtype)
    return grouped_form(np.where(inside.reshape(*inside.shape, *[1] * len(kernel)), moved, zeros), bias, found, c)


def grouped_form(weight: Array, bias: Array | None, found: Blocks, channels: int) -> Grouped:
    """The record of a conv whose rows are in the blocks' order; `bias` `[M]` is in that of the outputs."""
    rows = found.outputs
    return Grouped(
        weight=np.ascontiguousarray(weight),
        bias=None if bias is None else np.ascontiguousarray(bias[rows]),
        group=found.group,
        inputs=None if np.array_equal(found.inputs, np.arange(channels)) else found.inputs,
        outputs=None if np.array_equal(rows, np.arange(len(rows))) else np.argsort(rows),
        combined=False,
    )


def pattern(weight: Array, group: int) -> Flags:
    """Which outputs read which inputs `[M, C]`: any tap that is not zero (NaN is not)."""
    m, i_per, *_ = weight.shape
    used = (weight != 0).reshape(m, i_per, -1).any(axis=2)
    whole = np.zeros((group, m // group, group, i_per), bool)
    each = np.arange(group)
    whole[each, :, each] = used.reshape(group, m // group, i_per)
    return whole.reshape(m, group * i_per)


def blocks(reads: Flags, *, permute: bool = True) -> Blocks:
    """The most groups of one size that no output reads across, from what outputs read `[M, C]`; at worst one.

    Channels stay in their order where they can; inputs that nobody reads and outputs that read nothing go wherever
    there is room.
    """
    m, c = reads.shape
    if reads.any(axis=0).all() and reads.any(axis=1).all() and reads[0].all():
        return Blocks(1, np.arange(c), np.arange(m))
    inputs, outputs = components(reads)
    most = max(1, int(max(inputs.max(initial=-1), outputs.max(initial=-1))) + 1)
    for group in range(gcd(m, c), 1, -1):
        if m % group or c % group:
            continue
        split = reads.reshape(group, m // group, group, c // group).any(axis=(1, 3))
        if not (split & ~np.eye(group, dtype=bool)).any():
            return Blocks(group, np.arange(c), np.arange(m))
        packed = _pack(inputs, outputs, group) if permute and group <= most else None
        if packed is not None:
            return packed
    return Blocks(1, np.arange(c), np.arange(m))


def components(reads: Flags) -> tuple[Ints, Ints]:
    """Connected components of what reads what: the number of each input `[C]` and output `[M]`, -1 where alone."""
    m, c = reads.shape
    label = np.arange(c)
    for row in np.unique(np.packbits(reads, axis=1), axis=0):
        members = np.unique(label[np.unpackbits(row, count=c).astype(bool)])
        if members.size > 1:
            label[np.isin(label, members)] = members[0]
    used = reads.any(axis=0)
    label[used] = np.unique(label[used], return_inverse=True)[1].reshape(-1)
    label[~used] = -1
    first = reads.argmax(axis=1)
    return label, np.where(reads[np.arange(m), first], label[first], -1)


def _pack(inputs: Ints, outputs: Ints, group: int) -> Blocks | None:
    """Components put into `group` blocks of one size, the largest first, each where it first fits; None if they do not.

    Blocks come in the order of their first output, or of their first input where that moves fewer channels.
    """
    room_in, room_out = len(inputs) // group, len(outputs) // group
    count = int(max(inputs.max(initial=-1), outputs.max(initial=-1))) + 1
    width = np.bincount(inputs[inputs >= 0], minlength=count)
    height = np.bincount(outputs[outputs >= 0], minlength=count)
    if count == 0 or width.max() > room_in or height.max() > room_out:
        return None
    left_in, left_out = np.full(group, room_in), np.full(group, room_out)
    place = np.zeros(count, np.int64)
    for number in np.lexsort((np.arange(count), -np.maximum(width / room_in, height / room_out))):
        fits = (left_in >= width[number]) & (left_out >= height[number])
        if not fits.any():
            return None
        place[number] = at = int(np.argmax(fits))
        left_in[at] -= width[number]
        left_out[at] -= height[number]
    in_block, out_block = _filled(inputs, place, left_in), _filled(outputs, place, left_out)
    by_output = _ordered(in_block, out_block, _first(out_block, group))
    by_input = _ordered(in_block, out_block, _first(in_block, group))
    return by_input if _moved(by_input) < _moved(by_output) else by_output


def _filled(label: Ints, place: Ints, left: Ints) -> Ints:
    """The block of each channel; those alone fill up the room that is left, first blocks first."""
    found = np.where(label >= 0, place[label], -1)
    found[label < 0] = np.repeat(np.arange(len(left)), left)
    return found


def _first(block: Ints, group: int) -> Ints:
    """The rank of each block by its first channel."""
    _, first = np.unique(block, return_index=True)
    rank = np.empty(group, np.int64)
    rank[np.argsort(first)] = np.arange(group)
    return rank


def _ordered(in_block: Ints, out_block: Ints, rank: Ints) -> Blocks:
    inputs = np.argsort(rank[in_block], kind="stable")
    outputs = np.argsort(rank[out_block], kind="stable")
    return Blocks(len(rank), inputs, outputs)


def _moved(found: Blocks) -> int:
    """How many of the two shuffles it needs."""
    return sum(not np.array_equal(order, np.arange(len(order))) for order in (found.inputs, found.outputs))
