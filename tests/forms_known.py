"""The forms of a convolution: what each is, how to draw a random model in it, and how to know one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

import forms_draws as draws
import forms_draws_more as more
import forms_draws_rank as low
import forms_recognise as recognise
import forms_recognise_more as also
from forms_draws import Case

Family = Literal["groups", "rank", "layout", "neighbours", "transposed", "branches"]
FAMILIES: Mapping[Family, str] = {
    "groups": "Which outputs read which inputs",
    "rank": "Kernels of low rank",
    "layout": "Spatial axes",
    "neighbours": "What stands beside a convolution",
    "transposed": "Transposed convolutions",
    "branches": "Sums of branches, means of positions",
}


@dataclass(frozen=True)
class Form:
    """A way to compute a conv map: what it is, how to draw a model in it, how to know one."""

    name: str
    family: Family
    what: str
    draw: Callable[[Random], Case]
    is_one: recognise.Recogniser


_FORMS: tuple[tuple[str, Family, str, Callable[[Random], Case], recognise.Recogniser], ...] = (
    ("grouped", "groups", "Conv, 1 < G < C, behind a channel shuffle or not", draws.grouped, recognise.is_grouped),
    (
        "depthwise_sum",
        "groups",
        "depthwise Conv + Reshape + ReduceSum",
        draws.depthwise_sum,
        recognise.is_depthwise_sum,
    ),
    ("split_concat", "groups", "Split, a Conv per group, Concat", draws.split_concat, recognise.is_split_concat),
    ("block_dense", "groups", "Conv, G = 1, zeros between blocks", draws.block_dense, recognise.is_block_dense),
    ("wide_groups", "groups", "Conv, 1 < G, zeros inside its groups", draws.regrouped, recognise.is_regrouped),
    (
        "mixed_kernels",
        "groups",
        "Split, Convs with kernels of several sizes, Concat (MixNet)",
        draws.mixed_kernels,
        recognise.is_mixed_kernels,
    ),
    ("depthwise", "groups", "Conv, G = C, multiplier m > 1", draws.depthwise, recognise.is_depthwise),
    (
        "depthwise_split",
        "groups",
        "m depthwise Convs with multiplier 1, Concat",
        draws.multiplier_parts,
        recognise.is_multiplier_parts,
    ),
    ("parallel", "groups", "Convs of one tensor, Concat", draws.parallel, recognise.is_parallel),
    ("dense", "groups", "Conv, G = 1, no zero block and no low rank", draws.dense, recognise.is_dense),
    (
        "depthwise_pointwise",
        "rank",
        "depthwise Conv, then 1x1",
        low.depthwise_pointwise,
        also.is_depthwise_pointwise,
    ),
    (
        "dense_rank_input",
        "rank",
        "dense Conv, few filters per input channel",
        low.low_rank_inputs,
        also.is_low_rank_inputs,
    ),
    (
        "pointwise_depthwise",
        "rank",
        "1x1 Conv, then depthwise",
        low.pointwise_depthwise,
        also.is_pointwise_depthwise,
    ),
    (
        "dense_rank_output",
        "rank",
        "dense Conv, few filters per output channel",
        low.low_rank_outputs,
        also.is_low_rank_outputs,
    ),
    (
        "spatial_separable",
        "rank",
        "Kx1 Conv, then 1xK, or the other way round",
        low.spatial_separable,
        also.is_spatial_separable,
    ),
    (
        "dense_rank_space",
        "rank",
        "dense Conv, few columns times rows",
        low.low_rank_space,
        also.is_low_rank_space,
    ),
    ("conv1d", "layout", "1-D Convs, nodes between them", more.conv1d, also.is_conv1d),
    ("conv1d_as_2d", "layout", "the same in 2-D, one Unsqueeze and Squeeze", more.conv1d, also.is_conv1d_as_2d),
    ("conv3d", "layout", "3-D Convs, flat in time or space", more.conv3d, also.is_conv3d),
    ("conv3d_as_2d", "layout", "the same in 2-D, Reshapes around", more.conv3d, also.is_conv3d_as_2d),
    ("affine", "neighbours", "scales, shifts or BatchNormalization beside Conv", more.affine, also.is_affine),
    ("padded", "neighbours", "Pad before Conv", more.padded, also.is_padded),
    ("folded", "neighbours", "Conv alone", more.plain, also.is_plain),
    ("activated", "neighbours", "Conv (+ residual) + Relu", more.conv_activation, also.is_conv_activation),
    ("fused", "neighbours", "ONNX Runtime's FusedConv", more.conv_activation, also.is_fused),
    (
        "transposed_grouped",
        "transposed",
        "ConvTranspose, 1 < G < C",
        more.transposed_grouped,
        also.is_transposed_grouped,
    ),
    (
        "transposed_split",
        "transposed",
        "Split, a ConvTranspose per group, Concat",
        more.transposed_split,
        also.is_transposed_split,
    ),
    (
        "transposed_dense",
        "transposed",
        "ConvTranspose, G = 1, zeros between blocks",
        more.transposed_blocks,
        also.is_transposed_blocks,
    ),
    (
        "stacked_sum",
        "branches",
        "branches stacked by Unsqueeze + Concat, ReduceSum",
        more.stacked_sum,
        also.is_stacked_sum,
    ),
    ("add_chain", "branches", "branches added one after the other", more.add_chain, also.is_add_chain),
    ("mean", "branches", "Conv, ReduceMean over all positions", more.mean, also.is_mean),
    ("pooled", "branches", "Conv, GlobalAveragePool", more.pooled, also.is_pooled),
)
FORMS: Mapping[str, Form] = {entry[0]: Form(*entry) for entry in _FORMS}
ONLY_MADE = frozenset({"conv1d_as_2d", "conv3d_as_2d", "fused"})
"""Forms that no model is drawn in: their entry draws what they are made from."""
