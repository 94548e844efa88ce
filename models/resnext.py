"""ResNeXt-50 32x4d in its three equivalent forms, with seeded weights that keep the network alive.

The grouped 3×3 convolution of every block (G groups of I channels in, O out, M = G·O) is written as

    grouped         Conv(group=G)
    split_concat    Split into G, one Conv each, Concat
    depthwise_sum   Conv(group=C) with multiplier O → Reshape [N, G, I, O, H, W] → ReduceSum over I
                    → Reshape [N, M, H, W] → Add bias

from the same weights. Architecture: Xie et al., "Aggregated Residual Transformations for Deep Neural Networks"
(2017), figure 3; stride on the 3×3 convolution, projection shortcuts where the shape changes, batch
normalisation already folded into weights and biases, as in a deployed export.

Random weights as such let a deep network die or forget its input. These follow scaled weight standardisation
(Brock, De, Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
2021): every filter has mean zero and a norm chosen for the variance that enters it, so that each convolution
has unit variance, and the positive mean that ReLU adds cancels instead of drowning the signal.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi, prod, sqrt
from typing import Literal, TypeAlias, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.emit import Array, GraphBuilder, check_opset
from models.errors import ModelError
from models.grouped_spec import depthwise_weight

ResNeXtForm: TypeAlias = Literal["grouped", "split_concat", "depthwise_sum"]

# Variance of ReLU(z) for a standard normal z.
_RELU_VARIANCE = (1 - 1 / pi) / 2
# Pooling 3×3 with stride 2 after a ReLU, measured on standard normal images.
_POOLED_VARIANCE = 0.33
# Share of the residual branch in each sum. The larger, the more the output differs between inputs, and the more
# rounding differences grow on the way: at 0.35 two forms differ by 1.5e-6 at the output, at 0.7 by 8e-6.
_BRANCH_SCALE = 0.35
_BIAS_STD = 0.1
# Averaging over the last feature map leaves features of standard deviation 0.2 at the default size.
_HEAD_GAIN = 4.5


@dataclass(frozen=True)
class ResNeXt:
    """Which ResNeXt to build; the defaults are ResNeXt-50 32x4d. Raises `ModelError` if the numbers do not fit.

    `batch=None` leaves the batch open (symbol `N`). `width` is the number of stem channels; stage s has inner
    width 2·width·2^s in `groups` groups and 4·width·2^s output channels. `image` is the side of the square
    input `input` [N, 3, image, image]; the output is `logits` [N, classes].
    """

    form: ResNeXtForm = "grouped"
    batch: int | None = 1
    image: int = 224
    seed: int = 0
    opset: int = 17
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 32
    classes: int = 1000

    def __post_init__(self) -> None:
        check_opset(self.opset)
        if self.form not in get_args(ResNeXtForm):
            raise ModelError(f"{self.form} is no form of ResNeXt: choose one of {', '.join(get_args(ResNeXtForm))}")
        if self.seed < 0:
            raise ModelError("the seed is at least 0")
        sizes = (self.image, self.width, self.groups, self.classes, *self.blocks)
        if not self.blocks or min(sizes) < 1 or (self.batch is not None and self.batch < 1):
            raise ModelError("batch, image, blocks, width, groups and classes are at least 1")
        if self.width == 1:
            raise ModelError("width is at least 2: a filter with a single weight cannot have mean zero")
        if 2 * self.width % self.groups:
            raise ModelError(f"the inner width {2 * self.width} is not divisible into {self.groups} groups")


@dataclass(frozen=True)
class Block:
    """One bottleneck block: channels in, inside and out, stride, and the side of its square output."""

    name: str
    channels_in: int
    channels_inside: int
    channels_out: int
    stride: int
    side: int
    variance: float
    """Expected variance of the block's input within a channel."""

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1×1 convolution rather than the input itself."""
        return self.stride != 1 or self.channels_in != self.channels_out


def resnext_model(spec: ResNeXt) -> onnx.ModelProto:
    """The model of `spec`: input `input` [N, 3, image, image], output `logits` [N, classes], float32."""
    network = _Network(spec, GraphBuilder(spec.opset))
    batch: int | str = "N" if spec.batch is None else spec.batch
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, spec.image, spec.image])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, spec.classes])
    network.emit()
    return network.builder.model(f"resnext_{spec.form}", [x], [y])


def blocks(spec: ResNeXt) -> Iterator[Block]:
    """The blocks of `spec` in order."""
    side = -(-spec.image // 4)  # The stem halves twice, rounding up.
    channels, variance = spec.width, _POOLED_VARIANCE
    for stage, count in enumerate(spec.blocks):
        base = spec.width << stage
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            side = -(-side // stride)
            block = Block(f"stage{stage + 1}.block{index + 1}", channels, 2 * base, 4 * base, stride, side, variance)
            yield block
            channels = block.channels_out
            # A projection starts a new stream of unit variance; otherwise the branch adds to the old one.
            grown = _BRANCH_SCALE**2
            variance = _RELU_VARIANCE * (1 + grown) if block.projects else variance + grown * _RELU_VARIANCE


@dataclass(frozen=True)
class _Network:
    spec: ResNeXt
    builder: GraphBuilder

    def emit(self) -> None:
        builder = self.builder
        x = self._conv("input", "stem.conv", 3, self.spec.width, kernel=7, stride=2, gain=1.0)
        x = builder.node("Relu", [x], "stem.relu")
        pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        x = builder.node("MaxPool", [x], "stem.pool", **pool)
        channels = self.spec.width
        for block in blocks(self.spec):
            x = self._block(x, block)
            channels = block.channels_out
        x = builder.node("GlobalAveragePool", [x], "head.pool")
        x = builder.node("Flatten", [x], "head.flatten")
        weight, bias = self._parameters("head.fc", (self.spec.classes, channels), _HEAD_GAIN)
        names = [builder.initializer("head.fc.weight", weight), builder.initializer("head.fc.bias", bias)]
        builder.node("Gemm", [x, *names], "logits", transB=1)

    def _block(self, x: str, block: Block) -> str:
        name, builder = block.name, self.builder
        entering, inside = 1 / sqrt(block.variance), 1 / sqrt(_RELU_VARIANCE)
        y = self._conv(x, f"{name}.conv1", block.channels_in, block.channels_inside, gain=entering)
        y = builder.node("Relu", [y], f"{name}.relu1")
        y = self._grouped(y, block, gain=inside)
        y = builder.node("Relu", [y], f"{name}.relu2")
        y = self._conv(y, f"{name}.conv3", block.channels_inside, block.channels_out, gain=inside * _BRANCH_SCALE)
        if block.projects:
            shortcut = f"{name}.shortcut"
            x = self._conv(x, shortcut, block.channels_in, block.channels_out, stride=block.stride, gain=entering)
        return builder.node("Relu", [builder.node("Add", [y, x], f"{name}.add")], f"{name}.relu3")

    def _grouped(self, x: str, block: Block, gain: float) -> str:
        """The 3×3 convolution of a block in the form asked for; its output is named `BLOCK.conv2` in each."""
        name, groups, channels = f"{block.name}.conv2", self.spec.groups, block.channels_inside
        weight, bias = self._parameters(name, (channels, channels // groups, 3, 3), gain)
        attributes = {"kernel_shape": [3, 3], "strides": [block.stride] * 2, "pads": [1, 1, 1, 1]}
        if self.spec.form == "split_concat":
            return self._split_concat(x, name, weight, bias, attributes)
        if self.spec.form == "depthwise_sum":
            return self._depthwise_sum(x, block, weight, bias, attributes)
        names = [self.builder.initializer(f"{name}.weight", weight), self.builder.initializer(f"{name}.bias", bias)]
        return self.builder.node("Conv", [x, *names], name, group=groups, **attributes)

    def _split_concat(self, x: str, name: str, weight: Array, bias: Array, attributes: dict[str, list[int]]) -> str:
        groups, per_group, builder = self.spec.groups, weight.shape[1], self.builder
        pieces = [f"{name}.group{g}" for g in range(groups)]
        inputs = builder.split(x, 1, [per_group] * groups, [f"{piece}.in" for piece in pieces])
        for piece, part, w, b in zip(pieces, inputs, np.split(weight, groups), np.split(bias, groups), strict=True):
            names = [builder.initializer(f"{piece}.weight", w), builder.initializer(f"{piece}.bias", b)]
            builder.node("Conv", [part, *names], piece, **attributes)
        return builder.node("Concat", pieces, name, axis=1)

    def _depthwise_sum(self, x: str, block: Block, weight: Array, bias: Array, attributes: dict[str, list[int]]) -> str:
        name, groups, builder = f"{block.name}.conv2", self.spec.groups, self.builder
        channels, per_group, spatial = block.channels_inside, weight.shape[1], [block.side, block.side]
        wide_weight = builder.initializer(f"{name}.weight", depthwise_weight(weight, groups))
        wide = builder.node("Conv", [x, wide_weight], f"{name}.wide", group=channels, **attributes)
        # With an open batch: 0 copies the batch size, -1 works it out. Exporters write both.
        first, second = (0, -1) if self.spec.batch is None else (self.spec.batch, self.spec.batch)
        shape = builder.integers(f"{name}.split_shape", [first, groups, per_group, per_group, *spatial])
        split = builder.reshape(wide, shape, f"{name}.split")
        total = builder.reduce("ReduceSum", split, 2, f"{name}.sum")
        shape = builder.integers(f"{name}.merged_shape", [second, channels, *spatial])
        merged = builder.reshape(total, shape, f"{name}.merged")
        return builder.node("Add", [merged, builder.initializer(f"{name}.bias", bias.reshape(1, -1, 1, 1))], name)

    def _conv(
        self, x: str, name: str, channels_in: int, channels_out: int, *, gain: float, kernel: int = 1, stride: int = 1
    ) -> str:
        weight, bias = self._parameters(name, (channels_out, channels_in, kernel, kernel), gain)
        names = [self.builder.initializer(f"{name}.weight", weight), self.builder.initializer(f"{name}.bias", bias)]
        pads = [kernel // 2] * 4
        return self.builder.node("Conv", [x, *names], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def _parameters(self, name: str, shape: tuple[int, ...], gain: float) -> tuple[Array, Array]:
        """Weight of `shape`, each filter with mean 0 and norm `gain`, and a small bias; seeded by the layer's name."""
        rng = np.random.default_rng([zlib.crc32(name.encode()), self.spec.seed])
        weight = rng.standard_normal((shape[0], prod(shape[1:])), dtype=np.float32)
        # Sums in float64: their order may differ between machines, the float32 result then does not.
        weight -= weight.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        norm = np.sqrt(np.einsum("mk,mk->m", weight, weight, dtype=np.float64))
        weight *= (gain / norm).astype(np.float32)[:, np.newaxis]
        bias = rng.standard_normal(shape[0], dtype=np.float32) * np.float32(_BIAS_STD)
        return weight.reshape(shape), bias
