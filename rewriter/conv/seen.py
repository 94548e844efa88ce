"""What a convolution reads, as second moments: enough to know the error of other weights on the same inputs exactly.

For patches p `[C/G*K]` of one group, y = W·p + b.  Other weights W' are off by (W - W')·p, whose mean square is
tr((W - W')·R·(W - W')ᵀ) with R = E[p·pᵀ]: no output has to be computed again to compare many W'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from rewriter.conv.branches import Window
from rewriter.conv.compose import Sizes
from rewriter.conv.types import Array, Floats

_CHUNK = 1 << 22
"""Elements of the patches that are held at once."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over all patches: `second` `[G, P, P]` of products, `first` `[G, P]`; P = C/G*K, and their `count`."""

    second: Floats
    first: Floats
    count: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.second + other.second, self.first + other.first, self.count + other.count)

    def shrunk(self) -> Floats:
        """E[p·pᵀ] `[G, P, P]`, drawn to its own diagonal by P parts in P + count.

        Few patches say little of P·P correlations: without, what is fitted to them would fit nothing else.
        """
        size = self.second.shape[1]
        mean = self.second / max(self.count, 1)
        part = size / (size + self.count)
        shrunk: Floats = (1 - part) * mean + part * mean * np.eye(size)
        return shrunk


@dataclass(frozen=True, eq=False)
class Seen:
    """Moments of the inputs to fit to, and of those held back to judge by."""

    fitted: Moments
    held: Moments

    @cached_property
    def all(self) -> Moments:
        """Both."""
        return self.fitted + self.held


def moments(inputs: Iterable[Array], window: Window, strides: Sizes, group: int) -> Seen:
    """Of all patches that a convolution with this window reads from inputs `[N, C, *S]`, padding included.

    Every other image is held back; of a single image, the second half of the positions on the first axis.
    """
    sums: list[Moments | None] = [None, None]
    images = [image for x in inputs for image in x]
    for number, image in enumerate(images):
        view = _windows(image, window, strides)
        half = view.shape[1] // 2
        parts = [(number % 2, view)] if len(images) > 1 else [(0, view[:, :half]), (1, view[:, half:])]
        for side, part in parts:
            for patches in _patches(part, group, len(window.kernel)):
                more = Moments(patches.swapaxes(1, 2) @ patches, patches.sum(axis=1), patches.shape[1])
                found = sums[side]
                sums[side] = more if found is None else found + more
    size = prod(window.kernel) * (images[0].shape[0] // group) if images else 0
    nothing = Moments(np.zeros((group, size, size)), np.zeros((group, size)), 0)
    return Seen(sums[0] or nothing, sums[1] or nothing)


def energy(weight: Array, bias: Array | None, seen: Moments) -> float:
    """Sum of squares of all outputs for weight `[M, C/G, *K]` and bias `[M]`."""
    w = weight.astype(np.float64).reshape(len(seen.second), -1, seen.second.shape[1])  # [G, M/G, P]
    total = float(np.einsum("gop,gop->", w @ seen.second, w))
    if bias is not None:
        b = bias.astype(np.float64).reshape(len(w), -1)
        total += float(2 * np.einsum("go,gop,gp->", b, w, seen.first) + seen.count * np.sum(b * b))
    return max(total, 0.0)


def _windows(image: Array, window: Window, strides: Sizes) -> Array:
    """A view `[C, *positions, *K]` of one padded image `[C, *S]`; no positions where the kernel does not fit."""
    rank = len(window.kernel)
    pads = [(0, 0), *zip(window.begin, window.end, strict=True)]
    reach = [(size - 1) * step + 1 for size, step in zip(window.kernel, window.dilations, strict=True)]
    padded = np.pad(image, pads)
    if any(size < least for size, least in zip(padded.shape[1:], reach, strict=True)):
        return np.zeros((image.shape[0], *(0,) * rank, *window.kernel), image.dtype)
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(1, 1 + rank)))
    steps = [slice(None, None, step) for step in (1, *strides, *window.dilations)]
    return view[tuple(steps)]


def _patches(view: Array, group: int, rank: int) -> Iterator[Floats]:
    """The windows as patches `[G, n, P]` in float64, some at a time."""
    c, positions, kernel = view.shape[0], view.shape[1 : 1 + rank], prod(view.shape[1 + rank :])
    rows = max(1, _CHUNK // max(1, c * prod(positions[1:]) * kernel))
    for start in range(0, positions[0], rows):
        part = view[:, start : start + rows].astype(np.float64)
        blocks = part.reshape(group, c // group, -1, kernel)  # [G, C/G, n, K]
        yield blocks.swapaxes(1, 2).reshape(group, blocks.shape[2], -1)
