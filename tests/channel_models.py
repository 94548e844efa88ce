"""Small networks with channels that miss the fast path by a few: what the laws try pad-channels on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from funnel import Sizes
from programs import program

X = "float[N,8,8,8]"
FREE = "float[N,8,H,W]"
_FIXED: tuple[Sizes, ...] = ({"x": (1, 8, 8, 8)}, {"x": (3, 8, 8, 8)})
_OPEN: tuple[Sizes, ...] = ({"x": (1, 8, 8, 8)}, {"x": (3, 8, 6, 10)})
_ONES = np.ones(12, np.float32)

# A bottleneck with groups of 3 or 6, squeeze-and-excitation, and its residual: as in RegNet.
_REGNET = (
    "a = Conv (x, w1, b1) r = Relu (a) g = Conv <group = 2, pads = [1, 1, 1, 1]> (r, w2, b2) "
    "n = BatchNormalization (g, s1, s2, s3, v) q = Relu (n) p = GlobalAveragePool (q) "
    "e = Conv (p, e1, f1) h = Relu (e) i = Conv (h, e2, f2) j = Sigmoid (i) m = Mul (q, j) "
    "o = Conv (m, w3, b3) t = Add (o, x) y = Relu (t)"
)
_REGNET_WEIGHTS: dict[str, Any] = dict.fromkeys(("b1", "b2", "f2", "s1", "s2", "s3"), (12,))
_REGNET_WEIGHTS |= {"w1": (12, 8, 1, 1), "w2": (12, 6, 3, 3), "w3": (8, 12, 1, 1), "b3": (8,), "v": _ONES}
_REGNET_WEIGHTS |= {"e1": (3, 12, 1, 1), "f1": (3,), "e2": (12, 3, 1, 1)}
# Half of the channels through a depthwise convolution, the other half past it, then shuffled: as in ShuffleNet v2.
_SHUFFLE_TAIL = (
    "a = Conv (right, w1) r = Relu (a) d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, w2) b = Conv (d, w3) q = Relu (b) "
    "c = Concat <axis = 1> (left, q) f = Reshape (c, apart) t = Transpose <perm = [0, 2, 1, 3, 4]> (f) "
    "z = Reshape (t, whole) y = Conv (z, w4)"
)
_SHUFFLE_WEIGHTS: dict[str, Any] = {
    "w0": (12, 8, 1, 1),
    "w1": (6, 6, 1, 1),
    "w2": (6, 1, 3, 3),
    "w3": (6, 6, 1, 1),
}
_SHUFFLE_WEIGHTS |= {"w4": (4, 12, 1, 1), "apart": [0, 2, 6, 8, 8], "whole": [0, 12, 8, 8]}
# Slices that are convolved one after the other, each with what came before added: as in Res2Net.
_RES2NET = (
    "a = Conv (x, w1) r = Relu (a) p, q, s = Split <axis = 1> (r, k) c1 = Conv <pads = [1, 1, 1, 1]> (p, w2) "
    "r1 = Relu (c1) m = Add (r1, q) c2 = Conv <group = 9, pads = [1, 1, 1, 1]> (m, w3) r2 = Relu (c2) "
    "c = Concat <axis = 1> (r1, r2, s) y = Conv (c, w4)"
)
# What was made before is read again by each that follows: as in DenseNet.
_DENSE = (
    "a = Conv (x, w0) n1 = BatchNormalization (a, s, s, s, v) r1 = PRelu (n1, l) "
    "c1 = Conv <pads = [1, 1, 1, 1]> (r1, w1) "
    "k1 = Concat <axis = 1> (a, c1) r2 = Relu (k1) d2 = Conv <group = 18, pads = [1, 1, 1, 1]> (r2, w2) "
    "k2 = Concat <axis = 1> (k1, d2) r3 = Relu (k2) y = Conv (r3, w3)"
)
# A constant of each kind on the way, and the classifier behind a mean over positions.
_HEAD = (
    "a = Conv (x, w0) m = Mul (a, k1) o = Add (m, k2) u = Sub (k3, o) r = HardSwish (u) "
    "d = Conv <group = 10, pads = [1, 1, 1, 1]> (r, w1) p = GlobalAveragePool (d) f = Flatten (p) y = Gemm (f, w2, b)"
)
_OLD_HEAD = _HEAD.replace("HardSwish", "Relu")


def channel_models() -> dict[str, tuple[onnx.ModelProto, tuple[Sizes, ...]]]:
    """By name, each with shapes to run it at."""
    head: dict[str, Any] = {
        "w0": (10, 8, 1, 1),
        "k1": (10, 1, 1),
        "k2": (1, 10, 1, 1),
        "k3": (10, 1, 1),
        "w1": (10, 1, 3, 3),
    }
    head |= {"w2": (10, 5), "b": (5,)}
    dense: dict[str, Any] = {
        "w0": (12, 8, 1, 1),
        "s": (12,),
        "v": _ONES,
        "l": (12, 1, 1),
        "w1": (6, 12, 3, 3),
        "w2": (18, 1, 3, 3),
    }
    res2: dict[str, Any] = {
        "w1": (27, 8, 1, 1),
        "k": [9, 9, 9],
        "w2": (9, 9, 3, 3),
        "w3": (9, 1, 3, 3),
        "w4": (4, 27, 1, 1),
    }
    halves = "h = Conv (x, w0) left, right = Split <axis = 1> (h, k) "
    slices = "h = Conv (x, w0) left = Slice (h, o, k, i) right = Slice (h, k, l, i) "
    regnet = program(_REGNET, x=FREE, opset=17, **_REGNET_WEIGHTS)
    return {
        "channels regnet": (regnet, _OPEN),
        "channels regnet behind nodes": (_indirect(program(_REGNET, x=FREE, opset=13, **_REGNET_WEIGHTS)), _OPEN),
        "channels regnet opset 9": (program(_REGNET, x=FREE, opset=9, ir=3, **_REGNET_WEIGHTS), _OPEN),
        "channels split": (program(halves + _SHUFFLE_TAIL, x=X, opset=13, k=[6, 6], **_SHUFFLE_WEIGHTS), _FIXED),
        "channels slices": (
            program(slices + _SHUFFLE_TAIL, x=X, opset=11, o=[0], k=[6], l=[12], i=[1], **_SHUFFLE_WEIGHTS),
            _FIXED,
        ),
        "channels res2net": (program(_RES2NET, x=FREE, opset=17, **res2), _OPEN),
        "channels dense": (program(_DENSE, x=FREE, opset=17, **dense, w3=(4, 36, 1, 1)), _OPEN),
        "channels head": (program(_HEAD, x=FREE, opset=17, **head), _OPEN),
        "channels head opset 9": (program(_OLD_HEAD, x=FREE, opset=9, ir=3, **head), _OPEN),
    }


def _indirect(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights behind Constant and Identity nodes, and a Cast from float64."""
    nodes = []
    held = []
    for number, tensor in enumerate(model.graph.initializer):
        name = tensor.name
        if number % 3 == 0:
            nodes.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
            continue
        kind = "Identity" if number % 3 == 1 else "Cast"
        value = onnx.numpy_helper.to_array(tensor)
        value = value.astype(np.float64) if kind == "Cast" else value
        held.append(onnx.numpy_helper.from_array(value, f"{name}/held"))
        cast: dict[str, Any] = {"to": tensor.data_type} if kind == "Cast" else {}
        nodes.append(helper.make_node(kind, [f"{name}/held"], [name], name=name, **cast))
    rest = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(held)
    model.graph.node.extend([*nodes, *rest])
    return model


EXACT = frozenset({"channels split", "channels slices", "channels res2net", "channels head opset 9"})
"""Those whose values stay exact on integers."""
WIDENED = frozenset({"absorb-shuffle", "align-concat", "pad-channels"})
"""Passes that apply to these models, where the laws' own have nothing for them."""
