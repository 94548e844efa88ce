"""What benchmarks/campaign.py runs: every model there is, and every pass with the settings that make it do different
things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, get_args

import onnx

from benchmarks.light import light_model, light_names
from models.catalogue import NETWORKS
from models.resnext import ResNeXt, ResNeXtForm, resnext_model
from models.spec import Spec
from models.zoo.refill import zoo_model, zoo_names
from rewriter.rule import Settings

_IMAGE: Final = 96
"""The side of the images that the networks built in code take here: the weights are those of the published size."""


@dataclass(frozen=True)
class Subject:
    """A model by the name it has in the results; `build` makes it."""

    name: str
    build: Callable[[], onnx.ModelProto]


@dataclass(frozen=True)
class Plan:
    """Passes, in order, with their settings."""

    passes: tuple[str, ...]
    settings: Mapping[str, Settings] = field(default_factory=dict)
    allow: frozenset[str] = frozenset()

    @property
    def is_default(self) -> bool:
        """Whether it is one pass with its own defaults."""
        return len(self.passes) == 1 and not self.settings

    @property
    def name(self) -> str:
        """`regroup groups=1`, or `split-groups, merge-split-groups`."""
        return ", ".join(
            " ".join([name, *(f"{key}={value}" for key, value in self.settings.get(name, {}).items())])
            for name in self.passes
        )


def subjects() -> list[Subject]:
    """All models: real exports, networks built in code, and onnx's light ones as they are and with weights."""
    found = [Subject(f"zoo:{name}", partial(zoo_model, name)) for name in zoo_names()]
    found += [Subject(f"code:resnext50_{form}", partial(_resnext, form)) for form in get_args(ResNeXtForm)]
    found += [Subject(f"code:{name}", partial(_network, network)) for name, network in NETWORKS.items()]
    found += [Subject(f"light:{name}", partial(light_model, name, False)) for name in light_names()]
    found += [Subject(f"light+weights:{name}", partial(light_model, name, True)) for name in light_names()]
    return found


def _resnext(form: ResNeXtForm) -> onnx.ModelProto:
    return resnext_model(ResNeXt(form, image=_IMAGE))


def _network(network: type[Spec]) -> onnx.ModelProto:
    return network(image=max(_IMAGE, network.smallest)).model()


_VARIANTS: Final[Mapping[str, tuple[Settings, ...]]] = {
    "conv1d-to-conv2d": ({"axis": "h"},),
    "conv3d-to-conv2d": ({"kind": "spatial"}, {"kind": "temporal"}),
    "depthwise-sum-to-grouped": ({"shuffle": "gather"}, {"shuffle": "reshape"}, {"shuffle": "producer"}),
    "fuse-separable": ({"border": "exact"},),
    "grouped-to-depthwise-sum": ({"reduce": "first"}, {"reduce": "last"}),
    "merge-split-groups": ({"parallel": True}, {"fill": "groups", "parallel": True}),
    "regroup": ({"factor": 2}, {"groups": 1}, {"block": 8}),
    "split-groups": ({"parts": 2},),
    "split-multiplier": ({"order": "shuffle"},),
}
"""Settings besides the defaults."""
_BACK: Final = (
    ("grouped-to-dense", "dense-to-grouped"),
    ("grouped-to-depthwise-sum", "depthwise-sum-to-grouped"),
    ("split-groups", "merge-split-groups"),
    ("split-multiplier", "merge-multiplier"),
)
"""There and back."""
_NEEDS: Final = {"fuse-conv-activation": frozenset({"contrib-ops"})}


def plans(passes: list[str]) -> list[Plan]:
    """Each of the passes with its defaults, then with other settings, then the ways there and back."""
    found = [Plan((name,), allow=_NEEDS.get(name, frozenset())) for name in passes]
    found += [
        Plan((name,), {name: settings}, _NEEDS.get(name, frozenset()))
        for name in passes
        for settings in _VARIANTS.get(name, ())
    ]
    found += [Plan(pair) for pair in _BACK if set(pair) <= set(passes)]
    return found
