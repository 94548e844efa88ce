"""The networks of models/ at sizes that tests can afford, and smaller still for the laws, which try them many times."""

from __future__ import annotations

from dataclasses import replace

import onnx

from models.alexnet import AlexNet
from models.mixnet import MixNetS
from models.mobilenet import MobileNetV1, MobileNetV2
from models.regnet import RegNetX, RegNetY
from models.shufflenet import ShuffleNetV1, ShuffleNetV2
from models.spec import Spec
from models.xception import Xception

SMALL: tuple[Spec, ...] = (
    AlexNet(image=99, width=0.125, classes=10),
    MixNetS(image=64, width=0.5, classes=10),
    MobileNetV1(image=32, width=0.25, classes=10),
    MobileNetV2(image=32, width=0.25, classes=10),
    RegNetX(image=64, width=0.25, blocks=(1, 2, 3, 3), classes=10),
    RegNetY(image=64, width=0.25, blocks=(1, 2, 3, 3), classes=10),
    ShuffleNetV1(image=32, width=0.5, classes=10),
    ShuffleNetV2(image=32, width=0.25, classes=10),
    Xception(image=64, width=0.25, blocks=(2,), classes=10),
)
# Of each kind of block the one that starts a stage and the one that goes on, somewhere.
_SMALLER: tuple[Spec, ...] = (
    AlexNet(image=67, width=0.0625, classes=10),
    MixNetS(image=32, width=0.25, blocks=(1, 2, 1, 1, 2, 1), classes=10),
    MobileNetV1(image=32, width=0.125, blocks=(1, 1, 2, 1, 1), classes=10),
    MobileNetV2(image=32, width=0.25, blocks=(1, 2, 1, 1, 1, 1, 1), classes=10),
    RegNetX(image=32, width=0.25, blocks=(1, 1, 1, 2), classes=10),
    RegNetY(image=32, width=0.25, blocks=(1, 1, 1, 2), classes=10),
    ShuffleNetV1(image=32, width=0.5, blocks=(2, 1, 1), classes=10),
    ShuffleNetV2(image=32, width=0.25, blocks=(2, 1, 1), classes=10),
    Xception(image=32, width=0.125, blocks=(1,), classes=10),
)


def networks() -> dict[str, tuple[onnx.ModelProto, int]]:
    """Models with an open batch by name, and how wide their image is; with norms in the convolutions and behind."""
    specs = [*_SMALLER, *(replace(spec, norm="kept") for spec in _SMALLER[1:])]
    return {f"{type(spec).__name__} {spec.norm}": (replace(spec, batch=None).model(), spec.image) for spec in specs}
