"""Inputs that a Python script of the user's makes: `--data-loader FILE.py[:FUNCTION]`.

The script is run when this is called and never otherwise.  Its generator is run to its end once, because a second run
may give other data; what it gives is kept in memory, within limits.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np

from rewriter.errors import BadInput
from rewriter.samples import Sample, Samples

DEFAULT_FUNCTION: Final = "load_data"
MOST_SAMPLES: Final = 1000
MOST_BYTES: Final = 2 << 30
_MODULE: Final = "rewriter_data_loader"


def samples_of_script(text: str) -> Samples:
    """The samples that the function of `FILE.py[:FUNCTION]` returns or yields: mappings of arrays by input name.

    What the script prints goes to standard error.  Raises BadInput, with the line of the script, when it fails; when
    there is no such function; when the samples are more than MOST_SAMPLES, or MOST_BYTES in total.
    """
    path, function = _parts(text)
    with _surroundings(path):
        module = _module(path)
        load = getattr(module, function, None)
        if not callable(load):
            known = [name for name, value in vars(module).items() if callable(value) and _is_own(value)]
            offered = f"it has: {', '.join(known)}" if known else "it has none at all"
            raise BadInput(f"the data loader '{path}' has no function '{function}'; {offered}.")
        try:
            found = load()
            return Samples(_samples(path, function, found))
        except BadInput:
            raise
        except (Exception, SystemExit) as error:  # whatever a script of the user's may raise
            raise _failure(path, error) from error


def _parts(text: str) -> tuple[Path, str]:
    """The file and the function; a colon that no name follows (C:\\x.py) is part of the file."""
    file, colon, function = text.rpartition(":")
    if not colon or not function.isidentifier():
        file, function = text, DEFAULT_FUNCTION
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"the data loader '{file}' {'is no file' if path.exists() else 'does not exist'}.")
    return path, function


@contextlib.contextmanager
def _surroundings(path: Path) -> Iterator[None]:
    """As `python FILE.py` would find them: what lies beside the script can be imported; nothing is written there."""
    folder, wrote = str(path.resolve().parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            yield
    finally:
        sys.dont_write_bytecode = wrote
        if folder in sys.path:
            sys.path.remove(folder)


def _module(path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses and pickles of the script look for it there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a script of the user's may raise
        raise _failure(path, error) from error
    return module


def _is_own(value: object) -> bool:
    return getattr(value, "__module__", None) == _MODULE


def _samples(path: Path, function: str, found: object) -> list[Sample]:
    """What the function gave, each array as NumPy's."""
    if isinstance(found, Mapping) or not isinstance(found, Iterable):
        raise BadInput(
            f"the function '{function}' of the data loader '{path}' gives {_kind(found)}: have it yield, or return a "
            "list of, dicts of arrays by input name."
        )
    samples: list[Sample] = []
    size = 0
    for number, sample in enumerate(found):
        where = f"the inputs number {number} of the data loader '{path}'"
        if not isinstance(sample, Mapping):
            raise BadInput(f"{where} are {_kind(sample)}, no dict of arrays by input name.")
        feeds = {str(name): np.asarray(value) for name, value in sample.items()}
        size += sum(array.nbytes for array in feeds.values())
        if number >= MOST_SAMPLES or size > MOST_BYTES:
            most = f"{MOST_SAMPLES} samples" if number >= MOST_SAMPLES else f"{MOST_BYTES >> 20} MiB of samples"
            raise BadInput(f"the data loader '{path}' gives more than {most}: have it stop earlier.")
        samples.append(Sample(where, lambda feeds=feeds: feeds))  # type: ignore[misc]
    if not samples:
        raise BadInput(f"the function '{function}' of the data loader '{path}' gives no samples at all.")
    return samples


def _kind(value: object) -> str:
    return "None" if value is None else f"one {type(value).__name__}"


def _failure(path: Path, error: BaseException) -> BadInput:
    """The error with the last line of the script that it came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    where = f" in line {lines[-1]}" if lines else ""
    said = " ".join(traceback.format_exception_only(error)[-1].split()).rstrip(".")
    return BadInput(f"the data loader '{path}' failed{where}: {said}.")
