"""Put the results of benchmarks/campaign.py into docs/campaign.md, a table for each family of models.

python -m benchmarks.campaign_page [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.campaign import RESULTS, ROOT, Row, read_rows
from benchmarks.page import page_command
from benchmarks.subjects import subjects

PAGE: Final = ROOT / "docs" / "campaign.md"
FAMILIES: Final = {
    "zoo": "Real exports, refilled (`models/zoo`)",
    "code": "Networks built in code (`models/`), with images of 96 pixels where they allow it",
    "light": "onnx's light models as they are: every weight of one value, so that little of them responds to anything",
    "light+weights": "onnx's light models with weights (`benchmarks/light.py`)",
}
_ENDED: Final = {"timeout": "ended: too slow", "crashed": "**crashed**", "failed": "**failed**"}


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    return page_command(__doc__, PAGE, current, RESULTS)


def current() -> str:
    """The page of the results that there are."""
    return page(list(read_rows(RESULTS).values()), [subject.name for subject in subjects()])


def page(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The page as Markdown; `names` are all models there are."""
    lines = [
        "<!-- Built by benchmarks/campaign_page.py from benchmarks/results/campaign.json. -->",
        "",
        "# Every pass on every model",
        "",
        "Each cell: how many rewrites the pass made in the model, and the grade of the audit's `equivalent`; empty "
        "where it applies nowhere, `·` where it was not run. Passes that apply to no model of a family have no column.",
        "`make campaign` runs what is missing and builds this page.",
        "",
        *_summary(rows),
        *_left_out(rows, names),
    ]
    for family, title in FAMILIES.items():
        chosen = [row for row in rows if row["model"].partition(":")[0] == family]
        if chosen:
            lines += ["", f"## {title}", "", *_grid([row for row in chosen if _plain(row)])]
    others = [row for row in rows if not _plain(row) and row["outcome"] != "does not apply"]
    if others:
        lines += ["", "## Other settings, and there and back", "", *_by_plan(others)]
    lines += ["", "## Whatever is not `equivalent`", "", *_findings(rows)]
    return "\n".join(lines) + "\n"


def _plain(row: Row) -> bool:
    """One pass with its defaults."""
    return bool(row["plan"] == row["passes"][0])


def _left_out(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    missing = sorted(set(names) - {row["model"] for row in rows})
    if missing:
        yield ""
        yield f"Not run yet: {', '.join(missing)}."


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    rewritten = [row for row in rows if row["outcome"] == "rewritten"]
    proven = sum(row["verdict"] == "equivalent" for row in rewritten)
    ended = [row for row in rows if row["outcome"] in _ENDED]
    models = len({row["model"] for row in rows})
    facts = sorted({f"{name} {row['versions'][name]}" for row in rows for name in ("onnx", "onnxruntime", "numpy")})
    states = len({row["sources"] for row in rows})
    rewrites = sum(row["rewrites"] for row in rewritten)
    yield (
        f"{models} models, {len({row['plan'] for row in rows})} plans (a pass, or two, with settings), {len(rows)} "
        f"pairs run. Something was rewritten in {len(rewritten)}: {rewrites} rewrites, and {proven} of the "
        f"{len(rewritten)} audits ended `equivalent`. {len(ended)} pairs did not end by themselves."
    )
    yield ""
    yield f"On the CPU with {', '.join(facts)}; made by {states} state{'s' if states != 1 else ''} of the sources."


def _grid(rows: Sequence[Row]) -> Iterator[str]:
    """Models by passes."""
    cells = {(row["model"], row["plan"]): row for row in rows}
    models = sorted({row["model"] for row in rows})
    passes = sorted({row["plan"] for row in rows if row["outcome"] != "does not apply"})
    if not passes:
        yield "No pass applies."
        return
    yield f"| model | {' | '.join(passes)} |"
    yield "|---" * (len(passes) + 1) + "|"
    for model in models:
        found = [cell(cells.get((model, name))) for name in passes]
        yield f"| {model.partition(':')[2]} | {' | '.join(found)} |"


def cell(row: Row | None) -> str:
    """`7 finite`; a verdict other than `equivalent` in bold."""
    if row is None:
        return "·"
    if row["outcome"] == "does not apply":
        return ""
    if row["outcome"] in _ENDED:
        return _ENDED[row["outcome"]]
    if row["verdict"] == "equivalent":
        return f"{row['rewrites']} {row['grade']}"
    return f"**{row['rewrites']} {row['verdict'].replace('_', ' ')}**"


def _by_plan(rows: Sequence[Row]) -> Iterator[str]:
    yield "| passes and settings | models rewritten | rewrites | equivalent | grades | not equivalent |"
    yield "|---|---|---|---|---|---|"
    for plan in sorted({row["plan"] for row in rows}):
        some = [row for row in rows if row["plan"] == plan]
        good = [row for row in some if row["verdict"] == "equivalent"]
        grades = ", ".join(sorted({row["grade"] for row in good})) or "-"
        rewrites = sum(row["rewrites"] for row in some)
        yield f"| {plan} | {len(some)} | {rewrites} | {len(good)} | {grades} | {len(some) - len(good)} |"


def _findings(rows: Sequence[Row]) -> Iterator[str]:
    found = [row for row in rows if row["outcome"] in _ENDED or row["verdict"] not in (None, "equivalent")]
    if not found:
        yield "Nothing."
        return
    yield "| model | passes and settings | what | why |"
    yield "|---|---|---|---|"
    for row in sorted(found, key=lambda row: (row["outcome"], row["model"], row["plan"])):
        reason = " ".join(row["reason"].split()).replace("|", "\\|")
        yield f"| {row['model']} | {row['plan']} | {cell(row).strip('*')} | {reason} |"


if __name__ == "__main__":
    sys.exit(main())
