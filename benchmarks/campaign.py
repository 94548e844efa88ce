"""Every pass on every model, audited: what each rewrites, and how far the audit proves it.

    python -m benchmarks.campaign [--only TEXT ...] [--limit 120] [--total SECONDS] [--again] [--output JSON]

The results are written after each pair of a model and a plan (passes and settings); a pair that is there already, made
with the same versions of the libraries, of the passes and of the models, is not run again.  A pair that takes longer
than the limit is ended and recorded as `timeout`, one that ends the process as `crashed`: nothing is left out silently.
The models are on the CPU, at 1 thread; `python -m benchmarks.campaign_page` makes docs/campaign.md of the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

import rewriter
from benchmarks.subjects import Plan, Subject, plans, subjects
from models.write import write_model
from rewriter.registry import all_passes
from rewriter.result import Result

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "campaign.json"
SCHEMA: Final = 1
_NICE: Final = 10
Row = dict[str, Any]


def main() -> int:
    """Run what is missing from the results; a line for each pair in which something was rewritten or went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="texts: pairs with one of them in `MODEL PLAN`")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a pair")
    parser.add_argument("--total", type=float, default=float("inf"), help="begin no pair after so many seconds")
    parser.add_argument(
        "--rounds", type=int, choices=(1, 2), nargs="+", default=[1, 2], help="1: defaults; 2: the rest"
    )
    parser.add_argument("--again", action="store_true", help="run pairs that are there already, too")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    rounds = _rounds(plans(list(all_passes())))
    pairs = [
        (subject, plan)
        for number in asked.rounds
        for subject in subjects()
        for plan in rounds[number - 1]
        if not asked.only or any(text in f"{subject.name} {plan.name}" for text in asked.only)
    ]
    campaign = Campaign(asked.output, asked.limit, asked.again, lambda line: print(line, flush=True))
    campaign.run(pairs, time.monotonic() + asked.total)
    return 0


def _rounds(found: Sequence[Plan]) -> list[list[Plan]]:
    """The defaults on all models before any other setting on one."""
    return [
        [plan for plan in found if plan.is_default],
        [plan for plan in found if not plan.is_default],
    ]


@dataclass
class Campaign:
    """Pairs of models and plans, and a file with what became of them."""

    output: Path
    limit: float
    again: bool
    say: Callable[[str], None]

    def run(self, pairs: Sequence[tuple[Subject, Plan]], deadline: float = float("inf")) -> None:
        """Run the pairs in order, those of one model after each other in one process, and write each as it ends."""
        rows = read_rows(self.output)
        waiting: dict[tuple[str, bool], list[tuple[Subject, Plan]]] = {}
        for subject, plan in pairs:
            if self._missing(rows.get((subject.name, plan.name)), plan):
                waiting.setdefault((subject.name, plan.is_default), []).append((subject, plan))
        with tempfile.TemporaryDirectory(prefix="rewriter-campaign-") as folder:
            for block in waiting.values():
                if time.monotonic() > deadline:
                    return
                path = Path(folder) / "model.onnx"
                write_model(block[0][0].build(), path)
                self._one_model(path, block, rows, deadline)

    def _missing(self, known: Row | None, plan: Plan) -> bool:
        """Whether the pair is to be run: also again where it was ended after less time than there is now."""
        if self.again or known is None or known["versions"] != versions(plan):
            return True
        return bool(known["outcome"] == "timeout" and known["seconds"] < self.limit)

    def _one_model(self, path: Path, block: Sequence[tuple[Subject, Plan]], rows: Rows, deadline: float) -> None:
        worker = Worker(path)
        try:
            for subject, plan in block:
                if time.monotonic() > deadline:
                    return
                row = {"model": subject.name, "plan": plan.name, "passes": list(plan.passes)}
                row |= worker.ask(plan, self.limit) | {"versions": versions(plan), "sources": sources()}
                rows[subject.name, plan.name] = row
                write_rows(self.output, rows)
                if row["outcome"] != "does not apply":
                    self.say(line(row))
        finally:
            worker.end()


Rows = dict[tuple[str, str], Row]


class Worker:
    """A process that rewrites one model, plan after plan; ended and started anew when one takes too long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def ask(self, plan: Plan, limit: float) -> Row:
        """What `examine` gives, or that it took longer than `limit` seconds, or that the process died."""
        begin = time.monotonic()
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._path), daemon=True)
            self._process.start()
            theirs.close()
        self._pipe.send(plan)
        try:
            if self._pipe.poll(limit):
                row: Row = self._pipe.recv()
                return row
            outcome, reason = "timeout", f"It was ended after {limit:.0f} s."
        except EOFError:
            outcome, reason = "crashed", "The process ended without an answer."
        self.end()
        return empty_row(outcome, reason, time.monotonic() - begin)

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is None or self._pipe is None:
            return
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None


def _serve(pipe: Connection, path: Path) -> None:
    os.nice(_NICE)
    while True:
        try:
            plan = pipe.recv()
        except EOFError:
            return
        pipe.send(examine(path, plan))


def examine(path: Path, plan: Plan) -> Row:
    """Rewrite the model and audit the result; whatever is raised, a bug too, becomes the outcome `failed`."""
    begin = time.monotonic()
    try:
        options = rewriter.RunOptions(allow=plan.allow)
        result = rewriter.rewrite(path, plan.passes, options, settings=plan.settings)
    except Exception as error:  # noqa: BLE001 - one pair must not cost the others
        return empty_row("failed", f"{type(error).__name__}: {error}", time.monotonic() - begin)
    return _judged(result, time.monotonic() - begin)


def _judged(result: Result, seconds: float) -> Row:
    report = result.report
    made = [entry for entry in report.attempts if entry.summary]
    declined = [entry for entry in report.attempts if not entry.summary]
    if report.audit is None:
        nearest = max(declined, key=lambda entry: entry.matched, default=None)
        return empty_row("does not apply", nearest.reason if nearest else report.reason, seconds) | {
            "declined": len(declined)
        }
    wrong = [region for region in report.audit.regions if region.verdict != "equivalent"]
    return empty_row("rewritten", "" if report.verdict == "equivalent" else report.reason, seconds) | {
        "rewrites": len(made),
        "declined": len(declined),
        "regions": dict(Counter(f"{region.verdict} {region.grade}" for region in report.audit.regions)),
        "verdict": report.verdict,
        "grade": report.grade,
        "wrong": [{"outputs": list(region.outputs), "reason": region.reason} for region in wrong[:3]],
        "nodes": [report.before.nodes, report.after.nodes],
    }


def empty_row(outcome: str, reason: str, seconds: float) -> Row:
    """A row in which nothing was rewritten."""
    return {
        "outcome": outcome,
        "rewrites": 0,
        "declined": 0,
        "regions": {},
        "verdict": None,
        "grade": None,
        "reason": reason,
        "seconds": round(seconds, 2),
    }


def line(row: Row) -> str:
    """`zoo:x regroup: 7 rewrites, equivalent finite, 3 s`, with the reason for anything but equivalent."""
    what = row["outcome"] if row["verdict"] is None else f"{row['rewrites']} rewrites, {row['verdict']} {row['grade']}"
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{row['model']} {row['plan']}: {what}, {row['seconds']:.0f} s{reason}"


def versions(plan: Plan) -> dict[str, str]:
    """What a row holds for: the libraries, and a digest of the files of the passes and of the models."""
    found = {name: version(name) for name in ("onnx", "onnxruntime", "numpy")}
    modules = [sys.modules[type(all_passes()[name]).__module__].__file__ or "" for name in plan.passes]
    found["passes"] = digest([Path(path) for path in modules])
    found["models"] = digest(sorted((ROOT / "models").rglob("*.py")))
    return found


def sources() -> str:
    """A digest of the whole tool, passes included: rows of one digest were made by the same program."""
    return digest(sorted([*(ROOT / "rewriter").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]))


def digest(paths: Sequence[Path]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the files' contents."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def read_rows(path: Path) -> Rows:
    """The rows of a results file by model and plan; none where there is no file."""
    if not path.exists():
        return {}
    return {(row["model"], row["plan"]): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def write_rows(path: Path, rows: Rows) -> None:
    """Replace the results file in one step, so that an end at any time leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(row, sort_keys=True) for _, row in sorted(rows.items()))
    beside = path.with_suffix(".tmp")
    beside.write_text(f'{{"schema": {SCHEMA}, "rows": [\n{text}\n]}}\n', encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
