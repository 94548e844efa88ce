"""Runs the command line on small models: shared by the tests of the commands and of the README."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from models.resnext import ResNeXt, ResNeXtForm, resnext_model

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "tests" / "data" / "seeds"


def small_network(form: ResNeXtForm = "grouped") -> onnx.ModelProto:
    """Two bottleneck blocks with groups of 4 and 8 channels on 32 × 32 pixels: each pass finds something, and fast."""
    return resnext_model(ResNeXt(form=form, image=32, blocks=(1, 1), width=16, groups=8, classes=5))


def dense_model() -> onnx.ModelProto:
    """One dense convolution: no pass has anything to do with it."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 2, 5, 5]), ("y", [1, 3, 3, 3]))
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2, 3, 3], [0.25 * (k % 7 - 3) for k in range(54)])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "dense", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def command(*arguments: str | Path) -> list[str]:
    """The command line of `rewriter` with these arguments, in this Python."""
    return [sys.executable, "-m", "rewriter", *map(str, arguments)]


def environment(**more: str) -> Mapping[str, str]:
    """This process's environment with the repository on Python's path, and nothing that colours or sizes the output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `rewriter` as a process of its own, its output piped."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**more), capture_output=True, text=True, check=False
    )
