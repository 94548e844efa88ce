"""Operators of the float64 reference that onnx's own computes in float32, or otherwise than they are defined."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from scipy import special

from rewriter.equivalence.forms import Floats


class Erf(OpRun):
    """ONNX's Erf (its reference rounds to float32)."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Floats]:
        return (special.erf(x),)


class Gelu(OpRun):
    """ONNX's Gelu: x·Φ(x), or with `approximate` by the hyperbolic tangent."""

    op_domain = ""

    def _run(self, x: Any, approximate: Any = None) -> tuple[Floats]:
        if approximate in ("tanh", b"tanh"):
            return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + special.erf(x / np.sqrt(2))),)


class HardSwish(OpRun):
    """ONNX's HardSwish: x · max(0, min(1, x/6 + 1/2))."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Floats]:
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


class Sigmoid(OpRun):
    """ONNX's Sigmoid: 1 / (1 + e^−x); e^−x may overflow, to a quotient of 0."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Floats]:
        return (special.expit(x),)


class GroupNormalization(OpRun):
    """ONNX's GroupNormalization: each group of channels to mean 0 and variance 1 (its reference does so in float32).

    Scale and bias are [groups] at opset 18 and [C] from opset 21 on.
    """

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, **attributes: Any) -> tuple[Floats]:
        groups, epsilon = int(attributes["num_groups"]), attributes.get("epsilon")
        parts = x.reshape(x.shape[0], groups, -1)
        centred = parts - parts.mean(axis=2, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + (1e-5 if epsilon is None else epsilon))
        each = x.shape[1] // scale.size
        factor, offset = (np.repeat(value, each).reshape(-1, *(1,) * (x.ndim - 2)) for value in (scale, bias))
        return (scaled.reshape(x.shape) * factor + offset,)


class LRN(OpRun):
    """ONNX's LRN: x / (bias + α/size · Σ x²)^β, the sum over the channels around it."""

    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> tuple[Floats]:
        size = int(attributes["size"])
        alpha, beta, bias = (
            default if attributes.get(name) is None else float(attributes[name])
            for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
        )
        before = (size - 1) // 2
        squares = np.pad(x * x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
        total = sum(squares[:, first : first + x.shape[1]] for first in range(size))
        return (x / (bias + alpha / size * total) ** beta,)


class DequantizeLinear(OpRun):
    """ONNX's DequantizeLinear, (x − zero point) · scale, per tensor or per axis; its reference subtracts in float32.

    Raises ValueError for blocks.
    """

    op_domain = ""

    def _run(self, x: Any, scale: Any, zero: Any = None, **attributes: Any) -> tuple[Floats]:
        if attributes.get("block_size"):
            raise ValueError("DequantizeLinear by blocks is not covered")
        axis = attributes.get("axis")
        shape = [1] * x.ndim
        if scale.ndim == 1 and scale.size > 1:
            shape[1 if axis is None else axis] = scale.size
        wide = x.astype(np.float64)
        if zero is not None:
            wide = wide - zero.astype(np.float64).reshape(shape if zero.size > 1 else ())
        return (wide * scale.astype(np.float64).reshape(shape if scale.size > 1 else ()),)
