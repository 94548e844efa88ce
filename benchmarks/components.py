"""What padding and permuting channels adds to `optimize`: with and without these passes, and the census of both.

    python -m benchmarks.components [NAME ...] [--budget 60]

Each model of models/zoo is optimized twice.  The census counts ONNX Runtime's own kernels in the model as it optimizes
it: convolutions on the fast path (NCHWc), and changes of layout (Reorder).  Nothing in the table is typed in by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import rewriter
from models.zoo.refill import zoo_model
from rewriter.census import census

RESULTS: Final = Path(__file__).parent / "results" / "components.json"
PASSES: Final = ("pad-channels", "absorb-shuffle", "align-concat", "expand-gate")
NAMES: Final = (
    "regnet_y_400mf",
    "regnet_x_1_6gf",
    "shufflenet_v2_x1_0",
    "timm_mixnet_s",
    "timm_ghostnet_100",
    "timm_res2next50",
    "timm_dpn68",
)


def main() -> None:
    """Optimize each model with and without the passes, and write the results after each one, in place of older ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--budget", type=float, default=60.0)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else []
    for name in asked.names:
        model = zoo_model(name)
        found = {}
        for which, skip in (("without", PASSES), ("with", ())):
            result = rewriter.optimize(model, skip=skip, budget=asked.budget, records=False)
            timing, environment = result.report.timing, result.report.environment
            found[which] = {
                "speedup": timing.speedup if timing and result.changed else 1.0,
                "interval": timing.interval if timing and result.changed else None,
                "verdict": result.report.verdict,
                "grade": result.report.grade,
                "census": _counts(result.model.SerializeToString()),
            }
        new = {"model": name, "before": _counts(model.SerializeToString()), **found}
        kept = [row for row in rows if row["model"] != name]
        rows = sorted([*kept, new], key=lambda row: NAMES.index(row["model"]) if row["model"] in NAMES else len(NAMES))
        RESULTS.write_text(
            json.dumps({"environment": environment, "budget": asked.budget, "models": rows}, indent=2) + "\n"
        )
        sys.stdout.write(f"{name}: {found['without']['speedup']:.2f} without, {found['with']['speedup']:.2f} with\n")
        sys.stdout.flush()


def _counts(model: bytes) -> dict[str, int]:
    """Convolutions on the fast path, all convolutions, and changes of layout."""
    kinds = census(model, rewriter.Runtime()).counts
    own = {kind.rpartition(":")[2]: 0 for kind in kinds}
    for kind, number in kinds.items():
        own[kind.rpartition(":")[2]] += number
    return {
        "fast": kinds.get("com.microsoft.nchwc:Conv", 0),
        "convs": own.get("Conv", 0) + own.get("FusedConv", 0),
        "reorders": own.get("ReorderInput", 0) + own.get("ReorderOutput", 0),
    }


if __name__ == "__main__":
    main()
