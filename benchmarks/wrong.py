"""Run the wrong-rewrite suite: every kind audited, and each level of the ladder asked alone, into results/wrong.json.

    python -m benchmarks.wrong [--only KIND]

The kinds are those of tests/test_equivalence/wrong_suite.py; docs/wrong-rewrites.md is built from the result by
`python -m docs.build`.  The exit status is 1 when a kind is accepted, or caught later than its case says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import numpy as np

from rewriter.equivalence import Audit, AuditOptions, audit, ladder, proving
from rewriter.equivalence.records import not_applicable, passed
from rewriter.equivalence.static import StaticResult
from rewriter.model import Model

RESULTS = Path(__file__).parent / "results" / "wrong.json"
_TESTS = str(Path(__file__).resolve().parents[1] / "tests")
if _TESTS not in sys.path:  # where pytest has not put it
    sys.path.append(_TESTS)

if TYPE_CHECKING:
    from test_equivalence.wrong_cases import Kind

LEVELS: Final = ("L0", "L1", "L2", "L3", "L4", "L5")
_MUTE: Final = "It is not asked."


def main() -> int:
    """Run the suite, say what was not caught, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="one kind, by name; nothing is written")
    only = parser.parse_args().only
    report = campaign(only)
    wrong = [row for row in report["kinds"] if row["verdict"] == "equivalent" or row["late"]]
    for row in wrong:
        print(f"{row['kind']}: {row['verdict']}, caught by {row['caught'] or 'no level'}: {row['reason']}")
    print(", ".join(f"{name} {count}" for name, count in report["counts"].items()))
    if only:
        print(json.dumps(report["kinds"], indent=1, ensure_ascii=False))
    else:
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(bool(wrong) or not report["kinds"])


def campaign(only: str = "") -> dict[str, Any]:
    """A row for each kind, and how many there are of each outcome."""
    from test_equivalence.wrong_suite import CASES, family

    rows = []
    for name, kind in CASES.items():
        if only in ("", name):
            rows.append({"kind": name.replace("_", " "), "family": family(kind), "what": kind.what} | outcome(kind))
            sys.stderr.write(f"{name}: {rows[-1]['caught'] or rows[-1]['verdict']}\n")
    first = Counter(row["caught"] or "none" for row in rows)
    return {
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
        "counts": {
            "kinds": len(rows),
            "rejected": sum(row["verdict"] != "equivalent" for row in rows),
            "refuted": sum(row["verdict"] == "different" for row in rows),
            **{f"first refuted by {level}": first[level] for level in LEVELS if first[level]},
            "left unproven": sum(row["verdict"] in ("approximate", "not_verified") for row in rows),
        },
        "kinds": rows,
    }


def outcome(kind: Kind) -> dict[str, Any]:
    """What the audit says of a kind, and which levels refute it when they are asked alone."""
    with np.errstate(all="ignore"):  # cases make infinities
        before, after = (Model.load(model) for model in kind.make())
    found = audit(before, after, AuditOptions(full=True))
    caught = first_failure(found)
    return {
        "verdict": found.verdict,
        "caught": caught,
        "late": bool(kind.level) and (not caught or caught > kind.level),
        "alone": alone(before, after, caught, moved=not kind.combines),
        "reason": found.reason,
    }


def failures(found: Audit) -> set[str]:
    """The levels that refute."""
    levels = [*found.levels, *(level for region in found.regions for level in region.levels)]
    return {level.level for level in levels if level.outcome == "fail"}


def first_failure(found: Audit) -> str:
    """The lowest of them; empty where none refutes."""
    return min(failures(found), default="")


def alone(before: Model, after: Model, caught: str, *, moved: bool) -> list[str]:
    """The levels that refute when none below them is asked.

    `moved` tells L2 what the rewrite claims: that weights only move, so that integers in their place must agree.
    A level that cannot be asked because models of other interfaces do not run side by side does not refute.
    """
    found = {caught} - {""}
    for asked in range(1, len(LEVELS)):
        with muted(LEVELS[:asked], moved):
            try:
                refuting = failures(audit(before, after, AuditOptions(full=True)))
            except Exception as problem:
                if caught != "L0":
                    raise
                sys.stderr.write(f"  {LEVELS[asked]} cannot be asked: {type(problem).__name__}\n")
                continue
        found |= refuting & set(LEVELS[asked:])
    return sorted(found)


@contextmanager
def muted(levels: Sequence[str], moved: bool) -> Iterator[None]:
    """The ladder with these levels saying nothing."""
    silent = StaticResult(not_applicable("L1", _MUTE), moved=moved, offsets_moved=moved)
    said: tuple[tuple[str, Any, str, Any], ...] = (
        ("L0", ladder, "compare_structure", (passed("L0", _MUTE), ())),
        ("L1", proving, "at_all_sizes", lambda _: silent),
        ("L1", proving, "lone_change", ""),
        ("L2", ladder, "compare_exactly", not_applicable("L2", _MUTE)),
        ("L3", ladder, "compare_on_activations", not_applicable("L3", _MUTE)),
    )
    with ExitStack() as stack:
        for level, module, name, answer in said:
            if level in levels:
                stack.enter_context(mock.patch.object(module, name, mock.Mock(return_value=answer)))
        yield


if __name__ == "__main__":
    sys.exit(main())
