"""How to run a model: the options that every command and function with a model shares."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from rewriter.errors import BadInput
from rewriter.session import Runtime
from rewriter.shapes import Shape

Feeds = Mapping[str, np.ndarray]

PERMITS: Final[Mapping[str, str]] = {
    "approximate": "what it makes is an approximation, with an error that the user sets",
    "contrib-ops": "it makes an operator of ONNX Runtime's own (domain com.microsoft) that no other runtime has",
}
"""What `--allow` takes, each with a clause on the rewrites that need it: they are made only when asked for."""


UNSAID: Final = 1e-5
"""The relative or absolute tolerance where only the other one is given: as in Polygraphy."""


@dataclass(frozen=True)
class Tolerance:
    """The error of an output that the user says is fine: |new − old| ≤ atol + rtol · |old|, as in numpy.allclose.

    None is UNSAID where the other is given.  It is compared and reported, and never decides.
    """

    rtol: float | None = None
    atol: float | None = None


@dataclass(frozen=True)
class RunOptions:
    """Provider, threads and level (`runtime`), shapes for unknown input dimensions, the user's inputs, and the seed.

    `allow` are the PERMITS given.  Raises BadInput for one that there is not, and for a range that is none.
    """

    runtime: Runtime = field(default_factory=Runtime)
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    samples: Sequence[Feeds] = ()
    seed: int = 0
    allow: frozenset[str] = frozenset()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What generated inputs are drawn from, by input name: from low to high; "" is for every input without its own."""
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    """The error that the user would take, by output name: reported, never decisive; "" is for all others."""
    batch: int | None = None
    """What an unknown batch size is taken as for timing; None: 1, or what the objective asks for."""
    full: bool = False
    """Whether audits also run against float64 and on the edges of the number range."""

    def __post_init__(self) -> None:
        check_several(self.allow, "allow")
        given: object = self.samples  # whatever a caller without a type checker has
        if isinstance(given, Mapping):
            raise BadInput("samples is one set of inputs: give a list, even of one.")
        if not isinstance(given, Sequence):  # a generator can be read once only
            object.__setattr__(self, "samples", tuple(self.samples))
        for name, (low, high) in self.ranges.items():
            _check_range(low, high, f"the range of the input '{name}'" if name else "the range of all inputs")
        for name, tolerance in self.tolerances.items():
            for value in (tolerance.rtol, tolerance.atol):
                if value is not None and not 0 <= value < math.inf:
                    whose = f"the output '{name}'" if name else "all outputs"
                    raise BadInput(f"the tolerance {value:g} of {whose} is no number that is 0 or more.")
        object.__setattr__(self, "allow", frozenset(self.allow))  # lists and sets will do
        if self.batch is not None and self.batch < 1:
            raise BadInput(f"--batch {self.batch} is no number of 1 or more.")
        if self.batch is not None and self.samples:
            raise BadInput("--batch has no effect on inputs that are given, which have a batch of their own.")
        for name in sorted(self.allow - PERMITS.keys()):
            raise BadInput(f"--allow {name}: there is no such permission; there are: {', '.join(PERMITS)}.")


def check_several(values: object, name: str) -> None:
    """Raise BadInput for one value in place of a collection; of texts and bytes Python would take the letters."""
    if isinstance(values, Collection) and not isinstance(values, str | bytes):
        return
    shown = repr(values) if isinstance(values, str | Path) else f"one {type(values).__name__}"
    raise BadInput(f"{name} is {shown}: give a list, even of one.")


def parse_shapes(texts: Sequence[str]) -> dict[str, Shape]:
    """`name:1,3,224,224` texts as shapes by input name; the last colon separates, since names may hold colons."""
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        parts = sizes.replace("x", ",").split(",")
        if not colon or not name or not all(re.fullmatch("[0-9]{1,18}", part.strip()) for part in parts):
            raise BadInput(f"--input-shape {text} is not of the form name:1,3,224,224.")
        if name in shapes:
            raise BadInput(f"--input-shape gives the shape of '{name}' twice.")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def parse_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`[NAME:]LOW,HIGH` texts as ranges by input name, "" for all inputs; Polygraphy's `NAME:[LOW,HIGH]` will do."""
    ranges: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, _, pair = text.rpartition(":")
        ends = pair.strip().removeprefix("[").removesuffix("]").split(",")
        numbers = [_number(end) for end in ends]
        if len(numbers) != 2 or None in numbers:
            raise BadInput(f"--val-range {text} is not of the form [NAME:]LOW,HIGH.")
        if name in ranges:
            whose = f"of '{name}'" if name else "of all inputs"
            raise BadInput(f"--val-range gives the range {whose} twice.")
        low, high = (number for number in numbers if number is not None)
        _check_range(low, high, f"--val-range {text}")
        ranges[name] = (low, high)
    return ranges


def parse_tolerances(rtol: Sequence[str], atol: Sequence[str]) -> dict[str, Tolerance]:
    """`[OUTPUT:]V` texts of --rtol and --atol as tolerances by output name, "" for all outputs."""
    by_kind = {kind: _values(kind, texts) for kind, texts in (("rtol", rtol), ("atol", atol))}
    names = dict.fromkeys([*by_kind["rtol"], *by_kind["atol"]])
    return {name: Tolerance(by_kind["rtol"].get(name), by_kind["atol"].get(name)) for name in names}


def _values(kind: str, texts: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition(":")
        value = _number(number)
        if value is None or not 0 <= value < math.inf:
            raise BadInput(f"--{kind} {text} is not of the form [OUTPUT:]V, with a V of 0 or more.")
        if name in values:
            whose = f"of '{name}'" if name else "of all outputs"
            raise BadInput(f"--{kind} gives the tolerance {whose} twice.")
        values[name] = value
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_range(low: float, high: float, what: str) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadInput(f"{what} is not finite.")
    if not low < high:
        raise BadInput(f"{what} is empty: the first number must be below the second.")
