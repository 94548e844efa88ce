"""What passes ask of the tensors behind a node: who alone reads one, of what type it is, whether two have one shape."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.rule import require
from rewriter.wiring import used_names


def only_reader(graph: Graph, tensor: str, matched: int = 1) -> int:
    """Position of the node that alone reads a tensor; declines where others need it, too."""
    wiring = graph.model.wiring
    escape = wiring.escapes(tensor)
    require(not escape, f"{escape}, so it must stay", tensor, matched=matched)
    readers = wiring.readers(tensor)
    require(len(readers) == 1, f"'{tensor}' has {len(readers)} readers, not one", tensor, matched=matched)
    return readers[0]


def element_type(graph: Graph, tensor: str) -> str:
    """`float`, `float16`, … as ONNX names it; `unknown` where it cannot be derived."""
    kind = graph.bindings[0].bound.types.get(tensor)
    if kind is None or not kind.tensor_type.elem_type:
        return "unknown"
    return str(onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type)).lower()


def why_other_shape(graph: Graph, one: str, other: str) -> str:
    """A clause where two tensors are not known to have one shape, whatever the model is fed; empty where they are."""
    for binding in graph.bindings:
        shapes = [binding.bound.shape(name) for name in (one, other)]
        for name, shape in zip((one, other), shapes, strict=True):
            if shape is None:
                return f"the shape of '{name}' cannot be derived"
        if shapes[0] != shapes[1]:
            return f"'{other}' is {list(shapes[1] or ())}, not {list(shapes[0] or ())}"
    sizes = [graph.sizes(name) for name in (one, other)]
    if sizes[0] == sizes[1] and sizes[0] is not None and None not in sizes[0]:
        return ""
    # The bindings give the free axes of all inputs the same sizes, and a caller need not.
    free = sorted(_free_inputs(graph.model, (one, other)))
    if len(free) > 1:
        return "their free axes are those of several inputs: " + " and ".join(f"'{name}'" for name in free)
    return ""


def _free_inputs(model: Model, tensors: Iterable[str]) -> set[str]:
    """Graph inputs with an axis of no fixed size from which the tensors are computed."""
    todo, seen = list(tensors), set()
    while todo:
        name = todo.pop()
        maker = None if name in seen else model.wiring.producer(name)
        seen.add(name)
        if maker is not None:
            todo += used_names([model.nodes[maker]])
    return {value.name for value in model.skeleton.graph.input if value.name in seen and not _is_fixed(model, value)}


def _is_fixed(model: Model, value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    if value.name in model.headers and value.name not in model.overridable:
        return True
    return kind.HasField("shape") and all(dim.dim_value > 0 for dim in kind.shape.dim)
