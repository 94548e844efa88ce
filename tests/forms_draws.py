"""Random models, one function per form of a convolution: what the table form × form is tested on.

A draw is a `Case`: the model with real weights, and its twin, the same graph with small integers for weights.  The
grouped convolutions and depthwise sums are those of models/sample.py; the other forms take their geometry (kernel,
stride, dilation, padding, sizes, operator set, IR version) from there and put the same kind of weights in other nodes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from models.emit import Array, GraphBuilder
from models.grouped import GroupedConv, grouped_conv_model
from models.sample import draw_spec

Shapes = dict[str, tuple[int, ...]]
Put = Callable[..., str]
_HALF = 0.15  # how often a model is in float16


@dataclass(frozen=True)
class Case:
    """A model in some form, the shapes to run it at, and what a conversion may depend on."""

    model: ModelProto
    twin: ModelProto
    """The same graph, its weights small integers: any sum of their products is exact, whatever its order."""
    shapes: Shapes
    groups: int = 1
    head: str = ""
    """The output of a convolution behind that is not of the form."""
    combines: bool = False
    """The form itself adds weights up (a mean, a bias before a sum): even an EXACT conversion rounds them."""


@dataclass
class Sketch:
    """A model in the making: x [N, C, *S] in, y out, constants at random."""

    spec: GroupedConv
    builder: GraphBuilder
    rng: np.random.Generator
    integers: bool

    def values(self, *shape: int) -> Array:
        """Standard normal numbers, or integers that are not zero."""
        if self.integers:
            drawn: Array = self.rng.integers(1, 4, shape) * self.rng.choice([-1, 1], shape)
            return drawn
        return self.rng.standard_normal(shape)

    def constant(self, name: str, value: Array) -> str:
        """In the type of the model, as an initializer."""
        return self.builder.initializer(name, value.astype(self.spec.dtype))

    def conv(self, x: str, y: str, weight: Array, group: int = 1, *, bias: bool = False, **attributes: Any) -> str:
        """Conv of `weight` [M, C/G, *K]; `attributes` empty ones are left out."""
        inputs = [x, self.constant(f"{y}.weight", weight)]
        if bias:
            inputs.append(self.constant(f"{y}.bias", self.values(weight.shape[0])))
        return self.node("Conv", inputs, y, group=group, **attributes)

    def node(self, op_type: str, inputs: Sequence[str], y: str, **attributes: Any) -> str:
        given = {name: value for name, value in attributes.items() if value not in ((), "NOTSET", None)}
        return self.builder.node(op_type, inputs, y, **given)


def window(spec: GroupedConv) -> dict[str, Any]:
    """The attributes of a convolution that say where it looks."""
    return {
        "strides": spec.strides,
        "dilations": spec.dilations,
        "pads": spec.pads,
        "auto_pad": spec.auto_pad,
    }


def ones(spec: GroupedConv) -> list[int]:
    """The kernel of a pointwise convolution."""
    return [1] * spec.rank


def spec_of(rng: random.Random, fits: Callable[[GroupedConv], bool] = lambda _: True, **fixed: Any) -> GroupedConv:
    """A random specification that fits: float32 or float16, in the grouped form unless `fixed` says otherwise."""
    while True:
        drawn = draw_spec(rng, fixed.get("form", "grouped"))
        dtype = "float16" if rng.random() < _HALF else "float32"
        try:
            spec = replace(drawn, **{"dtype": dtype, **fixed})
        except ValueError:  # what is fixed contradicts what was drawn
            continue
        if fits(spec):
            return spec


def build(rng: random.Random, spec: GroupedConv, body: Callable[[Sketch], int], **facts: Any) -> Case:
    """The case of x → `body` → y; `body` gives the number of input channels, and runs twice."""
    seed = rng.randrange(10**6)
    models = []
    channels = 0
    for integers in (False, True):
        builder = GraphBuilder(spec.opset, spec.ir_version)
        channels = body(Sketch(spec, builder, np.random.default_rng(seed), integers))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        batch: int | str = spec.batch if spec.shapes == "static" else "N"
        free = [f"s{axis}" for axis in range(spec.rank)]
        sizes: list[int | str] = [*free] if spec.shapes == "dynamic" else [*spec.spatial]
        x = helper.make_tensor_value_info("x", kind, [batch, channels, *sizes])
        models.append(builder.model("form", [x], [helper.make_tensor_value_info("y", kind, None)]))
    return Case(models[0], models[1], {"x": (spec.batch, channels, *spec.spatial)}, **facts)


def _whole(rng: random.Random, spec: GroupedConv, **facts: Any) -> Case:
    """The case of a model that models/grouped.py builds."""
    shape = (spec.batch, spec.channels_in, *spec.spatial)
    if spec.layout == "nhwc":
        shape = (shape[0], *shape[2:], shape[1])
    models = [grouped_conv_model(replace(spec, integers=integers)) for integers in (False, True)]
    return Case(models[0], models[1], {"x": shape}, groups=spec.groups, **facts)


def _several(spec: GroupedConv) -> bool:
    return spec.groups > 1 and spec.in_per_group > 1


# Between all channels, or groups of them.


def grouped(rng: random.Random) -> Case:
    return _whole(rng, spec_of(rng, _several))


def depthwise_sum(rng: random.Random) -> Case:
    spec = spec_of(rng, _several, form="depthwise_sum")
    if rng.random() < 0.5:
        spec = replace(spec, reduce="ReduceSum", bias=rng.choice(["none", "after"]))
    return _whole(rng, spec, combines=spec.bias in ("conv", "before") or spec.reduce == "ReduceMean")


def regrouped(rng: random.Random) -> Case:
    """Two groups or more, each made of several with zeros between."""
    spec = spec_of(rng, lambda spec: spec.in_per_group > 1, groups=rng.choice([4, 6]))

    def body(sketch: Sketch) -> int:
        blocks = [_diagonal(sketch, spec, spec.groups // 2) for _ in range(2)]
        sketch.conv("x", "y", np.concatenate(blocks), 2, bias=rng_bias, **window(spec))
        return spec.channels_in

    rng_bias = rng.random() < 0.5
    return build(rng, spec, body, groups=spec.groups)


def block_dense(rng: random.Random) -> Case:
    """A dense convolution of equal blocks, in any order of the channels."""
    spec = spec_of(rng, _several)
    bias, shuffled = rng.random() < 0.5, rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        weight = _diagonal(sketch, spec, spec.groups)
        if shuffled:
            weight = weight[:, sketch.rng.permutation(spec.channels_in)]
            weight = weight[sketch.rng.permutation(spec.channels_out)]
        sketch.conv("x", "y", weight, bias=bias, **window(spec))
        return spec.channels_in

    return build(rng, spec, body, groups=spec.groups)


def _diagonal(sketch: Sketch, spec: GroupedConv, count: int) -> Array:
    """`[count*O, count*I, *K]`, zero but for the blocks."""
    o, i = spec.out_per_group, spec.in_per_group
    weight = np.zeros((count * o, count * i, *spec.kernel))
    for block in range(count):
        weight[block * o : (block + 1) * o, block * i : (block + 1) * i] = sketch.values(o, i, *spec.kernel)
    return weight


def dense(rng: random.Random) -> Case:
    """All channels read all: no zero, and no rank to save anything by."""
    spec = spec_of(rng, lambda spec: spec.in_per_group > 1, groups=1)
    bias = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        weight = sketch.values(spec.channels_out, spec.channels_in, *spec.kernel)
        sketch.conv("x", "y", weight, bias=bias, **window(spec))
        return spec.channels_in

    return build(rng, spec, body)


def split_concat(rng: random.Random) -> Case:
    """A convolution for each group of channels; by Split, Slice or Gather, in any order of the branches."""
    spec = spec_of(rng, _several)
    order = list(range(spec.groups))
    if rng.random() < 0.3:
        rng.shuffle(order)
    biases = [rng.random() < 0.5 for _ in order]
    way = rng.choice(["Split", "Split", "Slice", "Gather"])

    def body(sketch: Sketch) -> int:
        parts = _parts(sketch, way, [spec.in_per_group] * spec.groups)
        weights = [sketch.values(spec.out_per_group, spec.in_per_group, *spec.kernel) for _ in order]
        made = [sketch.conv(parts[at], f"p{at}", weights[at], bias=biases[at], **window(spec)) for at in order]
        sketch.node("Concat", made, "y", axis=1)
        return spec.channels_in

    return build(rng, spec, body, groups=spec.groups)


def _parts(sketch: Sketch, way: str, sizes: Sequence[int]) -> list[str]:
    """x in parts along its channels."""
    builder, names = sketch.builder, [f"x{at}" for at in range(len(sizes))]
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    bounds = list(zip([0, *ends], ends, strict=False))
    if way == "Split" or (way == "Slice" and builder.opset < 10):
        return builder.split("x", 1, sizes, names)
    for name, (begin, end) in zip(names, bounds, strict=True):
        if way == "Gather":
            indices = builder.integers(f"{name}.channels", list(range(begin, end)))
            builder.node("Gather", ["x", indices], name, axis=1)
            continue
        limits = [builder.integers(f"{name}.{what}", [at]) for what, at in (("a", begin), ("b", end), ("axis", 1))]
        builder.node("Slice", ["x", *limits], name)
    return names


def mixed_kernels(rng: random.Random) -> Case:
    """Branches of equal width whose odd kernels differ in size and give equal sizes, as in MixNet."""
    spec = spec_of(rng, _several, kernel=(1,), spatial=(9,), auto_pad="NOTSET", pads=(), dilations=(), strides=())
    rank = rng.choice([1, 2, 2, 3])
    spec = replace(spec, kernel=(1,) * rank, spatial=tuple(rng.randint(6, 9) for _ in range(rank)))
    strides = tuple(rng.choice([1, 2]) for _ in range(rank))
    first = rng.randrange(3)
    sizes = [1 + 2 * ((first + at) % 3) for at in range(spec.groups)]
    biases = [rng.random() < 0.5 for _ in sizes]

    def body(sketch: Sketch) -> int:
        made = []
        for at, part in enumerate(_parts(sketch, "Split", [spec.in_per_group] * spec.groups)):
            weight = sketch.values(spec.out_per_group, spec.in_per_group, *[sizes[at]] * rank)
            pads = (sizes[at] // 2,) * (2 * rank)
            made.append(sketch.conv(part, f"p{at}", weight, bias=biases[at], pads=pads, strides=strides))
        sketch.node("Concat", made, "y", axis=1)
        return spec.channels_in

    return build(rng, spec, body, groups=spec.groups)


def parallel(rng: random.Random) -> Case:
    """Convolutions of one tensor, side by side."""
    spec = spec_of(rng, lambda spec: spec.in_per_group > 1, groups=1)
    widths = [rng.randint(1, 4) for _ in range(rng.randint(2, 4))]
    biases = [rng.random() < 0.5 for _ in widths]

    def body(sketch: Sketch) -> int:
        made = []
        for at, width in enumerate(widths):
            weight = sketch.values(width, spec.channels_in, *spec.kernel)
            made.append(sketch.conv("x", f"p{at}", weight, bias=biases[at], **window(spec)))
        sketch.node("Concat", made, "y", axis=1)
        return spec.channels_in

    return build(rng, spec, body)


def depthwise(rng: random.Random) -> Case:
    """A depthwise convolution with multiplier m > 1."""
    spec = spec_of(rng, lambda spec: spec.groups > 1 and spec.out_per_group > 1, in_per_group=1)
    bias = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        sketch.conv("x", "y", sketch.values(spec.channels_out, 1, *spec.kernel), spec.groups, bias=bias, **window(spec))
        return spec.groups

    return build(rng, spec, body, groups=spec.groups)


def multiplier_parts(rng: random.Random) -> Case:
    """m depthwise convolutions with multiplier 1, joined; behind, a Gather that restores their order, or a conv."""
    spec = spec_of(rng, lambda spec: spec.groups > 1 and spec.out_per_group > 1, in_per_group=1)
    bias, behind = rng.random() < 0.5, rng.choice(["order", "conv", "nothing"])
    m = spec.out_per_group

    def body(sketch: Sketch) -> int:
        made = []
        for at in range(m):
            weight = sketch.values(spec.groups, 1, *spec.kernel)
            made.append(sketch.conv("x", f"p{at}", weight, spec.groups, bias=bias, **window(spec)))
        sketch.node("Concat", made, "y" if behind == "nothing" else "t", axis=1)
        if behind == "order":
            order = [j * spec.groups + c for c in range(spec.groups) for j in range(m)]
            sketch.node("Gather", ["t", sketch.builder.integers("order", order)], "y", axis=1)
        if behind == "conv":
            sketch.conv("t", "y", sketch.values(3, m * spec.groups, *[1] * spec.rank))
        return spec.groups

    return build(rng, spec, body, groups=spec.groups, head="y" if behind == "conv" else "")
