"""Nonlinear operators inside a region: paired between the two sides where what enters them is shown to be the same.

Behind a pair both sides go on with the same new symbols, one per element.  So a region is shown to be the same part by
part, however the parts are spelled, as long as the nonlinear operators between them are the same ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Final

import numpy as np
import onnx

from rewriter.constants import attributes, constant
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
PER_CHANNEL: Final = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool"})
"""Operators that treat every channel of `[N, C, *S]` alike and by itself: they keep a permutation of channels."""
_MEANS: Final = frozenset({"GlobalAveragePool", "ReduceMean"})
_MOST_ORDERS: Final = 6
_MOST_PARTNERS: Final = 4

Same = Callable[[str, Form, Form], bool]
"""Whether two forms of one shape, the first of the original, are the same; the name is for messages."""
Permuted = Callable[[str, Form, Form], Integers | None]
"""For every channel of the first of two forms `[N, C, *S]` the one of the second that seems the same, if any do."""


def inner_elements(side: Side, nodes: Sequence[int]) -> int:
    """Elements of all outputs of nonlinear operators inside a region: symbols that pairs may need."""
    shapes = [side.bound.shape(side.model.nodes[index].output[0]) for index in inner(side, nodes)]
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def inner(side: Side, nodes: Sequence[int]) -> list[int]:
    """The operators to pair, in graph order: nonlinear ones whose outputs others in the region read, and means."""
    within = set(nodes)
    return [
        index
        for index in nodes
        if _is_mean(side, side.model.nodes[index])
        or (
            _is_paired(side, side.model.nodes[index])
            and within.intersection(side.readers.get(side.model.nodes[index].output[0], ()))
        )
    ]


def _is_mean(side: Side, node: onnx.NodeProto) -> bool:
    """Whether the node averages over all positions: linear, but no convolution of what enters."""
    if not is_default(node, side.functions) or node.op_type not in _MEANS or side.constant(node.input[0]):
        return False
    shape = side.bound.shape(node.input[0])
    if shape is None or len(shape) < 3:
        return False
    if node.op_type == "GlobalAveragePool":
        return True
    given = constant(side.model, node.input[1]) if len(node.input) > 1 else attributes(node).get("axes")
    axes = set() if given is None else {int(axis) % len(shape) for axis in np.asarray(given).reshape(-1)}
    return axes == set(range(2, len(shape)))


def _is_paired(side: Side, node: onnx.NodeProto) -> bool:
    known = node.op_type in ELEMENTWISE | PER_CHANNEL
    if not is_default(node, side.functions) or not known or len(node.output) != 1:
        return False
    if side.bound.value(node.output[0]) is not None or side.constant(node.input[0]):
        return False
    values = [constant(side.model, name) for name in node.input[1:] if name]
    return all(value is not None and value.size == 1 for value in values)


def pair(old: Evaluation, new: Evaluation, first: int, same: Same, permuted: Permuted) -> None:
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
        found = next(_partners(new, partners, node, entering, same, permuted), None)
        if found is None:
            raise Unsupported(f"what enters {node.op_type} '{node.output[0]}' is not shown to be the same")
        partner, order = found
        left.remove(partner)
        shape = old.shape(node.output[0])
        count = math.prod(shape)
        symbols = np.arange(first, first + count)
        first += count
        old.give(node.output[0], Form(symbols.reshape(*shape, 1)))
        output = new.side.model.nodes[partner].output[0]
        moved = np.empty_like(symbols)
        moved[order(shape)] = symbols
        new.give(output, Form(moved.reshape(*new.shape(output), 1)))
    if left:
        node = new.side.model.nodes[left[0]]
        raise Unsupported(f"{node.op_type} '{node.output[0]}' has no counterpart in the original")


_Order = Callable[[Shape], Integers]
"""Where each element of the first side's output is in the second side's, given the former's shape."""


def _partners(
    new: Evaluation,
    partners: Sequence[int],
    node: onnx.NodeProto,
    entering: Form,
    same: Same,
    permuted: Permuted,
) -> Iterator[tuple[int, _Order]]:
    """Nodes of the second side that compute the same, and where each element of the first's output is in theirs."""
    name = node.input[0]
    for partner in partners:
        new.advance(partner)
        try:
            other = new.form(new.side.model.nodes[partner].input[0])
        except Unsupported:  # behind an operator that is not paired yet
            continue
        if node.op_type in ELEMENTWISE:
            for order in orders(entering.shape, other.shape):
                if same(name, entering, _reordered(other, order, entering.shape)):
                    yield partner, functools.partial(_fixed, order)
        if entering.shape != other.shape or len(entering.shape) < 3:
            continue
        plain = np.arange(entering.shape[1])
        for channels in (None if node.op_type in ELEMENTWISE else plain, permuted(name, entering, other)):
            if channels is None:
                continue
            order = channel_order(entering.shape, channels)
            if same(name, entering, _reordered(other, order, entering.shape)):
                yield partner, functools.partial(_by_channel, channels)


def _fixed(order: Integers, _: Shape) -> Integers:
    return order


def _by_channel(channels: Integers, shape: Shape) -> Integers:
    return channel_order(shape, channels)


def channel_order(shape: Shape, channels: Integers) -> Integers:
    """`[E]`: the flat place of each element of a tensor `[N, C, ...]` in one whose channels are in another order."""
    return np.arange(math.prod(shape)).reshape(shape)[:, channels].reshape(-1)


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
    if _is_mean(side, node):
        return "mean over all positions", (), ()
    constants = [constant(side.model, name) for name in node.input[1:]]
    values = tuple(b"" if value is None else value.tobytes() for value in constants)
    return node.op_type, tuple(operator_attributes(node, side.model)), values
