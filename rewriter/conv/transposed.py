"""Transposed convolutions: weight `[C, M/G, *K]`, groups over C; the algebra of groups is that of convolutions.

    y[n, g*O + q, j*stride + k*dilation - pad] += W[g*I + i, q, k] * x[n, g*I + i, j]

with I = C/G inputs and O = M/G outputs per group.  Weights only move here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.conv.branches import Branch, merge_branches, split_groups
from rewriter.conv.groups import regroup
from rewriter.conv.mixing import Grouped, NotGrouped
from rewriter.conv.types import Array


def as_conv(weight: Array, group: int) -> Array:
    """Weight `[C, M/G, *K]` in the layout of convolutions, `[M, C/G, *K]`; the kernel is not flipped."""
    return _exchanged(weight, group)


def as_transposed(weight: Array, group: int) -> Array:
    """Weight `[M, C/G, *K]` in the layout of transposed convolutions, `[C, M/G, *K]`; the inverse of `as_conv`."""
    return _exchanged(weight, group)


def regroup_transposed(weight: Array, group: int, new_group: int) -> Array:
    """Weight `[C, M/G', *K]` of the same map in G' groups, G' dividing G: block-diagonal, zeros between."""
    return as_transposed(regroup(as_conv(weight, group), group, new_group), new_group)


def split_transposed(weight: Array, bias: Array | None, group: int, parts: int) -> list[tuple[Array, Array | None]]:
    """Weight `[C/P, M/G, *K]` and bias `[M/P]` of each of P parts, P dividing G: groups `p*G/P` to `(p+1)*G/P - 1`."""
    pieces = split_groups(as_conv(weight, group), bias, group, parts)
    return [(as_transposed(piece, group // parts), offset) for piece, offset in pieces]


def merge_transposed(branches: Sequence[Branch], channels: int) -> Grouped:
    """The transposed convolution whose output is the branches' concatenated, without inserting a weight.

    Weights, of the branches and of the result, are `[C, M/G, *K]`, of one kernel size; `channels` is how many the input
    has.  Raises NotGrouped, also where channels would have to change their order.
    """
    turned = [Branch(as_conv(b.weight, b.group), b.bias, b.group, b.inputs) for b in branches]
    made = merge_branches(turned, channels)
    if made.inputs is not None or made.outputs is not None:
        raise NotGrouped("its branches read their input's channels in another order, or not all of them")
    return Grouped(as_transposed(made.weight, made.group), made.bias, made.group, None, None, combined=False)


def _exchanged(weight: Array, group: int) -> Array:
    """`[G*A, B, *K]` as `[G*B, A, *K]`."""
    outer, inner, *kernel = weight.shape
    if group < 1 or outer % group:
        raise ValueError(f"{outer} channels do not divide into {group} groups")
    apart = weight.reshape(group, outer // group, inner, *kernel)
    return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(group * inner, outer // group, *kernel)
