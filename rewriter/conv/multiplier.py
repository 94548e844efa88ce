"""Depthwise convolutions with a multiplier: as several with multiplier 1, and back; permuted input channels.

A depthwise weight `[C*m, 1, *K]` of C groups has output channel `c*m + j` for the j-th filter of input channel c.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.conv.types import Array, Ints


def split_multiplier(values: Array, multiplier: int) -> list[Array]:
    """The m parts `[C, ...]` of a depthwise weight `[C*m, 1, *K]` or bias `[C*m]`: part j has `values[c*m + j]`."""
    if multiplier < 1 or len(values) % multiplier:
        raise ValueError(f"{len(values)} channels are no multiple of the multiplier {multiplier}")
    whole = values.reshape(-1, multiplier, *values.shape[1:])
    return [np.ascontiguousarray(whole[:, filter_]) for filter_ in range(multiplier)]


def merge_multiplier(parts: Sequence[Array]) -> Array:
    """The weight `[C*m, 1, *K]` or bias `[C*m]` that `split_multiplier` gives these parts of."""
    return np.ascontiguousarray(np.stack(parts, axis=1)).reshape(-1, *parts[0].shape[1:])


def multiplier_order(channels: int, multiplier: int) -> Ints:
    """`order` `[m*C]` such that the parts' outputs side by side are `y[:, order]`: channel `j*C + c` is `c*m + j`."""
    return np.arange(channels * multiplier).reshape(channels, multiplier).T.reshape(-1)


def permute_inputs(weight: Array, group: int, order: Ints) -> Array:
    """Weight `[M, C/G, *K]` that gives from `x[:, order]` what the given one gives from x; `order` `[C]`.

    Raises ValueError where a channel would come to another group.
    """
    m, i_per = weight.shape[:2]
    if len(order) != group * i_per:
        raise ValueError(f"an order of {len(order)} channels for {group * i_per}")
    picks = order.reshape(group, i_per)
    if (picks // i_per != np.arange(group)[:, None]).any():
        raise ValueError("a channel would come to another group")
    rows = np.arange(m)[:, None]
    moved: Array = weight[rows, picks[rows[:, 0] // (m // group)] % i_per]
    return np.ascontiguousarray(moved)
