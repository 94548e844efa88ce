"""Run the table form × form: every conversion on many random models, into benchmarks/results/forms.json.

    python -m benchmarks.forms [--cases 40] [--only 'grouped -> split_concat']

Each case is rewritten and audited, recognised in the form it should be in, and compared on integers bit for bit where
the conversion rounds nothing; the same is asked of there and back, and of what the passes refuse.  The forms and what
leads between them are data in tests/forms_table.py; docs/forms.md is built from the result by `python -m docs.build`.
A case that fails is in the result, with its reason, and the exit status is 1.  --only replaces one row of the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

RESULTS = Path(__file__).parent / "results" / "forms.json"
_TESTS = str(Path(__file__).resolve().parents[1] / "tests")
if _TESTS not in sys.path:  # where pytest has not put it
    sys.path.append(_TESTS)

if TYPE_CHECKING:
    from forms_table import Conversion, No


def main() -> int:
    """Run the campaign, say what failed, and write the result where nothing did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="random models for each conversion (default 40)")
    parser.add_argument("--only", default="", help="one conversion, such as 'grouped -> split_concat'")
    arguments = parser.parse_args()
    report = campaign(arguments.cases, arguments.only)
    rows = [row for key in _RUN for row in report[key]]
    failures = [(row, failure) for row in rows for failure in row["failures"]]
    for row, failure in failures:
        print(f"{row['from']} -> {row['to']}, case {failure['case']}: {failure['reason']}")
    print(f"{sum(row['cases'] for row in rows)} cases, {len(failures)} failed")
    if rows:
        written = _merged(report, arguments.only)
        RESULTS.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(bool(failures) or not rows)


_RUN = ("conversions", "there_and_back", "refused")


def _merged(report: dict[str, Any], only: str) -> dict[str, Any]:
    """The whole report; where only one conversion was run, the earlier one with its row and what is said replaced."""
    if not only:
        return report
    whole: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    new = {(row["from"], row["to"]): row for row in report["conversions"]}
    whole["conversions"] = [new.get((row["from"], row["to"]), row) for row in whole["conversions"]]
    return whole | described()


def campaign(cases: int, only: str = "") -> dict[str, Any]:
    """What was run, and what came of it."""
    from forms_cases import back_again, refuses
    from forms_table import THERE_AND_BACK, conversions

    report = described()
    wanted = [chain for chain in conversions().values() if only in ("", chain.name)]
    report |= {"cases": cases, "conversions": [_converted(chain, cases) for chain in wanted]}
    report["there_and_back"] = [
        {"from": one, "to": other, **_tried(cases, partial(back_again, one, other))}
        for one, other in THERE_AND_BACK
        if not only
    ]
    report["refused"] = [
        {"from": source, "to": target, "pass": str(no.tried)} | _tried(cases, partial(refuses, source, no))
        for source, target, no in _refusals()
        if not only
    ]
    return report


def described() -> dict[str, Any]:
    """What the table says without being run: forms, and the sentence for every pair that has no conversion."""
    from forms_known import FAMILIES, FORMS
    from forms_table import STEPS, conversions, why_not

    sentences: dict[str, list[list[str]]] = {}
    for source in FORMS:
        for target in FORMS:
            if source != target and (source, target) not in conversions():
                sentences.setdefault(why_not(source, target).why, []).append([source, target])
    return {
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
        "families": dict(FAMILIES),
        "forms": [{"name": form.name, "family": form.family, "what": form.what} for form in FORMS.values()],
        "none": [{"why": why, "pairs": pairs} for why, pairs in sentences.items()],
        "notes": [{"passes": str(step.passes[0]), "note": step.note} for step in STEPS if step.note],
    }


def facts(chain: Conversion) -> dict[str, Any]:
    """A conversion without what came of it."""
    return {
        "from": chain.source,
        "to": chain.target,
        "via": list(chain.via),
        "passes": [str(step) for step in chain.passes],
        "safety": chain.safety.name,
        "needs": chain.needs,
    }


def _converted(chain: Conversion, cases: int) -> dict[str, Any]:
    from forms_cases import convert

    declared, audited = Counter[str](), Counter[str]()

    def one(number: int) -> None:
        made = convert(chain, number)
        declared[made.safety.name] += 1
        audited[made.grade.name] += 1

    tried = _tried(cases, one)
    sys.stderr.write(f"{chain.name}: {tried['passed']} of {cases}\n")
    return facts(chain) | tried | {"declared": dict(sorted(declared.items())), "audited": dict(sorted(audited.items()))}


def _tried(cases: int, one: Callable[[int], None]) -> dict[str, Any]:
    from forms_cases import Failed

    failures = []
    for number in range(cases):
        try:
            one(number)
        except Failed as no:
            failures.append({"case": number, "reason": str(no)})
    return {"cases": cases, "passed": cases - len(failures), "failures": failures}


def _refusals() -> Iterator[tuple[str, str, No]]:
    from forms_table import WHY_NOT

    for (source, target), no in WHY_NOT.items():
        if no.tried is not None:
            yield source, target, no


if __name__ == "__main__":
    sys.exit(main())
