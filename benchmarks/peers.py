"""Real models through this tool and through others, timed in one interleaved run per model: one JSON, for one table.

    python -m benchmarks.peers [NAME ...] [--threads 1 0] [--budget 60] [--seconds 40] [--resume] [--output JSON]

Each tool makes its file in a process of its own (benchmarks/peer_tools.py).  Every file whose outputs are the
original's within rounding is timed in ONNX Runtime on the same inputs against the original, with a second session of it
as control; OpenVINO runs the original itself, in float32, with as many threads.  A chain of dense convolutions, the
fastest of a few in ONNX Runtime, is timed in the same rounds: what part of its rate a model's useful multiplications
reach is the fraction of the roofline.  What cannot be run, or is not installed, has a sentence in place of figures.

Rows are kept by model and threads, and written after each model.  `--threads 0` is all cores, as ONNX Runtime takes
them by default.  With `--resume` rows that are there already with the same settings are kept, and said to be.
`python -m benchmarks.peers_page` makes docs/peers.md of the results.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.openvino import OpenVINO
from benchmarks.optimize import NAMES
from benchmarks.optimize import row as own_row
from benchmarks.peer_check import RIGHT, Agreement, Outputs, agreement
from benchmarks.peer_tools import OPENVINO, OWN, TOOLS, Converted, Task, convert, installed
from benchmarks.peer_work import Dense, fastest_dense, work
from models.write import write_model
from models.zoo.refill import zoo_model
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.report.record import environment
from rewriter.session import Runtime, SessionFailed
from rewriter.timing import Contender, Timing, compare
from rewriter.timing.runners import Runner, open_runner

RESULTS: Final = Path(__file__).parent / "results" / "peers.json"
SCHEMA: Final = 1
ORIGINAL, DENSE = "original", "dense"
_ROUNDS: Final = 12
"""Of a slow model so many are measured, whatever was asked: an interval needs 7."""
_OVERHEAD: Final = 1.5
"""Of loading, of warming up, and of the run that settles the caches before each block."""
_BLOCK_SECONDS: Final = 0.1
_HALF_WIDTH: Final = 0.01
Feeds = Mapping[str, np.ndarray]
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long everything may take, in seconds."""

    budget: float
    """Of our own tool's search."""
    seconds: float
    """Of the interleaved run."""


def main() -> int:
    """Measure each model in each setting and write the results after each, so that nothing is lost."""
    asked = _arguments()
    plan = Plan(asked.budget, asked.seconds)
    found = read(asked.output)
    here = {**environment(Runtime()), **{tool: installed(tool) or "not installed" for tool in TOOLS}}
    if found["rows"] and found["environment"] != here:
        changed = ", ".join(key for key in here if found["environment"].get(key) != here[key])
        sys.stderr.write(f"{asked.output} is of another machine or other versions ({changed}): remove it first.\n")
        return 2
    failed: list[str] = []
    for threads in asked.threads:
        dense: Dense | None = None
        for name in asked.names:
            if asked.resume and _is_there(found["rows"], name, threads, plan):
                _say(f"{name}, {called(threads)}: there already, kept.")
                continue
            dense = dense or fastest_dense(Runtime(threads=threads))
            row = measure(name, threads, plan, dense)
            found = {"schema": SCHEMA, "environment": here, "rows": merged(found["rows"], row)}
            _write(asked.output, found)
            _say(line(row))
            failed += [f"{name}, {called(threads)}"] if not is_whole(row) else []
    if failed:
        sys.stderr.write(f"Not measured, `--resume` tries again: {'; '.join(failed)}.\n")
    return int(bool(failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="models of models/zoo")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 0], help="settings; 0 is all cores")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of our own tool's search")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each interleaved run; slow models take longer")
    parser.add_argument("--resume", action="store_true", help="keep rows that are there with the same settings")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def read(path: Path) -> dict[str, Any]:
    """The results so far; raises ValueError for a file of another layout."""
    if not path.exists():
        return {"schema": SCHEMA, "environment": {}, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {found.get('schema')}, this reads {SCHEMA}: remove it.")
    return found


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """The rows with this one in place of an older one, in the order of NAMES, 1 thread before all cores."""
    others = [one for one in rows if (one["model"], one["threads"]) != (row["model"], row["threads"])]
    return sorted([*others, row], key=_place)


def _place(row: Row) -> tuple[bool, int, int, str]:
    place = NAMES.index(row["model"]) if row["model"] in NAMES else len(NAMES)
    return row["threads"] == 0, row["threads"], place, row["model"]


def is_whole(row: Row) -> bool:
    """Whether the run was made, and our own tool did its part; other tools may have failed."""
    return not row["problem"] and not row["tools"][OWN]["problem"]


def _is_there(rows: Sequence[Row], name: str, threads: int, plan: Plan) -> bool:
    wanted = (name, threads, asdict(plan))
    return any((row["model"], row["threads"], row["plan"]) == wanted and is_whole(row) for row in rows)


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8", newline="\n")
    new.replace(path)


def measure(name: str, threads: int, plan: Plan, dense: Dense) -> Row:
    """One model with every tool, in one setting."""
    options = [RunOptions(Runtime(threads=threads), seed=seed) for seed in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "original.onnx"
        write_model(zoo_model(name), source)
        tasks = {tool: Task(str(source), f"{folder}/{tool}.onnx", threads, plan.budget) for tool in TOOLS}
        made = {tool: convert(tool, task) for tool, task in tasks.items()}
        report = Path(tasks[OWN].report)
        own = own_row(name, json.loads(report.read_text(encoding="utf-8"))) if report.exists() else None
        model = Model.load(source)
        inputs = [representative(model, one).feeds for one in options]
        row: Row = {
            "model": name,
            "threads": threads,
            "plan": asdict(plan),
            "work": asdict(work(model, {key: value.shape for key, value in inputs[0].items()})),
            "tools": {tool: asdict(one) for tool, one in made.items()},
            "own": own,
        }
        rivals = [_contender(tool, tasks[tool]) for tool in TOOLS if _has_a_file(made[tool], own)]
        return {**row, **_measured(Contender(ORIGINAL, source), rivals, inputs, options[0].runtime, plan, dense)}


def _contender(tool: str, task: Task) -> Contender:
    return Contender(tool, Path(task.source if tool == OPENVINO else task.target))


def _has_a_file(made: Converted, own: Mapping[str, Any] | None) -> bool:
    """Whether there is something to time: where our own tool changes nothing, its file is the original."""
    return not made.problem and (made.tool != OWN or (own is not None and bool(own["changed"])))


def _measured(
    original: Contender,
    rivals: Sequence[Contender],
    inputs: Sequence[Feeds],
    runtime: Runtime,
    plan: Plan,
    dense: Dense,
) -> Row:
    """Compare the outputs of all, then time those that are right."""
    row: Row = {"checks": {}, "openvino_threads": None, "original": None, "dense": None, "timings": {}, "problem": ""}
    try:
        wanted, ms = _outputs(original, inputs, runtime)
        right: list[Contender] = []
        for rival in rivals:
            checked = _checked(rival, wanted, inputs, runtime)
            row["checks"][rival.name] = asdict(checked)
            right += [rival] if checked.verdict in RIGHT else []
        if any(rival.name == OPENVINO for rival in right):
            row["openvino_threads"] = OpenVINO(Contender(OPENVINO, original.model), runtime, inputs[0]).threads
        timings = _timed(original, [*right, Contender(DENSE, dense.proto)], inputs[0], runtime, plan, dense, ms)
    except SessionFailed as error:
        return {**row, "problem": str(error)}
    first = timings[0]
    row["original"] = {
        "ms": first.before_ms,
        "control_interval": first.control_interval,
        "smallest_effect": first.smallest_effect,
        "nondeterministic": first.nondeterministic,
        "pairs": first.pairs,
        "seconds": first.seconds,
    }
    row["dense"] = {"what": dense.what, "multiplications": dense.multiplications, "gflops_alone": dense.gflops}
    row["timings"] = {timing.after: _figures(timing) for timing in timings}
    return row


def _outputs(contender: Contender, inputs: Sequence[Feeds], runtime: Runtime) -> tuple[list[Outputs], float]:
    """For each of the inputs, and the milliseconds of a run that is not the first."""
    found: list[Outputs] = []
    ms = 0.0
    for feeds in inputs:
        runner = _open(contender, runtime, feeds)
        found.append(runner.outputs())
        begin = time.perf_counter()
        runner.repeat(1)
        ms = 1e3 * (time.perf_counter() - begin)
    return found, ms


def _checked(rival: Contender, wanted: Sequence[Outputs], inputs: Sequence[Feeds], runtime: Runtime) -> Agreement:
    try:
        return agreement(wanted, _outputs(rival, inputs, runtime)[0])
    except SessionFailed as error:
        return Agreement("fails", None, None, str(error))


def _timed(
    original: Contender,
    rivals: Sequence[Contender],
    feeds: Feeds,
    runtime: Runtime,
    plan: Plan,
    dense: Dense,
    ms: float,
) -> list[Timing]:
    """All in one run, the original and its control among them, long enough for an interval."""
    block = max(1, math.ceil(1e3 * _BLOCK_SECONDS / ms)) * ms / 1e3
    needed = _ROUNDS * 2 * (2 + len(rivals)) * _OVERHEAD * block

    def opened(contender: Contender, runtime: Runtime, feeds: Feeds) -> Runner:
        return _open(contender, runtime, dense.feeds if contender.name == DENSE else feeds)

    return compare(
        original,
        rivals,
        feeds,
        runtime,
        budget_seconds=max(plan.seconds, needed),
        block_seconds=_BLOCK_SECONDS,
        half_width=_HALF_WIDTH,
        open_with=opened,
    )


def _open(contender: Contender, runtime: Runtime, feeds: Feeds) -> Runner:
    opens: Callable[[Contender, Runtime, Feeds], Runner] = OpenVINO if contender.name == OPENVINO else open_runner
    return opens(contender, runtime, feeds)


def _figures(timing: Timing) -> Row:
    return {
        "speedup": timing.speedup,
        "interval": timing.interval,
        "verdict": timing.verdict,
        "ms": timing.after_ms,
    }


def line(row: Row) -> str:
    """A row as it is said while measuring."""
    where = f"{row['model']}, {called(row['threads'])}"
    if row["problem"]:
        return f"{where}: {row['problem']}"
    parts = [f"{name} {one['speedup']:.2f}×" for name, one in row["timings"].items() if name != DENSE]
    parts += [f"{name} {one['problem']}" for name, one in row["tools"].items() if one["problem"]]
    parts += [f"{name} {one['reason']}" for name, one in row["checks"].items() if one["verdict"] not in RIGHT]
    return f"{where}: {row['original']['ms']:.1f} ms; {', '.join(parts)}"


def called(threads: int) -> str:
    """A setting in words."""
    return {0: "all cores", 1: "1 thread"}.get(threads, f"{threads} threads")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
