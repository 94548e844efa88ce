"""How a provider rounds sums of products, and the bound on the error that follows from it.

With S = Σ|w||x| + |b|, evaluated through the whole chain, a computed output differs from the exact one by at most

    ((1 + γ_a(n)) · (1 + γ_u(r)) · (1 + t)^(2c) − 1) · S

for n roundings in an accumulator of unit roundoff a, r roundings to the stored type of unit u, and c convolutions one
after another whose two operands are rounded by t before they are multiplied: every term of the sum is multiplied by
that many factors (1 + δ) (Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 3.5).  r and c are
those that one term goes through: of what runs side by side only the longest counts.

16-bit types are stored in 16 bits but summed in float32, on the CPU (where ONNX Runtime casts) as by cuDNN, which is
told to.  TF32 keeps 11 bits of each float32 operand (NVIDIA, "Accelerating AI training with NVIDIA TF32 tensor cores").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from rewriter.constants import Array, attributes
from rewriter.equivalence.cut import Cut
from rewriter.equivalence.fused import is_conv
from rewriter.equivalence.kernels import gamma
from rewriter.equivalence.linear import MOVES
from rewriter.equivalence.precision import significand_bits, unit_roundoff
from rewriter.session import Runtime

TF32_BITS: Final = 11
"""Bits of the significand of a TF32 operand, hidden bit included."""
_SINGLE: Final = 2.0**-24
_CONSTANTS: Final = 4
"""Roundings to the stored type behind a combined constant: a scale, a shift, their product, the weight itself."""
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_MULTIPLIES: Final = _PRODUCTS | {"Conv", "FusedConv", "ConvTranspose"}
_SCALES: Final = frozenset({"Mul", "Div", "BatchNormalization"})
_ROUNDINGS: Final[Mapping[str, int]] = dict.fromkeys(MOVES | {"Relu", "Max", "Min", "MaxPool", "Neg"}, 0) | {
    "FusedConv": 2,
    "BatchNormalization": 4,
}
"""Roundings to the stored type in one operator, where that is not one."""


@dataclass(frozen=True)
class Rounding:
    """Unit roundoffs of stored values, of the accumulator, and of operands before they are multiplied (0: kept)."""

    stored: float
    accumulated: float
    operand: float = 0.0

    @property
    def unit(self) -> float:
        """The coarsest of them."""
        return max(self.stored, self.accumulated, self.operand)

    def bound(self, sums: float, roundings: int, convs: int) -> float:
        """The largest error as a fraction of S, infinity where there is none; see the module."""
        total = 1 + float(gamma(sums, self.accumulated))
        if self.stored > self.accumulated:
            total *= 1 + float(gamma(roundings + _CONSTANTS, self.stored))
        return float(total * (1 + self.operand) ** (2 * convs) - 1)


def rounding_of(cut: Cut, runtime: Runtime) -> Rounding:
    """How `runtime` rounds in a cut: by the coarsest type among its floating-point inputs and weights."""
    codes = [value.type.tensor_type.elem_type for value in cut.proto.graph.input]
    codes += [onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for value in cut.weights.values()]
    floats = [code for code in codes if significand_bits(code)]
    stored = max(map(unit_roundoff, floats), default=_SINGLE)
    single = onnx.TensorProto.FLOAT in floats or not floats
    return Rounding(stored, min(stored, _SINGLE), 2.0**-TF32_BITS if runtime.tf32 and single else 0.0)


def coarsest(found: Iterable[Rounding]) -> Rounding:
    """The coarsest of each."""
    every = list(found)
    return Rounding(*(max(getattr(one, name) for one in every) for name in ("stored", "accumulated", "operand")))


def finest(found: Iterable[Rounding]) -> Rounding:
    """The finest of each."""
    every = list(found)
    return Rounding(*(min(getattr(one, name) for one in every) for name in ("stored", "accumulated", "operand")))


def bound_in(cut: Cut, rounding: Rounding, sums: float) -> float:
    """The bound for a cut in which one output element sums `sums` products, as a fraction of S."""
    return rounding.bound(sums, roundings_in(cut), convs_in(cut))


def convs_in(cut: Cut) -> int:
    """The most operators that multiply activations by weights, one after another."""
    return _longest(cut, dict.fromkeys(_MULTIPLIES, 1), 0)


def roundings_in(cut: Cut) -> int:
    """The most roundings to the stored type that one term of a sum goes through; those in accumulators left out."""
    return _longest(cut, _ROUNDINGS, 1)


def _longest(cut: Cut, costs: Mapping[str, int], other: int) -> int:
    """The largest sum of the nodes' costs behind one term: both factors bring theirs along, of summands one does."""
    found: dict[str, int] = {}
    for node in cut.proto.graph.node:
        operands = [found.get(name, 0) for name in node.input]
        first = sum(operands) if node.op_type in _SCALES else sum(operands[:2])
        factors = node.op_type in _MULTIPLIES | _SCALES
        behind = max(first if factors else 0, *operands, 0)
        found |= dict.fromkeys(node.output, behind + costs.get(node.op_type, other))
    return max((found.get(value.name, 0) for value in cut.proto.graph.output), default=0)


def estimate(cut: Cut) -> int:
    """An upper estimate of the roundings behind one output element, from the operators alone."""
    total = 8
    for node in cut.proto.graph.node:
        weight = cut.weights.get(node.input[1]) if len(node.input) > 1 else None
        total += 2 if weight is None else summed(node, weight) + 2
        if node.op_type in ("ReduceSum", "ReduceMean"):
            total += 64 if not attributes(node).get("axes") else 256
    return total


def summed(node: onnx.NodeProto, weight: Array) -> int:
    """Products behind one element: of `[M, C/G, *K]`, `[C, M/G, *K]`, or a matrix `[.., K, N]`, transposed or not."""
    if node.op_type == "ConvTranspose":
        group = attributes(node).get("group", 1)
        assert isinstance(group, int)
        return int(np.prod(weight.shape[2:])) * (int(weight.shape[0]) // max(group, 1))
    if is_conv(node):
        return int(np.prod(weight.shape[1:]))
    return max(weight.shape[-2:], default=1) if node.op_type in _PRODUCTS else 0


def operand_limit(bits: int, runtime: Runtime) -> int:
    """The largest integer up to which all integers are exact as operands of a product, for a type of p = `bits`."""
    return int(2 ** min(bits, TF32_BITS)) if runtime.tf32 and bits == np.finfo(np.float32).nmant + 1 else int(2**bits)
