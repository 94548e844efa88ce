"""The user's own inputs, from .npz files and from the test data folders that come with ONNX models.

Only names and folders are looked at first; the arrays of a sample are read whenever it is asked for, and not kept, so
that memory holds few of them however many there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.lib.npyio import NpzFile

from rewriter.errors import BadInput
from rewriter.options import Feeds


@dataclass(frozen=True, eq=False)
class Sample:
    """One complete set of inputs: where it is from, for messages, and how to read it."""

    where: str
    """Such as `the inputs in 'x.npz'`."""
    read: Callable[[], Feeds]


class Samples(Sequence[Feeds]):
    """Samples that are read anew whenever they are indexed or iterated over; slices read nothing.

    Raises BadInput where one cannot be read.
    """

    def __init__(self, found: Iterable[Sample]) -> None:
        self._found = tuple(found)

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Feeds | Samples:
        if isinstance(index, slice):
            return Samples(self._found[index])
        return self._found[index].read()

    def __add__(self, other: Samples) -> Samples:
        return Samples(self._found + other._found)

    def where(self, index: int) -> str:
        """Where a sample is from, for messages: `the inputs in 'x.npz'`."""
        return self._found[index].where


def samples_in_file(path: Path, names: Sequence[str]) -> Samples:
    """The samples of an .npz file, for a model with inputs called `names`.

    Arrays called as the inputs are one sample.  Arrays called `NAME/0`, `NAME/1`, … are as many samples as there are
    numbers.  Raises BadInput when the file is no .npz file, or numbers only some of its arrays, or leaves numbers out.
    """
    with _opened(path) as archive:
        members = list(archive.files)
    numbered = [_numbered(name, names) for name in members]
    plain = [name for name, split in zip(members, numbered, strict=True) if split is None]
    if len(plain) == len(members):
        return Samples([Sample(f"the inputs in '{path}'", partial(_read_npz, path, {name: name for name in members}))])
    counted: dict[int, dict[str, str]] = {}
    for name, split in zip(members, numbered, strict=True):
        if split is None:
            example = next(other for other, found in zip(members, numbered, strict=True) if found)
            raise BadInput(
                f"the inputs file '{path}' has arrays with a number, such as '{example}', and '{plain[0]}' without: "
                "number all of them from /0, one number per sample, or none."
            )
        counted.setdefault(split[1], {})[split[0]] = name
    gap = next((number for number in range(len(counted)) if number not in counted), None)
    if gap is not None:
        raise BadInput(
            f"the inputs file '{path}' has {len(counted)} numbered samples, but none with /{gap}: count them from /0."
        )
    return Samples(
        Sample(f"the inputs number {number} in '{path}'", partial(_read_npz, path, counted[number]))
        for number in range(len(counted))
    )


def samples_in_folder(folder: Path, names: Sequence[str]) -> Samples:
    """The samples of a folder, in the natural order of the names in it: x2 before x10.

    They are its .npz files, its folders `test_data_set_*` with files `input_0.pb`, `input_1.pb`, … (serialized
    TensorProtos, for the model's inputs in order), or such files right in it.  Raises BadInput when there are none.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise BadInput(f"the inputs folder '{folder}' {what}.")
    try:
        entries = sorted(folder.iterdir(), key=_natural)
    except OSError as error:
        raise BadInput(f"the inputs folder '{folder}' cannot be read: {error.strerror or error}.") from error
    found = _data_set(folder, names)
    for entry in entries:
        if entry.suffix.lower() == ".npz" and entry.is_file():
            found += samples_in_file(entry, names)
        elif entry.name.startswith("test_data_set") and entry.is_dir():
            found += _data_set(entry, names)
    if not found:
        raise BadInput(
            f"the inputs folder '{folder}' holds no .npz file and no test_data_set_* folder with files input_0.pb, "
            "input_1.pb, …."
        )
    return found


def _natural(path: Path) -> list[str | int]:
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", path.name))]


def _numbered(name: str, names: Sequence[str]) -> tuple[str, int] | None:
    """An input's name and the number behind it; None for other names, and for an input that is called so."""
    stem, _, number = name.rpartition("/")
    if name in names or stem not in names or not re.fullmatch("0|[1-9][0-9]{0,8}", number):
        return None
    return stem, int(number)


def _opened(path: Path) -> NpzFile:
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
    return archive


def _read_npz(path: Path, members: dict[str, str]) -> Feeds:
    """Arrays by input name; `members` says under which name each is in the file."""
    with _opened(path) as archive:
        return {name: _array(archive, member, path) for name, member in members.items()}


def _array(archive: NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        array = archive[name]
    except Exception as error:  # zip, zlib, header and pickle errors of many classes
        what = "Python objects" if "allow_pickle" in str(error) else "damaged data"
        raise BadInput(f"the array '{name}' of the inputs file '{path}' is {what}, not numbers.") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"the member '{name}' of the inputs file '{path}' is no array.")
    return array


def _data_set(folder: Path, names: Sequence[str]) -> Samples:
    """The sample that the files `input_*.pb` right in a folder are; none where there are no such files."""
    files: dict[int, Path] = {}
    for path in folder.glob("input_*.pb"):
        number = re.fullmatch("input_([0-9]{1,9})[.]pb", path.name)
        if number:
            files[int(number[1])] = path
    if not files:
        return Samples(())
    if max(files) >= len(names):
        listed = ", ".join(f"'{name}'" for name in names) or "none"
        raise BadInput(f"there is a file '{files[max(files)]}', but the model's inputs, counted from 0, are: {listed}.")
    return Samples([Sample(f"the inputs in '{folder}'", partial(_read_data_set, files, names))])


def _read_data_set(files: dict[int, Path], names: Sequence[str]) -> Feeds:
    """Arrays by input name: by the one a tensor itself has, if that is an input's, else by the number of its file."""
    feeds: dict[str, np.ndarray] = {}
    for number, path in sorted(files.items()):
        try:
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            array = onnx.numpy_helper.to_array(tensor)
        except OSError as error:
            raise BadInput(f"the inputs file '{path}' cannot be read: {error.strerror or error}.") from error
        except (DecodeError, ValueError, TypeError, KeyError, IndexError, onnx.checker.ValidationError) as error:
            raise BadInput(f"the inputs file '{path}' is no serialized TensorProto with its data in it.") from error
        name = tensor.name if tensor.name in names else names[number]
        if name in feeds:
            raise BadInput(f"two files beside '{path}' are for the input '{name}', by number or by the tensor's name.")
        feeds[name] = array
    return feeds
