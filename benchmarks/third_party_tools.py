"""Other tools' files: converts one model with one of them, in a process that imports nothing of ours.

    python -m benchmarks.third_party_tools TOOL BEFORE.onnx AFTER.onnx

So it can run in another environment, with another onnx than ours.  The tool's version goes to standard output.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import onnx
import onnxruntime


def _onnxsim(before: str, after: str) -> None:
    model, same = importlib.import_module("onnxsim").simplify(onnx.load(before))
    if not same:
        raise SystemExit("onnxsim's own check failed")
    onnx.save(model, after)


def _onnxslim(before: str, after: str) -> None:
    onnx.save(importlib.import_module("onnxslim").slim(onnx.load(before)), after)


def _onnxoptimizer(before: str, after: str) -> None:
    tool = importlib.import_module("onnxoptimizer")
    onnx.save(tool.optimize(onnx.load(before), tool.get_fuse_and_elimination_passes()), after)


def _onnxruntime(level: str) -> Callable[[str, str], None]:
    def convert(before: str, after: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = after
        onnxruntime.InferenceSession(before, options, providers=["CPUExecutionProvider"])

    return convert


CONVERTERS: Final[dict[str, tuple[str, Callable[[str, str], None]]]] = {
    "onnxsim": ("onnxsim", _onnxsim),
    "onnxslim": ("onnxslim", _onnxslim),
    "onnxoptimizer": ("onnxoptimizer", _onnxoptimizer),
    "ort-basic": ("onnxruntime", _onnxruntime("ORT_ENABLE_BASIC")),
    "ort-extended": ("onnxruntime", _onnxruntime("ORT_ENABLE_EXTENDED")),
}
"""By the tool's name in the table: the package it comes in, and what converts a file."""


def main() -> int:
    """Convert one file; returns 0."""
    tool, before, after = sys.argv[1:4]
    package, convert = CONVERTERS[tool]
    convert(before, after)
    sys.stdout.write(f"\n{package} {version(package)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
