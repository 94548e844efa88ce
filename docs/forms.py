"""Build docs/forms.md, the table form × form, from benchmarks/results/forms.json; called by docs/build.py.

Nothing on the page is typed by hand: the forms, the passes between them and the sentences where there are none are
those of tests/forms_table.py, and the counts come from running it (`make forms`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from docs import built
from docs.built import Report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "forms.json"
PAGE = ROOT / "docs" / "forms.md"


def stale() -> list[str]:
    """A line saying that the page is out of date, or none."""
    return built.stale(PAGE, page(load()), "benchmarks/results/forms.json")


def write() -> None:
    """Bring the page up to date."""
    built.write(PAGE, page(load()))


def load() -> Report:
    """What the campaign found."""
    return built.read(RESULTS)


def page(report: Report) -> str:
    """The page as Markdown."""
    parts = (_head, _overview, _families, _notes, _whys, _checks)
    return "\n".join(line for part in parts for line in part(report)) + "\n"


def _head(report: Report) -> Iterator[str]:
    rows = report["conversions"]
    tried, passed = (sum(row[key] for row in rows) for key in ("cases", "passed"))
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield "<!-- Built by docs/forms.py from benchmarks/results/forms.json: run make forms. -->"
    yield ""
    yield "# Forms of a convolution"
    yield ""
    yield "A form is one way to compute a convolution with ONNX operators. This page says for every two of them whether"
    yield "passes lead from one to the other, how exact that is, and on how many random models it was tried."
    yield ""
    yield f"{len(rows)} conversions, {passed} of {tried} cases passed ({versions})."
    yield ""
    yield "A case is a random model in the first form: kernel, stride, dilation, padding, 1-D to 3-D where the form"
    yield "allows, static and free sizes, operator sets 7 to 26, float32 and some float16. It passes when `rewrite`"
    yield "with these passes ends `equivalent` at this safety; when the result is in the second form, judged by its"
    yield "operators, groups and weights; and when, unless it rounds, the same model with integer weights gives the"
    yield "same bits before and after, optimized by ONNX Runtime and not."
    yield ""
    yield "| | safety | |"
    yield "|---|---|---|"
    yield "| E | EXACT | weights only move |"
    yield "| F | FINITE | zeros go in or out: exact for finite activations |"
    yield "| R | ROUNDING | weights are combined, in float64, and rounded once |"
    yield "| a number | | there is no conversion: the sentence of that number [below](#why-not) |"
    yield ""


def _overview(report: Report) -> Iterator[str]:
    forms = [form["name"] for form in report["forms"]]
    made = _by_pair(report)
    numbers = _sentence_numbers(report)
    yield "## All pairs"
    yield ""
    yield "From the form of the row to that of the column."
    yield ""
    yield _row(["", *(str(at) for at in range(1, len(forms) + 1))])
    yield _row(["---"] * (len(forms) + 1))
    for at, source in enumerate(forms, 1):
        cells = []
        for target in forms:
            row = made.get((source, target))
            letter = f"**{row['safety'][0]}**" if row else str(numbers.get((source, target), ""))
            cells.append(letter)
        yield _row([f"{at} {_name(source)}", *cells])
    yield ""


def _families(report: Report) -> Iterator[str]:
    for family, title in report["families"].items():
        forms = [form for form in report["forms"] if form["family"] == family]
        yield f"## {title}"
        yield ""
        yield _row(["form", "what it is"])
        yield _row(["---"] * 2)
        for form in forms:
            yield _row([_name(form["name"]), form["what"]])
        yield ""
        yield "| from | to | safety | passes | cases passed | shown by the audit as |"
        yield "|---|---|---|---|---|---|"
        names = {form["name"] for form in forms}
        for row in report["conversions"]:
            if row["from"] in names:
                yield _conversion(row)
        yield ""


def _notes(report: Report) -> Iterator[str]:
    yield "## What the audit shows"
    yield ""
    yield "The last column of each table is the grade that the audit finds for itself. What it does not show, and why:"
    yield ""
    for entry in report["notes"]:
        yield f"- {_pass(entry['passes'])}: {entry['note']}"
    yield ""


def _conversion(row: Report) -> str:
    needs = f" ({row['needs']})" if row["needs"] else ""
    chain = ", ".join(_pass(name) for name in row["passes"])
    declared = row["declared"]
    safety = row["safety"] + _but(declared, row["safety"])
    grades = ", ".join(f"{name} {count}" for name, count in row["audited"].items())
    return _row([_name(row["from"]) + needs, _name(row["to"]), safety, chain, _passed(row), grades])


def _but(declared: Mapping[str, int], safety: str) -> str:
    """The cases whose models combine weights by themselves: a mean, a bias that is summed."""
    more = declared.get("ROUNDING", 0)
    return f"; ROUNDING in {more} that hold a mean or sum a bias" if more and safety != "ROUNDING" else ""


def _pass(text: str) -> str:
    name, _, settings = text.partition(" ")
    return f"[{name}](passes/{name}.md){' ' + settings if settings else ''}"


def _whys(report: Report) -> Iterator[str]:
    yield "## Why not"
    yield ""
    yield "Numbers as in the table of all pairs."
    yield ""
    for at, entry in enumerate(report["none"], 1):
        yield f"{at}. {entry['why']}"
    yield ""


def _checks(report: Report) -> Iterator[str]:
    yield "## There and back, and refusals"
    yield ""
    yield "From the first form to the second and back: the same form, and every weight with the same bits."
    yield ""
    yield "| from | through | cases passed |"
    yield "|---|---|---|"
    for row in report["there_and_back"]:
        yield _row([_name(row["from"]), _name(row["to"]), _passed(row)])
    yield ""
    yield "Where a pass could be expected to lead from one form to another, it was asked, and declined with its reason."
    yield ""
    yield "| from | to | pass that refuses | cases passed |"
    yield "|---|---|---|---|"
    for row in report["refused"]:
        yield _row([_name(row["from"]), _name(row["to"]), _pass(row["pass"]), _passed(row)])


def _by_pair(report: Report) -> dict[tuple[str, str], Report]:
    return {(row["from"], row["to"]): row for row in report["conversions"]}


def _sentence_numbers(report: Report) -> dict[tuple[str, str], int]:
    return {(one, other): at for at, entry in enumerate(report["none"], 1) for one, other in entry["pairs"]}


def _passed(row: Report) -> str:
    return f"{row['passed']} of {row['cases']}"


def _name(form: str) -> str:
    return f"`{form}`"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
