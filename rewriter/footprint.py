"""How much memory a model takes: the peak of a process that loads it and runs it, over what it had before.

A process of its own for every look, since a peak is a process's, and what earlier models left behind is in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from onnx import numpy_helper

from rewriter import external
from rewriter.errors import BadInput, NotVerified
from rewriter.footprint_child import MODEL, TASK
from rewriter.model import Model
from rewriter.patience import OWN_GROUP
from rewriter.session import Runtime, SessionFailed

NOISE_MIB: Final = 1.0
"""Peaks that differ by no more are equal.

Processes with the same model differed by 0.01 to 0.63 MiB (seven models of 9 to 126 MB, 1 and 2 threads, 4 to 10
processes each, Linux with glibc), and not by more where the model was larger: the noise is no share of the peak.  With
another allocator (macOS, musl) it was not measured.
"""

_SECONDS: Final = 600.0
_PROGRAM: Final = "rewriter.footprint_child"
_ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Blocks from 128 KiB on go back to the system when they are freed, and count no longer.

That is where glibc begins, but then it raises the limit with the blocks it happens to see freed, in an order that
depends on random addresses: the peaks of one model differed by 8 MiB of 50 and 24 of 264.  Deployed without this
setting, a process also holds what the allocator keeps of freed memory.
"""
_MIB: Final = 2**20


def peak_memory(model: Model, feeds: Mapping[str, np.ndarray], runtime: Runtime, *, repeats: int = 3) -> float:
    """MiB (2**20 bytes) that loading the model and running it twice take at most: the median of `repeats` processes.

    It is the growth of the resident set: weights as ONNX Runtime packs them, activations, and code of it that is first
    used.  The inputs do not count, nor what Python and ONNX Runtime take without a model.

    Raises BadInput for another provider than the CPU's, SessionFailed where the model cannot be loaded or run, and
    NotVerified where the system does not tell (Windows).
    """
    if runtime.provider != "cpu":
        raise BadInput(
            f"peak memory is measured on the cpu provider only, not on {runtime.provider}: choose another objective or "
            "--provider cpu."
        )
    with tempfile.TemporaryDirectory(prefix="rewriter-") as name:
        folder = Path(name)
        _store(folder, model, feeds, runtime)
        return median(_one_process(folder) for _ in range(repeats)) / _MIB


def _store(folder: Path, model: Model, feeds: Mapping[str, np.ndarray], runtime: Runtime) -> None:
    """What the process needs.  Inputs as serialized tensors, which hold bfloat16 and its like, as .npz files do not."""
    with (folder / MODEL).open("wb") as file:
        for chunk in model.chunks():
            file.write(chunk)
    for number, (name, value) in enumerate(feeds.items()):
        plain = value.astype(object) if value.dtype.kind == "S" else value
        (folder / f"{number}.pb").write_bytes(numpy_helper.from_array(plain, name).SerializeToString())
    # Of a rewritten model as of its original, so that both are loaded in the same way.
    beside = model.folder if external.locations(model.original.skeleton) else None
    task = {
        "runtime": asdict(runtime),
        "inputs": len(feeds),
        "external_folder": None if beside is None else str(beside),
    }
    (folder / TASK).write_text(json.dumps(task), encoding="utf-8")


def _one_process(folder: Path) -> int:
    """Bytes, as one process measures them."""
    paths = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    # Without -P, a file in the current folder could stand for one of Python's own modules.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", _PROGRAM, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, **_ALLOCATOR},
        stdin=subprocess.PIPE,  # its end tells the process that this one is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=OWN_GROUP,
    ) as child:
        try:
            code = child.wait(_SECONDS)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise SessionFailed(f"Loading the model and running it twice takes over {_SECONDS:.0f} s.") from error
        except BaseException:
            child.kill()
            raise
        assert child.stdout is not None
        said = child.stdout.read()
    return _peak_of(said, code)


def _peak_of(said: bytes, code: int) -> int:
    """What a process said, as bytes; raises what it said otherwise."""
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError as error:
        raise SessionFailed(
            f"The process that loaded the model to measure its memory ended with {code} and without a result."
        ) from error
    if "failed" in found:
        raise SessionFailed(found["failed"])
    if "bytes" not in found:
        raise NotVerified("Peak memory cannot be measured here: the system does not tell that of a process.")
    return int(found["bytes"])
