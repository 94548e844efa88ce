"""The neighbourhood of a rewrite: what has to be timed together, because layouts are converted at its border."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import onnx

from rewriter.constants import is_constant
from rewriter.model import Model

_UP, _DOWN = 6, 8  # nodes to walk at most, each way
_BETWEEN = 12  # nodes at most that are taken in because they stand between two of the others
_JOINS = 1  # residual additions to walk through: beyond, equal blocks would differ by how many come behind them


def neighbourhood(model: Model, region: Iterable[int]) -> frozenset[int]:
    """The region and the nodes around it up to the next Conv on each side, those Convs included.

    ONNX Runtime keeps its blocked layout between convolutions, so what a rewrite gains or loses in conversions shows
    only together with them.
    """
    chosen = set(region)
    for index in sorted(chosen):
        node = model.nodes[index]
        for name in node.input[:1] if node.op_type == "Conv" else node.input:
            _walk_up(model, name, chosen)
    for index in sorted(set(region)):
        for name in model.nodes[index].output:
            _walk_down(model, name, chosen)
    return frozenset(chosen | _between(model, chosen))


def _between(model: Model, chosen: set[int]) -> set[int]:
    """Nodes on the way from one chosen node to another, if few: a tensor that left and came back would be both ends."""
    first, last = min(chosen), max(chosen)
    behind: set[int] = set()
    todo = [name for index in chosen for name in model.nodes[index].output]
    while todo:
        for reader in model.wiring.readers(todo.pop()):
            if first < reader < last and reader not in behind | chosen:
                behind.add(reader)
                todo += model.nodes[reader].output
    before: set[int] = set()
    todo = [name for index in chosen for name in model.nodes[index].input]
    while todo:
        maker = model.wiring.producer(todo.pop())
        if maker is not None and maker in behind and maker not in before:
            before.add(maker)
            todo += model.nodes[maker].input
    return before if len(before) <= _BETWEEN else set()


def _walk_up(model: Model, tensor: str, chosen: set[int]) -> None:
    for _ in range(_UP):
        maker = model.wiring.producer(tensor)
        if maker is None or maker in chosen or is_constant(model, tensor):
            return
        node = model.nodes[maker]
        moving = [name for name in node.input if name and not is_constant(model, name)]
        if len(moving) != 1:
            return
        chosen.add(maker)
        if node.op_type == "Conv":
            return
        tensor = moving[0]


def _walk_down(model: Model, tensor: str, chosen: set[int]) -> None:
    todo = [(tensor, 0, 0)]
    while todo:
        name, depth, joins = todo.pop()
        for reader in model.wiring.readers(name):
            if reader in chosen or depth >= _DOWN:
                continue
            node = model.nodes[reader]
            here = joins + _joins(model, node)
            if here > _JOINS:
                continue
            chosen.add(reader)
            if node.op_type != "Conv":
                todo += [(output, depth + 1, here) for output in node.output]


def _joins(model: Model, node: onnx.NodeProto) -> bool:
    """Whether a node brings several tensors together."""
    return sum(bool(name) and not is_constant(model, name) for name in node.input) > 1


def signature(part: onnx.ModelProto) -> str:
    """A hash of a model's operators, attributes, wiring and shapes, no names or weights: equal parts cost the same."""
    digest = hashlib.sha256()
    number: dict[str, int] = {"": 0}  # tensors in order of first use, so that the order of initializers does not count
    for node in part.graph.node:
        reads = [number.setdefault(name, len(number)) for name in node.input]
        makes = [number.setdefault(name, len(number)) for name in node.output]
        digest.update(f"{node.domain}/{node.op_type}({reads}){makes}".encode())
        for entry in sorted(node.attribute, key=lambda entry: str(entry.name)):
            tensor = entry.type == onnx.AttributeProto.TENSOR
            digest.update(_kind(entry.t) if tensor else entry.SerializeToString(deterministic=True))
    for value in sorted(part.graph.input, key=lambda value: number.get(value.name, -1)):
        digest.update(f"{number.get(value.name)}".encode() + value.type.SerializeToString(deterministic=True))
    for weight in sorted(part.graph.initializer, key=lambda tensor: number.get(tensor.name, -1)):
        digest.update(f"{number.get(weight.name)}".encode() + _kind(weight))
    digest.update(str(sorted(number.get(value.name, -1) for value in part.graph.output)).encode())
    return digest.hexdigest()


def _kind(tensor: onnx.TensorProto) -> bytes:
    """Type and shape; of shape vectors the values too, because they decide what is computed."""
    kind = f"{tensor.data_type} {list(tensor.dims)}".encode()
    if tensor.data_type != onnx.TensorProto.INT64 or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return kind
    return kind + onnx.numpy_helper.to_array(tensor).tobytes()
