"""SHA-256 of everything an audit relies on: the models' files, their external data, and the user's own inputs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from rewriter import external
from rewriter.equivalence.records import Record
from rewriter.errors import BadInput
from rewriter.model import Model

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""As `sha256sum` prints it."""
_BUFFER: Final = 1 << 20


class DataDigest(Record):
    """The bytes of one external data file that a model's tensors refer to."""

    bytes: int
    """How many there are, each counted once."""
    sha256: Sha256
    """Of these bytes in the order of the file: of all of it, where nothing in it is left over."""


class FileDigest(Record):
    """One of the two models."""

    sha256: Sha256
    """Of the .onnx file."""
    bytes: int
    external: dict[str, DataDigest]
    """Its external data, by the location that the model names."""


class ArrayDigest(Record):
    """One array of the user's."""

    dtype: str
    shape: tuple[int, ...]
    sha256: Sha256
    """Of its elements in C order, little-endian; of strings, each in UTF-8 with a zero byte behind it."""


def file_digest(model: Model) -> FileDigest:
    """Hashes of a model; raises BadInput when external data is missing or too short."""
    data = {name: _data_digest(model, name) for name in external.locations(model.skeleton)}
    return FileDigest(sha256=model.sha256, bytes=model.size, external=data)


def sample_digest(sample: Mapping[str, np.ndarray]) -> dict[str, ArrayDigest]:
    """Hashes of a complete set of feeds, by input name."""
    return {name: array_digest(array) for name, array in sample.items()}


def array_digest(array: np.ndarray) -> ArrayDigest:
    """Type, shape and hash of an array."""
    if array.dtype.kind in "OSUT":
        texts = (entry if isinstance(entry, bytes) else str(entry).encode() for entry in array.ravel().tolist())
        data, name = b"".join(text + b"\0" for text in texts), "string"
    else:
        swapped = array.dtype.byteorder == (">" if sys.byteorder == "little" else "=")
        plain = array.astype(array.dtype.newbyteorder("<")) if swapped else array
        data, name = np.ascontiguousarray(plain).tobytes(), array.dtype.name
    return ArrayDigest(dtype=name, shape=tuple(array.shape), sha256=hashlib.sha256(data).hexdigest())


def _data_digest(model: Model, location: str) -> DataDigest:
    path = external.resolve(location, model.folder)
    digest, count = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            for start, stop in _relied_on(model, location, size):
                if stop > size:
                    raise BadInput(f"the external data file '{path}' ends before the model's tensors do.")
                file.seek(start)
                for at in range(start, stop, _BUFFER):
                    digest.update(file.read(min(_BUFFER, stop - at)))
                count += stop - start
    except OSError as error:
        raise BadInput(f"the external data file '{path}' cannot be read: {error.strerror or error}.") from error
    return DataDigest(bytes=count, sha256=digest.hexdigest())


def _relied_on(model: Model, location: str, size: int) -> Sequence[tuple[int, int]]:
    """First byte and the one behind the last of every stretch of the file that tensors refer to, in order, merged."""
    found = [external.reference(tensor) for tensor in external.tensors(model.skeleton)]
    refs = [ref for ref in found if ref is not None and ref.location == location]
    merged: list[tuple[int, int]] = []
    for start, stop in sorted((ref.offset, size if ref.length is None else ref.offset + ref.length) for ref in refs):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return [(start, stop) for start, stop in merged if start < stop]
