"""Put the measured figures into README.md: the tables between its `figures` markers are built from benchmarks/results.

python -m benchmarks.readme [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import cuda_table, peers_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: built by benchmarks/readme.py -->", "<!-- end of figures -->"


def main() -> int:
    """Rewrite the section, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when README.md is out of date")
    check = parser.parse_args().check
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{BEGIN}\n\n{section()}\n\n{END}{tail}"
    if check:
        return int(text != wanted)
    README.write_text(wanted)
    sys.stdout.write("README.md holds the figures of benchmarks/results.\n")
    return 0


def section() -> str:
    """The tables as Markdown."""
    engine = json.loads((RESULTS / "engine.json").read_text())
    lines = _models()
    lines += ["", *_components(json.loads((RESULTS / "components.json").read_text()))]
    lines += [
        "",
        f"The engine alone (load, match, rewrite, save) on {engine['model']}, {_mb(engine['file_bytes'])}:",
        "",
    ]
    lines += ["| pass | rewrites | seconds after imports | peak memory |", "|---|---|---|---|"]
    lines += [
        f"| {row['pass']} | {row['rewrites']} | {row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f}) | "
        f"{row['peak_over_file']:.2f} × the file |"
        for row in engine["passes"]
    ]
    cuda = RESULTS / "cuda.json"
    lines += ["", *cuda_table.section(json.loads(cuda.read_text()) if cuda.exists() else None)]
    return "\n".join(lines)


def _models() -> list[str]:
    """What is gained on real models: beside other tools where that was measured, else by itself."""
    peers = RESULTS / "peers.json"
    if peers.exists():
        found = json.loads(peers.read_text(encoding="utf-8"))
        return [_where(found["environment"]), "", *peers_table.section(found)]
    models = json.loads((RESULTS / "optimize.json").read_text())
    heading = "| model | rewrites | speed-up over plain ONNX Runtime | verdict | search, timing and audit |"
    return [_where(models["environment"]), "", heading, "|---|---|---|---|---|", *map(_model, models["models"])]


def _where(facts: dict[str, str]) -> str:
    return (
        f"{facts['processor']}, {facts['cores']} cores, ONNX Runtime {facts['onnxruntime']}, "
        f"Python {facts['python']}. A shared machine: read the ratios."
    )


def _model(row: dict[str, object]) -> str:
    interval, threads = row["interval"], row["threads"]
    speed = "unchanged: nothing helps"
    if isinstance(interval, list) and not row["changed"]:
        speed = f"unchanged: as a whole not faster, {row['speedup']:.2f}× ({interval[0]:.2f} to {interval[1]:.2f})"
    elif isinstance(interval, list):
        speed = f"{row['speedup']:.2f}× ({interval[0]:.2f} to {interval[1]:.2f}) at {threads} thread"
    return (
        f"| {row['model']} | {row['rewrites']} | {speed} | {row['verdict']} ({row['grade']}) | {row['seconds']:.0f} s |"
    )


def _components(measured: dict[str, Any]) -> list[str]:
    """What padding and permuting channels adds, with the census of ONNX Runtime's own kernels."""
    lines = [
        f"Each optimized in {measured['budget']:.0f} s with and without the passes for channel components "
        "(`pad-channels`, `absorb-shuffle`, `align-concat`, `expand-gate`); the convolutions on the fast path, and the "
        "changes of layout that ONNX Runtime makes:",
        "",
        "| model | without | with | fast path: original, without, with | Reorders: original, without, with |",
        "|---|---|---|---|---|",
    ]
    for row in measured["models"]:
        states = [row["before"], row["without"]["census"], row["with"]["census"]]
        fast = ", ".join(f"{state['fast']} of {state['convs']}" for state in states)
        reorders = ", ".join(str(state["reorders"]) for state in states)
        gains = " | ".join(_gain(row[which]) for which in ("without", "with"))
        lines.append(f"| {row['model']} | {gains} | {fast} | {reorders} |")
    return lines


def _gain(found: dict[str, Any]) -> str:
    if found["interval"] is None:
        return "unchanged"
    low, high = found["interval"]
    return f"{found['speedup']:.2f}× ({low:.2f} to {high:.2f})"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
