"""The registry of wrong rewrites: a case is a function that gives a model and a wrong rewrite of it.

wrong_suite.py imports every file that registers some; benchmarks/wrong.py runs them all for docs/wrong-rewrites.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import onnx

Case = tuple[onnx.ModelProto, onnx.ModelProto]


class Kind(NamedTuple):
    """One kind of wrong rewrite."""

    level: str
    """By which it is rejected at the latest: "L0" … "L4"."""
    make: Callable[[], Case]
    what: str
    """What is wrong, in a sentence."""
    combines: bool = False
    """Whether the rewrite claims to combine weights; else they only move, and integers in their place show it."""


CASES: dict[str, Kind] = {}


def wrong(level: str, *, combines: bool = False) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a case that must be caught at `level`; the first line of its docstring says what is wrong."""

    def add(make: Callable[[], Case]) -> Callable[[], Case]:
        what = (inspect.getdoc(make) or "").partition("\n")[0]
        return register(make.__name__, level, what, make, combines=combines)

    return add


def register(
    name: str, level: str, what: str, make: Callable[[], Case], *, combines: bool = False
) -> Callable[[], Case]:
    """The same for a case that is no function of its own; names are told apart by their words, not by their `_`."""
    assert name.replace("_", " ") not in {known.replace("_", " ") for known in CASES}, name
    CASES[name] = Kind(level, make, what, combines)
    return make
