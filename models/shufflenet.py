"""ShuffleNet v1 and v2: channel shuffles between grouped pointwise convolutions, and between halves.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (CVPR 2018), table 1
and figure 2; Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (ECCV 2018),
table 5 and figure 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.errors import ModelError
from models.network import BRANCH, Network
from models.signal import Signal
from models.spec import Spec

# Output channels of the first stage by number of groups; every stage doubles them.
_CHANNELS_V1 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


@dataclass(frozen=True)
class ShuffleNetV1(Spec):
    """Residual units of grouped 1×1, shuffle, 3×3 depthwise, grouped 1×1; the first of a stage concatenates instead."""

    groups: int = 3

    title: ClassVar[str] = "ShuffleNet v1 1.0, 3 groups"
    published: ClassVar[tuple[int, ...]] = (4, 8, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups not in _CHANNELS_V1:
            raise ModelError(f"groups is one of {', '.join(map(str, _CHANNELS_V1))}, not {self.groups}")

    def body(self, net: Network, x: Signal) -> None:
        """16 units in three stages."""
        x = net.activation(net.conv(x, "stem", 24, 3, stride=2), "stem.relu", "relu")
        x = net.max_pool(x, "stem.pool", rectified=True)
        # A quarter of the channels, and all but the 24 of the stem, must be divisible by the groups.
        first = max(self.scaled(_CHANNELS_V1[self.groups], 4 * self.groups), _more_than(24, 4 * self.groups))
        for stage, count in enumerate(self.depths):
            for index in range(count):
                name = f"stage{stage + 1}.unit{index + 1}"
                x = self._unit(net, x, name, first << stage, index == 0, self.groups if stage or index else 1)
        net.logits(x, self.classes)

    def _unit(self, net: Network, x: Signal, name: str, channels: int, shrinks: bool, groups: int) -> Signal:
        inside, made = channels // 4, channels - x.channels if shrinks else channels
        y = net.activation(net.conv(x, f"{name}.compress", inside, groups=groups), f"{name}.relu1", "relu")
        if self.groups > 1:
            y = net.shuffle(y, f"{name}.shuffle", self.groups)
        y = net.depthwise(y, f"{name}.depthwise", 3, stride=2 if shrinks else 1)
        y = net.conv(y, f"{name}.expand", made, groups=self.groups, gain=1.0 if shrinks else BRANCH)
        if not shrinks:
            return net.add_relu(x, y, f"{name}.add", f"{name}.relu2")
        return net.concat_relu(net.average_pool(x, f"{name}.shortcut"), y, f"{name}.concat", f"{name}.relu2")


@dataclass(frozen=True)
class ShuffleNetV2(Spec):
    """Half of the channels pass, half go through 1×1, 3×3 depthwise, 1×1; then Concat and a shuffle in two groups."""

    title: ClassVar[str] = "ShuffleNet v2 1.0"
    published: ClassVar[tuple[int, ...]] = (4, 8, 4)

    def body(self, net: Network, x: Signal) -> None:
        """16 units in three stages."""
        x = net.activation(net.conv(x, "stem", 24, 3, stride=2), "stem.relu", "relu")
        x = net.max_pool(x, "stem.pool", rectified=True)
        for stage, (count, channels) in enumerate(zip(self.depths, (116, 232, 464), strict=True)):
            half = self.scaled(channels, 4) // 2
            for index in range(count):
                name = f"stage{stage + 1}.unit{index + 1}"
                if index == 0:
                    y = net.depthwise(x, f"{name}.shortcut.depthwise", 3, stride=2)
                    y = net.conv(y, f"{name}.shortcut.pointwise", half)
                    kept = net.activation(y, f"{name}.shortcut.relu", "relu")
                    y = _branch(net, x, name, half, 2)
                else:
                    kept, y = net.halves(x, f"{name}.split")
                    y = _branch(net, y, name, half, 1)
                x = net.shuffle(net.concat([kept, y], f"{name}.concat"), f"{name}.shuffle", 2)
        x = net.conv(x, "last", self.scaled(1024))
        net.logits(net.activation(x, "last.relu", "relu"), self.classes)


def _branch(net: Network, x: Signal, name: str, channels: int, stride: int) -> Signal:
    y = net.activation(net.conv(x, f"{name}.pointwise1", channels), f"{name}.relu1", "relu")
    y = net.depthwise(y, f"{name}.depthwise", 3, stride=stride)
    return net.activation(net.conv(y, f"{name}.pointwise2", channels), f"{name}.relu2", "relu")


def _more_than(least: int, divisor: int) -> int:
    return (least // divisor + 1) * divisor
