"""What ONNX Runtime prints by itself on standard error: for good, or while a session is opened, nothing.

Of what a provider cannot load it prints lines of its log, besides what it raises, which is what users are told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import onnxruntime as ort

_FATAL: Final = 4
_WARNING: Final = 2
"""ONNX Runtime's own default.  It does not tell what is set, so another one that the caller set is not kept."""

_silent = False


def silence() -> None:
    """Let ONNX Runtime print nothing from now on: for programs of our own, whose standard error is ours."""
    global _silent  # noqa: PLW0603 - as ONNX Runtime's own state, which this mirrors
    _silent = True
    ort.set_default_logger_severity(_FATAL)


@contextlib.contextmanager
def silenced(provider: str) -> Iterator[None]:
    """Let ONNX Runtime print nothing inside the block, which starts a provider; the CPU's has nothing to load."""
    if provider == "CPUExecutionProvider":
        yield
        return
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        if not _silent:
            ort.set_default_logger_severity(_WARNING)
