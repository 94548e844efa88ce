"""Write a model to disk: atomically, with its external data beside it, and never over its own source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from rewriter import external
from rewriter.errors import BadInput
from rewriter.model import Model

_BUFFER = 1 << 20


def check_target(model: Model, out: Path) -> None:
    """Raise BadInput when `out` is no place to write the model: asked before the work, not after it."""
    try:
        _check_place(out)
        _check_sources(model.original, out)
        if model is not model.original:
            _check_sources(model, out)
        _data_to_copy(model, out)
    except OSError as error:
        raise BadInput(f"'{out}' cannot be written: {error.strerror or error}.") from error


def save(model: Model, out: Path) -> None:
    """Write the model, with its external data files copied beside it when `out` is in another folder.

    The file appears whole or not at all: it is written under a temporary name, synced, and renamed.  Raises BadInput
    when the place cannot be written or a data file there differs; whatever was there stays as it was.
    """
    check_target(model, out)
    made: list[Path] = []
    try:
        for name in _data_to_copy(model, out):
            _copy(external.resolve(name, model.folder), out.parent / name, made)
        with _replacing(out) as file:
            for chunk in model.chunks():
                file.write(chunk)
    except OSError as error:
        _remove(made)
        raise BadInput(f"'{out}' cannot be written: {error.strerror or error}.") from error
    except BaseException:
        _remove(made)
        raise


def file_bytes(model: Model) -> int:
    """Bytes of the model as it would be saved, with the data files it refers to, which are copied whole."""
    folder = model.folder
    places = external.locations(model.skeleton) if folder is not None else []
    return model.size + sum(external.resolve(place, folder).stat().st_size for place in places)


def write_atomically(out: Path, data: bytes) -> None:
    """Write a small file whole or not at all (a pipe or device: as it comes).  Raises BadInput when it cannot be."""
    try:
        if out.exists() and not out.is_file():
            out.write_bytes(data)
            return
        with _replacing(out.resolve()) as file:
            file.write(data)
    except OSError as error:
        raise BadInput(f"'{out}' cannot be written: {error.strerror or error}.") from error


def _check_place(out: Path) -> None:
    if out.is_dir():
        raise BadInput(f"the output '{out}' is a folder: give the name of a file.")
    if out.exists() and not out.is_file():
        raise BadInput(f"the output '{out}' is a device or pipe: give the name of a file.")
    if not out.parent.is_dir():
        raise BadInput(f"the output folder '{out.parent}' does not exist: create it first.")
    if not os.access(out.parent, os.W_OK):
        raise BadInput(f"the output folder '{out.parent}' is not writable.")


def _check_sources(model: Model, out: Path) -> None:
    """Refuse to write over the files that the model is read from."""
    if model.path is not None and _same(out, model.path):
        raise BadInput(
            f"the output '{out}' is the input model itself: choose another name; the original is never overwritten."
        )
    for name in external.locations(model.skeleton):
        data = external.resolve(name, model.folder)
        if _same(out, data):
            raise BadInput(f"the output '{out}' is a file that holds the model's weights: choose another name.")
        if out == out.parent / name:
            raise BadInput(f"the output '{out}' has the name of the model's external data: choose another name.")


def _data_to_copy(model: Model, out: Path) -> list[str]:
    """The external files that are missing beside `out`; raises BadInput when one there has other content."""
    names = external.locations(model.skeleton)
    if not names or model.folder is None or _same(out.parent, model.folder):
        return []
    return external.check_collisions(names, model.folder, out.parent)


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, through links too; a missing file is no file."""
    return one.exists() and other.exists() and one.samefile(other)


def _copy(origin: Path, copy: Path, made: list[Path]) -> None:
    """Copy one file, adding to `made` the folders and the file that were not there before."""
    for folder in reversed([parent for parent in copy.parents if not parent.exists()]):
        folder.mkdir()
        made.append(folder)
    with origin.open("rb") as source, _replacing(copy) as file:
        shutil.copyfileobj(source, file, _BUFFER)
    made.append(copy)


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """A temporary file in the target's folder that takes the target's place when the block ends without an error."""
    temporary = out.with_name(f".rewriter-{token_hex(8)}")
    try:
        # Not tempfile: its files are private, and this one is to be as readable as the umask says.
        with temporary.open("xb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
