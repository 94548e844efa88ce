"""Other tools' optimized files, audited against the originals: what `rewriter audit A B` says of them, and how soon.

    python -m benchmarks.third_party [--only TEXT ...] [--limit 600] [--total SECONDS] [--again] [--damaged 10]
                                     [--python PYTHON] [--output JSON]

Each model of the zoo is converted by onnxsim, onnxslim, onnxoptimizer and ONNX Runtime's own offline optimizer at two
levels, and each pair audited (the fast mode) in a process of its own, ended at the limit.  A tool that is not installed
is recorded as such; `--python` is the Python that converts, where the tools are in another environment than ours.  With
`--damaged N`, N of the files that were found equivalent are damaged in each of the ways of
benchmarks/third_party_damage.py and audited again: each must be found different.  A row that is there already is not
run again.  `python -m benchmarks.third_party_page` makes docs/third-party.md of the results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from benchmarks.third_party_damage import DAMAGES
from benchmarks.third_party_tools import CONVERTERS
from models.write import write_model
from models.zoo.refill import zoo_model, zoo_names
from rewriter.equivalence import AuditOptions, audit
from rewriter.model import Model

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "third_party.json"
SCHEMA: Final = 1
SMALL_FIRST: Final = (
    *("regnet_x_400mf", "mobilenet_v2", "keras_mobilenet", "shufflenet_v2_x1_0", "timm_ghostnet_100"),
    *("timm_mixnet_s", "mobilenet_v3_large", "timm_fastvit_t8", "regnet_y_400mf", "timm_res2next50"),
)
Row = dict[str, Any]


def main() -> int:
    """Run what is missing from the results; a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="texts: pairs with one of them in `MODEL TOOL`")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for an audit")
    parser.add_argument("--total", type=float, default=float("inf"), help="begin no pair after so many seconds")
    parser.add_argument("--again", action="store_true", help="run pairs that are there already, too")
    parser.add_argument("--damaged", type=int, default=0, help="how many files to damage in each way")
    parser.add_argument("--python", default=sys.executable, help="the Python that has the tools")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    rows = {} if asked.again else read_rows(asked.output)
    end = time.monotonic() + asked.total
    for model, tools in _missing(rows, asked.only):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as folder:
            before = Path(folder) / "before.onnx"
            write_model(zoo_model(model), before)
            for tool in tools:
                _keep(asked.output, rows, _compared(model, tool, before, asked.python, asked.limit))
    for row, damage, seed in _to_damage(rows, asked.damaged):
        if time.monotonic() > end:
            break
        _keep(asked.output, rows, _damaged(row, damage, seed, asked.python, asked.limit))
    return 0


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of the results by model, tool and damage; none where there is no file."""
    if not path.exists():
        return {}
    return {_key(row): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def _key(row: Row) -> str:
    return " ".join([row["model"], row["tool"], row.get("damage", "")])


def _missing(rows: dict[str, Row], only: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    names = sorted(zoo_names(), key=lambda name: (name not in SMALL_FIRST, name))
    for model in names:
        tools = [tool for tool in CONVERTERS if f"{model} {tool} " not in rows]
        chosen = [tool for tool in tools if not only or any(text in f"{model} {tool}" for text in only)]
        if chosen:
            yield model, chosen


def _to_damage(rows: dict[str, Row], count: int) -> Iterator[tuple[Row, str, int]]:
    """Files by all tools in turn, so many of them, and every damage that they do not have a row of."""
    good = [row for row in rows.values() if row.get("verdict") == "equivalent" and "damage" not in row]
    good.sort(key=lambda row: (row["seconds"], row["model"], row["tool"]))
    by_tool = [[row for row in good if row["tool"] == tool] for tool in CONVERTERS]
    turns = [row for place in range(len(good)) for found in by_tool for row in found[place : place + 1]]
    for seed, row in enumerate(turns[:count]):
        for damage in DAMAGES:
            if " ".join([row["model"], row["tool"], damage]) not in rows:
                yield row, damage, seed


def _compared(model: str, tool: str, before: Path, python: str, limit: float) -> Row:
    row: Row = {"model": model, "tool": tool}
    after = before.with_name(f"{tool}.onnx")
    problem = _convert(row, tool, before, after, python, limit)
    return {**row, "outcome": "no file", "reason": problem} if problem else {**row, **_audited(before, after, limit)}


def _damaged(row: Row, damage: str, seed: int, python: str, limit: float) -> Row:
    made: Row = {"model": row["model"], "tool": row["tool"], "damage": damage}
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        write_model(zoo_model(row["model"]), before)
        problem = _convert(made, row["tool"], before, after, python, limit)
        found = None if problem else DAMAGES[damage](onnx.load(after), seed, onnx.load(before))
        if found is None:
            return {**made, "outcome": "no file", "reason": problem or "There is nothing to damage in this way."}
        onnx.save(found.model, after)
        result = _audited(before, after, limit)
    return {**made, **result, "what": found.what, "named": found.tensor in result.get("said", "")}


def _convert(row: Row, tool: str, before: Path, after: Path, python: str, limit: float) -> str:
    """Make the tool's file and note the tool's version; returns what went wrong."""
    command = [python, "-m", "benchmarks.third_party_tools", tool, str(before), str(after)]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"The tool did not end within {limit:g} s."
    if ran.returncode or not after.exists():
        return ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else f"exit code {ran.returncode}"
    row["version"] = ran.stdout.strip().splitlines()[-1]
    return ""


def _audited(before: Path, after: Path, limit: float) -> Row:
    """Audit a pair in a process of its own."""
    begin = time.perf_counter()
    code = "import sys; from benchmarks.third_party import one; one(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(before), str(after)]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"outcome": "timeout", "reason": f"Not done within {limit:g} s.", "seconds": limit}
    if ran.returncode:
        why = ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else f"exit code {ran.returncode}"
        return {"outcome": "crashed", "reason": why, "seconds": round(time.perf_counter() - begin, 1)}
    return {"outcome": "audited", **json.loads(ran.stdout.strip().splitlines()[-1])}


def one(before: str, after: str) -> None:
    """Audit one pair and write what came of it as a line of JSON."""
    begin = time.perf_counter()
    found = audit(Model.load(before), Model.load(after), AuditOptions())
    wrong = [region for region in found.regions if region.verdict == "different"]
    said = " ".join([found.reason, *(f"{region.outputs} {region.reason}" for region in wrong)])
    row = {
        "verdict": found.verdict,
        "grade": found.grade,
        "regions": len(found.regions),
        "unproven": sum(region.verdict != "equivalent" for region in found.regions),
        "reason": found.reason,
        "notes": list(found.notes),
        "said": said if wrong else "",
        "seconds": round(time.perf_counter() - begin, 1),
    }
    sys.stdout.write(f"\n{json.dumps(row)}\n")


def _keep(path: Path, rows: dict[str, Row], row: Row) -> None:
    """Put a row into the results, at once."""
    rows[_key(row)] = row
    content = {"schema": SCHEMA, "rows": [rows[key] for key in sorted(rows)]}
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    new.replace(path)
    ended = row.get("verdict") or row["outcome"]
    what = f", damaged: {row['damage']}" if "damage" in row else ""
    found = f"{ended} {row.get('grade') or ''} {row.get('seconds', '')} s. {row['reason'][:140]}"
    sys.stdout.write(f"{row['model']} {row['tool']}{what}: {found}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
