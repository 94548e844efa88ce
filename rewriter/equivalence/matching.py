"""Nonlinear operators inside a region: paired between the two sides where what enters them is shown to be the same.

Behind a pair both sides go on with the same new symbols, one per element.  So a region is shown to be the same part by
part, however the parts are spelled, as long as the nonlinear operators between them are the same ones.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Final

import numpy as np
import onnx

from rewriter.constants import attributes, constant
from rewriter.equivalence import forms
from rewriter.equivalence.endings import picks
from rewriter.equivalence.forms import Form, Integers, Unsupported
from rewriter.equivalence.fused import ending, is_default
from rewriter.equivalence.linear import Evaluation
from rewriter.equivalence.opaque import give_alike, is_opaque, opaque_kind, reads_the_same
from rewriter.equivalence.operators import operator_attributes
from rewriter.equivalence.regions import Side
from rewriter.shapes import Shape

ELEMENTWISE: Final = frozenset(
    """Relu LeakyRelu Sigmoid Tanh Clip HardSigmoid HardSwish Elu Selu Celu Softplus Softsign Erf Exp Sqrt Abs Gelu Mish
    Reciprocal ThresholdedRelu PRelu""".split()  # noqa: SIM905 - readable
)
"""Operators that give each element a function of that element alone, given constant further operands of one element."""
BINARY: Final = frozenset({"Mul", "Div", "Max", "Min", "Add"})
"""Elementwise operators of two run-time operands: not linear, but for Add, which joins what L1 cannot see through."""
PER_CHANNEL: Final = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool"})
"""Operators that treat every channel of `[N, C, *S]` alike and by itself: they keep a permutation of channels."""
_POLES: Final = frozenset({"Reciprocal", "Div", "Sqrt", "Exp"})
"""Operators that are not finite wherever what they read is: of a channel that the other side lacks that would show."""
_MEANS: Final = frozenset({"GlobalAveragePool", "ReduceMean"})
_AVERAGES_ANEW: Final = 19
_MOST_ORDERS: Final = 6
_MOST_PARTNERS: Final = 4

Same = Callable[[str, Form, Form], bool]
"""Whether two forms of one shape, the first of the original, are the same; the name is for messages."""
Alike = tuple[Integers, Integers]
"""Channels of two tensors that seem the same: `[K]` each, K the fewer of the two."""
Permuted = Callable[[str, Form, Form], Alike | None]
"""Channels of two forms `[N, C, *S]` and `[N, C', *S]` that seem the same, if any do."""


def inner_elements(side: Side, nodes: Sequence[int]) -> int:
    """Elements of all outputs of operators that may be paired: symbols that pairs may need."""
    found = [side.model.nodes[index] for index in nodes]
    paired = [node for node in found if _is_paired(side, node) or _is_mean(side, node) or multiplies(side, node)]
    names = [node.output[0] for node in paired]
    names += [name for node in found if is_opaque(side, node) for name in node.output if name]
    shapes = [side.bound.shape(name) for name in names]
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def inner(side: Side, nodes: Sequence[int]) -> list[int]:
    """The operators to pair, in graph order: nonlinear ones whose outputs others in the region read, and means."""
    within = set(nodes)
    joins = _last_joins(side, nodes)
    return [
        index
        for index in nodes
        if _is_mean(side, side.model.nodes[index])
        or multiplies(side, side.model.nodes[index])
        or is_opaque(side, side.model.nodes[index])
        or (
            _is_paired(side, side.model.nodes[index])
            and within.intersection(side.readers.get(side.model.nodes[index].output[0], ()))
            - (joins if _ends(side, side.model.nodes[index]) else set())
        )
    ]


def _last_joins(side: Side, nodes: Sequence[int]) -> set[int]:
    """Nodes that only join or pick, which nothing in the region reads but such ones.

    Activations before them are at its end (`endings`).
    """
    within, found = set(nodes), set[int]()
    for index in sorted(nodes, reverse=True):
        node = side.model.nodes[index]
        readers = [side.readers.get(name, ()) for name in node.output if name]
        inside = within.intersection(*[set().union(*readers)]) if readers else within
        moves = picks(side, node) or (node.op_type == "Concat" and is_default(node, side.functions))
        if moves and inside <= found:
            found.add(index)
    return found


def _ends(side: Side, node: onnx.NodeProto) -> bool:
    """Whether it is an activation that can be taken off the end of a region."""
    try:
        return ending(side, node) is not None
    except Unsupported:
        return False


def _evened(old: Evaluation, new: Evaluation) -> tuple[list[int], list[int]]:
    """The operators to pair of both sides: inner ones, and outer ones where the other side has more inner ones."""
    sides = old, new
    found = [inner(run.side, run.nodes) for run in sides]
    counts = [
        Counter(_kind(run.side, run.side.model.nodes[i]) for i in each) for run, each in zip(sides, found, strict=True)
    ]
    for run, each, lacking in zip(sides, found, (counts[1] - counts[0], counts[0] - counts[1]), strict=True):
        for index in run.nodes:
            node = run.side.model.nodes[index]
            if index not in each and _is_paired(run.side, node) and lacking[_kind(run.side, node)] > 0:
                lacking[_kind(run.side, node)] -= 1
                each.append(index)
        each.sort()
    return found[0], found[1]


def multiplies(side: Side, node: onnx.NodeProto) -> bool:
    """Whether the node combines two tensors known only at run time, and not by adding them."""
    if not is_default(node, side.functions) or node.op_type not in BINARY or len(node.input) != 2:
        return False
    return all(not side.constant(name) and side.bound.value(name) is None for name in node.input)


def _is_optional(side: Side, node: onnx.NodeProto) -> bool:
    """Whether the node can be evaluated without a partner, where what it computes with is simple enough."""
    return multiplies(side, node) or _is_mean(side, node)


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
    return all(value is not None and (value.size == 1 or node.op_type == "PRelu") for value in values)


def pair(old: Evaluation, new: Evaluation, first: int, same: Same, permuted: Permuted) -> int:
    """Give both sides' nonlinear operators common symbols from `first` on; returns how many pairs there are.

    Raises Unsupported where one has no partner, and as `Evaluation.value`.
    """
    chosen, left = _evened(old, new)
    pairs = 0
    for index in chosen:
        node = old.side.model.nodes[index]
        old.advance(index)
        kind = _kind(old.side, node)
        partners = [other for other in left if _kind(new.side, new.side.model.nodes[other]) == kind][:_MOST_PARTNERS]
        if is_opaque(old.side, node):
            tried = ((place, reads_the_same(old, new, node, place, same)) for place in partners)
            place, scales = next(((place, by) for place, by in tried if by is not None), (-1, None))
            if scales is None:
                raise Unsupported(f"what enters {node.op_type} '{node.output[0]}' is not shown to be the same")
            left.remove(place)
            first = give_alike(old, new, (node, new.side.model.nodes[place]), first, scales)
            pairs += 1
            continue
        try:
            found = next(_partners(old, new, partners, node, same, permuted), None)
        except Unsupported:
            if not _is_optional(old.side, node):
                raise
            found = None
        if found is None and _is_optional(old.side, node):
            continue  # products of what enters have symbols of their own, and means are sums
        if found is None:
            raise Unsupported(f"what enters {node.op_type} '{node.output[0]}' is not shown to be the same")
        partner, placed = found
        left.remove(partner)
        pairs += 1
        output = new.side.model.nodes[partner].output[0]
        shape, other = old.shape(node.output[0]), new.shape(output)
        here, there = placed(shape, other)
        if there.size < math.prod(other) and node.op_type in _POLES:
            raise Unsupported(f"{node.op_type} '{output}' has channels of its own, which need not be finite")
        symbols = _symbols(first, (shape, here), (other, there))
        first += max(math.prod(shape), math.prod(other))
        old.give(node.output[0], Form(symbols[0].reshape(*shape, 1)))
        new.give(output, Form(symbols[1].reshape(*other, 1)))
    for index in left:
        node = new.side.model.nodes[index]
        if not _is_optional(new.side, node):
            raise Unsupported(f"{node.op_type} '{node.output[0]}' has no counterpart in the original")
    return pairs


def _symbols(first: int, one: tuple[Shape, Integers], other: tuple[Shape, Integers]) -> tuple[Integers, Integers]:
    """Symbols of the two sides' elements, those at the places given in common; the larger side's are in a row.

    A convolution reads whole channels: they must stay a batch's stride apart.  What has no counterpart is a symbol of
    its own.
    """
    (shape, here), (wider, there) = one, other
    if math.prod(shape) >= math.prod(wider):
        row = np.arange(first, first + math.prod(shape))
        few = np.empty(math.prod(wider), row.dtype)
        few[there] = row[here]
        return row, few
    return _symbols(first, other, one)[::-1]


def operands(run: Evaluation, node: onnx.NodeProto) -> list[Form]:
    """What a node to be paired computes with: of two run-time operands both, as large as the output."""
    if not multiplies(run.side, node):
        return [run.form(node.input[0])]
    return [forms.broadcast(run.form(name), run.shape(node.output[0])) for name in node.input]


_Placed = Callable[[Shape, Shape], tuple[Integers, Integers]]
"""Flat places of the elements of the two sides' outputs that are the same, given the shapes of both."""


def _partners(
    old: Evaluation,
    new: Evaluation,
    partners: Sequence[int],
    node: onnx.NodeProto,
    same: Same,
    permuted: Permuted,
) -> Iterator[tuple[int, _Placed]]:
    """Nodes of the second side that compute the same, and where the elements of the first's output are in theirs."""
    entering = operands(old, node)
    for partner in partners:
        new.advance(partner)
        try:
            found = operands(new, new.side.model.nodes[partner])
        except Unsupported:  # behind an operator that is not paired yet
            continue
        for others in _arrangements(node, found):
            for shape, (here, there), placed in _orders(node, entering, others, permuted):
                each = zip(node.input, entering, others, strict=False)  # further operands of one are constants
                if all(
                    same(name, _reordered(one, here, shape), _reordered(other, there, shape))
                    for name, one, other in each
                ) and _slopes(old.side, node, entering[0].shape, here) == _slopes(
                    new.side, new.side.model.nodes[partner], others[0].shape, there
                ):
                    yield partner, placed


def _slopes(side: Side, node: onnx.NodeProto, shape: Shape, places: Integers | None) -> bytes:
    """The slopes of a PRelu at these elements of a tensor of that shape; nothing of other operators."""
    if node.op_type != "PRelu":
        return b""
    slope = constant(side.model, node.input[1])
    assert slope is not None
    every = np.broadcast_to(slope, shape).reshape(-1)
    return (every if places is None else every[places]).tobytes()


def _arrangements(node: onnx.NodeProto, found: list[Form]) -> list[list[Form]]:
    """The operands in both orders, where theirs does not matter."""
    return [found, found[::-1]] if len(found) == 2 and node.op_type != "Div" else [found]


def _orders(
    node: onnx.NodeProto, entering: Sequence[Form], others: Sequence[Form], permuted: Permuted
) -> Iterator[tuple[Shape, tuple[Integers | None, Integers], _Placed]]:
    """Ways to find elements of the first side in the second: the shape they make, their places, those of outputs.

    Places of None are all, in order.  Where one side has more channels, only those that both have are compared.
    """
    shape, other = entering[0].shape, others[0].shape
    anywhere = node.op_type in ELEMENTWISE | BINARY
    if anywhere:
        for order in orders(shape, other):
            yield shape, (None, order), functools.partial(_fixed, order)
    if len(shape) < 2 or len(shape) != len(other) or (shape[0], *shape[2:]) != (other[0], *other[2:]):
        return
    every = np.arange(shape[1])
    kept = None if anywhere or shape != other else (every, every)
    for channels in (kept, permuted(node.input[0], entering[0], others[0])):
        if channels is not None:
            here, there = channels
            common = (shape[0], len(here), *shape[2:])
            places = channel_order(shape, here), channel_order(other, there)
            yield common, places, functools.partial(_by_channel, here, there)


def _fixed(order: Integers, shape: Shape, _: Shape) -> tuple[Integers, Integers]:
    return np.arange(math.prod(shape)), order


def _by_channel(here: Integers, there: Integers, shape: Shape, other: Shape) -> tuple[Integers, Integers]:
    return channel_order(shape, here), channel_order(other, there)


def channel_order(shape: Shape, channels: Integers) -> Integers:
    """`[E]`: flat places of the elements of some channels of a tensor `[N, C, ...]`, as of one that has only these."""
    return np.arange(math.prod(shape)).reshape(shape)[:, channels].reshape(-1)


def _reordered(form: Form, order: Integers | None, shape: Shape) -> Form:
    if order is None:
        return form

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
    if is_opaque(side, node):
        return opaque_kind(side, node)
    constants = [] if node.op_type == "PRelu" else [constant(side.model, name) for name in node.input[1:]]
    values = tuple(b"" if value is None else value.tobytes() for value in constants)
    kind = node.op_type
    if kind == "AveragePool":  # ONNX 19 says otherwise than before what a window beyond the padding is divided by
        kind += str(onnx.defs.get_schema(kind, side.model.opset, "").since_version >= _AVERAGES_ANEW)
    return kind, tuple(operator_attributes(node, side.model)), values
