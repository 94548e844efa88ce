"""Build docs/polygraphy.md, the audit beside Polygraphy with its defaults, from benchmarks/results/polygraphy.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs import built
from docs.built import Report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "polygraphy.json"
PAGE = ROOT / "docs" / "polygraphy.md"


def stale() -> list[str]:
    """A line saying that the page is out of date, or none."""
    return built.stale(PAGE, page(load()), "benchmarks/results/polygraphy.json")


def write() -> None:
    """Bring the page up to date."""
    built.write(PAGE, page(load()))


def load() -> Report:
    """What the comparison found."""
    return built.read(RESULTS)


def page(report: Report) -> str:
    """The page as Markdown."""
    return "\n".join([*_head(report), *_missed(report), *_right(report)]) + "\n"


def _head(report: Report) -> Iterator[str]:
    counts = report["counts"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield "<!-- Built by docs/polygraphy_page.py from benchmarks/results/polygraphy.json. -->"
    yield ""
    yield "# Beside Polygraphy"
    yield ""
    yield "[Polygraphy](https://github.com/NVIDIA/TensorRT/tree/main/tools/Polygraphy) runs two models on the same"
    yield "inputs and compares their outputs. Here it does what it does when nothing else is asked for: one draw of"
    yield "inputs, uniform between 0 and 1, free dimensions 1; outputs agree within 1e-5, relative plus absolute"
    yield f"({versions}). `python -m benchmarks.polygraphy` repeats it."
    yield ""
    yield "| | pairs | Polygraphy passes | the audit: `equivalent` |"
    yield "|---|--:|--:|--:|"
    passed = counts["right"] - counts["right that it fails"]
    same = sum(row["audit"] == "equivalent" for row in report["right"])
    yield f"| right rewrites | {counts['right']} | {passed} | {same} |"
    wrong = counts["wrong"], counts["wrong that it passes"], counts["wrong that the audit accepts"]
    yield f"| wrong rewrites | {wrong[0]} | {wrong[1]} | {wrong[2]} |"
    yield ""
    yield "Its tolerances and inputs can be chosen, and no choice is right for all models: tighter than a model's own"
    yield "rounding, right rewrites fail; wider, wrong ones pass."
    yield ""


def _missed(report: Report) -> Iterator[str]:
    missed = [row for row in report["wrong"] if row["polygraphy"] == "pass"]
    yield "## Wrong rewrites that it passes"
    yield ""
    yield "The difference is the largest between outputs on its inputs, relative to the largest value."
    yield ""
    yield "| kind | what is wrong | difference | why it passes | the audit |"
    yield "|---|---|--:|---|---|"
    for row in missed:
        says = f"{row['caught']} refutes it" if row["caught"] else f"`{row['audit']}`"
        yield _row([row["name"], row["what"], _figure(row["difference"]), _why(row), says])
    yield ""
    caught = len(report["wrong"]) - len(missed)
    errors = sum(row["polygraphy"] == "error" for row in report["wrong"])
    yield f"The other {caught} it catches, too, {errors} of them because they do not run on its inputs."
    yield ""


def _why(row: Report) -> str:
    """From how far apart the outputs were, and where."""
    if row["caught"] == "L0":
        return "it compares outputs by name, and no interface"
    if row["difference"] == 0:
        return "its inputs do not show it"
    return "no more than rounding on its inputs"


def _right(report: Report) -> Iterator[str]:
    failed = [row for row in report["right"] if row["polygraphy"] != "pass"]
    yield "## Right rewrites that it fails"
    yield ""
    if not failed:
        yield "None."
        return
    yield "| rewrite | difference | its answer | the audit |"
    yield "|---|--:|---|---|"
    for row in failed:
        answer = row["why"] or row["polygraphy"]
        yield _row([row["name"], _figure(row["difference"]), answer, f"`{row['audit']}`"])


def _figure(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value else "0"
    return "" if value is None else str(value)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
