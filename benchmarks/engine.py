"""The engine alone: load, match, rewrite and save one model, without audit and timing of the result.

    python benchmarks/engine.py [--model zoo:resnext50_32x4d] [--passes grouped-to-depthwise-sum ...] [--runs 5]

Each run is a process of its own.  Seconds count from after the imports to the saved file; peak memory is the process's
largest resident set, interpreter and libraries included, and also as a multiple of the model file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "engine.json"

CHILD = """
import json, resource, sys, time
from pathlib import Path
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.saving import save

source, target, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rule = pass_named(name)
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
model, applied, _ = sweep(Model.load(source), Step(rule), {})
matched = time.perf_counter()
save(model, target)
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": end - begin, "rewrite_seconds": matched - begin, "rewrites": len(applied),
                  "imports_kib": imported, "peak_kib": peak}))
"""


def main() -> None:
    """Measure, print a line per pass, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:resnext50_32x4d")
    parser.add_argument("--passes", nargs="+", default=["grouped-to-depthwise-sum", "regroup"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        subprocess.run([sys.executable, "-m", "models", arguments.model, "-o", str(source)], check=True)
        rows = [measure(source, Path(folder) / "out.onnx", name, arguments.runs) for name in arguments.passes]
        report = {"model": arguments.model, "file_bytes": source.stat().st_size, "passes": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for row in rows:
        sys.stdout.write(
            f"{row['pass']}: {row['rewrites']} rewrites, {row['seconds']:.2f} s ({row['fastest']:.2f} to "
            f"{row['slowest']:.2f}), peak {row['peak_over_file']:.2f} x the file "
            f"({row['peak_mib']:.0f} MiB, {row['imports_mib']:.0f} of them imports)\n"
        )


def measure(source: Path, target: Path, name: str, runs: int) -> dict[str, object]:
    """Median, fastest and slowest of some runs of one pass."""
    found = [json.loads(_child(source, target, name)) for _ in range(runs)]
    seconds = [run["seconds"] for run in found]
    peak = max(run["peak_kib"] for run in found)
    return {
        "pass": name,
        "runs": runs,
        "rewrites": found[0]["rewrites"],
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "rewrite_seconds": statistics.median(run["rewrite_seconds"] for run in found),
        "peak_mib": peak / 1024,
        "imports_mib": max(run["imports_kib"] for run in found) / 1024,
        "peak_over_file": peak * 1024 / source.stat().st_size,
        "output_bytes": target.stat().st_size,
    }


def _child(source: Path, target: Path, name: str) -> str:
    command = [sys.executable, "-c", CHILD, str(source), str(target), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
