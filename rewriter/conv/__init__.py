"""The conv map and its weight algebra: pure NumPy, no ONNX.

A conv map has a weight `[M, C/G, *K]` and G groups: output channel m reads input channels
`(m // (M/G)) * C/G + 0 .. C/G-1`.  Functions here move or combine weights; they never round unless they say so.
"""

from __future__ import annotations

from rewriter.conv.affine import Affine, Folding, batch_norm
from rewriter.conv.branches import Branch, Window, common_window, merge_branches, split_groups, widen
from rewriter.conv.compose import (
    ConvMap,
    NotComposable,
    bias_through,
    compose_windows,
    composed,
    multiplications,
    padded_axes,
    why_not_linear,
)
from rewriter.conv.dense import Blocks, blocks, dense_to_grouped
from rewriter.conv.embedding import (
    embed,
    embed_weight,
    identity,
    is_identity,
    joined,
    most_groups,
    pad_groups,
    pad_tail,
)
from rewriter.conv.factor import Split, cost, factorize, splits
from rewriter.conv.groups import grouped_to_depthwise, regroup
from rewriter.conv.lowrank import Approximation, OutOfReach, approximate
from rewriter.conv.mixing import ChannelMix, Grouped, NotGrouped, mix
from rewriter.conv.multiplier import merge_multiplier, multiplier_order, permute_inputs, split_multiplier
from rewriter.conv.ranks import (
    channel_constant,
    drop_attribute_axis,
    drop_weight_axis,
    insert_attribute_axis,
    insert_axis,
    insert_weight_axis,
    is_flat,
)
from rewriter.conv.rounding import NotRepresentable, rounded
from rewriter.conv.seen import Moments, Seen, energy, moments
from rewriter.conv.separation import Way
from rewriter.conv.transposed import as_conv, as_transposed, merge_transposed, regroup_transposed, split_transposed
from rewriter.conv.types import Array, Floats, Ints

__all__ = [
    "Affine",
    "Approximation",
    "Array",
    "Blocks",
    "Branch",
    "ChannelMix",
    "ConvMap",
    "Floats",
    "Folding",
    "Grouped",
    "Ints",
    "Moments",
    "NotComposable",
    "NotGrouped",
    "NotRepresentable",
    "OutOfReach",
    "Seen",
    "Split",
    "Way",
    "Window",
    "approximate",
    "as_conv",
    "as_transposed",
    "batch_norm",
    "bias_through",
    "blocks",
    "channel_constant",
    "common_window",
    "compose_windows",
    "composed",
    "cost",
    "dense_to_grouped",
    "drop_attribute_axis",
    "drop_weight_axis",
    "embed",
    "embed_weight",
    "energy",
    "factorize",
    "grouped_to_depthwise",
    "identity",
    "insert_attribute_axis",
    "insert_axis",
    "insert_weight_axis",
    "is_flat",
    "is_identity",
    "joined",
    "merge_branches",
    "merge_multiplier",
    "merge_transposed",
    "mix",
    "moments",
    "most_groups",
    "multiplications",
    "multiplier_order",
    "pad_groups",
    "pad_tail",
    "padded_axes",
    "permute_inputs",
    "regroup",
    "regroup_transposed",
    "rounded",
    "split_groups",
    "split_multiplier",
    "split_transposed",
    "splits",
    "why_not_linear",
    "widen",
]
