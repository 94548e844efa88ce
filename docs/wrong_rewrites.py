"""Build docs/wrong-rewrites.md, kinds of wrong rewrite × levels, from benchmarks/results/wrong.json; see docs/build.py.

And, from benchmarks/results/right.json, what became of the right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from docs import built
from docs.built import Report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "wrong-rewrites.md"
_LEVELS: Final = ("L0", "L1", "L2", "L3", "L4", "L5")


def stale() -> list[str]:
    """A line saying that the page is out of date, or none."""
    return built.stale(PAGE, page(load("wrong"), load("right")), "benchmarks/results/")


def write() -> None:
    """Bring the page up to date."""
    built.write(PAGE, page(load("wrong"), load("right")))


def load(name: str) -> Report:
    """What a campaign found."""
    return built.read(RESULTS / f"{name}.json")


def page(wrong: Report, right: Report) -> str:
    """The page as Markdown."""
    lines = [*_head(wrong, right), *_kinds(wrong), *_unproven(wrong), *_right(right)]
    return "\n".join(lines) + "\n"


def _head(wrong: Report, right: Report) -> Iterator[str]:
    counts = wrong["counts"]
    versions = ", ".join(f"{name} {number}" for name, number in wrong["versions"].items())
    yield "<!-- Built by docs/wrong_rewrites.py: run make wrong-rewrites, or make right-rewrites. -->"
    yield ""
    yield "# The auditor, tested"
    yield ""
    yield f"**{counts['rejected']} of {counts['kinds']}** kinds of wrong rewrite are rejected, and"
    yield f"**{right['counts']['rejected']} of {right['counts']['rewrites']}** right ones ({versions})."
    yield ""
    yield f"{counts['refuted']} of the wrong ones are refuted: some level says `different`, and where. The other"
    yield f"{counts['left unproven']} are wrong by less than rounding, or for inputs that no run meets; no level can"
    yield "see that, and none says the opposite: the verdict is `approximate` or `not_verified`, never `equivalent`."
    yield ""


def _kinds(wrong: Report) -> Iterator[str]:
    yield "## Wrong rewrites by the level that catches them"
    yield ""
    yield "**●** the level that refutes it in an audit; ○ levels above that refute it, too, when none below is asked."
    yield "L0 structure, L1 effective weights, L2 integers, L3 captured activations, L4 whole model, L5 edges."
    yield ""
    for title in dict.fromkeys(row["family"] for row in wrong["kinds"]):
        rows = [row for row in wrong["kinds"] if row["family"] == title and row["caught"]]
        if not rows:
            continue
        yield f"### {title}"
        yield ""
        yield _row(["kind", "what is wrong", *_LEVELS])
        yield _row(["---"] * 2 + [":-:"] * len(_LEVELS))
        for row in rows:
            marks = ["**●**" if at == row["caught"] else "○" if at in row["alone"] else "" for at in _LEVELS]
            yield _row([row["kind"], row["what"], *marks])
        yield ""


def _unproven(wrong: Report) -> Iterator[str]:
    yield "## Not refuted, and not accepted"
    yield ""
    yield _row(["kind", "what is wrong", "verdict"])
    yield _row(["---"] * 3)
    for row in wrong["kinds"]:
        if not row["caught"]:
            yield _row([row["kind"], row["what"], f"`{row['verdict']}`"])
    yield ""


def _right(right: Report) -> Iterator[str]:
    counts = right["counts"]
    yield "## Right rewrites"
    yield ""
    yield f"{counts['rewrites']} correct rewrites of random models, drawn from seeds: {counts['rejected']} called"
    yield f"`different`, {counts['equivalent']} `equivalent`, {counts['unproven']} left unproven."
    yield f"{counts['full audits']} of the audits had the float64 reference and L5, too. The weights, and inputs that"
    yield "each is also run on, are of one of several distributions."
    yield ""
    yield _row(["rewrite", "tried", "different", "equivalent", "by grade", "unproven"])
    yield _row(["---"] + ["--:"] * 3 + ["---", "--:"])
    for row in right["rewrites"]:
        grades = ", ".join(f"{name} {count}" for name, count in row["grades"].items())
        yield _row([row["name"], row["tried"], row["different"], row["equivalent"], grades, row["unproven"]])
    yield ""
    for title in ("weights", "inputs", "types"):
        yield f"By {title}: " + ", ".join(f"{name} {count}" for name, count in right[title].items()) + "."
        yield ""
    if right["false alarms"]:
        yield "False alarms:"
        yield ""
        for alarm in right["false alarms"]:
            where = f"seed {alarm['seed']}, weights {alarm['weights']}, inputs {alarm['inputs']}"
            yield f"- {alarm['source']} ({where}): {alarm['reason'].partition(' First: ')[2] or alarm['reason']}"
        yield ""
    if right.get("again"):
        yield from _again(right)
    if right["reasons"]:
        yield "What was left unproven, and why:"
        yield ""
        for name, entry in right["reasons"].items():
            yield f"- {entry['count']} × {name} (the first: {entry['case']})"


def _again(right: Report) -> Iterator[str]:
    """Which cases another auditor looked at than the one that ran the campaign."""
    done = right["again"]
    yield f"The campaign ran with the auditor of commit {right['commit']}. It called {len(done)} `different`; these and"
    yield "no others were audited again after the auditor was changed, and count above as what they are called now:"
    yield ""
    for entry in done:
        said = entry["before"].partition(" First: ")[2] or entry["before"]
        yield f"- {entry['source']} (seed {entry['seed']}), now `{entry['verdict']}`. It was: {said}"
    yield ""


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
