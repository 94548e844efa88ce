"""Options that the convolutional networks of this folder share.  A network is a `Spec` whose `body` emits layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.emit import GraphBuilder, check_opset
from models.errors import ModelError
from models.network import Network, Norm
from models.signal import Signal


@dataclass(frozen=True)
class Spec(ABC):
    """Options of every network; the defaults are the published size.  Raises `ModelError` if they do not fit.

    `batch=None` leaves the batch open (symbol `N`).  `width` multiplies all channel counts, rounded to what the network
    can divide them by.  `blocks` are the blocks of each stage, () the published ones.  `image` is the side of the
    square input `input` [N, 3, image, image]; the output is `logits` [N, classes], both float32.
    """

    batch: int | None = 1
    image: int = 224
    width: float = 1.0
    blocks: tuple[int, ...] = ()
    classes: int = 1000
    norm: Norm = "folded"
    seed: int = 0
    opset: int = 17

    title: ClassVar[str]
    """Name and size, for the catalogue."""
    published: ClassVar[tuple[int, ...]]
    """Blocks of each stage."""
    same: ClassVar[bool] = False
    """Padding as in TensorFlow (`auto_pad="SAME_UPPER"`)."""
    smallest: ClassVar[int] = 32
    """The smallest image that reaches the end."""

    def __post_init__(self) -> None:
        check_opset(self.opset)
        if self.norm not in get_args(Norm):
            raise ModelError(f"norm {self.norm} is neither folded nor kept")
        if self.seed < 0:
            raise ModelError("the seed is at least 0")
        if self.image < self.smallest:
            raise ModelError(f"the image is at least {self.smallest} wide for this network")
        if self.blocks and len(self.blocks) != len(self.published):
            raise ModelError(f"blocks has {len(self.blocks)} entries, and the network {len(self.published)} stages")
        if min(self.classes, *self.depths, 1 if self.batch is None else self.batch) < 1 or self.width <= 0:
            raise ModelError("batch, blocks and classes are at least 1, and the width is more than 0")

    @property
    def depths(self) -> tuple[int, ...]:
        """The blocks of each stage."""
        return self.blocks or self.published

    def scaled(self, channels: int, divisor: int = 8) -> int:
        """`channels` times the width, rounded to a multiple of `divisor`; at least one of those."""
        if self.width == 1:
            return channels
        return max(divisor, int(channels * self.width / divisor + 0.5) * divisor)

    @abstractmethod
    def body(self, net: Network, x: Signal) -> None:
        """Emit all layers from the image to `logits`."""

    def model(self) -> onnx.ModelProto:
        """The network as a model."""
        net = Network(GraphBuilder(self.opset), self.seed, self.norm, self.same, self.batch)
        batch: int | str = "N" if self.batch is None else self.batch
        x = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, self.image, self.image])
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, self.classes])
        self.body(net, Signal("input", self.image, np.zeros(3), np.ones(3)))
        return net.builder.model(type(self).__name__, [x], [y])
