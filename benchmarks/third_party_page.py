"""Put the results of benchmarks/third_party.py into docs/third-party.md: a table of tools and models.

python -m benchmarks.third_party_page [--check]
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.page import page_command
from benchmarks.third_party import RESULTS, ROOT, Row, read_rows
from benchmarks.third_party_tools import CONVERTERS
from models.zoo.refill import zoo_names

PAGE: Final = ROOT / "docs" / "third-party.md"
_BEHIND: Final = """
## How they are compared

Tensors that are the same by construction (the same operator with the same attributes of the same tensors, constants by
their bits) are taken for the same whatever they are called: other names, an Identity or Dropout left out, one constant
in place of many equal ones, a repeated node computed once, defaults written out or left out, and operator sets that no
node uses are no differences, and a file with only these is `equivalent (bitwise)`.  What is left is grouped into
regions and taken up the ladder.  There operators that stand for several others are read as these (QuickGelu, Gelu,
HardSwish, FusedMatMul, SkipLayerNormalization, FusedConv), MatMul and Gemm with a constant matrix as 1×1 convolutions,
and an operator that L1 knows nothing of (Softmax, LayerNormalization) as itself, where what enters it is shown to be
the same.

Weights that a tool combined with others (a scale folded into a convolution) are compared within the bound of rounding:
one unit in the last place of such a weight is rounding, of any other weight it is a difference.
"""


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    return page_command(__doc__, PAGE, current, RESULTS)


def current() -> str:
    """The page of the results that there are."""
    return page(list(read_rows(RESULTS).values()), zoo_names())


def page(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The page as Markdown; `names` are all models there are."""
    plain = [row for row in rows if "damage" not in row]
    damaged = [row for row in rows if "damage" in row]
    lines = [
        "<!-- Built by benchmarks/third_party_page.py from benchmarks/results/third_party.json. -->",
        "",
        "# Other tools' files, audited",
        "",
        "Every graph of the zoo, refilled, as other tools optimize it, audited against the original (the fast mode, on "
        "a busy CPU: the seconds are no measurement). Each cell: the grade of `equivalent` or the verdict, how many "
        "regions differ, and the seconds.",
        "",
        *_versions(rows),
        "",
        f"| model | {' | '.join(CONVERTERS)} |",
        f"|---|{'---|' * len(CONVERTERS)}",
        *(_line(plain, name) for name in names),
        "",
        *_summary(plain, names),
        _BEHIND.rstrip(),
        "",
        "## What is not equivalent",
        "",
        *_findings(plain),
        "",
        "## Damaged files",
        "",
        "Files of these tools with one thing changed in each. `python -m benchmarks.third_party --damaged 10`",
        "",
        *_damages(damaged),
    ]
    return "\n".join(lines) + "\n"


def _versions(rows: Sequence[Row]) -> Iterator[str]:
    found = sorted({row["version"] for row in rows if "version" in row})
    if found:
        yield f"With {', '.join(found)}."


def _line(rows: Sequence[Row], name: str) -> str:
    by_tool = {row["tool"]: row for row in rows if row["model"] == name}
    return f"| {name} | {' | '.join(_cell(by_tool.get(tool)) for tool in CONVERTERS)} |"


def _cell(row: Row | None) -> str:
    if row is None:
        return "·"
    if row["outcome"] != "audited":
        return str(row["outcome"])
    what = row["grade"] if row["verdict"] == "equivalent" else f"**{row['verdict']}**"
    return f"{what}, {row['regions']}, {row['seconds']:.0f} s"


def _summary(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    ended = Counter(row.get("verdict") or row["outcome"] for row in rows)
    told = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in ended.most_common())
    yield f"{len(rows)} of {len(names) * len(CONVERTERS)} pairs audited: {told or 'none'}."


def _findings(rows: Sequence[Row]) -> Iterator[str]:
    found = [row for row in rows if row.get("verdict") != "equivalent"]
    for row in found:
        yield f"- {row['model']}, {row['tool']}: {row.get('verdict') or row['outcome']}. {_prose(row['reason'])}"
    if not found:
        yield "Nothing."


def _damages(rows: Sequence[Row]) -> Iterator[str]:
    audited = [row for row in rows if row["outcome"] == "audited"]
    if not audited:
        yield "None yet."
        return
    right = sum(row["verdict"] == "different" for row in audited)
    named = sum(bool(row["named"]) for row in audited)
    yield f"{right} of {len(audited)} found different; the report names what was damaged in {named}."
    yield ""
    yield "| model | tool | damaged | verdict | named |"
    yield "|---|---|---|---|---|"
    for row in audited:
        yield (
            f"| {row['model']} | {row['tool']} | {_prose(row['what'])} | {row['verdict'].replace('_', ' ')} "
            f"| {'yes' if row['named'] else 'no'} |"
        )


def _prose(text: str) -> str:
    return text.replace("_", "\\_").replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")


if __name__ == "__main__":
    sys.exit(main())
