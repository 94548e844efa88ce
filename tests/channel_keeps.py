"""Nodes that lead from the 6 channels of `c` to those of `t`, the same ones: what channel components follow."""

from __future__ import annotations

from typing import Any

import numpy as np

FLAT = {"x": "float[N,8,1,1]"}
ONE = np.float32(1)
C6, C16 = (6, 1, 1), (1, 6, 1, 1)
KEEP: list[tuple[str, dict[str, Any]]] = [
    *((f"t = {kind} (c)", {}) for kind in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Selu", "Softplus", "Abs")),
    *((f"t = {kind} (c)", {}) for kind in ("Neg", "Identity", "Erf", "Round", "Floor", "Ceil", "Sign", "LeakyRelu")),
    *((f"t = {kind} (c)", {"opset": 22}) for kind in ("Gelu", "Mish", "HardSigmoid", "ThresholdedRelu", "Celu")),
    ("t = Clip (c, a, b)", {"a": np.float32(-1), "b": ONE}),
    ("t = Clip (c, a)", {"a": np.float32(-1)}),
    ("t = Clip <min = -1.0, max = 1.0> (c)", {"opset": 9}),
    ("t = Dropout (c)", {}),
    ("t, mask = Dropout (c)", {}),
    ("t = Dropout (c, r)", {"r": np.float32(0.5)}),
    ("d = Cast <to = 10> (c) t = Cast <to = 1> (d)", {}),
    ("t = BatchNormalization (c, s, s, s, o)", {"s": (6,), "o": np.ones(6, np.float32)}),
    ("t = InstanceNormalization (c, s, s)", {"s": (6,)}),
    *((f"t = {kind} (c, k)", {"k": C6}) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((f"t = {kind} (c, k)", {"k": C16}) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((f"t = {kind} (k, c)", {"k": C6}) for kind in ("Add", "Sub", "Mul", "Max", "Min", "Sum")),
    ("t = Add (c, k)", {"k": ONE}),
    ("t = Add (c, k)", {"k": (1,)}),
    ("t = Add (c, k)", {"k": (5, 5), "x": "float[N,8,5,5]"}),
    ("t = PRelu (c, k)", {"k": C6}),
    ("t = PRelu (c, k)", {"k": (1,)}),
    ("d = Relu (c) t = Add (c, d)", {}),
    ("d = Relu (c) t = Mul (c, d)", {}),
    ("d = Relu (c) e = Abs (c) t = Sum (c, d, e)", {}),
    ("p = GlobalAveragePool (c) g = Sigmoid (p) t = Mul (c, g)", {}),
    ("p = GlobalMaxPool (c) g = Sigmoid (p) t = Mul (g, c)", {}),
    ("p = ReduceMean <keepdims = 1> (c, k) t = Mul (c, p)", {"k": [2, 3]}),
    ("p = ReduceMean <keepdims = 1> (c, k) t = Mul (c, p)", {"k": [-1, -2]}),
    ("p = ReduceMax <axes = [2], keepdims = 1> (c) t = Mul (c, p)", {"opset": 11}),
    ("p = ReduceL2 <keepdims = 1> (c, k) t = Mul (c, p)", {"k": [3]}),
    ("t = MaxPool <kernel_shape = [2, 2]> (c)", {}),
    ("t = AveragePool <kernel_shape = [2, 2]> (c)", {}),
    ("t = LpPool <kernel_shape = [2, 2]> (c)", {}),
    ("t = Conv <group = 6, kernel_shape = [1, 1]> (c, d)", {"d": (6, 1, 1, 1)}),
    ("t = Pad (c, k)", {"k": [0, 0, 1, 1, 0, 0, 1, 1]}),
    ('t = Pad <mode = "reflect"> (c, k)', {"k": [0, 0, 1, 1, 0, 0, 1, 1]}),
    ("t = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (c)", {"opset": 9}),
    ("t = Resize (c, , k)", {"k": np.array([1, 1, 2, 2], np.float32)}),
    ("t = Resize (c, k)", {"k": np.array([1, 1, 2, 2], np.float32), "opset": 10}),
    ("t = Upsample (c, k)", {"k": np.array([1, 1, 2, 2], np.float32), "opset": 9}),
    ("t = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (c)", {"opset": 7}),
    ("t = Slice (c, o, e, a)", {"o": [0], "e": [2], "a": [2]}),
    ("t = Slice <starts = [0], ends = [2], axes = [3]> (c)", {"opset": 9}),
    ("t = Gather <axis = 2> (c, k)", {"k": [1, 0]}),
    ("l, t = Split <axis = 2> (c, k)", {"k": [2, 3], "x": "float[N,8,5,5]"}),
    ("t = Concat <axis = 2> (c, c)", {}),
    ("d = Relu (c) t = Concat <axis = -1> (c, d)", {}),
    ("d = Relu (c) t = Concat <axis = 0> (c, d)", {}),
    ("f = Flatten (c) t = Unsqueeze (f, k)", FLAT | {"k": [2, 3]}),
    ("f = Squeeze (c, k) t = Unsqueeze (f, k)", FLAT | {"k": [2, 3]}),
    ("f = Reshape (c, k) t = Reshape (f, l)", FLAT | {"k": [0, -1], "l": [-1, 6, 1, 1]}),
    ("f = Reshape (c, k) t = Reshape (f, l)", FLAT | {"k": [-1, 6], "l": [0, 6, 1, 1]}),
]  # fmt: skip
