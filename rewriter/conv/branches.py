"""Branches: convolutions side by side, whose outputs are concatenated, as one; and a grouped one as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from rewriter.conv.dense import blocks, grouped_form
from rewriter.conv.mixing import Grouped, NotGrouped
from rewriter.conv.types import Array, Ints

Axis = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """What a convolution looks at per output position, one number per spatial axis.

    Tap k of an axis reads position `stride*o - begin + k*dilation`; `end` is the padding behind.
    """

    kernel: Axis
    dilations: Axis
    begin: Axis
    end: Axis


@dataclass(frozen=True)
class Branch:
    """One of the convolutions: weight `[M, C/G, *K]`, bias `[M]`, G, and the channel of the common input each reads."""

    weight: Array
    bias: Array | None
    group: int
    inputs: Ints
    """`[C]`"""


def split_groups(weight: Array, bias: Array | None, group: int, parts: int) -> list[tuple[Array, Array | None]]:
    """Weight `[M/P, C/G, *K]` and bias of each of P parts, P dividing G: groups `p*G/P` to `(p+1)*G/P - 1`."""
    if group % parts:
        raise ValueError(f"{parts} parts do not divide {group} groups")
    weights = np.split(weight, parts)
    return list(zip(weights, [None] * parts if bias is None else np.split(bias, parts), strict=True))


def common_window(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all taps of all of them; the output's size stays the same, whatever the stride.

    With offsets `-begin + k*dilation`: it begins at the lowest, its dilation divides every dilation and every distance
    between beginnings, and begin + end - (kernel - 1)*dilation, which decides the output's size, is the same.  Raises
    NotGrouped where that is not the same in all of them.
    """
    axes = [_common_axis(axis, windows) for axis in range(len(windows[0].kernel))]
    kernel, dilations, begin, end = (tuple(axis[at] for axis in axes) for at in range(4))
    return Window(kernel, dilations, begin, end)


def _common_axis(axis: int, windows: Sequence[Window]) -> tuple[int, int, int, int]:
    taps = [(w.kernel[axis], w.dilations[axis], w.begin[axis], w.end[axis]) for w in windows]
    margins = {begin + end - (kernel - 1) * dilation for kernel, dilation, begin, end in taps}
    if len(margins) > 1:
        raise NotGrouped(
            f"the pads and kernels of its branches do not fit: their outputs differ in size on spatial axis {axis}"
        )
    first = max(begin for _, _, begin, _ in taps)
    distances = [first - begin for _, _, begin, _ in taps]
    step = gcd(*distances, *(dilation for kernel, dilation, _, _ in taps if kernel > 1))
    step = step or min(dilation for _, dilation, _, _ in taps)
    last = max(first - begin + (kernel - 1) * dilation for kernel, dilation, begin, _ in taps)
    return last // step + 1, step, first, margins.pop() + last - first


def widen(weight: Array, window: Window, into: Window) -> Array:
    """The weight `[M, I, *K]` of `window` as one `[M, I, *K']` of a common window, zeros in the other taps."""
    if window == into:
        return weight
    wide = np.zeros((*weight.shape[:2], *into.kernel), weight.dtype)
    picks = [slice(None), slice(None)]
    for axis, size in enumerate(window.kernel):
        start = (into.begin[axis] - window.begin[axis]) // into.dilations[axis]
        step = max(1, window.dilations[axis] // into.dilations[axis])
        picks.append(slice(start, start + (size - 1) * step + 1, step))
    wide[tuple(picks)] = weight
    return wide


def merge_branches(branches: Sequence[Branch], channels: int, *, fill: bool = False) -> Grouped:
    """The conv whose output is the branches' concatenated; `channels` is how many the input has.

    Their kernels are of one size already (`widen`).  As many groups as possible.  Groups that read the same inputs
    become one; without `fill`, all others must be of one size and share nothing, else they are merged into wider groups
    with zeros between.  Raises NotGrouped.
    """
    used = np.unique(np.concatenate([branch.inputs for branch in branches]))
    place = np.full(channels, -1)
    place[used] = np.arange(len(used))
    offsets = np.cumsum([0, *(branch.weight.shape[0] for branch in branches)])
    reads = np.zeros((int(offsets[-1]), len(used)), bool)
    spots = []
    for branch, offset in zip(branches, offsets, strict=False):
        m, i_per, *_ = branch.weight.shape
        columns = place[branch.inputs].reshape(branch.group, i_per)
        if any(len(np.unique(row)) < i_per for row in columns):
            raise NotGrouped("one of its branches reads an input channel twice")
        rows = offset + np.arange(m)
        spots.append((rows[:, None], np.repeat(columns, m // branch.group, axis=0)))
        reads[spots[-1]] = True
    found = blocks(reads)
    _, _, *kernel = branches[0].weight.shape
    width = len(used) // found.group
    if not fill and int(reads.sum()) != reads.shape[0] * width:
        raise NotGrouped(_why_zeros(branches))
    row_at, column_at = np.argsort(found.outputs), np.argsort(found.inputs) % width
    weight = np.zeros((reads.shape[0], width, *kernel), branches[0].weight.dtype)
    for branch, (rows, columns) in zip(branches, spots, strict=True):
        weight[row_at[rows], column_at[columns]] = branch.weight
    made = grouped_form(weight, _biases(branches), found, len(used))
    if len(used) == channels:
        return made
    inputs = used if made.inputs is None else used[made.inputs]
    return Grouped(made.weight, made.bias, made.group, inputs, made.outputs, combined=False)


def _why_zeros(branches: Sequence[Branch]) -> str:
    sizes = {(b.weight.shape[1], b.weight.shape[0] // b.group) for b in branches}
    if len(sizes) > 1:
        shown = ", ".join(f"{i} in and {o} out" for i, o in sorted(sizes))
        return f"its branches have groups of different sizes ({shown})"
    return "its branches read overlapping but different input channels"


def _biases(branches: Sequence[Branch]) -> Array | None:
    if all(branch.bias is None for branch in branches):
        return None
    parts = [np.zeros(b.weight.shape[0], b.weight.dtype) if b.bias is None else b.bias for b in branches]
    return np.concatenate(parts)
