"""Small models with stacks, attention over them, depthwise multipliers and means: what the laws try passes on."""

from __future__ import annotations

from typing import Any

import onnx

from programs import program

_STACK = (
    "c = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w) r = Relu (c) d = Conv (x, v) c1 = Unsqueeze (r, one) "
    "d1 = Unsqueeze (d, one) t = Concat <axis = 1> (c1, d1) s = ReduceSum <keepdims = 0> (t, one) "
)
_ATTENTION = (
    "g = ReduceMean <axes = [2, 3]> (s) f = Conv (g, k) q = Reshape (f, to) a = Softmax <axis = 1> (q) "
    "m = Mul (t, a) z = ReduceSum <keepdims = 0> (m, one) y = Conv (z, v)"
)
_GATE = (
    "c = Conv (x, w) g = GlobalAveragePool (c) i = Conv (g, d) j = Relu (i) k = Conv (j, e) s = Sigmoid (k) "
    "m = Mul (s, c) y = Conv (m, v)"
)
_PARTS = (
    "a = Conv <group = 8> (x, w) b = Conv <group = 8> (x, v) t = Concat <axis = 1> (a, b) y = Gather <axis = 1> (t, o)"
)


def stacked_models() -> dict[str, onnx.ModelProto]:
    """By name; x is [N, 8, 7, 9]."""
    x = "float[N,8,7,9]"
    weights: dict[str, Any] = {"w": (8, 4, 3, 3), "v": (8, 8, 1, 1), "one": [1]}
    order = [place for channel in range(8) for place in (channel, channel + 8)]
    multiplier = "t = Conv <group = 8, strides = [2, 2]> (x, w, b) u = Relu (t) y = Conv (u, v)"
    return {
        "stack": program(f"{_STACK} y = Conv (s, v)", x=x, opset=17, **weights),
        "attention": program(_STACK + _ATTENTION, x=x, opset=17, k=(16, 8, 1, 1), to=[0, 2, 8, 1, 1], **weights),
        "gate": program(_GATE, x=x, opset=17, w=(8, 8, 3, 3), d=(6, 8, 1, 1), e=(8, 6, 1, 1), v=(5, 8, 1, 1)),
        "multiplier": program(multiplier, x=x, w=(24, 1, 3, 3), b=(24,), v=(5, 24, 1, 1)),
        "multiplier parts": program(_PARTS, x=x, w=(8, 1, 3, 3), v=(8, 1, 3, 3), o=order),
    }


APART = frozenset({"expand-gate", "merge-multiplier", "reduce-mean-to-global-pool", "split-multiplier", "sum-of-stack"})
"""Passes that apply to these models, where the laws' own have nothing for them."""
