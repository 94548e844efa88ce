"""Other tools that rewrite ONNX files, each in a process of its own: how a file becomes another one, and what it costs.

python -m benchmarks.peer_tools TOOL IN.onnx OUT.onnx     prints one line of JSON
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_LIMIT_SECONDS: Final = 600
_KIB: Final = 1024


@dataclass(frozen=True)
class Converted:
    """What became of one file: seconds and peak memory of the whole process, loading and saving included."""

    tool: str
    version: str
    seconds: float | None
    peak_mib: float | None
    problem: str = ""
    """Why there is no file; empty where there is one."""


def _simplify(source: str, target: str) -> None:
    onnx, onnxsim = map(importlib.import_module, ("onnx", "onnxsim"))
    model, sound = onnxsim.simplify(onnx.load(source))
    if not sound:
        raise RuntimeError("onnxsim's own check failed")
    onnx.save(model, target)


def _slim(source: str, target: str) -> None:
    onnx, onnxslim = map(importlib.import_module, ("onnx", "onnxslim"))
    onnx.save(onnxslim.slim(source), target)


def _optimizer(source: str, target: str) -> None:
    onnx, onnxoptimizer = map(importlib.import_module, ("onnx", "onnxoptimizer"))
    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


def _script(source: str, target: str) -> None:
    onnx, optimizer = map(importlib.import_module, ("onnx", "onnxscript.optimizer"))
    onnx.save(optimizer.optimize(onnx.load(source)), target)


TOOLS: Final[Mapping[str, Callable[[str, str], None]]] = {
    "onnxsim": _simplify,
    "onnxslim": _slim,
    "onnxoptimizer": _optimizer,
    "onnxscript": _script,
}
"""By the name of the package on the index."""


def convert(tool: str, source: Path, target: Path) -> Converted:
    """Run one tool on a file, with its defaults; never raises for what the tool does."""
    try:
        known = version(tool)
    except PackageNotFoundError:
        return Converted(tool, "", None, None, "not installed")
    command = [sys.executable, "-m", "benchmarks.peer_tools", tool, str(source), str(target)]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Converted(tool, known, None, None, f"not done after {_LIMIT_SECONDS} s")
    seconds = time.perf_counter() - begin
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return Converted(tool, known, seconds, None, f"ended with {done.returncode}")
    return Converted(tool, known, seconds, said["peak_mib"], said["problem"])


def main() -> None:
    """The child's side of `convert`."""
    tool, source, target = sys.argv[1:]
    problem = ""
    try:
        TOOLS[tool](source, target)
    except Exception as error:  # noqa: BLE001 - whatever another tool raises is its result
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB
    sys.stdout.write("\n" + json.dumps({"peak_mib": round(peak, 1), "problem": problem}) + "\n")


if __name__ == "__main__":
    main()
