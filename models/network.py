"""Layers of convolutional networks that know what scale to expect: each takes and gives a `Signal`.

Weights are seeded by the layer's name.  Convolutions with a norm (batch normalisation) are written as Conv +
BatchNormalization (`norm="kept"`) or as the one Conv that both make (`"folded"`), from the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from models.emit import Array, GraphBuilder
from models.signal import Activation, Signal, activated, convolved, coverage, filters, largest, out_side

Norm: TypeAlias = Literal["folded", "kept"]
_Norms: TypeAlias = tuple[Array, Array, Array, Array]

BRANCH = 0.5
"""Standard deviation that the last convolution of a residual branch gives, in a stream of about 1."""
_EPSILON = 1e-5
_BIAS_STD = 0.1
_ALIKE = 4
"""How many neighbours vary as one, roughly: an average over side² positions has as much variance as over side²/4."""
_LEAST_POOLED = 0.06
"""The share of the variance that an average keeps however many positions there are: channels differ in their means."""


@dataclass(frozen=True)
class Network:
    """Emits layers; each is named after its output."""

    builder: GraphBuilder
    seed: int
    norm: Norm
    same: bool
    """Padding as TensorFlow writes it (`auto_pad="SAME_UPPER"`), rather than the same on both sides."""
    batch: int | None

    def conv(
        self,
        x: Signal,
        name: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        gain: float = 1.0,
        padded: bool = True,
    ) -> Signal:
        """A convolution and its norm: standard deviation `gain` in every channel."""
        raw, weight, attributes = self._filters(x, name, channels, kernel, stride, groups, padded)
        norm = self._norm(raw, name, gain)
        if self.norm == "kept":
            self._emit_conv(x, f"{name}.conv", weight, None, attributes)
            return self._emit_norm(replace(raw, name=f"{name}.conv"), name, norm)
        return self._emit_folded(x, replace(raw, name=name), weight, norm, attributes)

    def plain(
        self,
        x: Signal,
        name: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        gain: float | None = None,
        padded: bool = True,
    ) -> Signal:
        """A convolution without a norm: with bias and standard deviation `gain`, or neither where that is None."""
        raw, weight, attributes = self._filters(x, name, channels, kernel, stride, groups, padded)
        if gain is None:
            self._emit_conv(x, name, weight, None, attributes)
            return raw
        factor = (gain / np.sqrt(raw.variance)).astype(np.float32)
        shift = self._random(f"{name}.bias").standard_normal(channels, dtype=np.float32) * np.float32(_BIAS_STD)
        bias = (shift - raw.mean * factor).astype(np.float32)
        self._emit_conv(x, name, weight * factor[:, np.newaxis, np.newaxis, np.newaxis], bias, attributes)
        return replace(_behind_norm(raw, name, np.full(channels, gain), shift), name=name)

    def depthwise(self, x: Signal, name: str, kernel: int, *, stride: int = 1) -> Signal:
        """A depthwise convolution and its norm."""
        return self.conv(x, name, x.channels, kernel, stride=stride, groups=x.channels)

    def branches(
        self,
        x: Signal,
        name: str,
        channels: Sequence[int],
        kernels: Sequence[int],
        *,
        stride: int = 1,
        depthwise: bool = False,
        gain: float = 1.0,
    ) -> Signal:
        """Split, one convolution each, Concat, and one norm behind; folded, each convolution takes its part of it."""
        inputs = parted(x.channels, len(channels))
        names = self.builder.split(x.name, 1, inputs, [f"{name}.in{at}" for at in range(len(inputs))])
        parts = [x.take(part, *ends) for part, ends in zip(names, _ends(inputs), strict=True)]
        inner = [f"{name}.branch{at}" for at in range(len(inputs))]
        made = [
            self._filters(part, branch, width, kernel, stride, part.channels if depthwise else 1, True)
            for part, branch, width, kernel in zip(parts, inner, channels, kernels, strict=True)
        ]
        norm = self._norm(_joined([raw for raw, _, _ in made], name), name, gain)
        outputs = []
        for part, (raw, weight, attributes), (first, last) in zip(parts, made, _ends(channels), strict=True):
            if self.norm == "kept":
                self._emit_conv(part, raw.name, weight, None, attributes)
                outputs.append(raw)
            else:
                scale, shift, mean, variance = (values[first:last] for values in norm)
                outputs.append(self._emit_folded(part, raw, weight, (scale, shift, mean, variance), attributes))
        if self.norm == "folded":
            return self.concat(outputs, name)
        return self._emit_norm(self.concat(outputs, f"{name}.concat"), name, norm)

    def activation(self, x: Signal, name: str, kind: Activation) -> Signal:
        """Relu, Clip to [0, 6], x·Sigmoid(x), or Sigmoid."""
        builder = self.builder
        if kind == "relu6" and builder.opset < 11:
            builder.node("Clip", [x.name], name, min=0.0, max=6.0)
        elif kind == "relu6":
            limits = [
                builder.initializer(f"{name}.{end}", np.array(v, np.float32)) for end, v in (("min", 0), ("max", 6))
            ]
            builder.node("Clip", [x.name, *limits], name)
        elif kind == "swish":
            builder.node("Mul", [x.name, builder.node("Sigmoid", [x.name], f"{name}.sigmoid")], name)
        else:
            builder.node(kind.capitalize(), [x.name], name)
        return activated(x, name, kind)

    def add(self, x: Signal, y: Signal, name: str) -> Signal:
        """The sum of a stream and a branch."""
        self.builder.node("Add", [x.name, y.name], name)
        return Signal(name, x.side, x.mean + y.mean, x.variance + y.variance)

    def add_relu(self, x: Signal, y: Signal, name: str, relu: str) -> Signal:
        """Relu of the sum of a stream that is a Relu itself and a normal branch: most of the stream stays as it is.

        What a block adds to mean and variance is simulated: 0.25 to 0.11 and 0.24 to 0.37 over twelve blocks.
        """
        self.activation(self.add(x, y, name), relu, "relu")
        return Signal(relu, x.side, x.mean + 0.15 * np.sqrt(y.variance), x.variance + 0.35 * y.variance)

    def concat(self, parts: Sequence[Signal], name: str) -> Signal:
        """The channels of all parts one after the other."""
        self.builder.node("Concat", [part.name for part in parts], name, axis=1)
        return _joined(parts, name)

    def concat_relu(self, x: Signal, y: Signal, name: str, relu: str) -> Signal:
        """Relu of x, which has nothing below 0, and of a normal y, one after the other."""
        self.activation(self.concat([x, y], name), relu, "relu")
        return _joined([x, activated(y, y.name, "relu")], relu)

    def halves(self, x: Signal, name: str) -> tuple[Signal, Signal]:
        """The first and the second half of the channels, by Split."""
        half = x.channels // 2
        first, second = self.builder.split(x.name, 1, [half, half], [f"{name}.first", f"{name}.second"])
        return x.take(first, 0, half), x.take(second, half, 2 * half)

    def shuffle(self, x: Signal, name: str, groups: int) -> Signal:
        """Channel shuffle: channel g·I + i becomes i·G + g, by Reshape, Transpose, Reshape."""
        batch, per_group, side, builder = self.batch or 0, x.channels // groups, x.side, self.builder
        split = builder.integers(f"{name}.split_shape", [batch, groups, per_group, side, side])
        merged = builder.integers(f"{name}.merged_shape", [batch, x.channels, side, side])
        y = builder.reshape(x.name, split, f"{name}.split")
        y = builder.node("Transpose", [y], f"{name}.swapped", perm=[0, 2, 1, 3, 4])
        builder.reshape(y, merged, name)
        order = np.arange(x.channels).reshape(groups, per_group).T.reshape(-1)
        return Signal(name, side, x.mean[order], x.variance[order])

    def gate(self, x: Signal, name: str, inside: int, kind: Activation) -> Signal:
        """Squeeze and excitation: each channel times a Sigmoid of two convolutions of the averages of all channels."""
        y = self.average(x, f"{name}.pool")
        y = self.activation(self.plain(y, f"{name}.reduce", inside, gain=1.0), f"{name}.{kind}", kind)
        gates = self.activation(self.plain(y, f"{name}.expand", x.channels, gain=1.0), f"{name}.sigmoid", "sigmoid")
        self.builder.node("Mul", [x.name, gates.name], name)
        squared = gates.variance + gates.mean**2
        mean = x.mean * gates.mean
        return Signal(name, x.side, mean, squared * (x.variance + x.mean**2) - mean**2)

    def max_pool(self, x: Signal, name: str, *, rectified: bool, padded: bool = True) -> Signal:
        """The largest of 3×3 at stride 2; `rectified` says that x is a Relu of unit scale rather than normal."""
        side, attributes = self._window(x.side, 3, 2, padded)
        self.builder.node("MaxPool", [x.name], name, kernel_shape=[3, 3], strides=[2, 2], **attributes)
        masks, shares = coverage(x.side, 3, 2, self._begin(x.side, 3, 2, side, padded), side)
        mean, variance = largest(float(shares @ masks.sum(axis=1)) ** 2)
        if rectified:
            return Signal(name, side, np.full(x.channels, mean), np.full(x.channels, variance))
        return Signal(name, side, x.mean + mean * np.sqrt(x.variance), variance * x.variance)

    def average_pool(self, x: Signal, name: str) -> Signal:
        """The mean of 3×3 at stride 2, padding left out of it."""
        side, attributes = self._window(x.side, 3, 2, True)
        self.builder.node("AveragePool", [x.name], name, kernel_shape=[3, 3], strides=[2, 2], **attributes)
        # Between 1/9 (neighbours independent) and 1 (equal); measured on the networks that use it.
        return Signal(name, side, x.mean, x.variance / (3 if x.side > 1 else 1))

    def average(self, x: Signal, name: str) -> Signal:
        """The mean over all positions, [N, C, 1, 1]."""
        self.builder.node("GlobalAveragePool", [x.name], name)
        return Signal(name, 1, x.mean, x.variance * min(1, max(_ALIKE / x.side**2, _LEAST_POOLED)))

    def logits(self, x: Signal, classes: int) -> None:
        """The classifier: mean over all positions, then one fully connected layer."""
        self.dense(self.average(x, "head.pool"), "logits", classes)

    def dense(self, x: Signal, name: str, channels: int, mean: float = 0.0) -> Signal:
        """Flatten and a fully connected layer with bias, [N, channels], of unit scale about `mean`."""
        flat = self.builder.node("Flatten", [x.name], f"{name}.flatten")
        weight = filters(self._random(f"{name}.weight"), (channels, x.channels * x.side**2))
        means, variances = np.repeat(x.mean, x.side**2), np.repeat(x.variance, x.side**2)
        raw = Signal(name, 1, weight @ means, np.einsum("mk,mk,k->m", weight, weight, variances))
        factor = (1 / np.sqrt(raw.variance)).astype(np.float32)
        shift = self._random(f"{name}.bias").standard_normal(channels, dtype=np.float32) * np.float32(_BIAS_STD)
        shift += np.float32(mean)
        names = [
            self.builder.initializer(f"{name}.weight", weight * factor[:, np.newaxis]),
            self.builder.initializer(f"{name}.bias", (shift - raw.mean * factor).astype(np.float32)),
        ]
        self.builder.node("Gemm", [flat, *names], name, transB=1)
        return _behind_norm(raw, name, np.ones(channels), shift)

    def _filters(
        self, x: Signal, name: str, channels: int, kernel: int, stride: int, groups: int, padded: bool
    ) -> tuple[Signal, Array, dict[str, Any]]:
        side, attributes = self._window(x.side, kernel, stride, padded)
        weight = filters(self._random(f"{name}.weight"), (channels, x.channels // groups, kernel, kernel))
        begin = self._begin(x.side, kernel, stride, side, padded)
        raw = convolved(x, name, weight, groups, stride, begin, side)
        return raw, weight, {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "group": groups, **attributes}

    def _norm(self, raw: Signal, name: str, gain: float) -> _Norms:
        """Scale, shift, mean and variance [M] of the norm, float32; the scales differ a little, as trained ones do."""
        rng = self._random(f"{name}.norm")
        scale = np.float32(gain) * rng.uniform(0.8, 1.2, raw.channels).astype(np.float32)
        shift = np.float32(gain * _BIAS_STD) * rng.standard_normal(raw.channels, dtype=np.float32)
        return scale, shift, raw.mean.astype(np.float32), raw.variance.astype(np.float32)

    def _emit_conv(self, x: Signal, name: str, weight: Array, bias: Array | None, attributes: dict[str, Any]) -> None:
        names = [x.name, self.builder.initializer(f"{name}.weight", weight)]
        if bias is not None:
            names.append(self.builder.initializer(f"{name}.bias", bias))
        self.builder.node("Conv", names, name, **attributes)

    def _emit_folded(self, x: Signal, raw: Signal, weight: Array, norm: _Norms, attributes: dict[str, Any]) -> Signal:
        scale, shift, mean, variance = norm
        factor = (scale / np.sqrt(variance.astype(np.float64) + _EPSILON)).astype(np.float32)
        bias = (shift - mean.astype(np.float64) * factor).astype(np.float32)
        self._emit_conv(x, raw.name, weight * factor[:, np.newaxis, np.newaxis, np.newaxis], bias, attributes)
        return _behind_norm(raw, raw.name, scale, shift)

    def _emit_norm(self, x: Signal, name: str, norm: _Norms) -> Signal:
        kinds = ("scale", "shift", "mean", "variance")
        names = [self.builder.initializer(f"{name}.norm.{kind}", v) for kind, v in zip(kinds, norm, strict=True)]
        self.builder.node("BatchNormalization", [x.name, *names], name, epsilon=_EPSILON)
        return _behind_norm(x, name, norm[0], norm[1])

    def _window(self, side: int, kernel: int, stride: int, padded: bool) -> tuple[int, dict[str, Any]]:
        out = out_side(side, kernel, stride, padded)
        if not padded or kernel == 1:
            return out, {}
        if self.same:
            return out, {"auto_pad": "SAME_UPPER"}
        return out, {"pads": [kernel // 2] * 4}

    def _begin(self, side: int, kernel: int, stride: int, out: int, padded: bool) -> int:
        if not padded:
            return 0
        return max(0, (out - 1) * stride + kernel - side) // 2 if self.same else kernel // 2

    def _random(self, name: str) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(name.encode()), self.seed])


def _behind_norm(x: Signal, name: str, scale: Array, shift: Array) -> Signal:
    return Signal(name, x.side, shift.astype(np.float64), scale.astype(np.float64) ** 2)


def parted(channels: int, count: int) -> list[int]:
    """`channels` in `count` equal parts, what is left over going to the first."""
    return [channels - channels // count * (count - 1), *[channels // count] * (count - 1)]


def _ends(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise([0, *(int(end) for end in np.cumsum(widths))]))


def _joined(parts: Sequence[Signal], name: str) -> Signal:
    mean = np.concatenate([part.mean for part in parts])
    return Signal(name, parts[0].side, mean, np.concatenate([part.variance for part in parts]))
