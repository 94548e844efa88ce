"""Random models of the forms that are not about groups or rank: spatial axes, neighbours, transposed, branches."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np

from forms_draws import Case, Sketch, build, ones, spec_of, window
from models.emit import Array
from models.grouped import GroupedConv

# Of another rank, with neighbours.


def conv1d(rng: random.Random) -> Case:
    """A run of 1-D convolutions with a Relu between, of any groups."""
    spec = spec_of(rng, lambda spec: spec.rank == 1)
    return _run(rng, spec, (1,))


def conv3d(rng: random.Random) -> Case:
    """A run of 3-D convolutions that are flat in time, or flat in space, and 1 x 1 x 1."""
    temporal = rng.random() < 0.5
    spec = spec_of(rng, lambda spec: spec.rank == 3 and spec.auto_pad == "NOTSET", strides=(), dilations=(), pads=())
    size, pad = rng.choice([2, 3]), rng.randint(0, 1)
    flat = [not temporal, temporal, temporal]
    spec = replace(
        spec,
        kernel=tuple(1 if one else size for one in flat),
        pads=tuple(0 if one else pad for one in flat) * 2,
        strides=tuple(1 if one else rng.choice([1, 2]) for one in flat),
    )
    return _run(rng, spec, (1, 1, 1))


def _run(rng: random.Random, spec: GroupedConv, point: tuple[int, ...]) -> Case:
    bias, second, residual = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.3

    def body(sketch: Sketch) -> int:
        m = spec.channels_out
        weight = sketch.values(m, spec.in_per_group, *spec.kernel)
        t = sketch.conv("x", "t" if second or residual else "y", weight, spec.groups, bias=bias, **window(spec))
        if second:
            sketch.conv(sketch.node("Relu", [t], "r"), "u" if residual else "y", sketch.values(m, m, *point))
        if residual:
            sketch.node("Add", [t, "u" if second else t], "y")
        return spec.channels_in

    return build(rng, spec, body)


def affine(rng: random.Random) -> Case:
    """Scales and shifts before and behind a convolution, or BatchNormalization behind it."""
    spec = spec_of(rng, lambda spec: spec.rank < 3, dtype="float32")
    unpadded = spec.auto_pad in ("NOTSET", "VALID") and not any(spec.pads)
    before = rng.choice(["Mul", "Add", "Mul"] if unpadded else ["Mul", ""])
    behind = rng.choice(["Mul", "Add", "Sub", "BatchNormalization"])
    bias = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        x = "x"
        if before:
            x = sketch.node(before, [x, _channels(sketch, "k", spec.channels_in)], "before")
        weight = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
        t = sketch.conv(x, "t", weight, spec.groups, bias=bias, **window(spec))
        if behind == "BatchNormalization":
            names = [sketch.constant(f"n{at}", np.abs(sketch.values(spec.channels_out)) + 0.5) for at in range(4)]
            sketch.node(behind, [t, *names], "y")
        else:
            sketch.node(behind, [t, _channels(sketch, "l", spec.channels_out)], "y")
        return spec.channels_in

    return build(rng, spec, body)


def _channels(sketch: Sketch, name: str, count: int) -> str:
    return sketch.constant(name, sketch.values(count, *ones(sketch.spec)))


def padded(rng: random.Random) -> Case:
    """A Pad of zeros before a convolution, which may pad some more."""
    spec = spec_of(rng, lambda spec: spec.auto_pad == "NOTSET")
    before = [rng.randint(0, 2) for _ in range(2 * spec.rank)]
    before[0] += 1
    bias = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        pads = [0, 0, *before[: spec.rank], 0, 0, *before[spec.rank :]]
        if spec.opset < 11:
            x = sketch.node("Pad", ["x"], "wider", pads=pads)
        else:
            x = sketch.node("Pad", ["x", sketch.builder.integers("pads", pads)], "wider")
        weight = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
        sketch.conv(x, "y", weight, spec.groups, bias=bias, **window(spec))
        return spec.channels_in

    return build(rng, spec, body)


def plain(rng: random.Random) -> Case:
    """A convolution with nothing beside it."""
    spec = spec_of(rng)

    def body(sketch: Sketch) -> int:
        weight = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
        sketch.conv("x", "y", weight, spec.groups, bias=True, **window(spec))
        return spec.channels_in

    return build(rng, spec, body)


def conv_activation(rng: random.Random) -> Case:
    """A convolution and its Relu, with a residual between them or not."""
    spec = spec_of(rng, lambda spec: spec.rank > 1, dtype="float32")
    bias, residual = rng.random() < 0.5, rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        weight = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
        t = sketch.conv("x", "t", weight, spec.groups, bias=bias, **window(spec))
        if residual:
            other = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
            z = sketch.conv("x", "z", other, spec.groups, **window(spec))
            t = sketch.node("Add", [t, z], "s")
        sketch.node("Relu", [t], "y")
        return spec.channels_in

    return build(rng, spec, body)


# Transposed.


def transposed_grouped(rng: random.Random) -> Case:
    """A transposed convolution in groups of several input channels; stride, padding, output padding."""
    spec = _transposable(rng)
    bias, look = rng.random() < 0.5, _transposed_window(rng, spec)

    def body(sketch: Sketch) -> int:
        weight = sketch.values(spec.channels_in, spec.out_per_group, *spec.kernel)
        _transposed(sketch, "x", "y", weight, spec.groups, bias, look)
        return spec.channels_in

    return build(rng, spec, body, groups=spec.groups)


def transposed_split(rng: random.Random) -> Case:
    spec = _transposable(rng)
    biases, look = [rng.random() < 0.5 for _ in range(spec.groups)], _transposed_window(rng, spec)

    def body(sketch: Sketch) -> int:
        i, names = spec.in_per_group, [f"x{at}" for at in range(spec.groups)]
        made = []
        for at, part in enumerate(sketch.builder.split("x", 1, [i] * spec.groups, names)):
            weight = sketch.values(i, spec.out_per_group, *spec.kernel)
            made.append(_transposed(sketch, part, f"p{at}", weight, 1, biases[at], look))
        sketch.node("Concat", made, "y", axis=1)
        return spec.channels_in

    return build(rng, spec, body, groups=spec.groups)


def transposed_blocks(rng: random.Random) -> Case:
    """A dense transposed convolution of equal blocks."""
    spec = _transposable(rng)
    look = _transposed_window(rng, spec)

    def body(sketch: Sketch) -> int:
        i, o = spec.in_per_group, spec.out_per_group
        weight = np.zeros((spec.channels_in, spec.channels_out, *spec.kernel))
        for g in range(spec.groups):
            weight[g * i : g * i + i, g * o : g * o + o] = sketch.values(i, o, *spec.kernel)
        _transposed(sketch, "x", "y", weight, 1, False, look)
        return spec.channels_in

    return build(rng, spec, body, groups=spec.groups)


def _transposable(rng: random.Random) -> GroupedConv:
    return spec_of(
        rng,
        lambda spec: spec.groups > 1 and spec.in_per_group > 1 and spec.rank < 3,
        auto_pad="NOTSET",
        pads=(),
        dtype="float32",
    )


def _transposed_window(rng: random.Random, spec: GroupedConv) -> dict[str, Any]:
    """No more padding than the kernel reaches, and output padding below the stride."""
    reach = [(k - 1) * d for k, d in zip(spec.kernel, spec.dilations or (1,) * spec.rank, strict=True)]
    pads = tuple(rng.randint(0, min(far, 2)) for far in reach * 2)
    extra = tuple(rng.randint(0, stride - 1) for stride in spec.strides)
    return {"strides": spec.strides, "dilations": spec.dilations, "pads": pads, "output_padding": extra}


def _transposed(sketch: Sketch, x: str, y: str, weight: Array, group: int, bias: bool, look: dict[str, Any]) -> str:
    inputs = [x, sketch.constant(f"{y}.weight", weight)]
    if bias:
        inputs.append(sketch.constant(f"{y}.bias", sketch.values(weight.shape[1] * group)))
    return sketch.node("ConvTranspose", inputs, y, group=group, **look)


# Sums of branches, means over positions.


def stacked_sum(rng: random.Random) -> Case:
    """Branches of one shape, stacked on a new axis and summed over it."""
    return _branches(rng, stack=True)


def add_chain(rng: random.Random) -> Case:
    return _branches(rng, stack=False)


def _branches(rng: random.Random, *, stack: bool) -> Case:
    spec = spec_of(rng, lambda spec: spec.rank < 3, dtype="float32")
    count, keep = rng.randint(2, 4), rng.random() < 0.3
    relus = [rng.random() < 0.5 for _ in range(count)]

    def body(sketch: Sketch) -> int:
        terms = []
        for at in range(count):
            weight = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
            t = sketch.conv("x", f"t{at}", weight, spec.groups, bias=True, **window(spec))
            terms.append(sketch.node("Relu", [t], f"r{at}") if relus[at] else t)
        if stack:
            _summed_stack(sketch, terms, keep)
        else:
            total = terms[0]
            for at, term in enumerate(terms[1:], 2):
                total = sketch.node("Add", [total, term], "y" if at == count else f"s{at}")
        return spec.channels_in

    return build(rng, spec, body)


def _summed_stack(sketch: Sketch, terms: list[str], keep: bool) -> None:
    builder = sketch.builder
    if builder.opset < 13:
        slots = [builder.node("Unsqueeze", [t], f"{t}.slot", axes=[1]) for t in terms]
    else:
        one = builder.integers("one", [1])
        slots = [builder.node("Unsqueeze", [t, one], f"{t}.slot") for t in terms]
    stack = builder.node("Concat", slots, "stack", axis=1)
    builder.reduce("ReduceSum", stack, 1, "y", keep)


def mean(rng: random.Random) -> Case:
    return _head(rng, pooled=False)


def pooled(rng: random.Random) -> Case:
    return _head(rng, pooled=True)


def _head(rng: random.Random, *, pooled: bool) -> Case:
    """A convolution, a Relu and the mean over all positions."""
    spec = spec_of(rng, dtype="float32")
    keep = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        weight = sketch.values(spec.channels_out, spec.in_per_group, *spec.kernel)
        t = sketch.conv("x", "t", weight, spec.groups, bias=True, **window(spec))
        r = sketch.node("Relu", [t], "r")
        axes = list(range(2, 2 + spec.rank))
        if pooled:
            sketch.node("GlobalAveragePool", [r], "y")
        elif spec.opset < 18:
            sketch.builder.node("ReduceMean", [r], "y", axes=axes, keepdims=int(keep))
        else:
            sketch.builder.node("ReduceMean", [r, sketch.builder.integers("axes", axes)], "y", keepdims=int(keep))
        return spec.channels_in

    return build(rng, spec, body)
