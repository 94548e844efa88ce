"""Nonlinear operators inside a region: paired between the two sides where what enters them is shown to be the same.

Behind a pair both sides go on with the same new symbols, one per element.  So a region is shown to be the same part by
part, however the parts are spelled, as long as the nonlinear operators between them are the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Final

import numpy as np
import onnx

from rewriter.constants import constant
from rewriter.equivalence.forms import Form, Integers, Unsupported
from rewriter.equivalence.fused import is_default
from rewriter.equivalence.linear import Evaluation
from rewriter.equivalence.operators import operator_attributes
from rewriter.equivalence.regions import Side
from rewriter.shapes import Shape

ELEMENTWISE: Final = frozenset(
    """Relu LeakyRelu Sigmoid Tanh Clip HardSigmoid HardSwish Elu Selu Celu Softplus Softsign Erf Exp Sqrt Abs Gelu Mish
    Reciprocal ThresholdedRelu""".split()  # noqa: SIM905 - readable
)
"""Operators that give each element a function of that element alone, given constant further operands of one element."""
_MOST_ORDERS: Final = 6
_MOST_PARTNERS: Final = 4

Same = Callable[[str, Form, Form], bool]
"""Whether two forms of one shape, the first of the original, are the same; the name is for messages."""


def inner_elements(side: Side, nodes: Sequence[int]) -> int:
    """Elements of all outputs of nonlinear operators inside a region: symbols that pairs may need."""
    shapes = [side.bound.shape(side.model.nodes[index].output[0]) for index in inner(side, nodes)]
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def inner(side: Side, nodes: Sequence[int]) -> list[int]:
    """The elementwise nonlinear operators whose outputs others in the region read, in graph order."""
    within = set(nodes)
    return [
        index
        for index in nodes
        if _is_elementwise(side, side.model.nodes[index])
        and within.intersection(side.readers.get(side.model.nodes[index].output[0], ()))
    ]


def _is_elementwise(side: Side, node: onnx.NodeProto) -> bool:
    if not is_default(node, side.functions) or node.op_type not in ELEMENTWISE or len(node.output) != 1:
        return False
    if side.bound.value(node.output[0]) is not None or side.constant(node.input[0]):
        return False
    values = [constant(side.model, name) for name in node.input[1:] if name]
    return all(value is not None and value.size == 1 for value in values)


def pair(old: Evaluation, new: Evaluation, first: int, same: Same) -> None:
    """Give both sides' nonlinear operators common symbols from `first` on.

    Raises Unsupported where one has no partner, and as `Evaluation.value`.
    """
    left = inner(new.side, new.nodes)
    for index in inner(old.side, old.nodes):
        node = old.side.model.nodes[index]
        old.advance(index)
        entering = old.form(node.input[0])
        kind = _kind(old.side, node)
        partners = [other for other in left if _kind(new.side, new.side.model.nodes[other]) == kind][:_MOST_PARTNERS]
        found = next(_partners(new, partners, node.input[0], entering, same), None)
        if found is None:
            raise Unsupported(f"what enters {node.op_type} '{node.output[0]}' is not shown to be the same")
        partner, order = found
        left.remove(partner)
        count = math.prod(entering.shape)
        symbols = np.arange(first, first + count)
        first += count
        old.give(node.output[0], Form(symbols.reshape(*entering.shape, 1)))
        output = new.side.model.nodes[partner].output[0]
        moved = np.empty_like(symbols)
        moved[order] = symbols
        new.give(output, Form(moved.reshape(*new.shape(output), 1)))
    if left:
        node = new.side.model.nodes[left[0]]
        raise Unsupported(f"{node.op_type} '{node.output[0]}' has no counterpart in the original")


def _partners(
    new: Evaluation, partners: Sequence[int], name: str, entering: Form, same: Same
) -> Iterator[tuple[int, Integers]]:
    """Nodes of the second side that compute the same, and where each element of the first's is in theirs."""
    for partner in partners:
        new.advance(partner)
        try:
            other = new.form(new.side.model.nodes[partner].input[0])
        except Unsupported:  # behind an operator that is not paired yet
            continue
        for order in orders(entering.shape, other.shape):
            if same(name, entering, _reordered(other, order, entering.shape)):
                yield partner, order


def _reordered(form: Form, order: Integers, shape: Shape) -> Form:
    def picked(values: np.ndarray | None, *tail: int) -> np.ndarray | None:
        return None if values is None else values.reshape(-1, *tail)[order].reshape(*shape, *tail)

    index = picked(form.index, form.terms)
    assert index is not None
    return Form(index, picked(form.coef, form.terms), picked(form.offset), picked(form.magnitude), form.offset_terms)


def orders(first: Shape, second: Shape) -> Iterator[Integers]:
    """Ways to find the elements of a tensor in one of another shape: its axes permuted, then neighbours merged.

    Each is `[E]`, for every element of the first tensor its flat place in the second.  Row-major order comes first.
    """
    if math.prod(first) != math.prod(second):
        return
    wanted = tuple(size for size in second if size != 1)
    flat = np.arange(math.prod(second))
    seen: set[tuple[int, ...]] = set()
    for axes in permutations(axis for axis, size in enumerate(first) if size != 1):
        sizes = tuple(first[axis] for axis in axes)
        if not _merges(sizes, wanted) or len(seen) == _MOST_ORDERS:
            continue
        seen.add(axes)
        kept = sorted(axes)
        back = [axes.index(axis) for axis in kept]
        yield flat.reshape(sizes).transpose(back).reshape(-1)


def _merges(sizes: Shape, wanted: Shape) -> bool:
    """Whether neighbouring sizes multiply to the wanted ones."""
    left = list(sizes)
    for target in wanted:
        product = 1
        while left and product < target:
            product *= left.pop(0)
        if product != target:
            return False
    return not left


def _kind(side: Side, node: onnx.NodeProto) -> tuple[str, tuple[bytes, ...], tuple[bytes, ...]]:
    """Operator, attributes and further operands; equal ones compute the same of each element."""
    constants = [constant(side.model, name) for name in node.input[1:]]
    values = tuple(b"" if value is None else value.tobytes() for value in constants)
    return node.op_type, tuple(operator_attributes(node, side.model)), values
