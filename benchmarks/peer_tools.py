"""Other tools that rewrite ONNX files, and this one, each in a process of its own: what they make, and what it costs.

python -m benchmarks.peer_tools TOOL IN.onnx OUT.onnx THREADS BUDGET     ends with one line of JSON

The process imports nothing of ours unless the tool is ours, so the seconds and the memory are the tool's.  OpenVINO
writes no file: what it costs is to read and to compile the model.
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

ROOT: Final = Path(__file__).resolve().parents[1]
OPENVINO: Final = "openvino"
OWN: Final = "rewriter"
_LIMIT_SECONDS: Final = 900
_KIB: Final = 1024
_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True)
class Task:
    """One file for a tool; only OpenVINO and our own tool read the last two."""

    source: str
    target: str
    threads: int
    """Threads inside an operator; 0 leaves the number to the tool."""
    budget: float
    """Seconds that our own tool may search."""

    @property
    def report(self) -> str:
        """Where our own tool's report goes."""
        return f"{self.target}.json"


@dataclass(frozen=True)
class Converted:
    """What became of one file: seconds and peak memory of the whole process, loading and saving included."""

    tool: str
    version: str
    seconds: float | None
    peak_mib: float | None
    problem: str = ""
    """Why there is no file; empty where there is one."""


def _simplify(task: Task) -> None:
    onnx, onnxsim = map(importlib.import_module, ("onnx", "onnxsim"))
    model, sound = onnxsim.simplify(onnx.load(task.source))
    if not sound:
        raise RuntimeError("onnxsim's own check failed")
    onnx.save(model, task.target)


def _slim(task: Task) -> None:
    onnx, onnxslim = map(importlib.import_module, ("onnx", "onnxslim"))
    onnx.save(onnxslim.slim(onnx.load(task.source)), task.target)


def _optimizer(task: Task) -> None:
    onnx, onnxoptimizer = map(importlib.import_module, ("onnx", "onnxoptimizer"))
    onnx.save(onnxoptimizer.optimize(onnx.load(task.source)), task.target)


def _script(task: Task) -> None:
    onnx, optimizer = map(importlib.import_module, ("onnx", "onnxscript.optimizer"))
    onnx.save(optimizer.optimize(onnx.load(task.source)), task.target)


def _compile(task: Task) -> None:
    core = importlib.import_module("openvino").Core()
    core.compile_model(core.read_model(task.source), "CPU", openvino_config(task.threads))


def _rewrite(task: Task) -> None:
    main = importlib.import_module("rewriter.cli").main
    options = ["--no-records", "--threads", str(task.threads), "--budget", str(task.budget)]
    code = main(["optimize", task.source, "-o", task.target, *options, "--report", task.report])
    if code:
        raise RuntimeError(f"rewriter ended with {code}")


REWRITERS: Final[Mapping[str, Callable[[Task], None]]] = {
    "onnxsim": _simplify,
    "onnxslim": _slim,
    "onnxoptimizer": _optimizer,
    "onnxscript": _script,
}
"""Other tools that make a file of a file, with their defaults; by the name of the package on the index."""

TOOLS: Final[Mapping[str, Callable[[Task], None]]] = {**REWRITERS, OPENVINO: _compile, OWN: _rewrite}


def openvino_config(threads: int) -> dict[str, str]:
    """float32 as in ONNX Runtime, one request at a time, and as many threads (0: as many as it takes itself)."""
    config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    return {**config, "INFERENCE_NUM_THREADS": str(threads)} if threads else config


def installed(tool: str) -> str:
    """The version that is installed; empty where there is none. Our own tool need not be: it lies beside this."""
    try:
        return version("onnx-conv-rewriter" if tool == OWN else tool)
    except PackageNotFoundError:
        return "of this checkout" if tool == OWN else ""


def convert(tool: str, task: Task, limit_seconds: float = _LIMIT_SECONDS) -> Converted:
    """Run one tool on a file; never raises for what the tool does."""
    known = installed(tool)
    if not known:
        return Converted(tool, "", None, None, "not installed")
    given = [tool, task.source, task.target, str(task.threads), str(task.budget)]
    command = [sys.executable, "-m", "benchmarks.peer_tools", *given]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_seconds, check=False)
    except subprocess.TimeoutExpired:
        return Converted(tool, known, None, None, f"not done after {limit_seconds:g} s")
    seconds = round(time.perf_counter() - begin, 2)
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        peak, problem = said["peak_mib"], said["problem"]
    except (IndexError, ValueError, KeyError, TypeError):
        return Converted(tool, known, seconds, None, f"ended with {done.returncode}: {_last(done.stderr)}")
    if problem and tool == OWN:
        problem = f"{problem}: {_last(done.stderr)}"
    if not problem and tool != OPENVINO and not Path(task.target).exists():
        problem = "wrote no file"
    return Converted(tool, known, seconds, peak, problem)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "nothing said"


def peak_mib() -> float:
    """The most memory that this process had, or one that it started, whichever is more.

    Not `ru_maxrss` of this process where Linux tells better: a child begins with its parent's, and would show a peak it
    never had.
    """
    unit = _KIB * _KIB if sys.platform == "darwin" else _KIB
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / _KIB
    except (OSError, StopIteration):
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return max(own, children)


def main() -> None:
    """The child's side of `convert`."""
    tool, source, target, threads, budget = sys.argv[1:]
    problem = ""
    try:
        TOOLS[tool](Task(source, target, int(threads), float(budget)))
    except Exception as error:  # noqa: BLE001 - whatever another tool raises is its result
        first = next(iter(str(error).splitlines()), "")
        problem = f"{type(error).__name__}: {first}"[:300]
    sys.stdout.write("\n" + json.dumps({"peak_mib": round(peak_mib(), 1), "problem": problem}) + "\n")


if __name__ == "__main__":
    main()
