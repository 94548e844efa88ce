"""Write a model to disk: atomically, with its external data beside it, and never over its own source."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rewriter import external
from rewriter.errors import BadInput
from rewriter.model import Model


def check_target(model: Model, out: Path) -> None:
    """Raise BadInput when `out` is no place to write the model: asked before the work, not after it."""
    if out.is_dir():
        raise BadInput(f"the output '{out}' is a folder: give the name of a file.")
    if not out.parent.is_dir():
        raise BadInput(f"the output folder '{out.parent}' does not exist: create it first.")
    if not os.access(out.parent, os.W_OK):
        raise BadInput(f"the output folder '{out.parent}' is not writable.")
    if model.path is not None and out.exists() and out.samefile(model.path):
        raise BadInput(
            f"the output '{out}' is the input model itself: choose another name; the original is never overwritten."
        )
    names = external.locations(model.skeleton)
    for name in names:
        if out.exists() and model.folder is not None and out.samefile(external.resolve(name, model.folder)):
            raise BadInput(f"the output '{out}' is a file that holds the model's weights: choose another name.")
    if names and model.folder is not None and out.parent.resolve() != model.folder:
        if out.name in names:
            raise BadInput(f"the output '{out}' has the name of the model's external data: choose another name.")
        external.check_collisions(names, model.folder, out.parent)


def save(model: Model, out: Path) -> None:
    """Write the model, with its external data files copied beside it when `out` is in another folder.

    The file appears whole or not at all: it is written under a temporary name, synced, and renamed.  Raises BadInput
    when the place cannot be written or a data file there differs; whatever was there stays as it was.
    """
    check_target(model, out)
    made: list[Path] = []
    try:
        names = external.locations(model.skeleton)
        if names and model.folder is not None and out.parent.resolve() != model.folder:
            missing = external.check_collisions(names, model.folder, out.parent)
            made = external.copy_beside(missing, model.folder, out.parent)
        _write(model, out)
    except OSError as error:
        _remove(made)
        raise BadInput(f"'{out}' cannot be written: {error.strerror or error}.") from error
    except BaseException:
        _remove(made)
        raise


def write_atomically(out: Path, data: bytes) -> None:
    """Write a small file whole or not at all.  Raises BadInput when it cannot be written."""
    try:
        with _Replacement(out) as file:
            file.write(data)
    except OSError as error:
        raise BadInput(f"'{out}' cannot be written: {error.strerror or error}.") from error


def _write(model: Model, out: Path) -> None:
    with _Replacement(out) as file:
        for chunk in model.chunks():
            file.write(chunk)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


class _Replacement:
    """A temporary file in the target's folder that takes the target's place when the block ends without an error."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def __enter__(self) -> _Replacement:
        handle, name = tempfile.mkstemp(dir=self._out.parent, prefix=f".{self._out.name}.")
        self._file = os.fdopen(handle, "wb", buffering=1 << 20)
        self._temporary = Path(name)
        return self

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.fchmod(self._file.fileno(), 0o666 & ~_umask())
            self._file.close()
            if kind is None:
                self._temporary.replace(self._out)
        finally:
            self._temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
