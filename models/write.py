"""Writes a model file whole or not at all, with the same bytes for the same model."""

from __future__ import annotations

import os
from pathlib import Path

import onnx


def write_model(model: onnx.ModelProto, path: Path) -> int:
    """Write `model` to `path` atomically, creating the folder; return the size in bytes.

    The bytes go to a temporary file in the same folder, which then replaces `path`; after a failure (an
    `OSError` is raised) `path` is as it was.
    """
    data = model.SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Not tempfile: its files are private (mode 0600), and the model should be as readable as any other file.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(data)
