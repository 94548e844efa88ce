"""Follow a tensor through linear per-channel bookkeeping, and prove what it does to the channels.

Reshape, Transpose, ReduceSum and their like can spell one computation in many ways.  Instead of a pattern for each, an
index tensor is run through the nodes: every element of a state says which elements of the followed (wide) tensor it
sums, times which coefficients, plus which offset.  Index maps are exact, small and the same for every element type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rewriter.constants import attribute, constant, is_constant, why_not_constant
from rewriter.model import Model
from rewriter.rule import Declined, require
from rewriter.shapes import Bound, Shape, reshape_target, static_shape

_ENDLESS = 2**31 - 1  # what exporters write for "to the end"; larger for 64-bit ones
_BENDING = frozenset(
    """Min Max Clip Relu Abs Where Equal Less LessOrEqual Greater GreaterOrEqual Mod If""".split()  # noqa: SIM905 - readable
)
_LIMIT = 1 << 26  # elements of an index tensor: 256 MiB


@dataclass(frozen=True)
class State:
    """A tensor as sums of elements of the wide tensor: `index` and `coef` `[*shape, T]`, `offset` `[*shape]`."""

    index: NDArray[np.int32]
    coef: NDArray[np.float64] | None = None
    offset: NDArray[np.float64] | None = None
    rounded: bool = False
    reduced: bool = False

    @property
    def shape(self) -> Shape:
        return self.index.shape[:-1]


@dataclass(frozen=True)
class Step:
    """One followed node: its position, its output tensor, and the state of that tensor."""

    node: int
    tensor: str
    state: State
    cropped: tuple[tuple[int, int], ...] = ()
    """Axes that a Slice gave bounds to, each with its size here: they must be of one size for every input."""


def start(shape: Shape) -> State:
    """The state of the wide tensor itself; declines when it is too large to follow."""
    total = int(np.prod(shape))
    require(total > 0, f"its output of shape {list(shape)} is empty")
    require(total <= _LIMIT, f"its output of shape {list(shape)} is too large to follow: give a smaller --input-shape")
    return State(np.arange(total, dtype=np.int32).reshape(*shape, 1))


def may_reduce(model: Model, tensor: str) -> str:
    """Empty when a reduction stands in the chain that `follow` would walk, else why the chain ends before one.

    A look at operator names only, so that the many convolutions with no reduction behind them cost nothing.
    """
    while True:
        node, ended = _next(model, tensor)
        if node is None:
            return ended
        if model.nodes[node].op_type.startswith("Reduce"):
            return ""
        tensor = model.nodes[node].output[0]


def _next(model: Model, tensor: str) -> tuple[int | None, str]:
    """The one node that reads the tensor's data and can be followed, or None and a clause on why there is none."""
    escape = model.wiring.escapes(tensor)
    if escape:
        return None, escape
    readers = [index for index in model.wiring.readers(tensor) if model.nodes[index].op_type not in ("Shape", "Size")]
    if len(readers) != 1:
        return None, f"'{tensor}' is read by {len(readers)} nodes"
    node = model.nodes[readers[0]]
    if node.domain not in ("", "ai.onnx") or node.op_type not in _HANDLERS:
        return None, f"{node.op_type} at '{node.output[0]}' is no linear per-channel bookkeeping"
    return readers[0], ""


def follow(model: Model, bound: Bound, tensor: str, shape: Shape) -> tuple[list[Step], str]:
    """Follow the chain of single readers of `tensor`; gives the steps and one clause on why it ended."""
    steps: list[Step] = []
    state = start(shape)
    while True:
        index, ended = _next(model, tensor)
        if index is None:
            return steps, ended
        node = model.nodes[index]
        try:
            before, state = state, _HANDLERS[node.op_type](model, bound, node, tensor, state)
        except Declined as no:
            return steps, no.reason
        cropped = _cropped(bound, node, before.shape) if node.op_type == "Slice" else ()
        tensor = node.output[0]
        steps.append(Step(index, tensor, state, cropped))


_Handler = Callable[[Model, Bound, onnx.NodeProto, str, State], State]


def _move(state: State, change: Callable[[NDArray[Any]], NDArray[Any]]) -> State:
    """Apply a data movement to every part of a state; `change` moves the leading axes and keeps the last, the terms."""
    offset = None if state.offset is None else change(np.broadcast_to(state.offset, state.shape)[..., None])[..., 0]
    coef = None if state.coef is None else change(np.broadcast_to(state.coef, state.index.shape))
    return replace(state, index=change(state.index), coef=coef, offset=offset)


def _transpose(_model: Model, _bound: Bound, node: onnx.NodeProto, _x: str, state: State) -> State:
    entry = attribute(node, "perm")
    perm = list(entry.ints) if entry else list(range(len(state.shape)))[::-1]
    return _move(state, lambda array: array.transpose(*perm, len(perm)))


def _reshape(model: Model, bound: Bound, node: onnx.NodeProto, x: str, state: State) -> State:
    require(node.input[0] == x, f"'{x}' is the shape of a Reshape")
    target = bound.value(node.input[1])
    if target is None:  # a Cast of a float constant is no shape arithmetic, but a constant
        target = constant(model, node.input[1])
    require(target is not None, f"the shape of Reshape '{node.output[0]}' is not known before the model runs")
    assert target is not None
    entry = attribute(node, "allowzero")
    sizes = reshape_target(state.shape, tuple(int(size) for size in target), bool(entry and entry.i))
    require(sizes is not None, f"Reshape '{node.output[0]}' cannot turn {list(state.shape)} into {target.tolist()}")
    assert sizes is not None
    return _move(state, lambda array: array.reshape(*sizes, array.shape[-1]))


def _axes(bound: Bound, node: onnx.NodeProto, rank: int) -> list[int] | None:
    """Axes of a reduction, Squeeze or Unsqueeze, as attribute or input, not negative; None when not given."""
    entry = attribute(node, "axes")
    if entry is not None:
        raw = list(entry.ints)
    elif len(node.input) > 1 and node.input[1]:
        value = bound.value(node.input[1])
        require(value is not None, f"the axes of {node.op_type} '{node.output[0]}' are computed at run time")
        assert value is not None
        raw = [int(axis) for axis in value.reshape(-1)]
    else:
        return None
    return sorted(axis + rank if axis < 0 else axis for axis in raw)


def _squeeze(model: Model, bound: Bound, node: onnx.NodeProto, _x: str, state: State) -> State:
    axes = _axes(bound, node, len(state.shape))
    if axes is None:
        fixed = all(static_shape(value.type) is not None for value in model.inputs)
        require(fixed, f"Squeeze '{node.output[0]}' names no axes, so what it drops depends on the input's size")
        axes = [axis for axis, size in enumerate(state.shape) if size == 1]
    fits = all(axis < len(state.shape) and state.shape[axis] == 1 for axis in axes)
    require(fits, f"Squeeze '{node.output[0]}' cannot drop axes {axes} of {list(state.shape)}")
    return _move(state, lambda array: np.squeeze(array, tuple(axes)))


def _unsqueeze(_model: Model, bound: Bound, node: onnx.NodeProto, _x: str, state: State) -> State:
    entry = attribute(node, "axes")
    value = None if entry else bound.value(node.input[1])
    count = len(entry.ints) if entry else 0 if value is None else value.size
    axes = _axes(bound, node, len(state.shape) + count)
    assert axes is not None
    return _move(state, lambda array: np.expand_dims(array, tuple(axes)))


def _flatten(_model: Model, _bound: Bound, node: onnx.NodeProto, _x: str, state: State) -> State:
    entry = attribute(node, "axis")
    axis = entry.i if entry else 1
    axis = axis + len(state.shape) if axis < 0 else axis
    rows = int(np.prod(state.shape[:axis]))
    return _move(state, lambda array: array.reshape(rows, -1, array.shape[-1]))


def _identity(_model: Model, _bound: Bound, _node: onnx.NodeProto, _x: str, state: State) -> State:
    return state


def _slice(_model: Model, bound: Bound, node: onnx.NodeProto, x: str, state: State) -> State:
    require(node.input[0] == x, f"'{x}' is a bound of a Slice")
    picks = [slice(None)] * len(state.shape)
    for begin, end, axis, stride in _bounds(bound, node):
        stop = None if stride < 0 and end < -state.shape[axis] else end
        picks[axis] = slice(begin, stop, stride)
    moved = _move(state, lambda array: array[tuple(picks)])
    require(moved.index.size, f"Slice '{node.output[0]}' keeps nothing")
    return moved


def _bounds(bound: Bound, node: onnx.NodeProto) -> list[tuple[int, int, int, int]]:
    """(start, end, axis, step) of each sliced axis, from attributes (opset < 10) or inputs; declines when unknown."""
    entries = {entry.name: list(entry.ints) for entry in node.attribute}
    if "starts" in entries:
        lists = [entries["starts"], entries["ends"], entries.get("axes"), None]
    else:
        values = [bound.value(name) if name else None for name in node.input[1:]]
        missing = [name for name, value in zip(node.input[1:], values, strict=True) if name and value is None]
        require(not missing, f"the bounds of Slice '{node.output[0]}' are computed at run time")
        lists = [None if value is None else [int(size) for size in value.reshape(-1)] for value in values]
        lists += [None] * (4 - len(lists))
    starts, ends = lists[0] or [], lists[1] or []
    axes = lists[2] or list(range(len(starts)))
    return list(zip(starts, ends, axes, lists[3] or [1] * len(starts), strict=True))


def _cropped(bound: Bound, node: onnx.NodeProto, shape: Shape) -> tuple[tuple[int, int], ...]:
    """The sliced axes, with their sizes, that do not simply keep everything whatever the size."""
    return tuple(
        (axis % len(shape), shape[axis])
        for begin, end, axis, step in _bounds(bound, node)
        if (begin, step) != (0, 1) or end < _ENDLESS
    )


def bending(model: Model, declared: Bound, tensor: str) -> str:
    """The operator in a shape's arithmetic that treats sizes differently from some size on (Min, Where ...), or "".

    Such a shape cannot be proved at a few sizes.  `declared` knows what is the same for every input.
    """
    todo, seen = [tensor], set()
    while todo:
        name = todo.pop()
        maker = model.wiring.producer(name)
        if name in seen or maker is None or declared.value(name) is not None:
            continue
        seen.add(name)
        node = model.nodes[maker]
        if node.op_type in _BENDING:
            return f"{node.op_type} at '{name}'"
        if node.op_type != "Shape":
            todo += node.input
    return ""


def _gather(_model: Model, bound: Bound, node: onnx.NodeProto, x: str, state: State) -> State:
    require(node.input[0] == x, f"'{x}' is the index of a Gather")
    picks = bound.value(node.input[1])
    require(picks is not None, f"the indices of Gather '{node.output[0]}' are computed at run time")
    assert picks is not None
    entry = attribute(node, "axis")
    axis = (entry.i if entry else 0) % len(state.shape)
    size = state.shape[axis]
    fits = picks.size and -size <= picks.min() and picks.max() < size
    require(fits, f"the indices of Gather '{node.output[0]}' do not fit its axis of size {size}")
    return _move(state, lambda array: np.take(array, picks.astype(np.int64), axis=axis))


def _reduce(_model: Model, bound: Bound, node: onnx.NodeProto, _x: str, state: State) -> State:
    rank = len(state.shape)
    axes = _axes(bound, node, rank)
    noop = attribute(node, "noop_with_empty_axes")
    if not axes:
        if noop and noop.i:
            return state
        axes = list(range(rank))
    keep = attribute(node, "keepdims")
    kept = keep.i if keep else 1
    count = int(np.prod([state.shape[axis] for axis in axes]))
    front = [axis for axis in range(rank) if axis not in axes]
    sizes = (
        [1 if axis in axes else state.shape[axis] for axis in range(rank)] if kept else [state.shape[a] for a in front]
    )
    terms = state.index.shape[-1]

    def gathered(array: NDArray[Any]) -> NDArray[Any]:
        return array.transpose(*front, *axes, rank).reshape(*sizes, count * terms)

    coef = None if state.coef is None else gathered(np.broadcast_to(state.coef, state.index.shape))
    offset = None
    if state.offset is not None:
        whole = np.broadcast_to(state.offset, state.shape)
        offset = whole.transpose(*front, *axes).reshape(*sizes, count).sum(axis=-1)
    if node.op_type == "ReduceMean":
        coef = np.full(1, 1.0 / count) if coef is None else coef / count
        offset = None if offset is None else offset / count
    return State(gathered(state.index), coef, offset, state.rounded or offset is not None, reduced=True)


def _operand(model: Model, node: onnx.NodeProto, x: str, state: State) -> tuple[NDArray[np.float64], bool]:
    """The constant operand broadcast against the state, and whether the state is the first operand."""
    first = node.input[0] == x
    require(list(node.input).count(x) == 1, f"{node.op_type} '{node.output[0]}' uses '{x}' twice")
    other = node.input[1] if first else node.input[0]
    require(is_constant(model, other), f"{node.op_type} '{node.output[0]}': {why_not_constant(model, other)}")
    value = constant(model, other)
    assert value is not None
    operand = value.astype(np.float64)
    sizes = zip(operand.shape[::-1], state.shape[::-1], strict=False)
    fits = operand.ndim <= len(state.shape) and all(size in (1, given) for size, given in sizes)
    require(
        fits,
        f"{node.op_type} '{node.output[0]}' widens its input: a constant of shape {list(operand.shape)} does not fit "
        f"{list(state.shape)}",
    )
    return operand, first


def _add(model: Model, _bound: Bound, node: onnx.NodeProto, x: str, state: State) -> State:
    operand, first = _operand(model, node, x, state)
    if node.op_type == "Sub" and first:
        operand = -operand
    rounded = state.rounded or state.offset is not None
    if node.op_type == "Sub" and not first:
        state = _scaled(state, np.float64(-1.0))
    offset = operand if state.offset is None else state.offset + operand
    return replace(state, offset=offset, rounded=rounded)


def _mul(model: Model, _bound: Bound, node: onnx.NodeProto, x: str, state: State) -> State:
    operand, first = _operand(model, node, x, state)
    if node.op_type == "Div":
        require(first, f"Div '{node.output[0]}' divides by '{x}'")
        require(np.all(operand != 0), f"Div '{node.output[0]}' divides by zero")
        operand = 1.0 / operand
    return _scaled(state, operand)


def _scaled(state: State, factor: NDArray[np.float64] | np.float64) -> State:
    factor = np.asarray(factor)
    wide = factor[..., None] if factor.ndim else factor.reshape(1)
    coef = wide if state.coef is None else state.coef * wide
    return replace(
        state,
        coef=coef,
        offset=None if state.offset is None else state.offset * factor,
        rounded=state.rounded or state.offset is not None,
    )


def _batch_norm(model: Model, _bound: Bound, node: onnx.NodeProto, x: str, state: State) -> State:
    require(node.input[0] == x and len(node.output) == 1, f"BatchNormalization '{node.output[0]}' is in training mode")
    training = attribute(node, "training_mode")
    require(not (training and training.i), f"BatchNormalization '{node.output[0]}' is in training mode")
    spatial = attribute(node, "spatial")  # opset < 9
    require(spatial is None or spatial.i, f"BatchNormalization '{node.output[0]}' normalizes each position by itself")
    parts = []
    for name in node.input[1:5]:
        require(is_constant(model, name), f"BatchNormalization '{node.output[0]}': {why_not_constant(model, name)}")
        value = constant(model, name)
        assert value is not None
        parts.append(value.astype(np.float64).reshape(-1, *[1] * (len(state.shape) - 2)))
    scale, shift, mean, var = parts
    entry = attribute(node, "epsilon")
    factor = scale / np.sqrt(var + (entry.f if entry else 1e-5))
    scaled = _scaled(state, factor)
    offset = shift - mean * factor
    return replace(scaled, offset=offset if scaled.offset is None else scaled.offset + offset, rounded=True)


_HANDLERS: dict[str, _Handler] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Identity": _identity,
    "Slice": _slice,
    "Gather": _gather,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "Add": _add,
    "Sub": _add,
    "Mul": _mul,
    "Div": _mul,
    "BatchNormalization": _batch_norm,
}
