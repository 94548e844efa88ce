"""The ways to read a convolution's weights as matrices whose factors are two smaller convolutions.

Four ways to read `W [M, C/G, *K]` as a stack of matrices `[first side, second side]`:

    depthwise   per input channel   [K, M/G]           depthwise of multiplier r, then 1x1 in G groups
    pointwise   per output channel  [C/G, K]           1x1 in G groups to r channels per output, then M groups of r
    spatial     per group           [C/G*KA, M/G*KB]   kernel KA on the axes A, 1 elsewhere, to r channels; then KB
    channels    per group           the same with A all axes (K, then 1x1) or none (1x1, then K): fewer channels between

Factors `[n, first side, r]` and `[n, r, second side]` of such a stack are the weights of two convolutions.  Stride,
dilation and padding go with the axes; the second of them is padded only where the first is 1 wide without a bias, which
is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

from rewriter.conv.branches import Window
from rewriter.conv.compose import ConvMap, Sizes, multiplications
from rewriter.conv.types import Array, Floats


@dataclass(frozen=True)
class Way:
    """One way to read the weights: the form, and the spatial axes that the first convolution takes."""

    form: str
    """`depthwise`, `pointwise`, `spatial` or `channels`: see above."""
    axes: tuple[int, ...]


def ways_of(conv: ConvMap) -> list[Way]:
    """The ways that share the kernel out, where both parts do something."""
    everything = tuple(range(len(conv.kernel)))
    wide = [axis for axis in everything if conv.kernel[axis] > 1]
    if not wide:
        return []
    ways: list[Way] = []
    if conv.m > conv.group:
        ways.append(Way("depthwise", everything))
    if conv.c > conv.group:
        ways.append(Way("pointwise", ()))
    for count in range(1, len(wide)):
        for chosen in combinations(wide, count):
            # An axis of kernel 1 may have a stride, which the first takes so that the second has fewer positions.
            ways.append(Way("spatial", tuple(axis for axis in everything if axis in chosen or axis not in wide)))
    return ways


def narrow_ways_of(conv: ConvMap) -> list[Way]:
    """The ways through fewer channels with the kernel as a whole on one side."""
    behind = [Way("channels", ())] if prod(conv.kernel) > 1 else []
    return [Way("channels", tuple(range(len(conv.kernel)))), *behind]


def cost_of(conv: ConvMap, way: Way, rank: int) -> int:
    """Multiply-adds per output position of the two: proportional to the rank."""
    i_per = conv.c // conv.group
    # Channels between, read by each of them, and read of them by each output, all for rank 1.
    known = {"depthwise": (conv.c, 1, i_per), "pointwise": (conv.m, i_per, 1)}
    made, read, again = known.get(way.form, (conv.group, i_per, 1))
    near = prod(conv.kernel[axis] for axis in way.axes)
    later = _only(conv.strides, _others(conv, way.axes), 1)
    first, second = (made * rank, read, near), (conv.m, again * rank, prod(conv.kernel) // near)
    return multiplications([(first, ()), (second, later)])


def stack_of(conv: ConvMap, way: Way) -> Floats:
    """The stack of matrices `[n, first side, second side]` in float64."""
    blocks, order, sides = _layout(conv, way)
    return np.ascontiguousarray(conv.weight.astype(np.float64).reshape(blocks).transpose(order)).reshape(sides)


def unstacked(conv: ConvMap, way: Way, stack: Floats) -> Floats:
    """The inverse of `stack_of`: a weight `[M, C/G, *K]` in float64."""
    blocks, order, _ = _layout(conv, way)
    ordered = stack.reshape([blocks[axis] for axis in order])
    return np.ascontiguousarray(ordered.transpose(np.argsort(order))).reshape(conv.weight.shape)


def two_convs(conv: ConvMap, way: Way, first: Array, second: Array) -> tuple[ConvMap, ConvMap]:
    """The two convolutions with these weights: strides and window of `conv` shared out, its bias in the second."""
    groups = _groups(conv, way.form)
    near, far = way.axes, _others(conv, way.axes)
    return (
        ConvMap(first, None, groups[0], _only(conv.strides, near, 1), _window(conv.window, near)),
        ConvMap(second, conv.bias, groups[1], _only(conv.strides, far, 1), _window(conv.window, far)),
    )


def balanced(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """The factors `[n, p, r]` and `[n, r, q]` scaled so that weights which are plain numbers stay such.

    The largest entry of each column on the left is 1 times the power of two that makes both sides about as large.
    """
    column = np.take_along_axis(left, np.abs(left).argmax(axis=1, keepdims=True), axis=1)  # [n, 1, r]
    column = np.where(column == 0, 1.0, column)
    left, right = left / column, right * column.swapaxes(1, 2)
    size = np.abs(right).max(axis=2, keepdims=True)  # [n, r, 1]
    power = 2.0 ** np.round(np.log2(np.where(size > 0, size, 1.0)) / 2)
    return left * power.swapaxes(1, 2), right / power


def as_weights(conv: ConvMap, way: Way, left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Factors as the weights of the two convolutions, `[M1, C/G1, *K1]` and `[M, M1/G2, *K2]`."""
    r, g = left.shape[2], conv.group
    o, i = conv.m // g, conv.c // g
    near = tuple(size if axis in way.axes else 1 for axis, size in enumerate(conv.kernel))
    far = tuple(1 if axis in way.axes else size for axis, size in enumerate(conv.kernel))
    outer = left.swapaxes(1, 2)  # [n, r, first side]
    if way.form == "depthwise":  # n = (g, i), right [n, r, o]
        inner = right.reshape(g, i, r, o).transpose(0, 3, 1, 2)
        return outer.reshape(g * i * r, 1, *near), inner.reshape(conv.m, i * r, *far)
    if way.form == "pointwise":  # n = (g, o), right [n, r, K]
        return outer.reshape(conv.m * r, i, *near), right.reshape(conv.m, r, *far)
    inner = right.reshape(g, r, o, *far).swapaxes(1, 2)  # n = g, right [n, r, (o, KB)]
    return outer.reshape(g * r, i, *near), inner.reshape(conv.m, r, *far)


def from_weights(conv: ConvMap, way: Way, first: Array, second: Array) -> tuple[Floats, Floats]:
    """The inverse of `as_weights`, in float64: factors `[n, p, r]` and `[n, r, q]`."""
    g = conv.group
    o, i = conv.m // g, conv.c // g
    n = {"depthwise": g * i, "pointwise": conv.m}.get(way.form, g)
    r = len(first) // n
    left = first.astype(np.float64).reshape(n, r, -1).swapaxes(1, 2)
    wide = second.astype(np.float64)
    if way.form == "depthwise":
        return left, wide.reshape(g, o, i, r).transpose(0, 2, 3, 1).reshape(n, r, o)
    if way.form == "pointwise":
        return left, wide.reshape(n, r, -1)
    return left, wide.reshape(g, o, r, -1).swapaxes(1, 2).reshape(n, r, -1)


def _layout(conv: ConvMap, way: Way) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int]]:
    """W as `[g, o, i, *K]`, its axes in the order (stack, first side, second side), and the sizes of these three."""
    blocks = (conv.group, conv.m // conv.group, conv.c // conv.group, *conv.kernel)
    near, far = tuple(3 + axis for axis in way.axes), tuple(3 + axis for axis in _others(conv, way.axes))
    parts: dict[str, tuple[tuple[int, ...], ...]] = {
        "depthwise": ((0, 2), near, (1,)),
        "pointwise": ((0, 1), (2,), far),
    }
    sides = parts.get(way.form, ((0,), (2, *near), (1, *far)))
    n, p, q = (prod(blocks[axis] for axis in side) for side in sides)
    return blocks, tuple(axis for side in sides for axis in side), (n, p, q)


def _groups(conv: ConvMap, form: str) -> tuple[int, int]:
    if form == "depthwise":
        return conv.c, conv.group
    return conv.group, conv.m if form == "pointwise" else conv.group


def _window(window: Window, axes: Sequence[int]) -> Window:
    """The window on these axes; on the others a kernel of 1 without dilation or padding."""
    kernel, dilations = _only(window.kernel, axes, 1), _only(window.dilations, axes, 1)
    return Window(kernel, dilations, _only(window.begin, axes, 0), _only(window.end, axes, 0))


def _only(values: Sizes, axes: Sequence[int], other: int) -> Sizes:
    return tuple(value if axis in axes else other for axis, value in enumerate(values))


def _others(conv: ConvMap, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(conv.kernel)) if axis not in axes)
