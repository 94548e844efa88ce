"""MixNet-S: depthwise convolutions whose channels have kernels of several sizes, and pointwise ones in parts.

Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels" (BMVC 2019), figure 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.network import BRANCH, Network, parted
from models.signal import Activation, Signal
from models.spec import Spec


@dataclass(frozen=True)
class _Block:
    """Kernels of the depthwise convolution, expansion, and in how many parts the pointwise ones are."""

    kernels: tuple[int, ...]
    expansion: int
    expand: int = 1
    project: int = 1


@dataclass(frozen=True)
class _Stage:
    """Channels, stride of the first block, share of the gate (0: none), activation; the first block and the others."""

    channels: int
    stride: int
    gate: float
    activation: Activation
    first: _Block
    others: _Block


_STAGES = (
    _Stage(16, 1, 0, "relu", _Block((3,), 1), _Block((3,), 1)),
    _Stage(24, 2, 0, "relu", _Block((3,), 6, 2, 2), _Block((3,), 3, 2, 2)),
    _Stage(40, 2, 0.5, "swish", _Block((3, 5, 7), 6), _Block((3, 5), 6, 2, 2)),
    _Stage(80, 2, 0.25, "swish", _Block((3, 5, 7), 6, 1, 2), _Block((3, 5), 6, 1, 2)),
    _Stage(120, 1, 0.5, "swish", _Block((3, 5, 7), 6, 2, 2), _Block((3, 5, 7, 9), 3, 2, 2)),
    _Stage(200, 2, 0.5, "swish", _Block((3, 5, 7, 9, 11), 6), _Block((3, 5, 7, 9), 6, 1, 2)),
)


@dataclass(frozen=True)
class MixNetS(Spec):
    """Inverted residuals with mixed kernels; with `norm="kept"` the norm of the parts is behind their Concat."""

    title: ClassVar[str] = "MixNet-S"
    published: ClassVar[tuple[int, ...]] = (1, 2, 4, 3, 3, 3)

    def body(self, net: Network, x: Signal) -> None:
        """16 inverted residuals."""
        x = net.activation(net.conv(x, "stem", self.scaled(16), 3, stride=2), "stem.relu", "relu")
        for number, (count, stage) in enumerate(zip(self.depths, _STAGES, strict=True)):
            for index in range(count):
                block = stage.others if index else stage.first
                name, channels = f"stage{number + 1}.block{index + 1}", self.scaled(stage.channels)
                x = _inverted(net, x, name, channels, 1 if index else stage.stride, stage, block)
        x = net.conv(x, "last", self.scaled(1536))
        net.logits(net.activation(x, "last.relu", "relu"), self.classes)


def _inverted(net: Network, x: Signal, name: str, channels: int, stride: int, stage: _Stage, block: _Block) -> Signal:
    y, kind = x, stage.activation
    if block.expansion > 1:
        y = _pointwise(net, y, f"{name}.expand", x.channels * block.expansion, block.expand)
        y = net.activation(y, f"{name}.{kind}1", kind)
    y = _mixed(net, y, f"{name}.depthwise", block.kernels, stride)
    y = net.activation(y, f"{name}.{kind}2", kind)
    if stage.gate:
        y = net.gate(y, f"{name}.gate", max(1, int(x.channels * stage.gate)), "swish")
    residual = stride == 1 and x.channels == channels
    y = _pointwise(net, y, f"{name}.project", channels, block.project, BRANCH if residual else 1.0)
    return net.add(x, y, f"{name}.add") if residual else y


def _pointwise(net: Network, x: Signal, name: str, channels: int, parts: int, gain: float = 1.0) -> Signal:
    if parts == 1:
        return net.conv(x, name, channels, gain=gain)
    return net.branches(x, name, parted(channels, parts), [1] * parts, gain=gain)


def _mixed(net: Network, x: Signal, name: str, kernels: Sequence[int], stride: int) -> Signal:
    if len(kernels) == 1:
        return net.depthwise(x, name, kernels[0], stride=stride)
    widths = parted(x.channels, len(kernels))
    return net.branches(x, name, widths, kernels, stride=stride, depthwise=True)
