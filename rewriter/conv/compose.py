"""Two convolutions, one after the other, as one.

With y1[p] = Σ W1[k1] x[s1·p + d1·k1 − b1] and y2[q] = Σ W2[k2] y1[s2·q + d2·k2 − b2] per axis,

    y2[q] = Σ W2[k2] W1[k1] x[s1·s2·q + (d1·k1 + s1·d2·k2) − (b1 + s1·b2)]

is one convolution of stride s1·s2 and padding b1 + s1·b2 (at both ends; sizes agree because floors of quotients nest).
Its taps lie at d1·k1 + s1·d2·k2: multiples of the greatest common divisor of d1 and s1·d2, its dilation.  The sum is
over every y1[p]; zeros that the second convolution pads with are no such y1[p], unless the first would give 0 there:
where its kernel is 1 (then it reads outside of x, too) and it has no bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from rewriter.conv.branches import Window
from rewriter.conv.types import Array, Floats

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class ConvMap:
    """What a convolution computes: weight `[M, C/G, *K]`, bias `[M]` or None, G groups, strides, and its window."""

    weight: Array
    bias: Array | None
    group: int
    strides: Sizes
    window: Window

    @property
    def kernel(self) -> Sizes:
        return self.window.kernel

    @property
    def m(self) -> int:
        return int(self.weight.shape[0])

    @property
    def c(self) -> int:
        return int(self.weight.shape[1]) * self.group


class NotComposable(ValueError):
    """Two convolutions are not one; the message is a clause that says why."""


def compose_windows(strides1: Sizes, window1: Window, window2: Window) -> Window:
    """Window of the convolution that two are, the first one with these strides."""
    axes = range(len(strides1))
    kernel1, kernel2, d1 = window1.kernel, window2.kernel, window1.dilations
    far = [strides1[a] * window2.dilations[a] for a in axes]
    steps = tuple(_step(kernel1[a], d1[a], kernel2[a], far[a]) for a in axes)
    span = [(kernel1[a] - 1) * d1[a] + (kernel2[a] - 1) * far[a] for a in axes]
    return Window(
        tuple(length // step + 1 for length, step in zip(span, steps, strict=True)),
        steps,
        tuple(window1.begin[a] + strides1[a] * window2.begin[a] for a in axes),
        tuple(window1.end[a] + strides1[a] * window2.end[a] for a in axes),
    )


def padded_axes(window: Window) -> tuple[int, ...]:
    """Spatial axes with padding."""
    return tuple(axis for axis, pads in enumerate(zip(window.begin, window.end, strict=True)) if any(pads))


def _step(kernel1: int, step1: int, kernel2: int, step2: int) -> int:
    """Dilation of the taps k1·step1 + k2·step2; 1 for a single tap."""
    return gcd(step1 if kernel1 > 1 else 0, step2 if kernel2 > 1 else 0) or 1


def why_not_linear(kernel1: Sizes, window2: Window) -> str:
    """Why the weights alone, biases aside, are not those of one convolution: a clause, or empty."""
    wide = [axis for axis in padded_axes(window2) if kernel1[axis] > 1]
    if not wide:
        return ""
    kernel, pads = "x".join(map(str, kernel1)), [*window2.begin, *window2.end]
    return f"the second is padded ({pads}) where the first is wider than 1 ({kernel}), so that the border would differ"


def composed(first: ConvMap, second: ConvMap) -> ConvMap:
    """One convolution for two, in float64, of gcd(G1, G2) groups: the finest blocks that both keep apart.

    Raises NotComposable where the border would differ, ValueError where the channels do not fit.
    """
    reason = why_not_linear(first.kernel, second.window)
    if reason:
        raise NotComposable(reason)
    if first.m != second.c:
        raise ValueError(f"the second reads {second.c} channels, the first gives {first.m}")
    weight, group, window = _compose_weights(first, second)
    bias = None if second.bias is None else second.bias.astype(np.float64)
    if first.bias is not None and first.bias.any():
        constant = bias_through(first.bias, second, (None,) * len(first.kernel))
        through = constant.reshape(second.m)
        bias = through if bias is None else bias + through
    strides = tuple(one * two for one, two in zip(first.strides, second.strides, strict=True))
    return ConvMap(weight, bias, group, strides, window)


def bias_through(bias: Array, second: ConvMap, sizes: Sequence[int | None]) -> Floats:
    """What the second convolution, its own bias aside, makes of a first one that gives `bias` `[M1]` everywhere.

    `[1, M, *S]`: S is the second's output size on axes where it is padded, for there the border differs, and 1
    elsewhere.  `sizes` are the spatial sizes of its input.  Raises NotComposable where such a size is not known.
    """
    weight, window = second.weight.astype(np.float64), second.window
    m, per_group, *kernel = weight.shape
    grouped = weight.reshape(second.group, m // second.group, per_group, *kernel)
    blocks = bias.astype(np.float64).reshape(second.group, per_group)
    total = np.einsum("gom...,gm->go...", grouped, blocks).reshape(m, *kernel)
    for axis in range(len(kernel)):
        hit = np.ones((1, kernel[axis]))
        if axis in padded_axes(window):
            size = sizes[axis]
            if size is None:
                raise NotComposable(
                    "the first has a bias and the second is padded: its border depends on sizes that are not fixed"
                )
            hit = _inside(size, axis, second)
        total = np.tensordot(total, hit, axes=(1, 1))  # the axis done goes last
    result: Floats = np.ascontiguousarray(total[None])
    return result


def _inside(size: int, axis: int, conv: ConvMap) -> Floats:
    """`[output size, kernel]`: 1 where a tap lies inside an input of that size, 0 where it lies in the padding."""
    window = conv.window
    kernel, dilation, begin, end = (
        values[axis] for values in (window.kernel, window.dilations, window.begin, window.end)
    )
    outputs = (size + begin + end - (kernel - 1) * dilation - 1) // conv.strides[axis] + 1
    places = np.arange(outputs)[:, None] * conv.strides[axis] + np.arange(kernel) * dilation - begin
    return ((places >= 0) & (places < size)).astype(np.float64)


def _compose_weights(first: ConvMap, second: ConvMap) -> tuple[Floats, int, Window]:
    """Block by block: the channels between that one group of each has in common."""
    window = compose_windows(first.strides, first.window, second.window)
    group = gcd(first.group, second.group)
    weight1, weight2 = first.weight.astype(np.float64), second.weight.astype(np.float64)
    made1, read1 = first.m // first.group, weight1.shape[1]  # per group of the first: channels made, channels read
    made2, read2 = second.m // second.group, weight2.shape[1]
    result = np.zeros((second.m, first.c // group, *window.kernel))
    start = 0
    while start < first.m:
        g1, g2 = start // made1, start // read2
        stop = min((g1 + 1) * made1, (g2 + 1) * read2)
        rows = slice(g2 * made2, (g2 + 1) * made2)
        column = g1 * read1 % result.shape[1]
        block = result[rows, column : column + read1]
        _add(block, weight1[start:stop], weight2[rows, start - g2 * read2 : stop - g2 * read2], first, second, window)
        start = stop
    return result, group, window


def _add(into: Floats, one: Floats, two: Floats, first: ConvMap, second: ConvMap, window: Window) -> None:
    """Add Σ_m two[o, m, k2] · one[m, i, k1] at the taps where the two kernels' positions add up."""
    near = [max(d // g, 1) for d, g in zip(first.window.dilations, window.dilations, strict=True)]
    far = [s * d // g for s, d, g in zip(first.strides, second.window.dilations, window.dilations, strict=True)]
    for k2 in np.ndindex(*second.kernel):
        taps = tuple(
            slice(k * f, k * f + (size - 1) * n + 1, n)
            for k, f, n, size in zip(k2, far, near, first.kernel, strict=True)
        )
        into[:, :, *taps] += np.tensordot(two[:, :, *k2], one, axes=(1, 0))


def multiplications(maps: Sequence[tuple[Sizes, Sizes]]) -> int:
    """Multiply-adds per output position of convolutions in a row, each a weight shape `[M, C/G, *K]` and its strides.

    Those of all but the last count as often as later strides skip their positions; borders are not counted.
    """
    total, positions = 0, 1
    for shape, strides in reversed(maps):
        total += positions * prod(shape)
        positions *= prod(strides)
    return total
