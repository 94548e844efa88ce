"""What each operator does to the channels of what it reads: keep, link, bear, end, or stop them.

A table of operators, each with a function that adds to a survey.  An operator that is not in it stops the channels that
reach it: nothing is assumed of what is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import numpy as np
import onnx

from rewriter.channels import Channels, End, Keep, Link, Survey, put_together
from rewriter.constants import attribute, constant, is_constant
from rewriter.graph import Graph
from rewriter.per_channel import ELEMENTWISE, POOLS, is_plain
from rewriter.selection import picked_channels
from rewriter.wiring import subgraphs, used_names

Rule = Callable[[Survey, int, onnx.NodeProto], None]

_NEUTRAL: Mapping[str, float] = {"Add": 0.0, "Sub": 0.0, "Sum": 0.0, "Mul": 1.0, "Div": 1.0, "PRelu": 0.0}
"""What an operator's constant is filled up with for a channel that holds nothing: finite results of finite values."""
_FOUND: WeakKeyDictionary[Graph, Channels] = WeakKeyDictionary()
_EXTREMES = frozenset({"Max", "Min"})
_UNARY = (ELEMENTWISE - {"Exp", "Sqrt"}) | {"Cast", "Round", "Floor", "Ceil", "Sign"}
"""Finite wherever what they read is: what a channel without content carries meets zeros, and 0 times infinity is NaN.

So Log, Reciprocal, Exp and Sqrt are not among them, and what is divided by what is known at run time stops."""


def channel_components(graph: Graph) -> Channels:
    """The channel components of the main graph, found once for each graph."""
    if graph not in _FOUND:
        _FOUND[graph] = _analyse(graph)
    return _FOUND[graph]


def _analyse(graph: Graph) -> Channels:
    survey = Survey(graph)
    for index, node in enumerate(graph.model.nodes):
        if index in survey.taken or all(is_constant(graph.model, name) for name in node.output if name):
            continue
        if any(True for _ in subgraphs(node)) or not _is_understood(survey, node):
            _stop_all(survey, node, f"{node.op_type} is not known to keep channels apart")
        else:
            _RULES.get(node.op_type, _unknown)(survey, index, node)
    _escapes(survey)
    return put_together(survey)


def _is_understood(survey: Survey, node: onnx.NodeProto) -> bool:
    """Whether its operator says what it does: of several outputs those of Split, and the first alone of Dropout."""
    wiring = survey.graph.model.wiring
    if is_plain(node) or (node.op_type == "Split" and node.domain in ("", "ai.onnx")):
        return True
    unread = not any(wiring.readers(name) or wiring.escapes(name) for name in node.output[1:])
    trains = len(node.input) > 2 and node.input[2]
    return node.op_type == "Dropout" and node.domain in ("", "ai.onnx") and unread and not trains


def _escapes(survey: Survey) -> None:
    model = survey.graph.model
    for name in survey.tensors():
        maker = model.wiring.producer(name)
        if is_constant(model, name) or (maker is None and name not in {value.name for value in model.inputs}):
            survey.stop(name, f"'{name}' is a constant that is computed with, or one that callers may override")
    for value in model.inputs:
        survey.stop(value.name, "it is a graph input")
    captured = {name for node in model.nodes if any(True for _ in subgraphs(node)) for name in used_names([node])}
    for node in model.nodes:
        for name in node.output:
            if name and (why := model.wiring.escapes(name)):
                survey.stop(name, why)
            elif name in captured:
                survey.stop(name, f"'{name}' is read inside a subgraph")


def _stop_all(survey: Survey, node: onnx.NodeProto, reason: str) -> None:
    """Stop what a node reads and makes."""
    model = survey.graph.model
    where = f"{reason} ('{next((name for name in node.output if name), node.name)}')"
    for name in dict.fromkeys([*node.input, *node.output]):
        if name and not is_constant(model, name):
            survey.stop(name, where)


def _unknown(survey: Survey, _: int, node: onnx.NodeProto) -> None:
    _stop_all(survey, node, f"{node.op_type} is not known to keep channels apart")


def _unary(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """One data operand, any further operands scalars."""
    model = survey.graph.model
    rest = [constant(model, name) for name in node.input[1:] if name]
    if any(value is None or value.size != 1 for value in rest):
        _stop_all(survey, node, f"the parameters of {node.op_type} are no constant scalars")
        return
    survey.keeps.append(Keep(index, (node.input[0], node.output[0])))


def _pool(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    survey.keeps.append(Keep(index, (node.input[0], node.output[0])))


def _batch_norm(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    training, spatial = attribute(node, "training_mode"), attribute(node, "spatial")
    plain = not (training and training.i) and (spatial is None or spatial.i)
    if not plain or not all(_is_finite(survey, name) for name in node.input[1:]):
        _stop_all(survey, node, "its BatchNormalization is in training mode, not spatial, or has no constants")
        return
    fills = [(1, 0, 1.0), (2, 0, 0.0), (3, 0, 0.0), (4, 0, 1.0)]
    survey.keeps.append(Keep(index, (node.input[0], node.output[0]), tuple(fills[: len(node.input) - 1])))


def _is_finite(survey: Survey, name: str) -> bool:
    """Whether an operand is a constant of finite numbers."""
    value = constant(survey.graph.model, name)
    return value is not None and bool(np.isfinite(value.astype(np.float64)).all())


def _instance_norm(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    epsilon = attribute(node, "epsilon")
    if not all(is_constant(survey.graph.model, name) for name in node.input[1:]) or (epsilon and not epsilon.f):
        _stop_all(survey, node, "its InstanceNormalization has no constants, or no epsilon")
        return
    survey.keeps.append(Keep(index, (node.input[0], node.output[0]), ((1, 0, 0.0), (2, 0, 0.0))))


def _broadcasting(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """Operands broadcast against each other: those with the channels of the result are of its band."""
    model, y = survey.graph.model, node.output[0]
    width, rank = survey.channels(y), survey.rank(y)
    if width is None:
        _stop_all(survey, node, f"the channels of {node.op_type} are not known")
        return
    together, constants = [y], []
    if node.op_type == "Div" and constant(model, node.input[1]) is None:
        _stop_all(survey, node, "Div by what may be zero in a channel without content")
        return
    for position, name in enumerate(node.input):
        if not name:
            continue
        value = constant(model, name)
        if value is not None and not (_is_finite(survey, name) and (node.op_type != "Div" or value.all())):
            _stop_all(survey, node, f"a constant of {node.op_type} is not finite, or divides by zero")
            return
        shape = survey.graph.sizes(name) if value is None else value.shape
        if shape is None or (value is None and len(shape) != rank):
            _stop_all(survey, node, f"{node.op_type} broadcasts tensors whose ranks differ or are not known")
            return
        axis = len(shape) - rank + 1
        own = shape[axis] if axis >= 0 else 1
        if own == 1 and width != 1:
            if value is None:
                survey.stop(name, f"its one channel is broadcast by {node.op_type} '{y}'")
            continue
        if value is None:
            together.append(name)
        elif axis >= 0:
            constants.append((position, axis, _NEUTRAL.get(node.op_type, 0.0)))
    if len(together) == 1:
        survey.stop(y, f"{node.op_type} makes its channels by broadcasting")
    survey.keeps.append(Keep(index, tuple(dict.fromkeys(together)), tuple(constants)))


def _concat(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    y, rank = node.output[0], survey.rank(node.output[0])
    axis = attribute(node, "axis")
    known = rank and all(survey.channels(name) is not None for name in (*node.input, y))
    if not known or any(is_constant(survey.graph.model, name) for name in node.input):
        _stop_all(survey, node, "the inputs of a Concat are constant, or their channels are not known")
        return
    if (axis.i if axis else 1) % rank == 1:
        survey.links.append(Link("concat", index, tuple(node.input), y, nodes=(index,)))
    else:
        survey.keeps.append(Keep(index, (*dict.fromkeys(node.input), y)))


def _picking(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """Split, Slice and Gather: of channels a pick; of other axes they keep channels."""
    x, rank = node.input[0], survey.rank(node.input[0])
    if rank < 2:
        return  # shape arithmetic
    for y in [name for name in node.output if name]:
        picked = picked_channels(survey.graph, node, y, rank)
        if picked is not None and survey.channels(x) == picked[0]:
            survey.links.append(Link("pick", index, (x,), y, order=picked[1], nodes=(index,)))
        elif _spares_channels(survey, node):
            survey.keeps.append(Keep(index, (x, y)))
        else:
            _stop_all(survey, node, f"{node.op_type} picks channels that are not known, or other axes besides")
            return


def _spares_channels(survey: Survey, node: onnx.NodeProto) -> bool:
    """Whether a Split, Slice, Gather or Squeeze leaves axis 1 as it is, and what is before it."""
    rank = survey.rank(node.input[0])
    if not rank or survey.rank(node.output[0]) != rank:
        return False
    axes = _axes(survey, node)
    return axes is not None and all(axis % rank > 1 for axis in axes)


def _axes(survey: Survey, node: onnx.NodeProto) -> list[int] | None:
    """The axes an operator works on, where they are known: from an attribute or a constant operand."""
    for name in ("axes", "axis"):
        entry = attribute(node, name)
        if entry is not None:
            return list(entry.ints) if entry.ints else [entry.i]
    position = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1}.get(node.op_type, 1)
    if node.op_type.startswith("Reduce") or position != 1 or node.op_type in ("Squeeze", "Unsqueeze"):
        name = node.input[position] if len(node.input) > position else ""
        value = constant(survey.graph.model, name) if name else None
        return None if value is None else [int(axis) for axis in value.reshape(-1)]
    return [0]  # Split and Gather without the attribute


def _reduction(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """Over positions it keeps channels."""
    x, y, rank = node.input[0], node.output[0], survey.rank(node.input[0])
    axes = _axes(survey, node)
    keepdims = attribute(node, "keepdims")
    if not rank or axes is None or not axes or any(axis % rank < 2 for axis in axes):
        _stop_all(survey, node, f"{node.op_type} is over channels or the batch, or over axes that are not known")
        return
    if (keepdims.i if keepdims else 1) or survey.rank(y) >= 2:
        survey.keeps.append(Keep(index, (x, y)))


def _reshaping(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: [N, C, 1, 1] to [N, C] and back; or the start of a channel shuffle."""
    x, y = node.input[0], node.output[0]
    before, after = survey.graph.sizes(x), survey.graph.sizes(y)
    if node.op_type == "Reshape" and _shuffle(survey, index):
        return
    sizes = (before or ())[1:], (after or ())[1:]
    same = [size[0] for size in sizes if size]
    # Of several axes of size 1, which is that of the channels?
    known = len(same) == 2 and same[0] == same[1] and same[0] not in (None, 1)
    if not known or any(size != 1 for side in sizes for size in side[1:]):
        why = f"{node.op_type} moves channels or mixes them with other axes, or its sizes are not known"
        _stop_all(survey, node, why)
        return
    if node.op_type == "Reshape":
        shape = constant(survey.graph.model, node.input[1])
        if shape is None or shape.size != len(after or ()):
            _stop_all(survey, node, "Reshape to a shape that is computed at run time")
            return
        survey.keeps.append(Keep(index, (x, y), ((1, -1, 0.0),) if int(shape[1]) > 0 else ()))
        return
    survey.keeps.append(Keep(index, (x, y)))


def _shuffle(survey: Survey, index: int) -> bool:
    """Reshape to [N, A, B, *S], Transpose of A and B, Reshape back: a channel shuffle of A groups."""
    model, graph = survey.graph.model, survey.graph
    chain = [index]
    for kind in ("Transpose", "Reshape"):
        tensor = model.nodes[chain[-1]].output[0]
        readers = model.wiring.readers(tensor)
        if model.wiring.escapes(tensor) or len(readers) != 1 or model.nodes[readers[0]].op_type != kind:
            return False
        chain.append(readers[0])
    first, turn, last = (model.nodes[at] for at in chain)
    sizes = [graph.sizes(name) for name in (first.input[0], first.output[0], turn.output[0], last.output[0])]
    if any(size is None for size in sizes):
        return False
    x, apart, _, y = (tuple(size or ()) for size in sizes)
    perm = attribute(turn, "perm")
    rank = len(apart)
    swap = [0, 2, 1, *range(3, rank)]
    if rank != len(x) + 1 or len(y) != len(x) or perm is None or list(perm.ints) != swap:
        return False
    if None in (x[1], apart[1], apart[2], y[1]) or apart[1] * apart[2] != x[1] or y[1] != x[1]:  # type: ignore[operator]
        return False
    if not _rest_stays(survey, first.input[0], first.output[0], last.output[0]):
        return False
    order = np.arange(x[1]).reshape(apart[1], apart[2]).T.reshape(-1)  # type: ignore[arg-type]  # known above
    survey.links.append(Link("shuffle", chain[-1], (first.input[0],), last.output[0], order=order, nodes=tuple(chain)))
    survey.taken.update(chain[1:])
    return True


def _rest_stays(survey: Survey, x: str, apart: str, y: str) -> bool:
    """Whether batch and positions are the same before, between and behind, at every size looked at."""
    for binding in survey.graph.bindings:
        shapes = [binding.bound.shape(name) for name in (x, apart, y)]
        if any(shape is None for shape in shapes):
            return False
        one, two, three = (tuple(shape or ()) for shape in shapes)
        if not (one == three and one[0] == two[0] and one[2:] == two[3:]):
            return False
    return True


def _pad(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    rank = survey.rank(node.input[0])
    entry = attribute(node, "pads")
    value = constant(survey.graph.model, node.input[1]) if len(node.input) > 1 else None
    pads = list(entry.ints) if entry else [int(pad) for pad in value.reshape(-1)] if value is not None else []
    axes = len(node.input) > 3 and node.input[3]
    if not rank or axes or len(pads) != 2 * rank or pads[1] or pads[1 + rank]:
        _stop_all(survey, node, "Pad adds channels, or what it adds is not known")
        return
    survey.keeps.append(Keep(index, (node.input[0], node.output[0])))


def _resize(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """Resize and Upsample by scales that leave channels alone."""
    position = 1 if node.op_type == "Upsample" or survey.graph.model.opset < 11 else 2
    entry = attribute(node, "scales")
    name = node.input[position] if len(node.input) > position else ""
    value = constant(survey.graph.model, name) if name else None
    scales = list(entry.floats) if entry else [] if value is None else [float(scale) for scale in value.reshape(-1)]
    sizes = len(node.input) > 3 and bool(node.input[3])
    if sizes or len(scales) != survey.rank(node.input[0]) or scales[1] != 1 or attribute(node, "axes"):
        _stop_all(survey, node, f"{node.op_type} by sizes, or by scales that are not known")
        return
    survey.keeps.append(Keep(index, (node.input[0], node.output[0])))


def _conv(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    model = survey.graph.model
    operands = [name for name in node.input[1:] if name]
    entry = attribute(node, "group")
    group = entry.i if entry else 1
    widths = survey.channels(node.input[0]), survey.channels(node.output[0])
    weight = constant(model, node.input[1]) if is_constant(model, node.input[1]) else None
    if weight is None or not all(is_constant(model, name) for name in operands) or None in widths:
        _stop_all(survey, node, f"the weights or channels of {node.op_type} are not known")
        return
    x, y = node.input[0], node.output[0]
    if group == 1:
        survey.deaths.append(End(index, x))
        survey.births.append(End(index, y))
    elif widths[0] == widths[1] == group:
        survey.keeps.append(Keep(index, (x, y)))
    else:
        survey.links.append(Link("groups", index, (x,), y, group, nodes=(index,)))


def _product(survey: Survey, index: int, node: onnx.NodeProto) -> None:
    """Gemm and MatMul of [N, C] with a constant matrix: a 1x1 convolution."""
    model = survey.graph.model
    a, b = node.input[0], node.input[1]
    turned = attribute(node, "transA")
    plain = is_constant(model, b) and not is_constant(model, a) and not (turned and turned.i) and survey.rank(a) == 2
    matrix = constant(model, b) if plain else None
    rest = all(is_constant(model, name) for name in node.input[2:] if name)
    if matrix is None or matrix.ndim != 2 or not rest or survey.channels(a) is None:
        _stop_all(survey, node, f"{node.op_type} is no product of [N, C] with a constant matrix")
        return
    survey.deaths.append(End(index, a))
    if survey.channels(node.output[0]) is not None:
        survey.births.append(End(index, node.output[0]))


def _shape(survey: Survey, _: int, node: onnx.NodeProto) -> None:
    """The shape of a tensor, of which everybody reads other sizes than that of the channels."""
    model = survey.graph.model
    x, y = node.input[0], node.output[0]
    start = attribute(node, "start")
    if start is not None and start.i >= 2:
        return
    harmless = not model.wiring.escapes(y) and start is None and attribute(node, "end") is None
    for reader in model.wiring.readers(y):
        other = model.nodes[reader]
        picks = constant(model, other.input[1]) if other.op_type == "Gather" and other.input[0] == y else None
        rank = survey.rank(x)
        harmless = harmless and picks is not None and bool(rank) and not (picks.astype(np.int64) % rank == 1).any()
    if not harmless:
        survey.stop(x, f"its number of channels is read by Shape '{y}'", size=True)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys((*_NEUTRAL, *_EXTREMES), _broadcasting),
    **dict.fromkeys(("Split", "Slice", "Gather"), _picking),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduction),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaping),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "Concat": _concat,
    "Conv": _conv,
    "Pad": _pad,
    "Shape": _shape,
}
