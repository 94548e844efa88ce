"""The wire format: field boundaries agree with protobuf's own parser, and what is no message is refused."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from graphs import exotic_model
from rewriter.wire import FIXED32, FIXED64, LENGTH, VARINT, WireError, fields, header
from untouched import raw_fields


def varint(value: int, length: int = 0) -> bytes:
    """A varint of at least `length` bytes: protobuf allows more than are needed."""
    out: list[int] = []
    while value or len(out) < max(length, 1):
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out[:-1], out[-1] & 127])


NUMBERS = st.one_of(st.integers(1, 20), st.integers(1, 2**29 - 1))
PADDING = st.integers(0, 5)


@st.composite
def field(draw: st.DrawFn) -> tuple[int, int, bytes, bytes]:
    """Number, wire type, value and encoding of one field, varints minimal or not."""
    number = draw(NUMBERS)
    kind = draw(st.sampled_from([VARINT, FIXED64, LENGTH, FIXED32]))
    tag = varint(number << 3 | kind, draw(PADDING))
    if kind == VARINT:
        body = varint(draw(st.integers(0, 2**64 - 1)), draw(PADDING))
        return number, kind, body, tag + body
    if kind == LENGTH:
        body = draw(st.binary(max_size=300))
        return number, kind, body, tag + varint(len(body), draw(PADDING)) + body
    body = draw(st.binary(min_size=8 if kind == FIXED64 else 4, max_size=8 if kind == FIXED64 else 4))
    return number, kind, body, tag + body


@given(st.lists(field(), max_size=8))
def test_fields_are_found_in_any_legal_encoding(made: list[tuple[int, int, bytes, bytes]]) -> None:
    data = b"".join(raw for *_, raw in made)
    found = list(fields(memoryview(data)))
    assert [(f.number, f.kind, data[f.body : f.stop], data[f.start : f.stop]) for f in found] == made


@given(st.lists(field(), max_size=8))
def test_fields_agree_with_protobuf(made: list[tuple[int, int, bytes, bytes]]) -> None:
    data = b"".join(raw for *_, raw in made)
    message = Empty.FromString(data)  # to which every field is unknown
    unknown = UnknownFieldSet(message)
    expected = [(unknown[i].field_number, unknown[i].wire_type) for i in range(len(unknown))]
    assert [(f.number, f.kind) for f in fields(memoryview(data))] == expected


@given(st.binary(max_size=60))
def test_what_we_accept_protobuf_accepts_too_and_what_it_accepts_without_groups_we_do(data: bytes) -> None:
    try:
        Empty.FromString(data)
        legal = True
    except Exception:  # noqa: BLE001 - DecodeError, whichever class this protobuf raises
        legal = False
    try:
        found = list(fields(memoryview(data)))
    except WireError:
        grouped = any(byte & 7 == 3 for byte in data)
        assert not legal or grouped
        return
    assert [data[f.start : f.stop] for f in found] == [f.raw for f in raw_fields(data)]
    oversized = any(f.number >= 2**29 for f in found) or any(byte == 0x80 for byte in data)
    assert legal or oversized


def test_a_part_of_the_buffer_is_read_as_one_message() -> None:
    data = exotic_model().SerializeToString(deterministic=True)
    view = memoryview(data)
    (graph,) = [entry for entry in fields(view) if entry.number == 7]
    inner = list(fields(view, graph.body, graph.stop))
    assert inner[0].start == graph.body
    assert inner[-1].stop == graph.stop
    assert onnx.GraphProto.FromString(data[graph.body : graph.stop]).name == "exotic graph"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00", "field number 0 at byte 0"),
        (b"\x0a", "ends inside a varint"),
        (b"\x0a\x05ab", "field 1 at byte 0 runs past the end"),
        (b"\x08", "ends inside a varint"),
        (b"\x08\xff", "ends inside a varint"),
        (b"\x0d\x00\x00\x00", "runs past the end"),
        (b"\x09" + bytes(7), "runs past the end"),
        (b"\x0b", "wire type 3 at byte 0"),
        (b"\x0e", "wire type 6 at byte 0"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "longer than 10 bytes"),
        (b"\x08\x01\x12\x03ab", "field 2 at byte 2"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        list(fields(memoryview(data)))


def test_a_field_may_not_run_past_the_part() -> None:
    with pytest.raises(WireError, match="runs past the end"):
        list(fields(memoryview(b"\x0a\x02abcd"), 0, 3))


@given(st.integers(1, 2**29 - 1), st.binary(max_size=300))
def test_header_is_what_protobuf_writes(number: int, body: bytes) -> None:
    (found,) = fields(memoryview(header(number, len(body)) + body))
    assert (found.number, found.kind, found.body) == (number, LENGTH, len(header(number, len(body))))
    assert header(number, len(body)) == varint(number << 3 | LENGTH) + varint(len(body))


def test_header_of_a_large_body() -> None:
    assert header(7, 2**31 - 1) == b"\x3a\xff\xff\xff\xff\x07"
