"""A grouped convolution evaluated straight from its definition: slow, plain, and independent of ONNX.

Convolution here is what ONNX calls Conv (a cross-correlation); padding adds zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.emit import Array


def same_pads(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], lower: bool
) -> tuple[list[int], list[int]]:
    """Begin and end padding of SAME_UPPER (`lower=False`) or SAME_LOWER: the output has ceil(size / stride) positions.

    Source: the auto_pad attribute of the ONNX operator Conv. Only defined here for dilation 1.
    """
    begins, ends = [], []
    for size, k, stride in zip(spatial, kernel, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + k - size)
        begin = (total + 1) // 2 if lower else total // 2
        begins.append(begin)
        ends.append(total - begin)
    return begins, ends


def grouped_conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    groups: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    begins: Sequence[int],
    ends: Sequence[int],
) -> Array:
    """Grouped convolution of `x` [N, C, *S] with `weight` [M, C/G, *K] and `bias` [M], in float64: [N, M, *S'].

    One term per kernel position: the strided, dilated slice of the padded input times that position's weights,

        y[n, g·O + q, s] = b[g·O + q] + Σ_{i, k} W[g·O + q, i, k] · xpad[n, g·I + i, s·stride + k·dilation].
    """
    rank = weight.ndim - 2
    kernel = weight.shape[2:]
    wide = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    sizes = [(wide.shape[2 + a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1 for a in range(rank)]
    per_group = wide.reshape(x.shape[0], groups, -1, *wide.shape[2:])
    filters = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    y = np.zeros((x.shape[0], groups, filters.shape[1], *sizes))
    for position in np.ndindex(*kernel):
        window = tuple(
            slice(k * d, k * d + (size - 1) * s + 1, s)
            for k, d, s, size in zip(position, dilations, strides, sizes, strict=True)
        )
        y += np.einsum("ngi...,goi->ngo...", per_group[:, :, :, *window], filters[:, :, :, *position])
    y = y.reshape(x.shape[0], weight.shape[0], *sizes)
    if bias is None:
        return y
    return y + bias.astype(np.float64).reshape(1, -1, *[1] * rank)
