"""The registry of wrong rewrites: a case is a function that gives a model and a wrong rewrite of it."""

from __future__ import annotations

from collections.abc import Callable

import onnx

Case = tuple[onnx.ModelProto, onnx.ModelProto]
CASES: dict[str, tuple[str, Callable[[], Case]]] = {}


def wrong(level: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a case that must be caught at `level`."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[make.__name__] = (level, make)
        return make

    return register
