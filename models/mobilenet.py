"""MobileNet v1 and v2: depthwise separable convolutions, and inverted residuals with linear bottlenecks.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (2017), table 1;
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.network import BRANCH, Network
from models.signal import Signal
from models.spec import Spec


@dataclass(frozen=True)
class MobileNetV1(Spec):
    """3×3 depthwise, 1×1 dense, ReLU6 after both; every stage but the first halves the image in its first block."""

    title: ClassVar[str] = "MobileNet v1 1.0"
    published: ClassVar[tuple[int, ...]] = (1, 2, 2, 6, 2)
    same: ClassVar[bool] = True

    def body(self, net: Network, x: Signal) -> None:
        """13 pairs of depthwise and pointwise convolutions."""
        x = net.conv(x, "stem", self.scaled(32), 3, stride=2)
        x = net.activation(x, "stem.relu", "relu6")
        for stage, count in enumerate(self.depths):
            for index in range(count):
                name = f"stage{stage + 1}.block{index + 1}"
                x = net.depthwise(x, f"{name}.depthwise", 3, stride=2 if stage > 0 and index == 0 else 1)
                x = net.activation(x, f"{name}.relu1", "relu6")
                x = net.conv(x, f"{name}.pointwise", self.scaled(64 << stage))
                x = net.activation(x, f"{name}.relu2", "relu6")
        net.logits(x, self.classes)


@dataclass(frozen=True)
class MobileNetV2(Spec):
    """1×1 wider, 3×3 depthwise, 1×1 narrower without activation.  A narrow network has a narrow last layer, too."""

    title: ClassVar[str] = "MobileNet v2 1.0"
    published: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 3, 3, 1)
    # Of each stage: channels, stride of the first block, expansion.
    stages: ClassVar[tuple[tuple[int, int, int], ...]] = (
        (16, 1, 1), (24, 2, 6), (32, 2, 6), (64, 2, 6), (96, 1, 6), (160, 2, 6), (320, 1, 6),
    )  # fmt: skip

    def body(self, net: Network, x: Signal) -> None:
        """17 inverted residuals."""
        x = net.conv(x, "stem", self.scaled(32), 3, stride=2)
        x = net.activation(x, "stem.relu", "relu6")
        for stage, (count, (channels, stride, expansion)) in enumerate(zip(self.depths, self.stages, strict=True)):
            for index in range(count):
                name = f"stage{stage + 1}.block{index + 1}"
                x = _inverted(net, x, name, self.scaled(channels), stride if index == 0 else 1, expansion)
        x = net.conv(x, "last", self.scaled(1280))
        net.logits(net.activation(x, "last.relu", "relu6"), self.classes)


def _inverted(net: Network, x: Signal, name: str, channels: int, stride: int, expansion: int) -> Signal:
    y = x
    if expansion > 1:
        y = net.activation(net.conv(y, f"{name}.expand", x.channels * expansion), f"{name}.relu1", "relu6")
    y = net.activation(net.depthwise(y, f"{name}.depthwise", 3, stride=stride), f"{name}.relu2", "relu6")
    residual = stride == 1 and x.channels == channels
    y = net.conv(y, f"{name}.project", channels, gain=BRANCH if residual else 1.0)
    return net.add(x, y, f"{name}.add") if residual else y
