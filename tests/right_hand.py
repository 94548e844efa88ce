"""Right rewrites made with NumPy alone, from a random generator: nothing of the passes is in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.emit import Array
from test_equivalence import rewrites as rw
from test_equivalence.fused import Fused
from test_equivalence.nets import chain, half, net
from test_equivalence.padded_pairs import BOTH, PADDED, PERMUTED, gated, normed, ops
from test_equivalence.padded_pairs import net as padded_net

Reweight = Callable[[onnx.ModelProto], onnx.ModelProto]
Made = tuple[onnx.ModelProto, onnx.ModelProto, Mapping[str, tuple[int, ...]]]
Make = Callable[[random.Random, Reweight], Made]
node = helper.make_node


def _numbers(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.randrange(2**32))


def _batch(rng: random.Random, *sizes: int) -> int | str:
    """A free batch, or one of the sizes."""
    found: tuple[int | str, ...] = ("n", *sizes)
    return rng.choice(found)


def _grouped(rng: random.Random, reweight: Reweight) -> tuple[onnx.ModelProto, tuple[Any, ...]]:
    """A network around a grouped convolution, and the shape of that one's output, batch -1 where it is free."""
    groups, batch = rng.choice([2, 4, 6]), _batch(rng, 1, 2, 3)
    inputs, outputs = rng.randint(1, 3), rng.randint(1, 3)
    kernel, size = (rng.choice([1, 3]), rng.choice([1, 3])), (rng.randint(4, 9), rng.randint(4, 9))
    stride = rng.choice([1, 1, 2])
    model = net(
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        kernel=kernel,
        size=size,
        batch=batch,
        bias=rng.random() < 0.5,
        seed=rng.randrange(10**6),
        strides=[stride] * 2,
    )
    spatial = [(n - 1) // stride + 1 for n in size]
    made = reweight(model)
    return (half(made) if rng.random() < 0.15 else made), (-1 if batch == "n" else batch, groups * outputs, *spatial)


def regrouped(rng: random.Random, reweight: Reweight) -> Made:
    model, _ = _grouped(rng, reweight)
    groups = rw.attribute(rw.node_of(model, "t"), "group", 1)
    fewer = rng.choice([found for found in (1, 2, 3) if groups % found == 0 and found < groups])
    return _either(rng, model, rw.regrouped(model, "t", fewer))


def depthwise_summed(rng: random.Random, reweight: Reweight) -> Made:
    model, shape = _grouped(rng, reweight)
    return _either(rng, model, rw.depthwise_summed(model, "t", shape))


def split_and_concatenated(rng: random.Random, reweight: Reweight) -> Made:
    model, _ = _grouped(rng, reweight)
    return _either(rng, model, rw.split_concat(model, "t"))


def two_of_the_three(rng: random.Random, reweight: Reweight) -> Made:
    model, shape = _grouped(rng, reweight)
    made = [rw.regrouped(model, "t", 1), rw.depthwise_summed(model, "t", shape), rw.split_concat(model, "t")]
    first, second = rng.sample(made, 2)
    return first, second, {}


def split_by_inputs(rng: random.Random, reweight: Reweight) -> Made:
    weight = _numbers(rng).standard_normal((rng.randint(1, 5), 2 * rng.randint(1, 4), 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["t"], pads=[1] * 4), node("Relu", ["t"], ["y"])]
    model = reweight(chain(nodes, {"w": weight}, [_batch(rng, 2), weight.shape[1], 6, rng.randint(4, 9)]))
    return _either(rng, model, rw.split_input(model, "t"))


def _either(rng: random.Random, before: onnx.ModelProto, after: onnx.ModelProto) -> Made:
    return (before, after, {}) if rng.random() < 0.5 else (after, before, {})


def _conv(rng: random.Random, reweight: Reweight, *tail: onnx.NodeProto, **more: Array) -> tuple[onnx.ModelProto, int]:
    """x → Conv → `t` → the tail, and the number of channels of `t`."""
    m, c = rng.randint(1, 6), rng.randint(1, 5)
    values = {"w": _numbers(rng).standard_normal((m, c, 3, 3)).astype(np.float32)}
    nodes = [node("Conv", ["x", "w"], ["t"], pads=[rng.randint(0, 1)] * 4, strides=[rng.randint(1, 2)] * 2)]
    shape = [_batch(rng, 1, 2), c, rng.randint(5, 9), rng.randint(5, 9)]
    return reweight(chain([*nodes, *tail], {**values, **more}, shape)), m


def normalization_folded(rng: random.Random, reweight: Reweight) -> Made:
    last = node("BatchNormalization", ["t", "g", "b", "m", "v"], ["y"], epsilon=rng.choice([1e-3, 1e-5]))
    before, channels = _conv(rng, reweight, last)
    draw = _numbers(rng)
    gain, shift, mean = (draw.standard_normal(channels).astype(np.float32) for _ in range(3))
    variance = draw.uniform(0.01, 2, channels).astype(np.float32)
    for name, value in {"g": gain, "b": shift, "m": mean, "v": variance}.items():
        rw.set_weight(before, name, value)
    epsilon = next(entry.f for entry in last.attribute)
    scale = gain.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return before, _folded(before, scale, shift - mean * scale), {}


def scale_and_shift_folded(rng: random.Random, reweight: Reweight) -> Made:
    tail = [node("Mul", ["t", "s"], ["u"]), node("Add", ["u", "o"], ["y"])]
    before, channels = _conv(rng, reweight, *tail)
    scale, shift = (_numbers(rng).standard_normal((1, channels, 1, 1)).astype(np.float32) for _ in range(2))
    rw.set_weight(before, "s", scale)
    rw.set_weight(before, "o", shift)
    return before, _folded(before, scale.reshape(-1).astype(np.float64), shift.reshape(-1).astype(np.float64)), {}


def _folded(model: onnx.ModelProto, scale: Array, shift: Array) -> onnx.ModelProto:
    after = rw.clone(model)
    conv = rw.node_of(after, "t")
    weight = rw.weight_of(model, "w").astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    rw.set_weight(after, "folded", weight.astype(np.float32))
    rw.set_weight(after, "shift", shift.astype(np.float32))
    made = rw.conv_like(conv, ["x", "folded", "shift"], "y", 1)
    rw.splice(after, [entry.output[0] for entry in after.graph.node], [made])
    return after


def pair_composed(rng: random.Random, reweight: Reweight) -> Made:
    """1×1 then 3×3 without an inner bias, padded or not; and its one convolution."""
    draw = _numbers(rng)
    c, k, m = rng.randint(1, 4), rng.randint(1, 5), rng.randint(1, 4)
    values = {
        name: draw.standard_normal(size).astype(np.float32)
        for name, size in {"p": (k, c, 1, 1), "w": (m, k, 3, 3), "b": (m,)}.items()
    }
    pads = [rng.randint(0, 1)] * 4
    nodes = [node("Conv", ["x", "p"], ["t"]), node("Conv", ["t", "w", "b"], ["y"], pads=pads)]
    shape = [_batch(rng, 2), c, 7, 6]
    before = reweight(chain(nodes, values, shape))
    inner, outer = (rw.weight_of(before, name).astype(np.float64) for name in ("p", "w"))
    whole = np.einsum("mkij,kc->mcij", outer, inner[..., 0, 0]).astype(np.float32)
    one = [node("Conv", ["x", "u", "b"], ["y"], pads=pads)]
    return _either(rng, before, chain(one, {"u": whole, "b": values["b"]}, shape))


def padding_moved(rng: random.Random, reweight: Reweight) -> Made:
    """A Pad by zeros taken into the convolution behind it."""
    c, pads = rng.randint(1, 4), [rng.randint(0, 2) for _ in range(4)]
    weight = _numbers(rng).standard_normal((3, c, 3, 3)).astype(np.float32)
    ends = np.asarray([0, 0, *pads[:2], 0, 0, *pads[2:]])
    nodes = [node("Pad", ["x", "ends"], ["q"]), node("Conv", ["q", "w"], ["y"])]
    shape = [_batch(rng, 2), c, 6, 7]
    before = reweight(chain(nodes, {"w": weight, "ends": ends}, shape))
    after = chain([node("Conv", ["x", "w"], ["y"], pads=pads)], {"w": rw.weight_of(before, "w")}, shape)
    return _either(rng, before, after)


def layout_changed(rng: random.Random, reweight: Reweight) -> Made:
    """Channels last around a Relu, and channels first."""
    before, _ = _conv(rng, reweight, node("Relu", ["t"], ["y"]))
    after = rw.clone(before)
    turned = [
        node("Transpose", ["t"], ["l"], perm=[0, 2, 3, 1]),
        node("Relu", ["l"], ["k"]),
        node("Transpose", ["k"], ["y"], perm=[0, 3, 1, 2]),
    ]
    rw.splice(after, ["y"], turned)
    return _either(rng, before, after)


def renamed_and_reordered(rng: random.Random, reweight: Reweight) -> Made:
    """Every tensor inside with another name, two branches the other way round, Identities in between."""
    before, _ = _conv(
        rng, reweight, node("Relu", ["t"], ["r"]), node("Tanh", ["x"], ["h"]), node("Identity", ["r"], ["y"])
    )
    before.graph.node[-1].CopyFrom(node("Sigmoid", ["r"], ["y"]))
    before.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    after = rw.clone(before)
    for entry in after.graph.node:
        for names in (entry.input, entry.output):
            for at, name in enumerate(names):
                names[at] = {"t": "other/t", "r": "other/r"}.get(name, name)
    nodes = [after.graph.node[2], after.graph.node[0], *list(after.graph.node)[1:2], after.graph.node[3]]
    copies = [onnx.NodeProto.FromString(entry.SerializeToString()) for entry in nodes]
    del after.graph.node[:]
    after.graph.node.extend(copies)
    return before, after, {}


def convolution_fused(rng: random.Random, reweight: Reweight) -> Made:
    """Conv, residual and Relu as ONNX Runtime's FusedConv."""
    block = Fused(
        bias=rng.random() < 0.5,
        residual=rng.random() < 0.5,
        groups=rng.choice([1, 2, 4]),
        size=(rng.randint(4, 8), rng.randint(4, 8)),
        batch=_batch(rng, 1, 2),
        stride=rng.choice([1, 2]),
    )
    return _either(rng, block.plain(), block.fused())


def channels_in_a_network(rng: random.Random, reweight: Reweight) -> Made:
    """Channels padded or permuted between two convolutions, with activations, gates or a normalization between."""
    middles = {
        "Relu": ops("Relu"),
        "Sigmoid": ops("Relu", "Sigmoid"),
        "mean": ops("Relu", "GlobalAveragePool"),
        "gates": gated(),
        "pool": ops("Relu", "MaxPool", kernel_shape=[3, 3]),
    }
    name = rng.choice([*middles, "normed"])
    batch = _batch(rng, 1, 2)
    if name == "normed":
        return padded_net(normed(), batch=batch), padded_net(normed(gain=1.0), BOTH, batch=batch), {}
    channels = rng.choice([PADDED, PERMUTED, BOTH])
    return padded_net(middles[name], batch=batch), padded_net(middles[name], channels, batch=batch), {}


MAKERS: Sequence[Make] = (
    regrouped,
    depthwise_summed,
    split_and_concatenated,
    two_of_the_three,
    split_by_inputs,
    normalization_folded,
    scale_and_shift_folded,
    pair_composed,
    padding_moved,
    layout_changed,
    renamed_and_reordered,
    convolution_fused,
    channels_in_a_network,
)
