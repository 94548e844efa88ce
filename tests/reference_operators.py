"""Operators that ONNX's own evaluator computes wrongly, for the tests that take it for the truth."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun

from models.emit import Array
from transposed_models import ConvTranspose


class LRN(OpRun):
    """y = x / (bias + alpha/size · sum of the squares of the `size` channels around)^beta, x [N, C, *S].

    ONNX's own stops at as many channels as the batch has images.
    """

    op_domain = ""

    def _run(self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1) -> tuple[Array]:
        before, after = (size - 1) // 2, size // 2
        padded = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = sum(padded[:, at : at + x.shape[1]] for at in range(size))
        return (x / (bias + alpha / size * total) ** beta,)


class BatchNormalization(OpRun):
    """y = scale · (x - mean) / sqrt(var + epsilon) + bias, per channel of x [N, C, *S]: inference.

    ONNX's own trains up to opset 13, where that was said by the number of outputs.
    """

    op_domain = ""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        var: Array,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        spatial: int = 1,
    ) -> tuple[Array]:
        assert not training_mode, "no test evaluates one that trains"
        assert spatial, "no test evaluates one that is not spatial"
        wide = (-1, *[1] * (x.ndim - 2))
        factor = scale / np.sqrt(var + epsilon)
        return ((x - mean.reshape(wide)) * factor.reshape(wide) + bias.reshape(wide),)


OPERATORS = (BatchNormalization, ConvTranspose, LRN)
