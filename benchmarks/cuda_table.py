"""The README's tables of CUDA figures, as Markdown, from what benchmarks/cuda.py wrote."""

from __future__ import annotations

from collections import Counter
from typing import Any

NOTHING = "No CUDA figure was measured yet: `make bench-cuda` measures them on a machine with an NVIDIA GPU."

Json = dict[str, Any]


def section(report: Json | None) -> list[str]:
    """Lines of Markdown; one sentence where there is no report."""
    if report is None:
        return [NOTHING]
    rows = report["rows"]
    lines = [_where(report), ""]
    lines += [
        "| model | type | batch | original, ms | fastest proven candidate | speed-up |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_best(row) for row in rows]
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        columns = [row for row in rows if row["dtype"] == dtype]
        names = [f"{row['model']} ({row['batch']})" for row in columns]
        lines += ["", "<details>", f"<summary>Every candidate in {dtype}</summary>", ""]
        lines += [f"| candidate | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for candidate in report["candidates"]:
            cells = [_cell(_entry(row, candidate["name"])) for row in columns]
            lines.append(f"| {candidate['name']} | {' | '.join(cells)} |")
        lines += ["", "</details>"]
    return lines


def _where(report: Json) -> str:
    facts, device, counts = report["environment"], report["device"], report["counts"]
    first: Json = next(iter(device.get("devices", [])), {})
    machine = (
        f"On {first.get('name', 'an unnamed device')}, driver {device.get('driver')}, CUDA "
        f"{device.get('cuda_runtime')}, cuDNN {device.get('cudnn')}, ONNX Runtime {facts['onnxruntime']}: "
        f"{counts.get('measured', 0)} candidates timed, {counts['audits']} audits, "
        f"{counts.get('different', 0)} refuted, {counts.get('failed', 0)} failed, "
        f"{counts.get('not measured', 0)} not measured for want of time."
    )
    return machine if report["finished"] else f"{machine} The run was cut short."


def _best(row: Json) -> str:
    proven = [entry for entry in row["candidates"] if _faster(entry)]
    best = max(proven, key=lambda entry: entry["timing"]["speedup"], default=None)
    head = f"| {row['model']} | {row['dtype']} | {row['batch']} | {_ms(row['original']['ms'])} |"
    if best is None:
        return f"{head} none | {_why_none(row)} |"
    return f"{head} {best['name']} ({best['grade']}) | {_speed(best['timing'])} |"


def _faster(entry: Json) -> bool:
    """Only what is proven and surely faster has a speed-up to boast of."""
    timing = entry["timing"]
    return entry["verdict"] == "equivalent" and timing is not None and timing["verdict"] == "FASTER"


def _why_none(row: Json) -> str:
    counts = Counter(entry["status"] for entry in row["candidates"])
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())


def _cell(entry: Json | None) -> str:
    if entry is None:
        return ""
    if entry["status"] == "does not apply":
        return "–"
    if entry["status"] != "measured":
        return str(entry["status"])
    doubt = "" if entry["verdict"] == "equivalent" else f", {entry['verdict'].replace('_', ' ')}"
    return f"{_speed(entry['timing'])}{doubt}"


def _entry(row: Json, name: str) -> Json | None:
    return next((entry for entry in row["candidates"] if entry["name"] == name), None)


def _speed(timing: Json) -> str:
    if timing["interval"] is None:
        return "too few runs for an interval"
    low, high = timing["interval"]
    return f"{timing['speedup']:.2f}× ({low:.2f} to {high:.2f})"


def _ms(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.3g}"
