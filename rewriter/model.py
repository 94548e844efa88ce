"""An ONNX model as the bytes it came in: load, look, splice, save.

Saving never re-encodes what a rewrite did not touch.  The model is kept as the *pieces* of its wire format, one per
field of GraphProto; a splice leaves out pieces and puts new ones in, and every other byte of the output is a copy of
the input's.  For looking, the pieces are parsed once without the data of large initializers (the *skeleton*), so a
model with external or large weights is opened without reading them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from rewriter.errors import BadInput
from rewriter.wire import LENGTH, Field, WireError, fields, header
from rewriter.wiring import Wiring, graph_names, used_names

GRAPH, OPSET_IMPORT = 7, 8  # field numbers of ModelProto
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO, QUANTIZATION = 1, 5, 11, 12, 13, 14  # field numbers of GraphProto
_TENSOR_HEADER = {1, 2, 3, 8, 12, 13, 14, 16}  # TensorProto without its data fields
_LARGE = 1024  # bytes: initializers above are read only on demand
_RELEASED = 1 << 20  # bytes: after handing out a piece this large, its memory is given back
_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One field of GraphProto: its number (0 when of another wire type), all its bytes, where its value begins."""

    number: int
    raw: memoryview
    body_at: int

    @property
    def body(self) -> memoryview:
        return self.raw[self.body_at :]


@dataclass(frozen=True)
class Edit:
    """What a splice changes: nodes left out (by position), nodes put in before a position, initializers added.

    `imports` are operator sets, (domain, version), that the new nodes need; a domain that is imported already is not
    imported again.
    """

    removed: frozenset[int] = frozenset()
    inserted: Mapping[int, tuple[onnx.NodeProto, ...]] = field(default_factory=dict)
    initializers: tuple[onnx.TensorProto, ...] = ()
    imports: tuple[tuple[str, int], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return not (self.removed or self.initializers or self.imports or any(self.inserted.values()))


@dataclass(frozen=True, eq=False)
class Model:
    """An immutable ONNX model.  Make one with `Model.load`; `splice` gives a new one."""

    head: memoryview
    pieces: tuple[Piece, ...]
    tail: memoryview
    folder: Path | None = None
    path: Path | None = None
    source: memoryview | None = None
    """All of its bytes as they were read, while it is unchanged."""
    origin: Model | None = None
    """The model that was read, when this one was spliced from it."""

    @classmethod
    def load(cls, source: str | Path | bytes | onnx.ModelProto | Model) -> Model:
        """Open a model from a path, serialized bytes or a ModelProto (never mutated).

        Raises BadInput, with the reason, when it cannot be read or is not an ONNX model.
        """
        if isinstance(source, Model):
            return source
        if isinstance(source, onnx.ModelProto):
            return _parse(_serialize(source), None)
        if isinstance(source, bytes | bytearray | memoryview):
            return _parse(memoryview(bytes(source)), None)
        path = Path(source)
        return _parse(_map(path), path)

    @cached_property
    def skeleton(self) -> onnx.ModelProto:
        """The model with the data of initializers over 1 KiB left out; do not mutate."""
        try:
            graph = b"".join(bytes(part) for piece in self.pieces for part in _light(piece))
            return onnx.ModelProto.FromString(b"".join([self.head, header(GRAPH, len(graph)), graph, self.tail]))
        except (WireError, DecodeError) as error:
            raise BadInput(f"{self.label} is not an ONNX model: {error}.") from error

    @property
    def original(self) -> Model:
        """The model that was read: itself, unless it was spliced."""
        return self.origin or self

    @property
    def label(self) -> str:
        return f"'{self.path}'" if self.path else "the given model"

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return tuple(self.skeleton.graph.node)

    @cached_property
    def wiring(self) -> Wiring:
        """Producers and consumers of every tensor."""
        try:
            return Wiring.of(self.skeleton)
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.label} has a name that is not UTF-8 text: {error.object[:40]!r}.") from error

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
        try:
            return onnx.TensorProto.FromString(bytes(self._initializer_pieces[name].body))
        except DecodeError as error:
            raise BadInput(f"the initializer '{name}' of {self.label} is damaged (protobuf: {error}).") from error

    @cached_property
    def overridable(self) -> frozenset[str]:
        """Initializers a caller may override: from IR version 4 on, those that are graph inputs too; none before."""
        if self.ir_version < 4:
            return frozenset()
        return frozenset(value.name for value in self.skeleton.graph.input) & self.headers.keys()

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """Graph inputs a caller must feed: those without an initializer."""
        sparse = {tensor.values.name for tensor in self.skeleton.graph.sparse_initializer}
        return tuple(
            value for value in self.skeleton.graph.input if value.name not in self.headers and value.name not in sparse
        )

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
        if edit.empty:
            return self
        orphans = _orphans(self, edit)
        gone = _vanished(self, edit) | orphans
        new: list[Piece] = []
        index = 0
        last_initializer = -1
        after_nodes = 0
        for piece in self.pieces:
            if piece.number == NODE:
                new.extend(_piece(NODE, node) for node in edit.inserted.get(index, ()))
                if index not in edit.removed:
                    new.append(piece)
                index += 1
                after_nodes = len(new)
                continue
            if piece.number in (VALUE_INFO, QUANTIZATION) and _string_field(piece, 1) in gone:
                continue
            if piece.number == INITIALIZER and _string_field(piece, 8) in orphans:
                continue
            new.append(piece)
            if piece.number == INITIALIZER:
                last_initializer = len(new)
        at = last_initializer if last_initializer >= 0 else len(new)
        tensors = [_piece(INITIALIZER, tensor) for tensor in edit.initializers]
        appended = [_piece(NODE, node) for node in edit.inserted.get(index, ())]
        for place, pieces in sorted([(at, tensors), (after_nodes, appended)], key=lambda entry: -entry[0]):
            new[place:place] = pieces
        head, tail = _imported(self, edit.imports)
        return replace(self, head=head, pieces=tuple(new), tail=tail, path=None, source=None, origin=self.original)

    def with_outputs(self, values: Iterable[onnx.ValueInfoProto]) -> Model:
        """A copy with further graph outputs, to look at tensors inside; never saved for a user."""
        extra = tuple(_piece(OUTPUT, value) for value in values)
        return replace(self, pieces=self.pieces + extra, path=None, source=None, origin=self.original)

    @property
    def size(self) -> int:
        """Bytes of the serialized model, external data not counted."""
        return sum(len(chunk) for chunk in self.chunks())

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The serialized model, piece by piece."""
        if self.source is not None:
            for start in range(0, len(self.source), _RELEASED):
                part = self.source[start : start + _RELEASED]
                yield part
                _release(part)
            return
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
    try:
        if path.is_dir():
            raise BadInput(f"'{path}' is a folder, not a model: give the path of an .onnx file.")
        with path.open("rb") as file:
            if not path.is_file():  # a pipe cannot be mapped
                return memoryview(file.read())
            if os.fstat(file.fileno()).st_size == 0:
                raise BadInput(f"'{path}' is empty: it holds no model.")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise BadInput(f"'{path}' does not exist.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"'{path}' cannot be read: {reason}.") from error


def _release(view: memoryview) -> None:
    """Let the memory of a mapped file go again: its pages come back from the file when they are next looked at."""
    if isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        view.obj.madvise(mmap.MADV_DONTNEED)


def _serialize(model: onnx.ModelProto) -> memoryview:
    try:
        return memoryview(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise BadInput(f"the given model cannot be serialized: {error}.") from error


def _parse(data: memoryview, path: Path | None) -> Model:
    where = f"'{path}'" if path else "the given model"
    try:
        graphs = [entry for entry in fields(data) if entry.number == GRAPH and entry.kind == LENGTH]
        if not graphs:
            raise BadInput(f"{where} is not an ONNX model: it holds no graph.")
        pieces = tuple(_slice(data, entry) for graph in graphs for entry in fields(data, graph.body, graph.stop))
    except WireError as error:
        raise BadInput(f"{where} is not an ONNX model (protobuf: {error}).") from error
    # One graph is what everybody writes; several are legal, and mean what one with all of their fields means.
    ends = [*(graph.start for graph in graphs[1:]), len(data)]
    tails = [data[graph.stop : end] for graph, end in zip(graphs, ends, strict=True)]
    tail = tails[0] if len(tails) == 1 else memoryview(b"".join(tails))
    # Not resolved: a link's data files are beside the link, as ONNX Runtime has it.
    folder = path.parent.absolute() if path else None
    model = Model(data[: graphs[0].start], pieces, tail, folder, path, data)
    if not model.skeleton.opset_import:
        raise BadInput(f"{where} is not an ONNX model: it names no operator set.")
    return model


def _slice(data: memoryview, entry: Field) -> Piece:
    number = entry.number if entry.kind == LENGTH else 0
    return Piece(number, data[entry.start : entry.stop], entry.body - entry.start)


def _piece(number: int, message: onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto) -> Piece:
    body = message.SerializeToString(deterministic=True)
    if len(body) > _PROTOBUF_LIMIT:
        raise BadInput(f"the new tensor '{message.name}' would exceed protobuf's limit of 2 GiB.")
    start = header(number, len(body))
    return Piece(number, memoryview(start + body), len(start))


def _imported(model: Model, imports: Iterable[tuple[str, int]]) -> tuple[memoryview, memoryview]:
    """The bytes before and after the graph with these operator sets imported behind the last one that is there."""
    known = {_domain(entry.domain) for entry in model.skeleton.opset_import}
    added = b""
    for domain, version in dict(imports).items():
        if _domain(domain) not in known:
            body = onnx.OperatorSetIdProto(domain=domain, version=version).SerializeToString(deterministic=True)
            added += header(OPSET_IMPORT, len(body)) + body
    if not added:
        return model.head, model.tail
    in_head, in_tail = (
        [entry.stop for entry in fields(part) if entry.number == OPSET_IMPORT] for part in (model.head, model.tail)
    )
    if in_tail or not in_head:
        return model.head, _insert(model.tail, max(in_tail, default=0), added)
    return _insert(model.head, max(in_head), added), model.tail


def _insert(view: memoryview, at: int, added: bytes) -> memoryview:
    return memoryview(b"".join([view[:at], added, view[at:]]))


def _domain(name: str) -> str:
    """The operator set's domain; the default one has two spellings."""
    return "" if name == "ai.onnx" else name


def _light(piece: Piece) -> Iterator[bytes | memoryview]:
    """The piece as it is, or, for a large initializer, with its data fields left out."""
    if piece.number != INITIALIZER or len(piece.raw) <= _LARGE:
        yield piece.raw
        return
    kept = [piece.body[entry.start : entry.stop] for entry in fields(piece.body) if entry.number in _TENSOR_HEADER]
    yield header(INITIALIZER, sum(map(len, kept)))
    yield from kept


def _string_field(piece: Piece, number: int) -> str:
    """The text of a string field; its last occurrence counts, as in protobuf."""
    text = b""
    for entry in fields(piece.body):
        if entry.number == number and entry.kind == LENGTH:
            text = bytes(piece.body[entry.body : entry.stop])
    return text.decode(errors="surrogateescape")


def _survivors(model: Model, edit: Edit) -> list[onnx.NodeProto]:
    kept = [node for index, node in enumerate(model.nodes) if index not in edit.removed]
    return kept + [node for nodes in edit.inserted.values() for node in nodes]


def _vanished(model: Model, edit: Edit) -> set[str]:
    """Tensors that a removed node made and no new node makes."""
    made = {name for index in edit.removed for name in model.nodes[index].output}
    return made - {"", *(name for nodes in edit.inserted.values() for node in nodes for name in node.output)}


def _orphans(model: Model, edit: Edit) -> set[str]:
    """Initializers whose last reader the edit takes away, and that nothing but nodes needs."""
    before = used_names(model.nodes[index] for index in edit.removed)
    after = used_names(_survivors(model, edit))
    graph = model.skeleton.graph
    needed = {value.name for value in (*graph.input, *graph.output)}
    for annotation in graph.quantization_annotation:  # it names its scale and zero point
        needed.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    for training in model.skeleton.training_info:
        needed.update(entry.key for entry in (*training.initialization_binding, *training.update_binding))
        needed.update(graph_names(training.algorithm))
    return (before & model.headers.keys()) - after - needed
