"""A small network, what a pass makes of it, and a wrong copy: files for the tests of `rewriter audit`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

import rewriter
from cli_runs import small_network

REWRITE = ("rewrite", "net.onnx", "-o", "out.onnx", "--pass", "regroup", "-q")
AUDIT = ("audit", "net.onnx", "out.onnx", "--fast")
SHAPE = (1, 3, 32, 32)


def write_models(folder: Path) -> Path:
    """Write net.onnx, out.onnx (rewritten) and wrong.onnx (net.onnx with one weight moved) into the folder."""
    for name, content in _models().items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _models() -> dict[str, bytes]:
    network = small_network()
    right = network.SerializeToString()
    rewritten = rewriter.rewrite(right, ["regroup"]).model.SerializeToString()
    weight = next(tensor for tensor in network.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return {"net.onnx": right, "out.onnx": rewritten, "wrong.onnx": network.SerializeToString()}


def sample(seed: int) -> np.ndarray:
    """An input of the network."""
    return np.random.default_rng([seed, 99]).standard_normal(SHAPE).astype(np.float32)


def report(path: str = "r.json") -> dict[str, Any]:
    """A JSON report in the current folder."""
    found = json.loads(Path(path).read_text())
    assert isinstance(found, dict)
    return found
