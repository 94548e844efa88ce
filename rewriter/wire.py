"""The protobuf wire format, as far as splicing needs it: where each field of a message begins and ends.

Reading field boundaries instead of parsing lets a 100 MB model be edited without decoding, copying or re-encoding
the bytes that stay as they are.  Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf message."""


class Field(NamedTuple):
    """One field: ``buffer[start:stop]`` is the whole of it, ``buffer[body:stop]`` its value without tag and length."""

    number: int
    kind: int
    start: int
    body: int
    stop: int


def fields(buffer: memoryview, start: int = 0, stop: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in ``buffer[start:stop]``, in order; raises WireError on malformed bytes."""
    end = len(buffer) if stop is None else stop
    at = start
    while at < end:
        tag, body = _varint(buffer, at, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if kind == LENGTH:
            length, body = _varint(buffer, body, end)
            after = body + length
        elif kind == VARINT:
            _, after = _varint(buffer, body, end)
        elif kind == FIXED32:
            after = body + 4
        elif kind == FIXED64:
            after = body + 8
        else:
            raise WireError(f"wire type {kind} at byte {at}")
        if after > end:
            raise WireError(f"field {number} at byte {at} runs past the end")
        yield Field(number, kind, at, body, after)
        at = after


def header(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field with a value of `length` bytes."""
    return _encode(number << 3 | LENGTH) + _encode(length)


def _varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise WireError(f"a varint longer than 10 bytes before byte {at}")
    raise WireError("the message ends inside a varint")


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
