"""The funnel for "untouched is untouched": what a splice may change, checked without any of the code that splices.

`assert_untouched` parses the model before and after, compares every field of every message that the edit does not
concern, and then compares the bytes themselves: what is kept must be a copy, not a new encoding of the same meaning.

`assert_stamped` does the same for the one exception, the three entries of metadata_props that say where a file is from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from rewriter.model import Edit

_GRAPH, _METADATA = 7, 14  # numbers of ModelProto.graph and metadata_props
STAMP = ("rewriter.version", "rewriter.passes", "rewriter.source.sha256")
"""Keys of the only entries that may be added, behind everything else; those of an earlier run make way for them."""
_NODE, _INITIALIZER, _VALUE_INFO, _ANNOTATION = 1, 5, 13, 14  # numbers in GraphProto
_MAY_CHANGE = {"node", "initializer", "value_info", "quantization_annotation"}


def assert_untouched(before: bytes, after: bytes, edit: Edit) -> None:
    """Assert that `after` is `before` with the edit's nodes and initializers exchanged, and nothing else.

    An initializer must go when the edit took its last reader and nothing else needs it; value_info and quantization
    annotations must go with their tensors.  Everything else must stay, in order, as the same bytes.
    """
    old, new = onnx.ModelProto.FromString(before), onnx.ModelProto.FromString(after)
    _assert_fields("model", old, new, except_for={"graph"})
    _assert_fields("graph", old.graph, new.graph, except_for=_MAY_CHANGE)

    assert all(0 <= index < len(old.graph.node) for index in edit.removed), "the edit removes nodes that do not exist"
    _assert_same("node", _expected_nodes(old, edit), new.graph.node)

    dropped = _orphans(old, new, edit)
    kept = [tensor for tensor in old.graph.initializer if tensor.name not in dropped]
    after_kept = [tensor for tensor in new.graph.initializer if tensor.name not in {t.name for t in edit.initializers}]
    _assert_same("initializer", kept, after_kept)
    added = [tensor for tensor in new.graph.initializer if tensor.name in {t.name for t in edit.initializers}]
    _assert_same("new initializer", edit.initializers, added)

    gone = (_made([old.graph.node[i] for i in edit.removed]) - _made(new.graph.node)) | dropped
    _assert_same("value_info", [v for v in old.graph.value_info if v.name not in gone], new.graph.value_info)
    annotations = [a for a in old.graph.quantization_annotation if a.tensor_name not in gone]
    _assert_same("quantization_annotation", annotations, new.graph.quantization_annotation)

    _assert_names(old, new, edit)
    _assert_copied(before, after, old, edit, dropped, gone)


def assert_stamped(before: bytes, after: bytes, values: Sequence[str]) -> None:
    """Assert that `after` is `before` with the STAMP of these values behind it, and nothing else.

    What `before` has of such entries must be gone.  To check a rewritten and stamped file against its source, take
    `without_stamp` of either and hand both to `assert_untouched`.
    """
    body, found = without_stamp(after)
    assert found == list(zip(STAMP, values, strict=True)), f"the stamp is {found}"
    assert body == without_stamp(before)[0], "bytes that are no stamp changed"
    assert after[: len(body)] == body, "the stamp is not behind everything else"


def without_stamp(data: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """The bytes of a model without its stamp, and the stamp, in the file's order."""
    kept, found = [], []
    for field in raw_fields(data):
        entry = onnx.StringStringEntryProto.FromString(field.body) if field.number == _METADATA else None
        if entry is None or entry.key not in STAMP:
            kept.append(field.raw)
        else:
            found.append((entry.key, entry.value))
    return b"".join(kept), found


def parts(message: Message) -> dict[str, list[bytes]]:
    """Every field of a message by name, present or not, each value serialised; unknown fields too."""
    found: dict[str, list[bytes]] = {}
    for field in message.DESCRIPTOR.fields:
        value: Any = getattr(message, field.name)
        if hasattr(value, "__len__") and not isinstance(value, str | bytes):  # a repeated field
            found[field.name] = [_bytes(item) for item in value]
        else:
            found[field.name] = [_bytes(value)] if message.HasField(field.name) else []
    unknown = UnknownFieldSet(message)
    entries = [unknown[index] for index in range(len(unknown))]
    found["unknown fields"] = [repr((entry.field_number, entry.wire_type, entry.data)).encode() for entry in entries]
    return found


def _bytes(value: Any) -> bytes:
    if isinstance(value, Message):
        return value.SerializeToString(deterministic=True)
    return value if isinstance(value, bytes) else repr(value).encode()


def _assert_fields(where: str, old: Message, new: Message, except_for: set[str]) -> None:
    after = parts(new)
    for name, values in parts(old).items():
        assert name in except_for or values == after[name], f"{where}: {name} changed"


def _assert_same(what: str, expected: Sequence[Any], actual: Sequence[Any]) -> None:
    """The same messages in the same order; a difference is named by the field it is in."""
    for position, (one, other) in enumerate(zip(expected, actual, strict=False)):
        _assert_fields(f"{what} {position} ({_name(one)})", one, other, except_for=set())
        assert _bytes(one) == _bytes(other), f"{what} {position} ({_name(one)}) changed"
    assert len(expected) == len(actual), f"{what}: {len(actual)} instead of {len(expected)}"


def _name(message: Any) -> str:
    return str(getattr(message, "name", "") or getattr(message, "tensor_name", ""))


def _expected_nodes(old: onnx.ModelProto, edit: Edit) -> list[onnx.NodeProto]:
    expected: list[onnx.NodeProto] = []
    for index, node in enumerate(old.graph.node):
        expected.extend(edit.inserted.get(index, ()))
        if index not in edit.removed:
            expected.append(node)
    return expected + list(edit.inserted.get(len(old.graph.node), ()))


def _made(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output if name}


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, in its subgraphs too; names made inside are reported as well, which is harmless here."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _read(inner)


def _orphans(old: onnx.ModelProto, new: onnx.ModelProto, edit: Edit) -> set[str]:
    read_before = {name for index in edit.removed for name in _read(old.graph.node[index])}
    read_after = {name for node in new.graph.node for name in _read(node)}
    interface = {value.name for value in (*old.graph.input, *old.graph.output)}
    named = {p.value for a in old.graph.quantization_annotation for p in a.quant_parameter_tensor_names}
    bound = {p.key for t in old.training_info for p in (*t.initialization_binding, *t.update_binding)}
    return ({t.name for t in old.graph.initializer} & read_before) - read_after - interface - named - bound


def _assert_names(old: onnx.ModelProto, new: onnx.ModelProto, edit: Edit) -> None:
    """New tensors take no name that is in use anywhere; nothing reads a tensor before it is made."""
    removed = _made([old.graph.node[i] for i in edit.removed])
    fresh = _made([n for nodes in edit.inserted.values() for n in nodes]) | {t.name for t in edit.initializers}
    taken = (fresh - removed) & set(_names(old.graph))
    assert not taken, f"new tensors take names in use: {sorted(taken)}"
    known = {v.name for v in new.graph.input} | {t.name for t in new.graph.initializer}
    known |= {t.values.name for t in new.graph.sparse_initializer}
    for node in new.graph.node:
        missing = {name for name in node.input if name} - known
        assert not missing, f"node '{node.name}' reads {sorted(missing)}, which nothing before it makes"
        known |= set(node.output)
    lost = {value.name for value in new.graph.output} - known
    assert not lost, f"nothing makes the outputs {sorted(lost)}"


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)


# The bytes: a decoder of its own, so that an error in rewriter.wire cannot hide itself.


class Raw(NamedTuple):
    """One field as it lies in the file; `number` is 0 unless it can hold a message, which all we look for are."""

    number: int
    raw: bytes
    body: bytes


def raw_fields(data: bytes) -> list[Raw]:
    """The fields of a serialised message, in order."""
    found, at = [], 0
    while at < len(data):
        start = at
        tag, at = _number(data, at)
        body = at
        match tag & 7:
            case 0:
                _, at = _number(data, at)
            case 1:
                at += 8
            case 2:
                length, body = _number(data, at)
                at = body + length
            case 5:
                at += 4
            case kind:
                raise AssertionError(f"wire type {kind}")
        found.append(Raw(tag >> 3 if tag & 7 == 2 else 0, data[start:at], data[body:at]))
    assert at == len(data)
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    length = next(count for count in range(1, 11) if data[at + count - 1] < 128)
    return sum((byte & 127) << 7 * place for place, byte in enumerate(data[at : at + length])), at + length


def _assert_copied(
    before: bytes, after: bytes, old: onnx.ModelProto, edit: Edit, dropped: set[str], gone: set[str]
) -> None:
    """Kept fields are the same bytes in the same order, at the top and in the graph."""
    top_before, top_after = raw_fields(before), raw_fields(after)
    outside = [[field.raw for field in top if field.number != _GRAPH] for top in (top_before, top_after)]
    assert outside[0] == outside[1], "bytes outside the graph changed"
    pieces_before, pieces_after = (
        [piece for field in top if field.number == _GRAPH for piece in raw_fields(field.body)]
        for top in (top_before, top_after)
    )
    new_nodes = _new_positions(len(old.graph.node), edit)
    new_tensors = {tensor.name for tensor in edit.initializers}
    kept = _kept(pieces_before, edit.removed, dropped, gone)
    copied = _kept(pieces_after, new_nodes, new_tensors, set())
    for position, (one, other) in enumerate(zip(kept, copied, strict=False)):
        assert one == other, f"kept piece {position} of the graph (field {raw_fields(one)[0].number}) is not a copy"
    assert len(kept) == len(copied), f"{len(copied)} kept pieces in the graph instead of {len(kept)}"


def _new_positions(count: int, edit: Edit) -> set[int]:
    """Where the inserted nodes stand among the nodes after the edit."""
    found: set[int] = set()
    at = 0
    for index in range(count + 1):
        new = len(edit.inserted.get(index, ()))
        found.update(range(at, at + new))
        at += new + (index not in edit.removed)
    return found


def _kept(pieces: Sequence[Raw], nodes: Set[int], tensors: Set[str], described: Set[str]) -> list[bytes]:
    """All pieces but those nodes (by position), those initializers, and what describes those tensors."""
    kept = []
    node = 0
    for piece in pieces:
        if piece.number == _NODE:
            leave_out = node in nodes
            node += 1
        elif piece.number == _INITIALIZER:
            leave_out = onnx.TensorProto.FromString(piece.body).name in tensors
        elif piece.number == _VALUE_INFO:
            leave_out = onnx.ValueInfoProto.FromString(piece.body).name in described
        elif piece.number == _ANNOTATION:
            leave_out = onnx.TensorAnnotation.FromString(piece.body).tensor_name in described
        else:
            leave_out = False
        if not leave_out:
            kept.append(piece.raw)
    return kept
