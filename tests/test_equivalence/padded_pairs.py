"""Pairs of models with padded and permuted channels, and with joined activations, as small as they can be.

Of WRONG none may be accepted; those of RIGHT are equivalent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from test_equivalence.nets import Array, chain, half

node = helper.make_node
Parts = tuple[list[onnx.NodeProto], dict[str, Array]]
Middle = Callable[[str, Sequence[int]], Parts]
"""Nodes from `t` to `r` and their constants, given a prefix of names and where the channels are."""
Pair = Callable[[], tuple[onnx.ModelProto, onnx.ModelProto]]

C = 6
SAME, PADDED = (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, -1, -1)
PERMUTED, BOTH = (3, 1, 5, 0, 2, 4), (-1, 3, 1, -1, 5, 0, 2, 4)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def put(value: Array, channels: Sequence[int], axis: int = 0, fill: float = 0.0) -> Array:
    """The value with the channels given, `fill` where there is none."""
    places = np.asarray(channels)
    moved = np.moveaxis(np.take(value, np.maximum(places, 0), axis), axis, 0).copy()
    moved[places < 0] = fill
    return np.moveaxis(moved, 0, axis)


def net(middle: Middle, channels: Sequence[int] = SAME, *, batch: int | str = 1, **changed: Any) -> onnx.ModelProto:
    """x → Conv(w, b) → middle → Conv(v) → y.  `row`, `shift`, `column`: what a padded channel has in w, b and v."""
    p = "" if tuple(channels) == SAME and not changed.get("other") else "q/"
    weights = {
        f"{p}w": put(changed.get("w", draw(C, 3, 1, 1)), channels, 0, changed.get("row", 0.0)),
        f"{p}b": put(changed.get("b", draw(C, seed=1)), changed.get("biases", channels), 0, changed.get("shift", 0.0)),
        f"{p}v": put(draw(4, C, 1, 1, seed=2), changed.get("reads", channels), 1, changed.get("column", 0.0)),
    }
    inner, constants = middle(p, channels)
    nodes = [
        node("Conv", ["x", f"{p}w", f"{p}b"], [f"{p}t"]),
        *inner,
        node("Conv", [f"{p}r", f"{p}v"], ["y"]),
    ]
    return chain(nodes, weights | constants, [batch, 3, 5, 6])


def ops(*kinds: str, **attributes: Any) -> Middle:
    """A chain of unary operators; the attributes are the last one's."""

    def make(p: str, _: Sequence[int]) -> Parts:
        names = [f"{p}t", *(f"{p}m{i}" for i in range(len(kinds) - 1)), f"{p}r"]
        steps = [node(kind, [names[i]], [names[i + 1]]) for i, kind in enumerate(kinds)]
        steps[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return steps, {}

    return make


def normed(where: Sequence[int] | None = None, gain: float = 0.0, act: str = "Relu") -> Middle:
    """BatchNormalization, its constants as for other channels than those given; `gain` of a padded channel."""

    def make(p: str, channels: Sequence[int]) -> Parts:
        at = channels if where is None else where
        values = [put(draw(C, seed=6 + i), at) for i in range(3)]
        values[0] = put(draw(C, seed=6), at, 0, gain)
        values.append(put(np.abs(draw(C, seed=9)) + np.float32(0.1), at, 0, 1.0))
        names = [f"{p}n{i}" for i in range(4)]
        return [
            node("BatchNormalization", [f"{p}t", *names], [f"{p}n"]),
            node(act, [f"{p}n"], [f"{p}r"]),
        ], dict(zip(names, values, strict=True))

    return make


def sloped(where: Sequence[int] | None = None) -> Middle:
    def make(p: str, channels: Sequence[int]) -> Parts:
        slopes = put(draw(C, 1, 1, seed=5), channels if where is None else where)
        return [node("PRelu", [f"{p}t", f"{p}s"], [f"{p}r"])], {f"{p}s": slopes}

    return make


def gated(gates: Sequence[int] | None = None, squeezed: Sequence[int] | None = None) -> Middle:
    """A squeeze-and-excitation branch, its gates and what it squeezes as for other channels."""

    def make(p: str, channels: Sequence[int]) -> Parts:
        first = put(draw(2, C, 1, 1, seed=11), channels if squeezed is None else squeezed, 1)
        at = channels if gates is None else gates
        return [
            node("Relu", [f"{p}t"], [f"{p}a"]),
            node("GlobalAveragePool", [f"{p}a"], [f"{p}g"]),
            node("Conv", [f"{p}g", f"{p}s1"], [f"{p}h"]),
            node("Relu", [f"{p}h"], [f"{p}k"]),
            node("Conv", [f"{p}k", f"{p}s2", f"{p}s3"], [f"{p}l"]),
            node("Sigmoid", [f"{p}l"], [f"{p}m"]),
            node("Mul", [f"{p}a", f"{p}m"], [f"{p}r"]),
        ], {f"{p}s1": first, f"{p}s2": put(draw(C, 2, 1, 1, seed=12), at), f"{p}s3": put(draw(C, seed=13), at)}

    return make


def divided(row: float, shift: float) -> Middle:
    """Divided by a Conv that is a positive constant for each channel that is not padded."""

    def make(p: str, channels: Sequence[int]) -> Parts:
        by = put(np.zeros((C, 3, 1, 1), np.float32), channels, 0, row)
        constants = put(np.abs(draw(C, seed=32)) + np.float32(0.5), channels, 0, shift)
        return [
            node("Conv", ["x", f"{p}d", f"{p}e"], [f"{p}f"]),
            node("Div", [f"{p}t", f"{p}f"], [f"{p}r"]),
        ], {f"{p}d": by, f"{p}e": constants}

    return make


def pair(middle: Middle, channels: Sequence[int], other: Middle | None = None, **changed: Any) -> Pair:
    """The network, and the same with its channels elsewhere; what is changed, but for `w` and `b`, is in the second."""
    common = {key: value for key, value in changed.items() if key in ("w", "b", "batch")}
    return lambda: (net(middle, **common), net(other or middle, channels, other=True, **changed))


def turned(given: Pair) -> Pair:
    return lambda: given()[::-1]


RELU = ops("Relu")
TWINS = draw(C, 3, 1, 1)[[0, 1, 2, 3, 1, 5]]
NEAR = np.asarray([1, 1, 2, 3, np.nextafter(np.float32(1), np.float32(2)), 4], np.float32)
CONSTANT: dict[str, Any] = {
    "w": np.zeros((C, 3, 1, 1), np.float32),
    "b": np.abs(draw(C, seed=1)) + np.float32(1),
}
"""A first Conv that gives positive constants: no pole of what comes behind it is ever met."""
SWAPPED = (1, 0, 2, 3, 4, 5, -1, -1)


def pieces(parts: Sequence[tuple[int, str]], p: str, order: Sequence[int] | None = None, b: float = 0) -> Any:
    """Convs beside each other, each with an activation, joined."""
    weights, nodes, first = dict[str, Array](), [], 0
    for i, (size, kind) in enumerate(parts):
        weights[f"{p}w{i}"] = draw(8, 3, 3, 3)[first : first + size]
        weights[f"{p}b{i}"] = draw(8, seed=1)[first : first + size] + np.float32(b)
        nodes += [
            node("Conv", ["x", f"{p}w{i}", f"{p}b{i}"], [f"{p}t{i}"]),
            node(kind, [f"{p}t{i}"], [f"{p}r{i}"]),
        ]
        first += size
    nodes.append(node("Concat", [f"{p}r{i}" for i in order or range(len(parts))], ["y"], axis=1))
    return chain(nodes, weights, [1, 3, 5, 6])


def joined(old: Sequence[tuple[int, str]], new: Sequence[tuple[int, str]], **changed: Any) -> Pair:
    common = {"b": changed["b"]} if "b" in changed else {}
    return lambda: (pieces(old, "", **common), pieces(new, "q/", **changed))


HALVES = [(4, "Relu"), (4, "Sigmoid")]
WRONG: Mapping[str, Pair] = {
    "a padded channel is read": pair(RELU, PADDED, row=1.0, column=1.0),
    "a padded channel is read, a little": pair(RELU, PADDED, row=1.0, column=1e-30),
    "the last Conv reads other channels": pair(RELU, PERMUTED, reads=SAME),
    "biases stay where channels move": pair(RELU, PERMUTED, biases=SAME),
    "twins with other biases are swapped": pair(RELU, (0, 4, 2, 3, 1, 5), w=TWINS, reads=SAME),
    "twins off by a bit are swapped": pair(RELU, (0, 4, 2, 3, 1, 5), w=TWINS, b=NEAR, reads=SAME),
    "a channel is lost": pair(RELU, (0, 1, 2, 3, 4)),
    "a channel is lost that is seldom live": pair(RELU, SAME[:5], b=np.asarray([1, 1, 1, 1, 1, -2e3], np.float32)),
    "slopes of PRelu stay": pair(sloped(), PERMUTED, sloped(SAME)),
    "constants of BatchNormalization stay": pair(normed(), PERMUTED, normed(SAME)),
    "gates of other channels": pair(gated(), PERMUTED, gated(gates=SAME)),
    "two gates swapped beside padding": pair(gated(), PADDED, gated(gates=SWAPPED)),
    "two channels swapped in the squeeze": pair(gated(), PADDED, gated(squeezed=SWAPPED)),
    "Softmax over padding": pair(ops("Softmax", axis=1), PADDED),
    "Softmax over padding far below": pair(ops("Softmax", axis=1), PADDED, shift=-30.0),
    "LRN over padding": pair(ops("Relu", "LRN", size=5), BOTH),
    "padding divided by zero": pair(divided(0.0, 1.0), PADDED, divided(0.0, 0.0)),
    "padding divided by what is zero somewhere": pair(divided(0.0, 1.0), PADDED, divided(1.0, 7777.0)),
    "1 / 0 in padding": pair(ops("Reciprocal"), PADDED),
    "1 / 0 in padding somewhere": pair(ops("Reciprocal"), PADDED, row=1.0, shift=4321.0, **CONSTANT),
    "a root of less than 0 in padding": pair(ops("Sqrt"), PADDED, shift=-1.0, **CONSTANT),
    "a root of less than 0 in padding somewhere": pair(ops("Sqrt"), PADDED, row=1.0, shift=5e3, **CONSTANT),
    "infinity in padding": pair(ops("LeakyRelu"), PADDED, shift=np.inf),
    "NaN in padding": pair(RELU, PADDED, shift=np.nan),
    "one piece without its Relu": joined([(8, "Relu")], [(3, "Relu"), (5, "Identity")]),
    "one piece without its Relu, rarely seen": joined([(8, "Relu")], [(3, "Relu"), (5, "Identity")], b=2000),
    "pieces end elsewhere": joined([(3, "Relu"), (5, "Identity")], [(4, "Relu"), (4, "Identity")], b=2000),
    "pieces in another order": joined([(8, "Relu")], [(4, "Relu"), (4, "Relu")], order=[1, 0]),
    "activations of pieces swapped": joined(HALVES, HALVES[::-1]),
}
RIGHT: Mapping[str, Pair] = {
    f"{name}, {place}{f', batch {batch}' if batch != 1 else ''}": pair(middle, channels, batch=batch)
    for name, middle in {
        "Relu": RELU,
        "two activations": ops("Relu", "Sigmoid"),
        "MaxPool": ops("Relu", "MaxPool", kernel_shape=[3, 3]),
        "mean": ops("Relu", "GlobalAveragePool"),
        "gates": gated(),
    }.items()
    for place, channels in {"padded": PADDED, "permuted": PERMUTED, "both": BOTH}.items()
    for batch in (1, 2, "n")
} | {
    "gates, padding taken away": turned(pair(gated(), BOTH, batch="n")),
    "rows that are not zero": pair(RELU, PADDED, row=1.5, shift=2.0),
    "twins swapped": pair(RELU, (0, 4, 2, 3, 1, 5), w=TWINS, b=np.ones(C, np.float32)),
    "BatchNormalization": pair(normed(), BOTH, normed(gain=1.0)),
    "BatchNormalization between convolutions": pair(normed(act="Identity"), PERMUTED),
    "float16": lambda: (half(net(RELU)), half(net(RELU, PADDED))),
    "an activation in front of a Concat": joined([(8, "Relu")], [(3, "Relu"), (5, "Relu")]),
    "pieces cut finer": joined(HALVES, [(1, "Relu"), (3, "Relu"), (4, "Sigmoid")]),
}

NOT_FINITE = {name for name in WRONG if any(word in name for word in ("1 / 0", "divided", "root", "infinity", "NaN"))}
"""What is wrong with these shows in runs at the latest; L1 may say that zeros were inserted."""
