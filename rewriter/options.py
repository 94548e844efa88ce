"""How to run a model: the options that every command and function with a model shares."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.npyio import NpzFile

from rewriter.errors import BadInput
from rewriter.session import Runtime
from rewriter.shapes import Shape

Feeds = Mapping[str, np.ndarray]

PERMITS: Final[Mapping[str, str]] = {
    "approximate": "what it makes is an approximation, with an error that the user sets",
    "contrib-ops": "it makes an operator of ONNX Runtime's own (domain com.microsoft) that no other runtime has",
}
"""What `--allow` takes, each with a clause on the rewrites that need it: they are made only when asked for."""


@dataclass(frozen=True)
class RunOptions:
    """Provider, threads and level (`runtime`), shapes for unknown input dimensions, the user's inputs, and the seed.

    `allow` are the PERMITS given.  Raises BadInput for one that there is not.
    """

    runtime: Runtime = field(default_factory=Runtime)
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    samples: tuple[Feeds, ...] = ()
    seed: int = 0
    allow: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_several(self.allow, "allow")
        object.__setattr__(self, "allow", frozenset(self.allow))  # lists and sets will do
        for name in sorted(self.allow - PERMITS.keys()):
            raise BadInput(f"--allow {name}: there is no such permission; there are: {', '.join(PERMITS)}.")


def check_several(values: object, name: str) -> None:
    """Raise BadInput for one value in place of a collection; of texts and bytes Python would take the letters."""
    if isinstance(values, Collection) and not isinstance(values, str | bytes):
        return
    shown = repr(values) if isinstance(values, str | Path) else f"one {type(values).__name__}"
    raise BadInput(f"{name} is {shown}: give a list, even of one.")


def load_samples(path: Path) -> tuple[Feeds, ...]:
    """The arrays of an .npz file by input name, as one sample.  Raises BadInput when it is none."""
    try:
        archive = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BadInput(f"the inputs file '{path}' does not exist.") from error
    except OSError as error:
        raise BadInput(f"the inputs file '{path}' cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # NumPy's own reasons are about pickles and zip directories
        raise BadInput(f"the inputs file '{path}' is no .npz archive: write one with numpy.savez.") from error
    if not isinstance(archive, NpzFile):
        raise BadInput(
            f"the inputs file '{path}' is one array without a name, no .npz archive: write it with numpy.savez, under "
            "the input's name."
        )
    with archive:
        return ({name: _array(archive, name, path) for name in archive.files},)


def _array(archive: NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        array = archive[name]
    except Exception as error:  # zip, zlib, header and pickle errors of many classes
        what = "Python objects" if "allow_pickle" in str(error) else "damaged data"
        raise BadInput(f"the array '{name}' of the inputs file '{path}' is {what}, not numbers.") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"the member '{name}' of the inputs file '{path}' is no array.")
    return array


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
