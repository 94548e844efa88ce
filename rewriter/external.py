"""External data: weights a model keeps in files of their own; read only where needed, copied beside a saved model."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
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
        return Reference(entries["location"], int(entries.get("offset", "0")), length)
    except ValueError as error:
        raise BadInput(f"tensor '{tensor.name}' has an external offset or length that is not a number.") from error


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
            file.seek(ref.offset)
            data = file.read(-1 if ref.length is None else ref.length)
    except OSError as error:
        raise BadInput(f"the weights of tensor '{name}' cannot be read from '{path}': {error.strerror}.") from error
    if ref.length is not None and len(data) < ref.length:
        raise BadInput(f"the external data file '{path}' ends inside tensor '{name}'.")
    return data


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every TensorProto of a model: initializers and attributes, in the graph, its subgraphs and the functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
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


def copy_beside(names: Iterable[str], source: Path, target: Path) -> list[Path]:
    """Copy external files, each atomically; returns the files made, and leaves none behind when one fails."""
    made: list[Path] = []
    try:
        for name in names:
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=copy.parent, prefix=f".{copy.name}.")
            os.close(handle)
            try:
                shutil.copyfile(source / name, temporary)
                Path(temporary).replace(copy)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            made.append(copy)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return made
