"""The process whose memory is measured: it loads one model, runs it twice, and says how much memory that took.

Not to be imported: `rewriter.footprint` starts it.  It imports no more than a session needs, since what is resident
before the model is loaded does not count.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto, numpy_helper

from rewriter.session import Runtime, SessionFailed, open_session, prepare

TASK: Final = "task.json"
MODEL: Final = "model.onnx"
_RUNS: Final = 2  # the first one makes what later ones use again: arenas, packed weights
_STATUS: Final = Path("/proc/self/status")
_FORGET: Final = Path("/proc/self/clear_refs")


def main() -> None:
    """One line of JSON on standard output: `bytes`, or why there are none (`failed`, `unknown`)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write(json.dumps(_measured(Path(sys.argv[1]))) + "\n")


def _measured(folder: Path) -> dict[str, Any]:
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    options = task["runtime"]
    options["provider_options"] = tuple(tuple(entry) for entry in options["provider_options"])
    runtime = Runtime(**options)
    feeds = dict(_tensor(folder / f"{number}.pb") for number in range(task["inputs"]))
    source = folder / MODEL
    beside = None if task["external_folder"] is None else Path(task["external_folder"])
    model = source if beside is None else source.read_bytes()
    _forget_peak()
    before = _resident()
    known = _peak()
    if before is None or known is None:
        return {"unknown": True}
    try:
        _run(model, runtime, beside, feeds)
    except SessionFailed as error:
        return {"failed": str(error).replace(str(source), "the model")}  # a copy, which nobody knows
    after = _peak()
    # A peak that rusage tells may be inherited from the process before: then the model's own is hidden below it.
    if after is None or (after == known and _status("VmHWM") is None):
        return {"unknown": True}
    return {"bytes": max(0, after - before)}


def _run(model: bytes | Path, runtime: Runtime, beside: Path | None, feeds: Mapping[str, np.ndarray]) -> None:
    once = prepare(open_session(model, runtime, external_folder=beside), feeds)
    for _ in range(_RUNS):
        once()


def _tensor(path: Path) -> tuple[str, np.ndarray]:
    tensor = TensorProto.FromString(path.read_bytes())
    return tensor.name, np.asarray(numpy_helper.to_array(tensor))


def _resident() -> int | None:
    """Bytes in memory now; where the system does not tell, the most there were up to now."""
    now = _status("VmRSS")
    return _peak() if now is None else now


def _peak() -> int | None:
    """The most bytes there were in memory, since it was forgotten or the process began; None: unknown."""
    most = _status("VmHWM")
    if most is not None:
        return most
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(key: str) -> int | None:
    """A size that Linux tells of this process, in bytes."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _forget_peak() -> None:
    """Let the peak begin at what is resident now, where the system allows it."""
    try:
        _FORGET.write_text("5", encoding="ascii")
    except OSError:
        return


def _end_with_parent() -> None:
    """Standard input ends when the process that asked does, however that ended."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
