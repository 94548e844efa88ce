"""The models this package knows by name, and how each is built."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import get_args

import onnx

from models.alexnet import AlexNet
from models.errors import ModelError
from models.half import half_model
from models.mixnet import MixNetS
from models.mobilenet import MobileNetV1, MobileNetV2
from models.regnet import RegNetX, RegNetY
from models.resnext import ResNeXt, ResNeXtForm, resnext_model
from models.shufflenet import ShuffleNetV1, ShuffleNetV2
from models.spec import Spec
from models.xception import Xception
from models.zoo.refill import zoo_model, zoo_names

OPEN_BATCH = "N"
NETWORKS: Mapping[str, type[Spec]] = MappingProxyType(
    {
        "alexnet": AlexNet,
        "mixnet_s": MixNetS,
        "mobilenet_v1": MobileNetV1,
        "mobilenet_v2": MobileNetV2,
        "regnet_x_400mf": RegNetX,
        "regnet_y_400mf": RegNetY,
        "shufflenet_v1": ShuffleNetV1,
        "shufflenet_v2": ShuffleNetV2,
        "xception": Xception,
    }
)
"""The networks that are a `Spec`, at their published size."""


@dataclass(frozen=True)
class Options:
    """What can be asked of a model by name; None means the model's own default."""

    seed: int = 0
    batch: int | str | None = None
    """A number, or `N` for a batch that stays open."""
    opset: int | None = None
    float16: bool = False


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    name: str
    description: str
    build: Callable[[Options], onnx.ModelProto]


def build(name: str, options: Options | None = None) -> onnx.ModelProto:
    """Build the model `name`; raises `ModelError` for an unknown name or options that do not fit it."""
    entries = catalogue()
    if name not in entries:
        similar = difflib.get_close_matches(name, entries, n=1)
        hint = f"did you mean {similar[0]}" if similar else "--list shows all names"
        raise ModelError(f"there is no model named {name}: {hint}")
    wanted = options or Options()
    model = entries[name].build(wanted)
    return half_model(model) if wanted.float16 else model


def catalogue() -> Mapping[str, Entry]:
    """All entries by name: the architectures built in code, then the zoo."""
    entries = [Entry("resnext50", "ResNeXt-50 32x4d, grouped convolutions", partial(_resnext, "grouped"))]
    for form in get_args(ResNeXtForm):
        entries.append(Entry(f"resnext50:{form}", f"ResNeXt-50 32x4d, form {form}", partial(_resnext, form)))
    entries += [
        Entry(name, f"{network.title}, seeded weights", partial(_network, network))
        for name, network in NETWORKS.items()
    ]
    for name in zoo_names():
        entries.append(Entry(f"zoo:{name}", "exported graph, refilled by seed", partial(_zoo, name)))
    return MappingProxyType({entry.name: entry for entry in entries})


def _resnext(form: ResNeXtForm, options: Options) -> onnx.ModelProto:
    defaults = ResNeXt()
    opset = defaults.opset if options.opset is None else options.opset
    spec = ResNeXt(form, batch=_batch(options.batch, defaults.batch), seed=options.seed, opset=opset)
    return resnext_model(spec)


def _network(network: type[Spec], options: Options) -> onnx.ModelProto:
    defaults = network()
    opset = defaults.opset if options.opset is None else options.opset
    return network(batch=_batch(options.batch, defaults.batch), seed=options.seed, opset=opset).model()


def _batch(batch: int | str | None, default: int | None) -> int | None:
    if batch is None:
        return default
    if isinstance(batch, str):
        if batch != OPEN_BATCH:
            raise ModelError(f"batch {batch} is neither a number nor {OPEN_BATCH} (a batch that stays open)")
        return None
    return batch


def _zoo(name: str, options: Options) -> onnx.ModelProto:
    if options.batch is not None or options.opset is not None:
        raise ModelError(f"zoo:{name} keeps the batch size and opset of its export: leave out --batch and --opset")
    return zoo_model(name, options.seed)
