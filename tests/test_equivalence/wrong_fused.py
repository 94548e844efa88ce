"""Wrong rewrites of convolution, residual and Relu into ONNX Runtime's FusedConv."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from test_equivalence.fused import Fused, set_attribute
from test_equivalence.wrong_cases import Case, wrong

BLOCK = Fused(groups=2)


def spoilt(change: Callable[[onnx.NodeProto], None], block: Fused = BLOCK) -> Case:
    """A right fusion whose node was then spoilt."""
    return block.plain(), block.fused(change)


def with_input(place: int, name: str) -> Case:
    def change(node: onnx.NodeProto) -> None:
        node.input[place] = name

    return spoilt(change)


@wrong("L3")
def fused_without_the_relu() -> Case:
    """The fused convolution has no activation."""
    return spoilt(lambda node: set_attribute(node, "activation", None))


@wrong("L3")
def fused_with_another_activation() -> Case:
    """The fused convolution has Tanh instead of Relu."""
    return spoilt(lambda node: set_attribute(node, "activation", "Tanh"))


@wrong("L3")
def fused_with_an_almost_equal_activation() -> Case:
    """The fused convolution has a LeakyRelu of slope 0.001 instead of Relu."""

    def leaky(node: onnx.NodeProto) -> None:
        set_attribute(node, "activation", "LeakyRelu")
        set_attribute(node, "activation_params", [1e-3])

    return spoilt(leaky)


@wrong("L1")
def fused_residual_dropped() -> Case:
    """The fused convolution does not add the residual."""

    def change(node: onnx.NodeProto) -> None:
        node.input.pop()

    return spoilt(change)


@wrong("L3")
def fused_residual_doubled() -> Case:
    """The fused convolution adds the residual twice."""
    before = BLOCK.plain()
    node = BLOCK.fused().graph.node[-1]
    node.input[3] = "twice"
    return before, BLOCK.model([helper.make_node("Add", ["z", "z"], ["twice"]), node])


@wrong("L1")
def fused_residual_of_another_tensor() -> Case:
    """The fused convolution adds another tensor."""
    return with_input(3, "other")


@wrong("L3")
def fused_input_and_residual_swapped() -> Case:
    """The fused convolution takes its residual for its input, and the other way round."""

    def change(node: onnx.NodeProto) -> None:
        node.input[0], node.input[3] = "z", "a"

    return spoilt(change)


@wrong("L3")
def fused_residual_after_the_activation() -> Case:
    """The residual is added behind the activation instead of before it."""
    node = BLOCK.fused().graph.node[-1]
    node.input.pop()
    node.output[0] = "early"
    return BLOCK.plain(), BLOCK.model([node, helper.make_node("Add", ["early", "z"], ["y"])])


@wrong("L1")
def fused_bias_dropped() -> Case:
    """The fused convolution has no bias."""
    return with_input(2, "")


@wrong("L1")
def fused_weight_off_by_one_ulp() -> Case:
    """One tap of the fused convolution's weight is one unit in the last place off."""
    weight = BLOCK.weights["w"].copy()
    weight[1, 0, 1, 1] = np.nextafter(weight[1, 0, 1, 1], np.float32(9))

    def change(node: onnx.NodeProto) -> None:
        node.input[1] = "w2"

    return BLOCK.plain(), BLOCK.fused(change, w2=weight)


@wrong("L1")
def fused_bias_off_by_one_ulp() -> Case:
    """One bias of the fused convolution is one unit in the last place off."""
    bias = BLOCK.weights["b"].copy()
    bias[2] = np.nextafter(bias[2], np.float32(9))

    def change(node: onnx.NodeProto) -> None:
        node.input[2] = "b2"

    return BLOCK.plain(), BLOCK.fused(change, b2=bias)


@wrong("L1")
def fused_pads_shifted() -> Case:
    """The padding of the fused convolution is shifted by one."""
    return spoilt(lambda node: set_attribute(node, "pads", [0, 1, 2, 1]))


@wrong("L1")
def fused_dilation_changed() -> Case:
    """The fused convolution is dilated, and padded to the same output shape."""

    def change(node: onnx.NodeProto) -> None:
        set_attribute(node, "dilations", [2, 1])
        set_attribute(node, "pads", [2, 1, 2, 1])

    return spoilt(change)


@wrong("L1")
def fused_group_changed() -> Case:
    """The fused convolution has half as many groups, its weight widened by zeros at the wrong end."""
    block = Fused(groups=4)
    weight = np.concatenate([block.weights["w"], np.zeros_like(block.weights["w"])], axis=1)

    def change(node: onnx.NodeProto) -> None:
        set_attribute(node, "group", 2)
        node.input[1] = "w2"

    return block.plain(), block.fused(change, w2=weight)


@wrong("L2")
def fused_residual_broadcast() -> Case:
    """The residual of the fused convolution is one value per channel, which Add spreads and it does not."""
    mean = helper.make_node("GlobalAveragePool", ["z"], ["m"])
    before = BLOCK.plain()
    before.graph.node.insert(3, mean)
    before.graph.node[5].input[1] = "m"
    node = BLOCK.fused().graph.node[-1]
    node.input[3] = "m"
    return before, BLOCK.model([mean, node])
