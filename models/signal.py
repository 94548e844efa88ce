"""What is expected of a tensor on the way through a network with random weights: mean and variance of each channel.

The builders choose weights so that every convolution has unit scale.  They cannot run the network to find out how (the
weights would depend on the machine), so they carry expectations along: for standard normal images, independent
channels and neighbouring positions that are not correlated.  Real ones are, a little; tests/test_models_networks.py
looks at what comes of it.

Random filters follow scaled weight standardisation (Brock, De, Smith, 2021, as in models/resnext.py): mean zero, so
that the positive mean that an activation leaves does not drown the signal.  A depthwise filter cannot do that, or it
would see edges only: its centre carries most of it, and the mean that comes through is subtracted with the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, pi, prod, sqrt
from typing import Literal, TypeAlias

import numpy as np

from models.emit import Array

Activation: TypeAlias = Literal["relu", "relu6", "swish", "sigmoid"]

_CENTRE = 0.7
"""Share of the squared norm that the centre of a depthwise filter has."""
_Z = np.linspace(-8, 8, 1601)
_DENSITY = np.exp(-(_Z**2) / 2) / sqrt(2 * pi) * (_Z[1] - _Z[0])
FUNCTIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@dataclass(frozen=True)
class Signal:
    """A tensor [N, C, side, side]; `mean` and `variance` [C] are those expected over images and positions."""

    name: str
    side: int
    mean: Array
    variance: Array

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)

    def take(self, name: str, first: int, last: int) -> Signal:
        """The channels from `first` up to `last`, under a name of their own."""
        return Signal(name, self.side, self.mean[first:last], self.variance[first:last])


def activated(x: Signal, name: str, kind: Activation) -> Signal:
    """The expectation behind an activation, by quadrature over a normal distribution of each channel."""
    values = FUNCTIONS[kind](x.mean[:, np.newaxis] + np.sqrt(x.variance)[:, np.newaxis] * _Z)
    mean = values @ _DENSITY
    return Signal(name, x.side, mean, np.maximum(values**2 @ _DENSITY - mean**2, 1e-6))


def largest(count: float) -> tuple[float, float]:
    """Mean and variance of the largest of `count` independent standard normal numbers, at least one."""
    below = np.cumsum(_DENSITY)
    density = np.diff(below ** max(count, 1.0), prepend=0.0)
    mean = float(density @ _Z)
    return mean, float(density @ _Z**2) - mean**2


def out_side(side: int, kernel: int, stride: int, padded: bool) -> int:
    """Output side; padded windows keep ceil(side / stride) positions (kernels are odd), others those that fit."""
    return ceil(side / stride) if padded else (side - kernel) // stride + 1


def coverage(side: int, kernel: int, stride: int, begin: int, positions: int) -> tuple[Array, Array]:
    """Which taps lie on the input, not on padding, along an axis: the masks [R, kernel], and how often each [R]."""
    at = np.arange(positions)[:, np.newaxis] * stride - begin + np.arange(kernel)
    masks, counts = np.unique((at >= 0) & (at < side), axis=0, return_counts=True)
    return masks.astype(np.float64), counts / positions


def filters(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random filters [M, C/G, *K] in float32: norm 1 each, and mean 0 unless there is one input channel only."""
    weight = rng.standard_normal((shape[0], prod(shape[1:])), dtype=np.float32)
    if shape[1] > 1:
        # Sums in float64: their order may differ between machines, the float32 result then does not.
        weight -= weight.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    elif weight.shape[1] > 1:
        centre = weight.shape[1] // 2
        sign = np.where(weight[:, centre] < 0, np.float32(-1), np.float32(1))
        weight[:, centre] = 0
        rest = np.sqrt(np.einsum("mk,mk->m", weight, weight, dtype=np.float64))
        weight *= (sqrt(1 - _CENTRE) / rest).astype(np.float32)[:, np.newaxis]
        weight[:, centre] = sign * np.float32(sqrt(_CENTRE))
    norm = np.sqrt(np.einsum("mk,mk->m", weight, weight, dtype=np.float64))
    weight *= (1 / norm).astype(np.float32)[:, np.newaxis]
    return weight.reshape(shape)


def convolved(x: Signal, name: str, weight: Array, groups: int, stride: int, begin: int, side: int) -> Signal:
    """The expectation behind a convolution without bias, `weight` [M, C/G, k, k]; padding counts as the zeros it is.

    Where the input has a mean, the border differs from the inside: that is part of the variance.
    """
    masks, shares = coverage(x.side, weight.shape[2], stride, begin, side)
    taps = shares @ masks
    wide = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    means = np.einsum("goihw,gi->gohw", wide, x.mean.reshape(groups, -1))
    places = np.einsum("gohw,ph,qw->gopq", means, masks, masks)
    mean = np.einsum("gopq,p,q->go", places, shares, shares)
    variance = np.einsum("goihw,gi,h,w->go", wide**2, x.variance.reshape(groups, -1), taps, taps, optimize=True)
    variance += np.einsum("gopq,p,q->go", (places - mean[:, :, np.newaxis, np.newaxis]) ** 2, shares, shares)
    return Signal(name, side, mean.reshape(-1), variance.reshape(-1))
