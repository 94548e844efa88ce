"""What `optimize` gains on real models: one JSON and one table, from runs on this machine.

    python benchmarks/optimize.py [NAME ...] [--threads 1] [--budget 60]

Each model of models/zoo is refilled, optimized and audited; the speed-up is of the whole model over plain ONNX Runtime,
paired and interleaved in one process, with its 95 % interval.  Nothing in the table is typed in by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rewriter
from models.zoo.refill import zoo_model
from rewriter.report.record import Report

RESULTS = Path(__file__).parent / "results" / "optimize.json"
NAMES = (
    "tf_resnext50_depthwise_sum",
    "resnext50_32x4d",
    "resnext50_32x4d_dyn",
    "regnet_y_400mf",
    "regnet_y_400mf_dynamo",
    "regnet_x_400mf",
    "mobilenet_v2",
    "timm_skresnext50_32x4d",
    "hf_conformer",
    "video_r2plus1d_18",
    "timm_dpn68",
    "timm_legacy_seresnext26_32x4d",
    "regnet_x_1_6gf",
    "shufflenet_v2_x1_0",
    "timm_mixnet_s",
    "timm_ghostnet_100",
    "timm_res2next50",
)


def main() -> None:
    """Optimize each model and write the results, after each one, so that nothing is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=60.0)
    arguments = parser.parse_args()
    options = rewriter.RunOptions(rewriter.Runtime(threads=arguments.threads))
    rows: list[dict[str, object]] = []
    environment: dict[str, str] = {}
    for name in arguments.names:
        report = rewriter.optimize(zoo_model(name), options, budget=arguments.budget, records=False).report
        environment = report.environment
        rows.append(row(name, report.to_dict()))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"environment": environment, "models": rows}, indent=2) + "\n")
        sys.stdout.write(_line(name, report) + "\n")
        sys.stdout.flush()


def row(name: str, report: Mapping[str, Any]) -> dict[str, object]:
    """What is kept of a report, given as the plain JSON that `--report` writes."""
    timing, before, after = report["timing"], report["before"], report["after"]
    kept = Counter(f"{one['pass']}: {one['summary']}" for one in report["attempts"] if one["outcome"] == "accepted")
    return {
        "model": name,
        "changed": report["changed"],
        "verdict": report["verdict"],
        "grade": report["grade"],
        "reason": report["reason"],
        "rewrites": sum(kept.values()),
        "kept": dict(kept),
        "speedup": timing["speedup"] if timing else None,
        "interval": timing["interval"] if timing else None,
        "before_ms": timing["before_ms"] if timing else None,
        "after_ms": timing["after_ms"] if timing else None,
        "smallest_effect": timing["smallest_effect"] if timing else None,
        "nodes": [before["nodes"], after["nodes"]],
        "ops_before": before["ops"],
        "ops_after": after["ops"],
        "threads": timing["threads"] if timing else None,
        "seconds": report["seconds"],
    }


def _line(name: str, report: Report) -> str:
    speed = "not timed: nothing was kept"
    if report.timing is not None and report.timing.interval is not None:
        low, high = report.timing.interval
        speed = f"{report.timing.speedup:.2f}x ({low:.2f} to {high:.2f})"
    state = "rewritten" if report.changed else "unchanged"
    kept = sum(entry.outcome == "accepted" for entry in report.attempts)
    return f"{name}: {state}, {kept} rewrites, {speed}, {report.verdict}, {report.seconds:.0f} s"


if __name__ == "__main__":
    main()
