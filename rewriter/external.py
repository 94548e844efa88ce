"""External data: weights a model keeps in files of their own; read only where needed, copied beside a saved model."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from rewriter.errors import BadInput


@dataclass(frozen=True)
class Reference:
    """Where an external tensor's bytes are: file in the model's folder, first byte, number (None: to the end)."""

    location: str
    offset: int
    length: int | None


def reference(tensor: onnx.TensorProto) -> Reference | None:
    """The external reference of a tensor, or None when it is inline; raises BadInput when it names no location."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries.get("location"):
        raise BadInput(f"tensor '{tensor.name}' says its data is external but names no file.")
    try:
        length = int(entries["length"]) if "length" in entries else None
        offset = int(entries.get("offset", "0"))
    except ValueError as error:
        raise BadInput(f"tensor '{tensor.name}' has an external offset or length that is not a number.") from error
    if offset < 0 or (length is not None and length < 0):
        raise BadInput(f"tensor '{tensor.name}' has a negative external offset or length.")
    return Reference(entries["location"], offset, length)


def resolve(location: str, folder: Path | None) -> Path:
    """The file of an external location; raises BadInput when there is no folder, or the location leaves it."""
    if folder is None:
        raise BadInput(
            f"the model keeps weights in the file '{location}', but it was given as bytes or a ModelProto, "
            "so its folder is unknown: give the path of the .onnx file instead."
        )
    path = Path(location)
    if path.is_absolute() or ".." in path.parts:
        raise BadInput(f"the external data location '{location}' leaves the model's folder; refused for safety.")
    return folder / path


def read(ref: Reference, folder: Path | None, name: str) -> bytes:
    """The bytes of one external tensor; raises BadInput when the file is missing or too short."""
    path = resolve(ref.location, folder)
    try:
        with path.open("rb") as file:
            if ref.offset + (ref.length or 0) > file.seek(0, os.SEEK_END):
                raise BadInput(f"the external data file '{path}' ends inside tensor '{name}'.")
            file.seek(ref.offset)
            return file.read(-1 if ref.length is None else ref.length)
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"the weights of tensor '{name}' cannot be read from '{path}': {reason}.") from error


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every TensorProto of a model: initializers and attributes, in graphs, functions and training information."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    yield from (attribute.t, *attribute.tensors)  # a field that is not set reads as an empty message
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _graph_tensors(graph)


def locations(model: onnx.ModelProto) -> list[str]:
    """The external files a model refers to, each once, in order of first use."""
    refs = (reference(tensor) for tensor in tensors(model))
    return list(dict.fromkeys(ref.location for ref in refs if ref is not None))


def check_collisions(names: Iterable[str], source: Path, target: Path) -> list[str]:
    """Those of `names` that must be copied from `source` to `target`; raises BadInput on another file there."""
    todo = []
    for name in names:
        origin, copy = resolve(name, source), target / name
        if not origin.is_file():
            raise BadInput(f"the external data file '{origin}' does not exist.")
        if not copy.exists():
            todo.append(name)
        elif not filecmp.cmp(origin, copy, shallow=False):
            raise BadInput(
                f"'{copy}' exists with other content than the model's external data '{origin}': "
                "choose another output folder, or remove it."
            )
    return todo
