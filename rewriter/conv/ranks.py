"""The same convolution with an axis more or fewer: Conv1D as Conv2D, Conv3D with a flat kernel as Conv2D.

A spatial axis is *flat* for a convolution whose kernel is 1 there, with stride 1 and no padding: every position keeps
to itself.  An axis of size 1 may be put in or taken out anywhere; a flat axis may be merged with the flat axis beside
it, or with the batch.  Weights only move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.conv.types import Array

_NEUTRAL = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
"""The attributes of a Conv that have one number per spatial axis (`pads` has two), and what a flat axis has."""


def is_flat(axis: int, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> bool:
    """Whether a spatial axis is flat; `pads` `[begin..., end...]`, and strides or pads may be empty: 1 and 0."""
    rank = len(kernel)
    still = kernel[axis] == 1 and (not strides or strides[axis] == 1)
    return still and (not pads or pads[axis] == pads[rank + axis] == 0)


def insert_weight_axis(weight: Array, axis: int) -> Array:
    """Weight `[M, C/G, *K]` with a kernel of 1 on a new spatial axis before the present `axis`."""
    return np.ascontiguousarray(np.expand_dims(weight, 2 + axis))


def drop_weight_axis(weight: Array, axis: int) -> Array:
    """Weight `[M, C/G, *K]` without a spatial axis.  Raises ValueError where its kernel is not 1 there."""
    if weight.shape[2 + axis] != 1:
        raise ValueError(f"the kernel {weight.shape[2:]} is not 1 on spatial axis {axis}")
    return np.ascontiguousarray(np.squeeze(weight, 2 + axis))


def insert_attribute_axis(name: str, values: Sequence[int], axis: int) -> list[int]:
    """A Conv's attribute with a flat axis put in before spatial `axis`; those that are not per axis stay."""
    if name not in _NEUTRAL:
        return list(values)
    halves = _halves(name, values)
    return [value for half in halves for value in [*half[:axis], _NEUTRAL[name], *half[axis:]]]


def drop_attribute_axis(name: str, values: Sequence[int], axis: int) -> list[int]:
    """A Conv's attribute without spatial `axis`; those that are not per axis stay."""
    if name not in _NEUTRAL:
        return list(values)
    return [value for half in _halves(name, values) for at, value in enumerate(half) if at != axis]


def insert_axis(value: Array, rank: int, axis: int) -> Array:
    """A constant that is broadcast against tensors of `rank` axes, for tensors with an axis of size 1 before `axis`."""
    aligned = value.reshape((1,) * (rank - value.ndim) + value.shape)
    return np.expand_dims(aligned, axis)


def channel_constant(value: Array, rank: int) -> Array | None:
    """A constant broadcast against `[N, C, *S]` of `rank` axes as `[C]` or `[1]`; None where it varies elsewhere."""
    if value.ndim > rank:
        return None
    aligned = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(aligned) if axis != 1):
        return None
    return value.reshape(-1)


def _halves(name: str, values: Sequence[int]) -> list[list[int]]:
    if name != "pads":
        return [list(values)]
    half = len(values) // 2
    return [list(values[:half]), list(values[half:])]
