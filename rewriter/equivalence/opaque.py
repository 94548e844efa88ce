"""Operators that L1 knows nothing of: the same one of the same tensors gives the same, whatever it computes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx

from rewriter.equivalence.forms import Form, Unsupported
from rewriter.equivalence.fused import is_default, is_fused_conv
from rewriter.equivalence.linear import LINEAR, Evaluation
from rewriter.equivalence.matrices import is_matrix_product
from rewriter.equivalence.numbering import KNOWN_DOMAINS, RANDOM, content
from rewriter.equivalence.operators import operator_attributes
from rewriter.equivalence.regions import Side
from rewriter.wiring import subgraphs

Same = Callable[[str, Form, Form], bool]
Kind = tuple[str, tuple[bytes, ...], tuple[bytes, ...]]
_OTHERWISE: Final = frozenset(
    """Relu LeakyRelu Sigmoid Tanh Clip HardSigmoid HardSwish Elu Selu Celu Softplus Softsign Erf Exp Sqrt Abs Gelu Mish
    Reciprocal ThresholdedRelu PRelu Max Min MaxPool AveragePool GlobalMaxPool""".split()  # noqa: SIM905 - readable
)
"""Operators that are paired in ways of their own, or known to end a region."""
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_JUMPS: Final = frozenset(
    """ArgMax ArgMin TopK Hardmax NonMaxSuppression NonZero Unique OneHot Round Floor Ceil Sign Greater GreaterOrEqual
    Less LessOrEqual Equal IsNaN IsInf Mod Where QuantizeLinear DynamicQuantizeLinear""".split()  # noqa: SIM905 - readable
)
"""Operators to which what is the same up to rounding need not be the same."""


def is_opaque(side: Side, node: onnx.NodeProto) -> bool:
    """Whether the node is an operator that gives the same for the same, and that L1 looks at in no other way."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain not in KNOWN_DOMAINS or (domain, node.op_type) in side.functions or is_fused_conv(node, side.functions):
        return False
    if node.op_type in RANDOM | _JUMPS or not node.output or not node.output[0] or any(True for _ in subgraphs(node)):
        return False
    if is_default(node, side.functions) and node.op_type in LINEAR | _OTHERWISE:
        product = node.op_type in _PRODUCTS and not is_matrix_product(side, node)
        if not product:
            return False
    return any(_is_run(side, name) for name in node.input) and side.bound.value(node.output[0]) is None


def _is_run(side: Side, name: str) -> bool:
    """Whether a tensor is known only at run time."""
    return bool(name) and not side.constant(name) and side.bound.value(name) is None


def opaque_kind(side: Side, node: onnx.NodeProto) -> Kind:
    """Equal for nodes that compute the same of the same run-time tensors."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    versions = [entry.version for entry in side.model.skeleton.opset_import if entry.domain in (domain, node.domain)]
    version = versions[0] if versions else 0
    with contextlib.suppress(onnx.defs.SchemaError):
        version = onnx.defs.get_schema(node.op_type, version, domain).since_version
    operands = [b"operand" if name else b"" for name in node.input]
    while operands and operands[-1] == b"":
        operands.pop()
    made = [b"made" if name else b"" for name in node.output]
    name = f"{domain}:{node.op_type} of version {version}"
    return name, tuple(operator_attributes(node, side.model)), (*operands, b"gives", *made)


def reads_the_same(
    old: Evaluation, new: Evaluation, node: onnx.NodeProto, partner: int, same: Same
) -> tuple[float, float] | None:
    """Whether the operands of a node are shown to be those of one of the second side; None if not.

    A product of two run-time tensors may have them scaled by a number each: what the two sides' outputs are scaled by
    is the result, 1 for any other operator.
    """
    new.advance(partner)
    other = new.side.model.nodes[partner]
    scales = [1.0, 1.0]
    for name, theirs in zip(node.input, other.input, strict=False):
        if not name:
            continue
        try:
            one, two = old.value(name), new.value(theirs)
        except Unsupported:
            return None
        if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
            if content(one) != content(two):
                return None
            continue
        first, second = old.as_form(one), new.as_form(two)
        if node.op_type == "MatMul":
            (by, first), (by_other, second) = _unscaled(first), _unscaled(second)
            scales = [scales[0] * by, scales[1] * by_other]
        if first.shape != second.shape or not same(name, first, second):
            return None
    return scales[0], scales[1]


def _unscaled(form: Form) -> tuple[float, Form]:
    """The one number that scales all of a form, and the rest of it; 1 where there is none."""
    if form.coef is None or form.offset is not None or not form.coef.size:
        return 1.0, form
    by = float(form.coef.reshape(-1)[0])
    if by == 0 or not np.isfinite(by) or not (form.coef == by).all():
        return 1.0, form
    return by, Form(form.index)


def give_alike(
    old: Evaluation,
    new: Evaluation,
    nodes: tuple[onnx.NodeProto, onnx.NodeProto],
    first: int,
    scales: tuple[float, float],
) -> int:
    """Let the outputs of both nodes stand for the same symbols, scaled, from `first` on; returns the next one."""
    for name, other in zip(nodes[0].output, nodes[1].output, strict=False):
        if not name or not other:
            continue
        shape = old.shape(name)
        if new.shape(other) != shape:
            raise Unsupported(f"'{name}' and '{other}' are of different shapes")
        symbols = np.arange(first, first + math.prod(shape)).reshape(*shape, 1)
        for run, made, by in ((old, name, scales[0]), (new, other, scales[1])):
            run.give(made, Form(symbols, None if by == 1 else np.full(symbols.shape, by)))
            run.rescaled |= abs(math.frexp(by)[0]) != 0.5  # a power of two is taken off and put on without rounding
        first += math.prod(shape)
    return first
