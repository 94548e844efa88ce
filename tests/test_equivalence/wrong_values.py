"""Wrong rewrites of constants in place, of batches and sizes, of activations: nothing else about the graph changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from test_equivalence import rewrites as rw
from test_equivalence.nets import Array, chain, net
from test_equivalence.wrong_cases import Case, wrong
from test_equivalence.wrong_pairs import W, made, random

node = helper.make_node
SAME = [1, 1, 1, 1]


def edited(name: str, change: Callable[[Array], Array], **options: Any) -> Case:
    """The network, and the same with one initializer changed under its name."""
    before = net(**options)
    after = rw.clone(before)
    rw.set_weight(after, name, change(rw.weight_of(before, name).copy()))
    return before, after


def at_first(change: Callable[[np.float32], object]) -> Callable[[Array], Array]:
    def spoil(value: Array) -> Array:
        value.reshape(-1)[0] = change(value.reshape(-1)[0])
        return value

    return spoil


@wrong("L1")
def one_ulp_in_place() -> Case:
    """One element of an initializer is one unit in the last place off, and nothing else differs."""
    return edited("w", at_first(lambda value: np.nextafter(value, np.float32(99))))


@wrong("L1")
def one_ulp_in_the_last_layer() -> Case:
    """One element of the weight of a layer that no rewrite touches is one unit in the last place off."""
    return edited("w_tail", at_first(lambda value: np.nextafter(value, np.float32(-99))))


@wrong("L1")
def one_ulp_in_a_matrix() -> Case:
    """One element of a Gemm's weight is one unit in the last place off."""
    w = random(8, 5)
    nodes = [node("Gemm", ["x", "w"], ["y"])]
    spoilt = at_first(lambda value: np.nextafter(value, np.float32(99)))(w.copy())
    return chain(nodes, {"w": w}, ["n", 8]), chain(nodes, {"w": spoilt}, ["n", 8])


@wrong("L1")
def one_ulp_in_a_normalization() -> Case:
    """One scale of a LayerNormalization is one unit in the last place off."""
    values = {"s": random(8), "b": random(8, seed=1)}
    nodes = [node("LayerNormalization", ["x", "s", "b"], ["y"])]
    spoilt = at_first(lambda value: np.nextafter(value, np.float32(99)))(values["s"].copy())
    return chain(nodes, values, ["n", 5, 8]), chain(nodes, {**values, "s": spoilt}, ["n", 5, 8])


@wrong("L1")
def weight_flushed_to_zero() -> Case:
    """A weight of 1e-40 is flushed to zero."""
    before = made([node("Conv", ["x", "w"], ["y"])], w=at_first(lambda _: 1e-40)(W.copy()))
    return before, made([node("Conv", ["x", "w"], ["y"])], w=at_first(lambda _: 0.0)(W.copy()))


@wrong("L1")
def weights_rounded_to_bfloat16() -> Case:
    """The weights are rounded to the 8 bits of bfloat16."""

    def rounded(value: Array) -> Array:
        return ((value.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)

    return edited("w", rounded)


@wrong("L1")
def weights_quantized() -> Case:
    """The weights are rounded to 127 steps and scaled back."""

    def rounded(value: Array) -> Array:
        step = np.abs(value).max() / np.float32(127)
        return np.asarray(np.round(value / step) * step, np.float32)

    return edited("w", rounded)


@wrong("L1")
def infinite_weight() -> Case:
    """One weight is infinite."""
    return edited("w", at_first(lambda _: np.inf))


def shaped(nodes: Sequence[onnx.NodeProto], **more: Array) -> onnx.ModelProto:
    return chain(nodes, {"w": W, **more}, ["n", 4, 6, 7])


@wrong("L1")
def batch_cut_off() -> Case:
    """Only the first 16 entries of a batch of any size are computed."""
    ends = {"lo": np.asarray([0]), "hi": np.asarray([16])}
    nodes = [node("Slice", ["x", "lo", "hi", "lo"], ["q"]), node("Conv", ["q", "w"], ["y"])]
    return shaped([node("Conv", ["x", "w"], ["y"])]), shaped(nodes, **ends)


def depending(kind: str, nodes: Sequence[onnx.NodeProto], **more: Array) -> onnx.ModelProto:
    """`t`, the convolution, and the nodes, in which `g` is what an operator says of the batch and 16."""
    size = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node(kind, ["n", "sixteen"], ["g"])]
    convolved = node("Conv", ["x", "w"], ["t"])
    return shaped([*size, convolved, *nodes], zero=np.asarray(0), sixteen=np.asarray(16), **more)


DOUBLED = [
    node("Cast", ["g"], ["f"], to=TensorProto.FLOAT),
    node("Mul", ["t", "f"], ["m"]),
    node("Add", ["t", "m"], ["y"]),
]


@wrong("")
def doubled_at_one_batch() -> Case:
    """At a batch of 16, and at no other, the output is doubled."""
    return shaped([node("Conv", ["x", "w"], ["y"])]), depending("Equal", DOUBLED)


@wrong("")
def doubled_at_large_batches() -> Case:
    """At batches above 16 the output is doubled."""
    return shaped([node("Conv", ["x", "w"], ["y"])]), depending("Greater", DOUBLED)


@wrong("")
def other_channels_at_large_batches() -> Case:
    """At batches above 16 the channels that are chosen begin one further on."""
    ends = {"none": np.asarray([0]), "one": np.asarray([1]), "four": np.asarray([4])}
    chosen = [
        node("Cast", ["g"], ["i"], to=TensorProto.INT64),
        node("Reshape", ["i", "one"], ["start"]),
        node("Add", ["start", "four"], ["end"]),
        node("Slice", ["t", "start", "end", "one"], ["y"]),
    ]
    right = [node("Conv", ["x", "w"], ["t"]), node("Slice", ["t", "none", "four", "one"], ["y"])]
    return shaped(right, **ends), depending("Greater", chosen, **ends)


def activated(before: onnx.NodeProto, after: onnx.NodeProto, opset: int = 17, **more: Any) -> Case:
    """A convolution and the one node behind it, and the same with the other node."""

    def model(last: onnx.NodeProto) -> onnx.ModelProto:
        values = {name: value for name, value in more.items() if name in last.input}
        return chain([node("Conv", ["x", "w"], ["t"], pads=SAME), last], {"w": W, **values}, ["n", 4, 6, 7], opset)

    return model(before), model(after)


@wrong("L1")
def relu6_at_another_limit() -> Case:
    """A Clip at 6 ends at 5.9."""
    ends: dict[str, Any] = {
        name: np.asarray(value, np.float32) for name, value in {"lo": 0, "hi": 6, "less": 5.9}.items()
    }
    return activated(
        node("Clip", ["t", "lo", "hi"], ["y"]),
        node("Clip", ["t", "lo", "less"], ["y"]),
        **ends,
    )


@wrong("")
def saturated_far_out() -> Case:
    """A Relu is limited at a million, which no run reaches."""
    ends: dict[str, Any] = {"lo": np.asarray(0, np.float32), "hi": np.asarray(1e6, np.float32)}
    return activated(node("Relu", ["t"], ["y"]), node("Clip", ["t", "lo", "hi"], ["y"]), **ends)


@wrong("L3")
def hard_sigmoid_for_sigmoid() -> Case:
    """Sigmoid becomes HardSigmoid."""
    return activated(node("Sigmoid", ["t"], ["y"]), node("HardSigmoid", ["t"], ["y"]))


@wrong("L3")
def hard_sigmoid_of_another_slope() -> Case:
    """The slope of HardSigmoid is 0.2 instead of 1/6."""
    return activated(node("HardSigmoid", ["t"], ["y"], alpha=1 / 6), node("HardSigmoid", ["t"], ["y"], alpha=0.2))


@wrong("L3")
def gelu_approximated() -> Case:
    """Gelu is computed by its approximation with tanh."""
    return activated(node("Gelu", ["t"], ["y"]), node("Gelu", ["t"], ["y"], approximate="tanh"), 20)


@wrong("L3")
def softmax_over_another_axis() -> Case:
    """Softmax runs over the columns instead of the channels."""
    return activated(node("Softmax", ["t"], ["y"], axis=1), node("Softmax", ["t"], ["y"], axis=3))


@wrong("L3")
def softmax_of_an_older_operator_set() -> Case:
    """The operator set is 12 instead of 13, in which Softmax runs over all axes from its own on."""
    right, _ = activated(node("Softmax", ["t"], ["y"], axis=1), node("Softmax", ["t"], ["y"], axis=1), 13)
    after = rw.clone(right)
    after.opset_import[0].version = 12
    return right, after


@wrong("")
def noise_added() -> Case:
    """Random numbers of 1e-7 are added, others in each run."""
    noise = [
        node("Conv", ["x", "w"], ["t"]),
        node("RandomNormalLike", ["t"], ["r"], scale=1e-7),
        node("Add", ["t", "r"], ["y"]),
    ]
    return shaped([node("Conv", ["x", "w"], ["y"])]), shaped(noise)


@wrong("L3")
def output_constant() -> Case:
    """The output of the whole model is that of one input, whatever the input."""
    before = net()
    after = rw.clone(before)
    rw.set_weight(after, "fixed", np.ones((2, 5, 6, 7), np.float32))
    rw.splice(after, ["y"], [node("Identity", ["fixed"], ["y"])])
    return before, after


@wrong("L3")
def convolution_left_out() -> Case:
    """A convolution of as many outputs as inputs is left out."""
    before = net()
    after = rw.clone(before)
    rw.node_of(after, "r").input[0] = "a"
    rw.splice(after, ["t"], [])
    return before, after


@wrong("L1")
def wrong_weight_of_two_of_a_shape() -> Case:
    """Two convolutions of one shape read each other's weights."""
    weights: dict[str, Any] = {"u": random(4, 4, 3, 3, seed=5), "v": random(4, 4, 3, 3, seed=6)}

    def pair(first: str, second: str) -> onnx.ModelProto:
        nodes = [node("Conv", ["x", first], ["t"], pads=SAME), node("Relu", ["t"], ["r"])]
        return made([*nodes, node("Conv", ["r", second], ["y"], pads=SAME)], **weights)

    return pair("u", "v"), pair("v", "u")
