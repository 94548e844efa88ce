"""RegNet X and Y at 400 MF: bottlenecks of one width with grouped 3×3 convolutions; Y adds squeeze and excitation.

Radosavovic et al., "Designing Network Design Spaces" (CVPR 2020), section 5 and figures 15 and 16; the stages are those
that its linear parametrisation gives, as in torchvision's regnet_x_400mf and regnet_y_400mf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.network import BRANCH, Network
from models.signal import Signal
from models.spec import Spec


@dataclass(frozen=True)
class RegNetX(Spec):
    """1×1, 3×3 in groups of `group_width` channels, 1×1, and a shortcut."""

    group_width: ClassVar[int] = 16
    channels: ClassVar[tuple[int, ...]] = (32, 64, 160, 400)
    squeezes: ClassVar[bool] = False
    title: ClassVar[str] = "RegNetX-400MF"
    published: ClassVar[tuple[int, ...]] = (1, 2, 7, 12)

    def body(self, net: Network, x: Signal) -> None:
        """Every stage halves the image in its first block."""
        x = net.activation(net.conv(x, "stem", self.scaled(32), 3, stride=2), "stem.relu", "relu")
        for stage, (count, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
            width = self.scaled(channels, self.group_width)
            for index in range(count):
                x = self._block(net, x, f"stage{stage + 1}.block{index + 1}", width, 2 if index == 0 else 1)
        net.logits(x, self.classes)

    def _block(self, net: Network, x: Signal, name: str, width: int, stride: int) -> Signal:
        y = net.activation(net.conv(x, f"{name}.conv1", width), f"{name}.relu1", "relu")
        y = net.conv(y, f"{name}.conv2", width, 3, stride=stride, groups=width // self.group_width)
        y = net.activation(y, f"{name}.relu2", "relu")
        if self.squeezes:
            y = net.gate(y, f"{name}.gate", max(1, round(x.channels / 4)), "relu")
        y = net.conv(y, f"{name}.conv3", width, gain=BRANCH)
        if stride > 1 or x.channels != width:
            x = net.conv(x, f"{name}.shortcut", width, stride=stride)
            return net.activation(net.add(x, y, f"{name}.add"), f"{name}.relu3", "relu")
        return net.add_relu(x, y, f"{name}.add", f"{name}.relu3")


@dataclass(frozen=True)
class RegNetY(RegNetX):
    """RegNet X with squeeze and excitation behind the grouped convolution."""

    group_width: ClassVar[int] = 8
    channels: ClassVar[tuple[int, ...]] = (48, 104, 208, 440)
    squeezes: ClassVar[bool] = True
    title: ClassVar[str] = "RegNetY-400MF"
    published: ClassVar[tuple[int, ...]] = (1, 3, 6, 6)
