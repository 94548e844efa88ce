"""Channels in other places: the weights of a convolution whose input or output channels are padded or permuted.

An embedding `[C']` says of each new channel which old one it holds, or -1 where it holds none.  New weights are the old
ones wherever both channels are old ones, and zero elsewhere: what a channel without an old one carries is never used,
as long as it is finite.
"""

from __future__ import annotations

import numpy as np

from rewriter.conv.mixing import NotGrouped
from rewriter.conv.types import Array, Ints

NONE = -1


def identity(channels: int) -> Ints:
    """The embedding that changes nothing."""
    return np.arange(channels)


def is_identity(embedding: Ints, channels: int) -> bool:
    """Whether nothing changes."""
    return len(embedding) == channels and bool((embedding == np.arange(channels)).all())


def embed(values: Array, embedding: Ints, axis: int, fill: float) -> Array:
    """One value per channel along an axis, in the new places; `fill` where there is no old channel."""
    taken = np.take(values, np.maximum(embedding, 0), axis=axis)
    shape = [1] * values.ndim
    shape[axis] = len(embedding)
    held = (embedding >= 0).reshape(shape)
    return np.ascontiguousarray(np.where(held, taken, np.asarray(fill, values.dtype)))


def pad_tail(channels: int, width: int) -> Ints:
    """All channels, then none up to `width`."""
    return np.concatenate([np.arange(channels), np.full(width - channels, NONE)])


def pad_groups(channels: int, group: int, width: int, groups: int) -> Ints:
    """`group` groups of channels, each padded to `width`, then groups without any up to `groups`."""
    blocks = np.full((groups, width), NONE)
    blocks[:group, : channels // group] = np.arange(channels).reshape(group, -1)
    return blocks.reshape(-1)


def joined(parts: list[tuple[Ints, int]]) -> Ints:
    """The embedding of a concatenation, of its parts' embeddings and old sizes."""
    found, first = [], 0
    for embedding, channels in parts:
        found.append(np.where(embedding >= 0, embedding + first, NONE))
        first += channels
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def embed_weight(weight: Array, group: int, inputs: Ints, outputs: Ints, new_group: int) -> Array:
    """Weight `[M', C'/G', *K]` of a convolution `[M, C/G, *K]` with G groups, its channels embedded, in G' groups.

    Raises NotGrouped where an output channel needs an input channel outside of its new group.
    """
    if len(inputs) % new_group or len(outputs) % new_group:
        raise NotGrouped(f"{new_group} groups do not divide {len(inputs)} and {len(outputs)} channels")
    m, i_per = weight.shape[:2]
    o_per, wide_in, wide_out = m // group, len(inputs) // new_group, len(outputs) // new_group
    place = np.full(i_per * group, NONE)
    place[inputs[inputs >= 0]] = np.flatnonzero(inputs >= 0)  # where each old input channel is; any place will do
    new = np.zeros((len(outputs), wide_in, *weight.shape[2:]), weight.dtype)
    for row, old in enumerate(outputs):
        if old < 0:
            continue
        old_group, new_block = old // o_per, row // wide_out
        sources = np.arange(old_group * i_per, (old_group + 1) * i_per)
        columns = _columns(place[sources], inputs, sources, new_block * wide_in, wide_in)
        if columns is None:
            raise NotGrouped(f"output channel {old} needs input channels that are in other groups than it is")
        new[row, columns] = weight[old]
    return new


def _columns(found: Ints, inputs: Ints, sources: Ints, first: int, width: int) -> Ints | None:
    """The columns of a block at which these old channels are; a channel may be in several places."""
    columns = found - first
    inside = (found >= 0) & (columns >= 0) & (columns < width)
    if inside.all():
        return columns
    block = inputs[first : first + width]
    fixed = columns.copy()
    for at in np.flatnonzero(~inside):
        here = np.flatnonzero(block == sources[at])
        if not here.size:
            return None
        fixed[at] = here[0]
    return fixed


def most_groups(o_per: int, i_per: int, inputs: Ints, outputs: Ints) -> int:
    """The largest number of groups in which a convolution with these channels can be computed."""
    for count in range(min(len(inputs), len(outputs)), 1, -1):
        if len(inputs) % count or len(outputs) % count:
            continue
        if _fits(o_per, i_per, inputs, outputs, count):
            return count
    return 1


def _fits(o_per: int, i_per: int, inputs: Ints, outputs: Ints, count: int) -> bool:
    """Whether every output channel finds all the channels of its old group in its new one."""
    reads = inputs.reshape(count, -1)
    writes = outputs.reshape(count, -1)
    for block in range(count):
        needed = np.unique(writes[block][writes[block] >= 0] // o_per)
        held = reads[block]
        for old in needed:
            if not np.isin(np.arange(old * i_per, (old + 1) * i_per), held).all():
                return False
    return True
