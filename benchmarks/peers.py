"""Real models through this tool and through others, timed in one interleaved run per model: one JSON, one table.

    python -m benchmarks.peers [NAME ...] [--threads 1] [--budget 60] [--seconds 30]

Every contender is timed on the same inputs against plain ONNX Runtime, with a second session of it as control; OpenVINO
runs the original itself, in float32, with as many threads.  Tools that are not installed are said to be so.  A rate is
what the useful multiplications of the convolutions and matrix products would need, as a part of the fastest dense
convolution that this machine was seen to run in ONNX Runtime in the same process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

import rewriter
from benchmarks.openvino import open_with, openvino_version
from benchmarks.optimize import NAMES
from benchmarks.peer_tools import TOOLS, Converted, convert
from models.zoo.refill import zoo_model
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.session import Runtime, SessionFailed
from rewriter.shapes import bind
from rewriter.timing import Contender, Timing, compare, latency

RESULTS: Final = Path(__file__).parent / "results" / "peers.json"
OPENVINO: Final = "openvino"
_PROBES: Final = ((256, 28, 3), (512, 14, 3), (1024, 14, 1), (256, 56, 1))
"""Channels, size and kernel of dense convolutions, one of which should come near what the machine can do."""


def main() -> None:
    """Measure each model and write the results after each, so that nothing is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    options = RunOptions(Runtime(threads=asked.threads))
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    found["peak_gflops"] = {**found.get("peak_gflops", {}), str(asked.threads): peak_rate(options.runtime)}
    for name in asked.names:
        row, environment = measure(name, options, asked.budget, asked.seconds)
        found["environment"] = environment
        others = [one for one in found["rows"] if (one["model"], one["threads"]) != (name, asked.threads)]
        found["rows"] = [*others, row]
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        sys.stdout.write(_line(row) + "\n")
        sys.stdout.flush()


def measure(name: str, options: RunOptions, budget: float, seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """One model with every tool, and the environment it was measured in."""
    proto = zoo_model(name)
    begin = time.perf_counter()
    result = rewriter.optimize(proto, options, budget=budget, records=False)
    own = Converted(
        "rewriter",
        result.report.environment["onnx-conv-rewriter"],
        time.perf_counter() - begin,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "original.onnx"
        onnx.save(proto, source)
        model = Model.load(source)
        inputs = representative(model, options)
        converted = [convert(tool, source, Path(folder) / f"{tool}.onnx") for tool in TOOLS]
        rivals = [Contender(one.tool, Path(folder) / f"{one.tool}.onnx") for one in converted if not one.problem]
        rivals += [Contender(OPENVINO, source)] if openvino_version() else []
        rivals += [Contender("rewriter", result.model)] if result.changed else []
        original = Contender("original", source)
        timings = _compare(original, rivals, inputs.feeds, options.runtime, seconds)
    useful = useful_multiplications(model, {key: value.shape for key, value in inputs.feeds.items()})
    row = {
        "model": name,
        "threads": options.runtime.threads,
        "original_ms": timings[0].before_ms if timings else None,
        "multiplications": useful,
        "changed": result.changed,
        "verdict": result.report.verdict,
        "tools": [asdict(one) for one in (*converted, own)],
        "openvino": openvino_version(),
        "timings": {one.after: _figures(one) for one in timings},
    }
    return row, result.report.environment


def _compare(
    original: Contender, rivals: list[Contender], feeds: Mapping[str, np.ndarray], runtime: Runtime, seconds: float
) -> list[Timing]:
    """All in one run; a contender that cannot be run is left out of it."""
    while rivals:
        try:
            return compare(
                original, rivals, feeds, runtime, budget_seconds=seconds, open_with=open_with, half_width=0.01
            )
        except SessionFailed as error:
            bad = [one for one in rivals if f"'{one.name}'" in str(error)]
            if not bad:
                raise
            sys.stderr.write(f"{error}\n")
            rivals = [one for one in rivals if one not in bad]
    return []


def useful_multiplications(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiplications of all Conv, Gemm and MatMul nodes with constant weights, at these input shapes."""
    bound = bind(model, shapes)
    total = 0
    for node in model.nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            continue
        output, weight = bound.shape(node.output[0]), bound.shape(node.input[1])
        if output is None or weight is None:
            continue
        if node.op_type == "Conv":
            total += output[0] * math.prod(output[2:]) * math.prod(weight)
        else:
            total += math.prod(output) * (math.prod(weight) // output[-1])
    return total


def peak_rate(runtime: Runtime) -> float:
    """The fastest dense convolution's 10⁹ multiplications and additions a second."""
    rates = []
    for channels, size, kernel in _PROBES:
        shape = [1, channels, size, size]
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
        weight = np.random.default_rng(0).standard_normal((channels, channels, kernel, kernel)).astype(np.float32)
        nodes = [
            onnx.helper.make_node(
                "Conv", ["x" if n == 0 else f"t{n}", "w"], [f"t{n + 1}" if n < 3 else "y"], pads=[kernel // 2] * 4
            )
            for n in range(4)
        ]
        initializers = [onnx.numpy_helper.from_array(weight, "w")]
        graph = onnx.helper.make_graph(nodes, "dense", values[:1], values[1:], initializers)
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 1e-6}
        found = latency(Contender("dense", proto), feeds, runtime, budget_seconds=2.0)
        rates.append(2 * 4 * weight.size * size * size / found.ms / 1e6)
    return max(rates)


def _figures(timing: Timing) -> dict[str, Any]:
    return {
        "speedup": timing.speedup,
        "interval": timing.interval,
        "verdict": timing.verdict,
        "ms": timing.after_ms,
        "smallest_effect": timing.smallest_effect,
        "pairs": timing.pairs,
    }


def _line(row: Mapping[str, Any]) -> str:
    parts = [f"{name} {one['speedup']:.2f}x" for name, one in row["timings"].items()]
    return f"{row['model']} ({row['threads']} threads): {', '.join(parts)}"


if __name__ == "__main__":
    main()
