"""AlexNet as published: convolutions 2, 4 and 5 in two groups, local response normalisation, overlapping pools.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012), section 3.
Images are 227 wide: the paper says 224, which its own first convolution does not fit.  The hidden fully connected
layers have biases about 1, as the paper starts them: they have many channels, and one position to be alive at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.errors import ModelError
from models.network import Network
from models.signal import Signal
from models.spec import Spec


@dataclass(frozen=True)
class AlexNet(Spec):
    """Five convolutions and three fully connected layers; no blocks to choose, and no norm that could be folded."""

    image: int = 227

    title: ClassVar[str] = "AlexNet, two groups"
    published: ClassVar[tuple[int, ...]] = ()
    smallest: ClassVar[int] = 67

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "kept":
            raise ModelError("AlexNet has no batch normalisation to keep")

    def body(self, net: Network, x: Signal) -> None:
        """Groups stand for the two GPUs of the paper."""
        x = net.plain(x, "conv1", self.scaled(96), 11, stride=4, gain=1.0, padded=False)
        x = net.max_pool(_normalized(net, x, 1), "pool1", rectified=True, padded=False)
        x = net.plain(x, "conv2", self.scaled(256), 5, groups=2, gain=1.0)
        x = net.max_pool(_normalized(net, x, 2), "pool2", rectified=True, padded=False)
        for at, (channels, groups) in enumerate(((384, 1), (384, 2), (256, 2))):
            x = net.plain(x, f"conv{at + 3}", self.scaled(channels), 3, groups=groups, gain=1.0)
            x = net.activation(x, f"relu{at + 3}", "relu")
        x = net.max_pool(x, "pool5", rectified=True, padded=False)
        for at in (6, 7):
            x = net.activation(net.dense(x, f"fc{at}", self.scaled(4096), mean=1.0), f"relu{at}", "relu")
        net.dense(x, "logits", self.classes)


def _normalized(net: Network, x: Signal, at: int) -> Signal:
    """Relu, then division by (k + alpha/5 · sum of 5 squares)^beta with k = 1, which changes unit scale by little.

    The paper's k = 2 only halves everything; 1 is what frameworks that write ONNX have.
    """
    y = net.activation(x, f"relu{at}", "relu")
    net.builder.node("LRN", [y.name], f"lrn{at}", size=5, alpha=1e-4, beta=0.75, bias=1.0)
    return y.take(f"lrn{at}", 0, y.channels)
