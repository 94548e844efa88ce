"""An ONNX model as the bytes it came in: load, look, splice, save.

Saving never re-encodes what a rewrite did not touch.  The model is kept as the *pieces* of its wire format, one per
field of GraphProto; a splice leaves out pieces and puts new ones in, and every other byte of the output is a copy of
the input's.  For looking, the pieces are parsed once without the data of large initializers (the *skeleton*), so a
model with external or large weights is opened without reading them.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from rewriter.errors import BadInput
from rewriter.wire import Field, WireError, fields, header
from rewriter.wiring import Wiring, used_names

GRAPH = 7  # field number of ModelProto.graph
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO, QUANTIZATION = 1, 5, 11, 12, 13, 14  # field numbers of GraphProto
_TENSOR_HEADER = {1, 2, 3, 8, 12, 13, 14, 16}  # TensorProto without its data fields
_LARGE = 1024  # bytes: initializers above are read only on demand
_RELEASED = 1 << 20  # bytes: after handing out a piece this large, its memory is given back
_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One field of GraphProto: its number, all of its bytes, and where its value begins in them."""

    number: int
    raw: memoryview
    body_at: int

    @property
    def body(self) -> memoryview:
        return self.raw[self.body_at :]


@dataclass(frozen=True)
class Edit:
    """What a splice changes: nodes left out (by position), nodes put in before a position, initializers added."""

    removed: frozenset[int] = frozenset()
    inserted: Mapping[int, tuple[onnx.NodeProto, ...]] = field(default_factory=dict)
    initializers: tuple[onnx.TensorProto, ...] = ()


@dataclass(frozen=True, eq=False)
class Model:
    """An immutable ONNX model.  Make one with `Model.load`; `splice` gives a new one."""

    head: memoryview
    pieces: tuple[Piece, ...]
    tail: memoryview
    folder: Path | None = None
    path: Path | None = None

    @classmethod
    def load(cls, source: str | Path | bytes | onnx.ModelProto | Model) -> Model:
        """Open a model from a path, serialized bytes or a ModelProto (never mutated).

        Raises BadInput, with the reason, when it cannot be read or is not an ONNX model.
        """
        if isinstance(source, Model):
            return source
        if isinstance(source, onnx.ModelProto):
            return _parse(memoryview(source.SerializeToString(deterministic=True)), None)
        if isinstance(source, bytes | bytearray | memoryview):
            return _parse(memoryview(bytes(source)), None)
        path = Path(source)
        return _parse(_map(path), path)

    @cached_property
    def skeleton(self) -> onnx.ModelProto:
        """The model with the data of initializers over 1 KiB left out; do not mutate."""
        graph = b"".join(bytes(part) for piece in self.pieces for part in _light(piece))
        whole = b"".join([self.head, header(GRAPH, len(graph)), graph, self.tail])
        try:
            return onnx.ModelProto.FromString(whole)
        except DecodeError as error:
            raise BadInput(f"{self.label} is not an ONNX model: {error}.") from error

    @property
    def label(self) -> str:
        return f"'{self.path}'" if self.path else "the model"

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return tuple(self.skeleton.graph.node)

    @cached_property
    def wiring(self) -> Wiring:
        """Producers and consumers of every tensor."""
        return Wiring.of(self.skeleton)

    @cached_property
    def headers(self) -> Mapping[str, onnx.TensorProto]:
        """Initializers by name; large ones without data (see `initializer`)."""
        return {tensor.name: tensor for tensor in self.skeleton.graph.initializer}

    @cached_property
    def _initializer_pieces(self) -> Mapping[str, Piece]:
        pieces = (piece for piece in self.pieces if piece.number == INITIALIZER)
        return {tensor.name: piece for tensor, piece in zip(self.skeleton.graph.initializer, pieces, strict=True)}

    def initializer(self, name: str) -> onnx.TensorProto:
        """The whole initializer, parsed on demand (external data is not read)."""
        return onnx.TensorProto.FromString(bytes(self._initializer_pieces[name].body))

    @cached_property
    def overridable(self) -> frozenset[str]:
        """Initializers a caller may override: from IR version 4 on, those that are graph inputs too; none before."""
        if self.ir_version < 4:
            return frozenset()
        return frozenset(value.name for value in self.skeleton.graph.input) & self.headers.keys()

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """Graph inputs a caller must feed: those without an initializer."""
        return tuple(value for value in self.skeleton.graph.input if value.name not in self.headers)

    @cached_property
    def outputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        return tuple(self.skeleton.graph.output)

    @property
    def ir_version(self) -> int:
        return int(self.skeleton.ir_version)

    @cached_property
    def opset(self) -> int:
        """Version of the default operator set; 0 when the model imports none."""
        versions = [entry.version for entry in self.skeleton.opset_import if entry.domain in ("", "ai.onnx")]
        return int(versions[0]) if versions else 0

    def splice(self, edit: Edit) -> Model:
        """A new model with the edit's nodes and initializers exchanged and every other byte as it was.

        Tensors that no longer exist lose their value_info and quantization annotations; an initializer goes when the
        edit took its last reader, unless it is a graph input (that would change the interface).
        """
        orphans = _orphans(self, edit)
        gone = _vanished(self, edit)
        new: list[Piece] = []
        index = 0
        last_initializer = -1
        for piece in self.pieces:
            if piece.number == NODE:
                new.extend(_piece(NODE, node) for node in edit.inserted.get(index, ()))
                if index not in edit.removed:
                    new.append(piece)
                index += 1
                continue
            if piece.number == VALUE_INFO and _string_field(piece, 1) in gone:
                continue
            if piece.number == QUANTIZATION and _string_field(piece, 1) in gone:
                continue
            if piece.number == INITIALIZER and _string_field(piece, 8) in orphans:
                continue
            new.append(piece)
            if piece.number == INITIALIZER:
                last_initializer = len(new)
        at = last_initializer if last_initializer >= 0 else len(new)
        new[at:at] = [_piece(INITIALIZER, tensor) for tensor in edit.initializers]
        return replace(self, pieces=tuple(new), path=None)

    def with_outputs(self, values: Iterable[onnx.ValueInfoProto]) -> Model:
        """A copy with further graph outputs, to look at tensors inside; never saved for a user."""
        extra = tuple(_piece(OUTPUT, value) for value in values)
        return replace(self, pieces=self.pieces + extra, path=None)

    @property
    def size(self) -> int:
        """Bytes of the serialized model, external data not counted."""
        return sum(len(chunk) for chunk in self.chunks())

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The serialized model, piece by piece."""
        yield self.head
        yield header(GRAPH, sum(len(piece.raw) for piece in self.pieces))
        for piece in self.pieces:
            yield piece.raw
            if len(piece.raw) > _RELEASED:
                _release(piece.raw)
        yield self.tail

    def to_bytes(self) -> bytes:
        return b"".join(self.chunks())

    def to_proto(self) -> onnx.ModelProto:
        """A fresh ModelProto; external tensors stay references."""
        return onnx.ModelProto.FromString(self.to_bytes())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the serialized model, as hex."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


def _map(path: Path) -> memoryview:
    """The bytes of a file, mapped rather than read: pages that nobody looks at cost nothing."""
    if path.is_dir():
        raise BadInput(f"'{path}' is a folder, not a model: give the path of an .onnx file.")
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise BadInput(f"'{path}' is empty: it holds no model.")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise BadInput(f"'{path}' does not exist.") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"'{path}' cannot be read: {error}.") from error


def _release(view: memoryview) -> None:
    """Let the memory of a mapped file go again: its pages come back from the file when they are next looked at."""
    if isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        view.obj.madvise(mmap.MADV_DONTNEED)


def _parse(data: memoryview, path: Path | None) -> Model:
    where = f"'{path}'" if path else "the given model"
    try:
        top = list(fields(data))
        graphs = [entry for entry in top if entry.number == GRAPH]
        if len(graphs) > 1:  # legal but unheard of: protobuf merges repeated sub-messages, so let it
            merged = onnx.ModelProto.FromString(bytes(data)).SerializeToString(deterministic=True)
            return _parse(memoryview(merged), path)
        if not graphs:
            raise BadInput(f"{where} is not an ONNX model: it holds no graph.")
        graph = graphs[0]
        pieces = tuple(_slice(data, entry) for entry in fields(data, graph.body, graph.stop))
    except (WireError, DecodeError) as error:
        raise BadInput(f"{where} is not an ONNX model (protobuf: {error}).") from error
    folder = path.resolve().parent if path else None
    model = Model(data[: graph.start], pieces, data[graph.stop :], folder, path)
    if not model.skeleton.opset_import:
        raise BadInput(f"{where} is not an ONNX model: it names no operator set.")
    return model


def _slice(data: memoryview, entry: Field) -> Piece:
    return Piece(entry.number, data[entry.start : entry.stop], entry.body - entry.start)


def _piece(number: int, message: onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto) -> Piece:
    body = message.SerializeToString(deterministic=True)
    if len(body) > _PROTOBUF_LIMIT:
        raise BadInput(f"the new tensor '{message.name}' would exceed protobuf's limit of 2 GiB.")
    start = header(number, len(body))
    return Piece(number, memoryview(start + body), len(start))


def _light(piece: Piece) -> Iterator[bytes | memoryview]:
    """The piece as it is, or, for a large initializer, with its data fields left out."""
    if piece.number != INITIALIZER or len(piece.raw) <= _LARGE:
        yield piece.raw
        return
    kept = [piece.body[entry.start : entry.stop] for entry in fields(piece.body) if entry.number in _TENSOR_HEADER]
    yield header(INITIALIZER, sum(map(len, kept)))
    yield from kept


def _string_field(piece: Piece, number: int) -> str:
    for entry in fields(piece.body):
        if entry.number == number:
            return bytes(piece.body[entry.body : entry.stop]).decode()
    return ""


def _survivors(model: Model, edit: Edit) -> list[onnx.NodeProto]:
    kept = [node for index, node in enumerate(model.nodes) if index not in edit.removed]
    return kept + [node for nodes in edit.inserted.values() for node in nodes]


def _vanished(model: Model, edit: Edit) -> set[str]:
    """Tensors that a removed node made and no new node makes."""
    made = {name for index in edit.removed for name in model.nodes[index].output}
    return made - {name for nodes in edit.inserted.values() for node in nodes for name in node.output}


def _orphans(model: Model, edit: Edit) -> set[str]:
    """Initializers whose last reader the edit takes away."""
    before = used_names(model.nodes[index] for index in edit.removed)
    after = used_names(_survivors(model, edit))
    interface = {value.name for value in (*model.skeleton.graph.input, *model.skeleton.graph.output)}
    return (before & model.headers.keys()) - after - interface
