"""Groups of a convolution: as depthwise parts to be summed, and merged into wider ones."""

from __future__ import annotations

import numpy as np

from rewriter.conv.types import Array


def grouped_to_depthwise(weight: Array, group: int) -> Array:
    """Weight `[C*o, 1, *K]` of the depthwise conv whose sums over each group's inputs are the grouped conv.

    `Wd[c*o + q, 0] = W[g*o + q, i]` with `c = g*I + i`, I = C/G inputs and o = M/G outputs per group.  The wide
    output, reshaped to `[N, G, I, o, *S]` and summed over I, is the grouped conv's output.
    """
    m, i_per, *kernel = weight.shape
    o_per = m // group
    blocks = weight.reshape(group, o_per, i_per, *kernel)
    return np.ascontiguousarray(blocks.swapaxes(1, 2)).reshape(group * i_per * o_per, 1, *kernel)


def regroup(weight: Array, group: int, new_group: int) -> Array:
    """Weight `[M, C/G', *K]` of the same map in G' groups, G' dividing G: block-diagonal, zeros between."""
    if group % new_group:
        raise ValueError(f"{new_group} groups do not divide {group}")
    m, i_per, *kernel = weight.shape
    o_per, factor = m // group, group // new_group
    wide = np.zeros((new_group, factor, o_per, factor, i_per, *kernel), weight.dtype)
    blocks = weight.reshape(new_group, factor, o_per, i_per, *kernel)
    for block in range(factor):
        wide[:, block, :, block] = blocks[:, block]
    return wide.reshape(m, factor * i_per, *kernel)
