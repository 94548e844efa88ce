"""How to run a model: the options that every command and function with a model shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rewriter.errors import BadInput
from rewriter.session import Runtime
from rewriter.shapes import Shape

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RunOptions:
    """Provider, threads and level (`runtime`), shapes for unknown input dimensions, the user's inputs, and the seed."""

    runtime: Runtime = field(default_factory=Runtime)
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    samples: tuple[Feeds, ...] = ()
    seed: int = 0


def load_samples(path: Path) -> tuple[Feeds, ...]:
    """The arrays of an .npz file by input name, as one sample.  Raises BadInput when it is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return ({name: archive[name] for name in archive.files},)
    except FileNotFoundError as error:
        raise BadInput(f"the inputs file '{path}' does not exist.") from error
    except Exception as error:
        raise BadInput(f"the inputs file '{path}' is no .npz archive of plain arrays: {error}.") from error


def parse_shapes(texts: Sequence[str]) -> dict[str, Shape]:
    """`name:1,3,224,224` texts as shapes by input name; the last colon separates, since names may hold colons."""
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        parts = sizes.replace("x", ",").split(",")
        if not colon or not name or not all(part.strip().isdigit() for part in parts):
            raise BadInput(f"--input-shape {text} is not of the form name:1,3,224,224.")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes
