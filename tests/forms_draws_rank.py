"""Random models of convolutions that are separable, and of dense ones of low rank."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from forms_draws import Case, Sketch, build, ones, spec_of, window
from models.emit import Array
from models.grouped import GroupedConv

# Three taps on every axis and a few channels: then rank 1 saves multiplications.


def _wide(rng: random.Random, rank: int | None = None) -> GroupedConv:
    rank = rng.choice([1, 2, 2]) if rank is None else rank
    fixed: dict[str, Any] = {
        "groups": 1,
        "in_per_group": rng.randint(4, 6),
        "out_per_group": rng.randint(4, 6),
        "kernel": tuple(rng.choice([3, 4]) for _ in range(rank)),
        "spatial": tuple(rng.randint(7, 10) for _ in range(rank)),
        "strides": tuple(rng.choice([1, 2]) for _ in range(rank)),
        "dilations": tuple(rng.choice([1, 1, 2]) for _ in range(rank)),
        "pads": tuple(rng.randint(0, 2) for _ in range(2 * rank)),
        "auto_pad": "NOTSET",
    }
    return spec_of(rng, dtype="float32", **fixed)


def _near(spec: GroupedConv, axes: tuple[int, ...]) -> dict[str, Any]:
    """The window of a convolution that looks along `axes` alone, and its kernel."""
    on = [axis in axes for axis in range(spec.rank)]

    def keep(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(value if on[at % spec.rank] else other for at, value in enumerate(values))

    return {"strides": keep(spec.strides, 1), "dilations": keep(spec.dilations, 1), "pads": keep(spec.pads, 0)}


def depthwise_pointwise(rng: random.Random) -> Case:
    spec = _wide(rng)
    biases = rng.random() < 0.5, rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        c, m = spec.channels_in, spec.channels_out
        t = sketch.conv("x", "t", sketch.values(c, 1, *spec.kernel), c, bias=biases[0], **window(spec))
        sketch.conv(t, "y", sketch.values(m, c, *ones(spec)), bias=biases[1])
        return c

    return build(rng, spec, body)


def pointwise_depthwise(rng: random.Random) -> Case:
    """Where the second is padded, the first has no bias."""
    spec = _wide(rng)
    bias, padded = rng.random() < 0.5, rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        c, m = spec.channels_in, spec.channels_out
        t = sketch.conv("x", "t", sketch.values(m, c, *ones(spec)), bias=not padded)
        look = window(spec) | ({} if padded else {"pads": ()})
        sketch.conv(t, "y", sketch.values(m, 1, *spec.kernel), m, bias=bias, **look)
        return c

    return build(rng, spec, body)


def spatial_separable(rng: random.Random) -> Case:
    """K x 1, then 1 x K; the second is padded only along its own axis, and only where the first has no bias."""
    spec = _wide(rng, 2)
    bias, padded, first = rng.random() < 0.5, rng.random() < 0.5, rng.randrange(2)
    middle = rng.randint(2, 3)

    def body(sketch: Sketch) -> int:
        near, far = _kernels(spec, first)
        t = sketch.conv(
            "x", "t", sketch.values(middle, spec.channels_in, *near), bias=not padded, **_near(spec, (first,))
        )
        look = _near(spec, (1 - first,)) | ({} if padded else {"pads": ()})
        sketch.conv(t, "y", sketch.values(spec.channels_out, middle, *far), bias=bias, **look)
        return spec.channels_in

    return build(rng, spec, body)


def _kernels(spec: GroupedConv, first: int) -> tuple[list[int], list[int]]:
    near = [size if axis == first else 1 for axis, size in enumerate(spec.kernel)]
    return near, [size if axis != first else 1 for axis, size in enumerate(spec.kernel)]


def low_rank_inputs(rng: random.Random) -> Case:
    """One filter per input channel, times a number for each output."""
    spec = _wide(rng)
    bias = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        c, m, points = spec.channels_in, spec.channels_out, ones(spec)
        weight = sketch.values(m, c, *points) * sketch.values(1, c, *spec.kernel)
        return _alone(sketch, weight, bias)

    return build(rng, spec, body)


def low_rank_outputs(rng: random.Random) -> Case:
    """One filter per output channel, times a number for each input."""
    spec = _wide(rng)
    bias = rng.random() < 0.5

    def body(sketch: Sketch) -> int:
        c, m, points = spec.channels_in, spec.channels_out, ones(spec)
        return _alone(sketch, sketch.values(m, c, *points) * sketch.values(m, 1, *spec.kernel), bias)

    return build(rng, spec, body)


def low_rank_space(rng: random.Random) -> Case:
    """Two filters of one column for every input, and two of one row for every output."""
    spec = _wide(rng, 2)
    bias, middle = rng.random() < 0.5, rng.randint(2, 3)

    def body(sketch: Sketch) -> int:
        near, far = _kernels(spec, 0)
        first, second = sketch.values(middle, spec.channels_in, *near), sketch.values(spec.channels_out, middle, *far)
        return _alone(sketch, np.einsum("tcho,mtow->mchw", first, second), bias)

    return build(rng, spec, body)


def _alone(sketch: Sketch, weight: Array, bias: bool) -> int:
    sketch.conv("x", "y", weight, bias=bias, **window(sketch.spec))
    return int(weight.shape[1])
