"""The same pairs through Polygraphy with its defaults, an independent judge, into benchmarks/results/polygraphy.json.

    pip install polygraphy
    python -m benchmarks.polygraphy

What `polygraphy run a.onnx --onnxrt` and `polygraphy run b.onnx --onnxrt`, on the first one's inputs and outputs, do,
through its Python interface: one draw of its data loader (uniform 0 … 1, free dimensions 1), and its comparison with a
relative and an absolute tolerance of 1e-5.  Pairs are every kind of the wrong-rewrite suite, and right ones by hand.
docs/polygraphy.md is built from the result by `python -m docs.build`; neither that nor any test needs Polygraphy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from rewriter.constants import Array
from rewriter.equivalence import AuditOptions, audit
from rewriter.model import Model

RESULTS = Path(__file__).parent / "results" / "polygraphy.json"
_TESTS = str(Path(__file__).resolve().parents[1] / "tests")
if _TESTS not in sys.path:  # where pytest has not put it
    sys.path.append(_TESTS)

RIGHT: Final = 3
"""Right rewrites of each kind made by hand."""
_Outputs = Mapping[str, Array]


def main() -> int:
    """Compare all pairs, and write what was found."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    onnxruntime.set_default_logger_severity(4)
    logger = importlib.import_module("polygraphy.logger").G_LOGGER
    logger.module_severity = logger.CRITICAL
    report = campaign()
    RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {count}" for name, count in report["counts"].items()))
    return 0


def campaign() -> dict[str, Any]:
    """A row for each pair, and how many there are of each outcome."""
    from right_draws import by_hand
    from right_hand import MAKERS
    from test_equivalence.wrong_suite import CASES, family

    wrong, right = [], []
    for name, kind in CASES.items():
        before, after = kind.make()
        row = {"name": name.replace("_", " "), "family": family(kind), "what": kind.what}
        wrong.append(row | judged(before, after))
    for make in MAKERS:
        for seed in range(RIGHT):
            pair = by_hand(make, seed)
            row = {"name": f"{make.__name__.replace('_', ' ')} {seed}"}
            right.append(row | judged(pair.before, pair.after))
    return {
        "versions": {name: version(name) for name in ("polygraphy", "onnx", "onnxruntime", "numpy")},
        "counts": {
            "wrong": len(wrong),
            "wrong that it passes": sum(row["polygraphy"] == "pass" for row in wrong),
            "wrong that the audit accepts": sum(row["audit"] == "equivalent" for row in wrong),
            "right": len(right),
            "right that it fails": sum(row["polygraphy"] != "pass" for row in right),
            "right that the audit rejects": sum(row["audit"] == "different" for row in right),
        },
        "wrong": wrong,
        "right": right,
    }


def judged(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, Any]:
    """What both say of a pair, and by how much outputs differed for Polygraphy."""
    with np.errstate(all="ignore"):
        found = audit(Model.load(before), Model.load(after), AuditOptions(full=True))
    levels = [*found.levels, *(level for region in found.regions for level in region.levels)]
    caught = min((level.level for level in levels if level.outcome == "fail"), default="")
    return {"audit": found.verdict, "caught": caught, **compared(before, after)}


def compared(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, Any]:
    """Polygraphy's answer: "pass", "fail", or "error" with its first line; and the largest difference it met."""
    backend = importlib.import_module("polygraphy.backend.onnxrt")
    comparator = importlib.import_module("polygraphy.comparator")
    runners = [
        backend.OnnxrtRunner(backend.SessionFromOnnx(model.SerializeToString()), name=name)
        for name, model in (("before", before), ("after", after))
    ]
    try:
        results = comparator.Comparator.run(runners)
        agrees = bool(comparator.Comparator.compare_accuracy(results))
    except Exception as problem:  # noqa: BLE001 - whatever it raises is its answer
        return {"polygraphy": "error", "difference": None, "why": str(problem).strip().splitlines()[0]}
    old, new = (dict(results[name][0]) for name in ("before", "after"))
    return {"polygraphy": "pass" if agrees else "fail", "difference": largest_difference(old, new), "why": ""}


def largest_difference(old: _Outputs, new: _Outputs) -> float | str | None:
    """Between outputs of the same name, relative to the largest value; None where they cannot be compared."""
    worst = 0.0
    for name, value in old.items():
        other = new.get(name)
        if other is None or np.shape(other) != np.shape(value):
            return None
        first, second = (np.asarray(entry, np.float64) for entry in (value, other))
        error = np.abs(first - second).max(initial=0)
        worst = max(
            worst,
            float(error / (np.abs(first).max(initial=0) or 1)),
            key=lambda found: np.nan_to_num(found, nan=np.inf),
        )
    return worst if np.isfinite(worst) else str(worst)


if __name__ == "__main__":
    sys.exit(main())
