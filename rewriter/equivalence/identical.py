"""Whether two models are the same bytes: those of the .onnx files, and those of every data file they refer to."""

from __future__ import annotations

import filecmp
from pathlib import Path

from rewriter import external
from rewriter.errors import BadInput
from rewriter.model import Model


def identical(before: Model, after: Model) -> bool:
    """Whether nothing at all differs; raises BadInput when a data file is missing, for nothing is known then."""
    if before.sha256 != after.sha256:
        return False
    names = external.locations(before.skeleton)
    pairs = [(_file(name, before), _file(name, after)) for name in names]
    return all(old.samefile(new) or filecmp.cmp(old, new, shallow=False) for old, new in pairs)


def _file(name: str, model: Model) -> Path:
    path = external.resolve(name, model.folder)
    if not path.is_file():
        raise BadInput(f"the external data file '{path}' does not exist.")
    return path
