"""How a provider rounds sums of products, and the bound on the error that follows from it.

With S = Σ|w||x| + |b|, evaluated through the whole chain, a computed output differs from the exact one by at most

    ((1 + γ_a(n)) · (1 + γ_u(r)) · (1 + t)^(2c) − 1) · S

for n roundings in an accumulator of unit roundoff a, r roundings to the stored type of unit u, and c convolutions one
after another whose two operands are rounded by t before they are multiplied: every term of the sum is multiplied by
that many factors (1 + δ) (Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 3.5).

16-bit types are stored in 16 bits but summed in float32, on the CPU (where ONNX Runtime casts) as by cuDNN, which is
told to.  TF32 keeps 11 bits of each float32 operand (NVIDIA, "Accelerating AI training with NVIDIA TF32 tensor cores").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from rewriter.equivalence.cut import Cut
from rewriter.equivalence.kernels import gamma
from rewriter.equivalence.precision import significand_bits, unit_roundoff
from rewriter.session import Runtime

TF32_BITS: Final = 11
"""Bits of the significand of a TF32 operand, hidden bit included."""
_SINGLE: Final = 2.0**-24
_CONSTANTS: Final = 4
"""Roundings to the stored type behind a combined constant: a scale, a shift, their product, the weight itself."""
_MULTIPLIES: Final = frozenset({"Conv", "FusedConv", "ConvTranspose", "MatMul", "Gemm"})


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

    def bound(self, sums: float, nodes: int, convs: int) -> float:
        """The largest error as a fraction of S; see the module."""
        total = 1 + float(gamma(sums, self.accumulated))
        if self.stored > self.accumulated:
            total *= 1 + float(gamma(nodes + _CONSTANTS, self.stored))
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


def convs_in(cut: Cut) -> int:
    """Operators that multiply activations by weights: at most so many lie behind one output."""
    return sum(node.op_type in _MULTIPLIES for node in cut.proto.graph.node)


def operand_limit(bits: int, runtime: Runtime) -> int:
    """The largest integer up to which all integers are exact as operands of a product, for a type of p = `bits`."""
    return int(2 ** min(bits, TF32_BITS)) if runtime.tf32 and bits == np.finfo(np.float32).nmant + 1 else int(2**bits)
