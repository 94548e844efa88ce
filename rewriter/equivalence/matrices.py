"""Products with a constant matrix as convolutions with a kernel of 1, the last axis being the channels.

    y = MatMul(x, B)   x [*L, K], B [K, N]   is   y[l, n] = Σ_k B[k, n] · x[l, k]
    y = Gemm(x, B, C) = α · x' B' + β · C

So they can be compared with each other, however x is shaped, and with convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from rewriter.constants import Array, attributes, constant
from rewriter.equivalence import forms
from rewriter.equivalence.forms import Form, Impossible, Unsupported
from rewriter.equivalence.fused import is_default
from rewriter.equivalence.regions import Side

if TYPE_CHECKING:
    from rewriter.equivalence.linear import Evaluation


@dataclass(frozen=True, eq=False)
class Convolution:
    """The product as a Conv node, its operand `[L0, K, *L]` and its weight `[N, K, 1, ...]`; y is α times it + β C."""

    node: onnx.NodeProto
    data: Form
    weight: Array
    alpha: float
    beta: float


def is_matrix_product(side: Side, node: onnx.NodeProto) -> bool:
    """Whether the node multiplies a run-time tensor of two axes or more by a constant matrix on the right."""
    if node.op_type not in ("MatMul", "Gemm") or not is_default(node, side.functions) or len(node.input) < 2:
        return False
    x, matrix = node.input[:2]
    kind = side.bound.types.get(matrix)
    value = constant(side.model, matrix) if kind is None and side.constant(matrix) else None
    rank = len(kind.tensor_type.shape.dim) if kind is not None else 0 if value is None else value.ndim
    if side.constant(x) or not side.constant(matrix) or rank != 2:
        return False
    shape = side.bound.shape(x)
    return shape is not None and len(shape) >= 2


def as_convolution(node: onnx.NodeProto, data: Form, matrix: Array) -> Convolution:
    """What `is_matrix_product` says to be one; raises Impossible where sizes do not fit."""
    found = attributes(node)
    if found.get("transA"):
        data = forms.transpose(data, [1, 0])
    if found.get("transB"):
        matrix = matrix.T
    if matrix.shape[0] != data.shape[-1]:
        where = f"{node.op_type} '{node.output[0]}'"
        raise Impossible(f"{where} has a matrix {list(matrix.shape)} for {data.shape[-1]} columns")
    rank = len(data.shape)
    moved = forms.transpose(data, [0, rank - 1, *range(1, rank - 1)])
    weight = np.ascontiguousarray(matrix.T).reshape(*matrix.shape[::-1], *[1] * (rank - 2))
    plain = onnx.helper.make_node("Conv", list(node.input[:2]), list(node.output[:1]))
    alpha, beta = (value if isinstance(value := found.get(name, 1.0), float) else 1.0 for name in ("alpha", "beta"))
    return Convolution(plain, moved, weight, alpha, beta)


def matrix_product(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Form | Array | None]) -> Form:
    """The product as forms; raises Unsupported where the matrix is not one constant."""
    data, matrix = operands[:2]
    if not isinstance(data, Form) or not isinstance(matrix, np.ndarray) or not is_matrix_product(run.side, node):
        raise Unsupported(f"{node.op_type} '{node.output[0]}' is no product with one constant matrix")
    found = as_convolution(node, data, matrix)
    product = channels_last(run.convolve(found.node, found.data, found.weight))
    if found.alpha != 1:
        product = forms.scale(product, np.asarray(found.alpha))
    added = operands[2] if len(operands) > 2 else None
    if added is None:
        return product
    bias = run.as_form(added)
    return forms.add(product, bias if found.beta == 1 else forms.scale(bias, np.asarray(found.beta)))


def channels_last(form: Form) -> Form:
    """`[L0, N, *L]` as `[L0, *L, N]`."""
    rank = len(form.shape)
    return forms.transpose(form, [0, *range(2, rank), 1])


def constant_product(node: onnx.NodeProto, operands: Sequence[object]) -> Form | None:
    """A MatMul of constants, as numbers known up to rounding: whoever folded it may have added in another order."""
    arrays = [np.asarray(value) for value in operands if isinstance(value, np.ndarray)]
    if node.op_type != "MatMul" or len(arrays) != 2 or any(value.dtype.kind != "f" for value in arrays):
        return None
    a, b = (value.astype(np.float64) for value in arrays)
    offset, magnitude = np.matmul(a, b), np.matmul(np.abs(a), np.abs(b))
    index = np.full((*offset.shape, 1), forms.NOTHING)
    return Form(index, None, np.asarray(offset), np.asarray(magnitude), a.shape[-1] + 1)
