"""Right rewrites drawn at random from a seed: by NumPy on the ModelProto, by other spellings, and by the passes.

`SOURCES` are what benchmarks/right.py runs by the thousand, and tests/test_suites.py by the hundred.  Every draw has
weights of one of several distributions; the campaign adds inputs of several others to the auditor's own.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from onnx import numpy_helper

import right_hand
from channel_draws import draw_embeddings, draw_merges, spliced
from channel_networks import random_network
from forms_cases import case_of
from forms_table import Conversion, conversions
from models.emit import Array
from models.grouped import grouped_conv_model
from models.sample import draw_spec
from rewriter.channelflow import channel_components
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.relabelling import relabel
from small_networks import networks

Shapes = Mapping[str, tuple[int, ...]]
_WEIGHTS = frozenset({"Conv", "ConvTranspose", "FusedConv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Pair:
    """A model and a right rewrite of it."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    shapes: Shapes
    weights: str
    """The distribution of its weights."""
    dtype: str


Draw = Callable[[int], Pair | None]
"""The draw of a seed; None where nothing was rewritten."""


def _rounded(value: Array, rng: np.random.Generator) -> Array:
    return np.round(value * 16) / 16


def _sparse(value: Array, rng: np.random.Generator) -> Array:
    return value * (rng.random(value.shape) < 0.3)


WEIGHTS: Mapping[str, Callable[[Array, np.random.Generator], Array]] = {
    "as drawn": lambda value, _: value,
    "× 0.001": lambda value, _: value * 1e-3,
    "× 100": lambda value, _: value * 100,
    "in sixteenths": _rounded,
    "70 % zeros": _sparse,
    "cubed": lambda value, _: value**3,
}


def reweighted(model: onnx.ModelProto, name: str, seed: int) -> onnx.ModelProto:
    """The model with the weights of its products in another distribution."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rng = np.random.default_rng(seed)
    read = {node.input[1] for node in made.graph.node if node.op_type in _WEIGHTS}
    for tensor in made.graph.initializer:
        if tensor.name in read:
            value = numpy_helper.to_array(tensor)
            changed = WEIGHTS[name](value.astype(np.float64), rng).astype(value.dtype)
            if np.isfinite(changed).all():
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return made


def _seeded(name: str, seed: int) -> random.Random:
    return random.Random(zlib.crc32(f"{name} {seed}".encode()))


def by_passes(chain: Conversion, seed: int) -> Pair | None:
    """A random model of the first form after the passes, unaudited."""
    case = case_of(chain.source, seed, chain.fits)
    name = _seeded(chain.name, seed).choice(list(WEIGHTS))
    for weights in (name, "as drawn"):  # what has a low rank, or zeros, need not keep them
        before = reweighted(case.model, weights, seed)
        after = Model.load(before)
        for step in chain.passes:
            after, applied, _ = sweep(after, Step(pass_named(step.name), step.settings), case.shapes)
            if not applied:
                break
        else:
            return Pair(before, after.to_proto(), case.shapes, weights, _type(before))
    return None


def by_spelling(seed: int) -> Pair | None:
    """A grouped convolution and its depthwise sum, each way, in random spellings."""
    rng = _seeded("spelling", seed)
    while (spec := draw_spec(rng, "grouped")).dtype not in ("float32", "float16"):
        pass  # ONNX Runtime's CPU provider has no convolution of other types
    models = [grouped_conv_model(spec), grouped_conv_model(replace(spec, form="depthwise_sum"))]
    before, after = models if seed % 2 else models[::-1]
    return Pair(before, after, {}, "as drawn", _type(before))


def by_hand(make: right_hand.Make, seed: int) -> Pair:
    """What right_hand.py makes."""
    rng = _seeded(make.__name__, seed)
    weights = rng.choice(list(WEIGHTS))
    before, after, shapes = make(rng, lambda model: reweighted(model, weights, seed))
    return Pair(before, after, shapes, weights, _type(before))


def by_channels(seed: int) -> Pair | None:
    """A random network, its channels padded and permuted."""
    model = random_network(seed)
    graph = Graph(Model.load(model), {})
    channels = channel_components(graph)
    rng = random.Random(seed + 10**9)
    embeddings, _ = draw_embeddings(channels, rng)
    if not embeddings:
        return None
    made = relabel(graph, channels, embeddings, draw_merges(channels, embeddings, rng), "new")
    return Pair(model, spliced(graph, made), {}, "as drawn", _type(model))


_NETWORK_PASSES = ("depthwise-sum", "regroup", "grouped-to-split", "split-separable", "fold-affine", "pad-channels")


def by_networks(seed: int) -> Pair | None:
    """A small network of a well-known kind after one pass at all its sites."""
    rng = _seeded("networks", seed)
    models = networks()
    model, image = models[rng.choice(list(models))]
    shapes = {model.graph.input[0].name: (1, 3, image, image)}
    for name in rng.sample(_NETWORK_PASSES, len(_NETWORK_PASSES)):
        try:
            rule = pass_named(name)
        except Exception:  # noqa: BLE001 - a pass that is not installed is not tried
            continue
        after, applied, _ = sweep(Model.load(model), Step(rule), shapes)
        if applied:
            return Pair(model, after.to_proto(), shapes, "as drawn", _type(model))
    return None


def _type(model: onnx.ModelProto) -> str:
    code = model.graph.input[0].type.tensor_type.elem_type
    return str(onnx.TensorProto.DataType.Name(code)).lower()


def sources() -> dict[str, Draw]:
    """Every way to draw a right rewrite, by name."""
    found: dict[str, Draw] = {
        f"by hand: {make.__name__}".replace("_", " "): partial(by_hand, make) for make in right_hand.MAKERS
    }
    found |= {"other spelling": by_spelling, "channels padded, permuted": by_channels, "small networks": by_networks}
    found |= {f"pass: {chain.name}": partial(by_passes, chain) for chain in conversions().values()}
    return found
