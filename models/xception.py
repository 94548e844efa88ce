"""Xception: separable convolutions with nothing between the depthwise and the pointwise one.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions" (CVPR 2017), figure 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.network import BRANCH, Network
from models.signal import Signal
from models.spec import Spec


@dataclass(frozen=True)
class Xception(Spec):
    """Entry, middle and exit flow; `blocks` has one entry, the blocks of the middle flow."""

    image: int = 299

    title: ClassVar[str] = "Xception"
    published: ClassVar[tuple[int, ...]] = (8,)
    same: ClassVar[bool] = True

    def body(self, net: Network, x: Signal) -> None:
        """12 residual blocks between two convolutions and two separable ones."""
        x = net.conv(x, "entry.conv1", self.scaled(32), 3, stride=2, padded=False)
        x = net.activation(x, "entry.relu1", "relu")
        x = net.conv(x, "entry.conv2", self.scaled(64), 3, padded=False)
        x = net.activation(x, "entry.relu2", "relu")
        for at, channels in enumerate((128, 256, 728)):
            width = self.scaled(channels)
            x = _shrinking(net, x, f"entry.block{at + 1}", (width, width), activate=at > 0)
        (middle,) = self.depths
        for at in range(middle):
            name = f"middle.block{at + 1}"
            y = x
            for layer in range(3):
                y = net.activation(y, f"{name}.relu{layer + 1}", "relu")
                y = _separable(net, y, f"{name}.separable{layer + 1}", x.channels, BRANCH if layer == 2 else 1.0)
            x = net.add(x, y, f"{name}.add")
        x = _shrinking(net, x, "exit.block", (x.channels, self.scaled(1024)), activate=True)
        for at, channels in enumerate((1536, 2048)):
            x = _separable(net, x, f"exit.separable{at + 1}", self.scaled(channels))
            x = net.activation(x, f"exit.relu{at + 1}", "relu")
        net.logits(x, self.classes)


def _separable(net: Network, x: Signal, name: str, channels: int, gain: float = 1.0) -> Signal:
    """3×3 depthwise without bias, then 1×1 with a norm."""
    y = net.plain(x, f"{name}.depthwise", x.channels, 3, groups=x.channels)
    return net.conv(y, name, channels, gain=gain)


def _shrinking(net: Network, x: Signal, name: str, channels: Sequence[int], *, activate: bool) -> Signal:
    """Two separable convolutions and a pool, beside a 1×1 convolution of stride 2."""
    y = net.activation(x, f"{name}.relu1", "relu") if activate else x
    y = net.activation(_separable(net, y, f"{name}.separable1", channels[0]), f"{name}.relu2", "relu")
    y = net.max_pool(_separable(net, y, f"{name}.separable2", channels[1]), f"{name}.pool", rectified=False)
    return net.add(net.conv(x, f"{name}.shortcut", channels[1], stride=2), y, f"{name}.add")
