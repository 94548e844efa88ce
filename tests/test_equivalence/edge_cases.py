"""Pairs that differ at the edges of the number range or at sizes nobody tried, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from test_equivalence import rewrites as rw
from test_equivalence.models import info, model, node, random
from test_equivalence.nets import Array, net

Pair = tuple[onnx.ModelProto, onnx.ModelProto]
BOUNDS = {"-8": -8, "-9": -9, "1": 1, "end": 2**31, "axis": 2}


def _scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def epsilon_added_and_taken_away(epsilon: float = 1e-30, *, bias: bool = False) -> Pair:
    """Before the convolution, + 1e-30 − 1e-30: nothing to numbers of usual size, everything to denormal ones."""
    before = net(bias=bias)
    after = rw.clone(before)
    rw.set_weight(after, "epsilon", _scalar(epsilon))
    nodes = [
        helper.make_node("Add", ["a", "epsilon"], ["a1"]),
        helper.make_node("Sub", ["a1", "epsilon"], ["a2"]),
        rw.conv_like(rw.node_of(after, "t"), ["a2", *rw.node_of(after, "t").input[1:]], "t", 4),
    ]
    rw.splice(after, ["t"], nodes)
    return before, after


def through_a_clip() -> Pair:
    """Behind the convolution, held within the finite numbers: infinity becomes the largest of them."""
    most = float(np.finfo(np.float32).max)
    return _behind([helper.make_node("Clip", ["t0", "low", "high"], ["t"])], {"low": -most, "high": most})


def without_nan() -> Pair:
    """Behind the convolution, NaN becomes 0."""
    nodes = [helper.make_node("IsNaN", ["t0"], ["bad"]), helper.make_node("Where", ["bad", "zero", "t0"], ["t"])]
    return _behind(nodes, {"zero": 0.0})


def plus_zero() -> Pair:
    """Behind the convolution, + 0: minus zero becomes zero, and nothing else changes."""
    return _behind([helper.make_node("Add", ["t0", "zero"], ["t"])], {"zero": 0.0})


def _behind(nodes: list[onnx.NodeProto], constants: dict[str, float]) -> Pair:
    before = net(bias=False)
    after = rw.clone(before)
    for name, value in constants.items():
        rw.set_weight(after, name, _scalar(value))
    conv = rw.conv_like(rw.node_of(after, "t"), ["a", "w"], "t0", 4)
    rw.splice(after, ["t"], [conv, *nodes])
    return before, after


def nothing_in_the_batch() -> Pair:
    """Depthwise and summed, with a Reshape to [0, 4, -1, …]: of a batch of none, nothing tells what -1 stands for."""
    before = net(batch="N")
    after = rw.depthwise_summed(before, "t", (-1, 8, 6, 7))
    rw.set_weight(after, "t.split", np.asarray([0, 4, -1, 2, 6, 7], np.int64))
    return before, after


def squeezed_without_axes() -> Pair:
    """Squeeze of every axis of size 1, in place of the one: right for every width but 1."""
    weights = {"w": random(4, 8, 1)}
    spatial = {"axes": np.asarray([2], np.int64)}

    def made(squeeze: list[str]) -> onnx.ModelProto:
        nodes = [node("Squeeze", squeeze, ["s"]), node("Conv", ["s", "w"], ["y"])]
        values = weights | (spatial if len(squeeze) > 1 else {})
        return model(nodes, [info("x", [2, 8, 1, "W"])], [info("y", [2, 4, "W"])], values)

    return made(["x", "axes"]), made(["x"])


def last_eight() -> Pair:
    """The last 8 of a row, and the last 9 without the first of them: the same where there are 9."""
    x, y = [info("x", [2, 3, "W"])], [info("y", None)]
    bounds = {name: np.asarray([value], np.int64) for name, value in BOUNDS.items()}
    before = model([node("Slice", ["x", "-8", "end", "axis"], ["y"])], x, y, bounds)
    nodes = [node("Slice", ["x", "-9", "end", "axis"], ["s"]), node("Slice", ["s", "1", "end", "axis"], ["y"])]
    return before, model(nodes, x, y, bounds)


def frames(batch: int) -> onnx.ModelProto:
    """A batch of clips of 4 frames each, mixed over their frames: the Reshape's first size is `batch`, -1 any."""
    weights: dict[str, Array] = {
        "w": random(8, 8, 1, 1),
        "mix": random(8, 4, 1, 1),
        "split": np.asarray([batch, 4, 64, 6], np.int64),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Reshape", ["c", "split"], ["r"]),
        node("Conv", ["r", "mix"], ["y"]),
    ]
    return model(nodes, [info("x", ["N", 8, 8, 6])], [info("y", None)], weights)


def halves(batch: int | str) -> onnx.ModelProto:
    """A network of float16, whose denormal numbers begin at 6e-5."""
    result = net(batch=batch, bias=False)
    for tensor in list(result.graph.initializer):
        rw.set_weight(result, tensor.name, rw.weight_of(result, tensor.name).astype(np.float16))
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return result
