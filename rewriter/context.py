"""The neighbourhood of a rewrite: what has to be timed together, because layouts are converted at its border."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import onnx

from rewriter.constants import is_constant
from rewriter.model import Model

_UP, _DOWN = 6, 8  # nodes to walk at most, each way


def neighbourhood(model: Model, region: Iterable[int]) -> frozenset[int]:
    """The region and the nodes around it up to the next Conv on each side, those Convs included.

    ONNX Runtime keeps its blocked layout between convolutions, so what a rewrite gains or loses in conversions shows
    only together with them.
    """
    chosen = set(region)
    for index in sorted(chosen):
        for name in model.nodes[index].input[:1]:
            _walk_up(model, name, chosen)
    for index in sorted(set(region)):
        for name in model.nodes[index].output:
            _walk_down(model, name, chosen)
    return frozenset(chosen)


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
    todo = [(tensor, 0)]
    while todo:
        name, depth = todo.pop()
        for reader in model.wiring.readers(name):
            if reader in chosen or depth >= _DOWN:
                continue
            chosen.add(reader)
            if model.nodes[reader].op_type != "Conv":
                todo += [(output, depth + 1) for output in model.nodes[reader].output]


def signature(part: onnx.ModelProto) -> str:
    """A hash of a model's operators, attributes, wiring and shapes, no names or weights: equal parts cost the same."""
    digest = hashlib.sha256()
    number: dict[str, int] = {"": 0}

    def short(name: str) -> str:
        return str(number.setdefault(name, len(number)))

    for value in part.graph.input:
        digest.update(short(value.name).encode() + value.type.SerializeToString(deterministic=True))
    for tensor in part.graph.initializer:
        digest.update(f"{short(tensor.name)} {tensor.data_type} {list(tensor.dims)}".encode())
        if tensor.data_type == onnx.TensorProto.INT64:
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
    for node in part.graph.node:
        digest.update(
            f"{node.domain}/{node.op_type}({[short(n) for n in node.input]}){[short(n) for n in node.output]}".encode()
        )
        for entry in sorted(node.attribute, key=lambda entry: str(entry.name)):
            content = (
                entry.SerializeToString(deterministic=True)
                if entry.type != onnx.AttributeProto.TENSOR
                else _kind(entry.t)
            )
            digest.update(content)
    for value in part.graph.output:
        digest.update(short(value.name).encode())
    return digest.hexdigest()


def _kind(tensor: onnx.TensorProto) -> bytes:
    return f"{tensor.data_type} {list(tensor.dims)}".encode()
