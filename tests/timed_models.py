"""Small models and runtimes to test timing on a device with, and a device for machines without one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rewriter import providers
from rewriter.session import Runtime

FULL = Runtime("cuda", provider_options=(("use_tf32", "0"),))
GRAPH = FULL.with_options(enable_cuda_graph="1")


def model(
    nodes: list[onnx.NodeProto], kind: int, shape: list[int | str], *weights: onnx.TensorProto
) -> onnx.ModelProto:
    """`nodes` from x to y, both of the ONNX element type `kind`; y has any shape of x's rank."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [f"d{axis}" for axis in range(len(shape))])],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def conv(group: int = 2, channels: int = 8, kind: Any = np.float32) -> onnx.ModelProto:
    weight = np.random.default_rng(group).standard_normal((channels, channels // group, 3, 3)).astype(kind)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return model([node], code, ["n", channels, 8, 8], numpy_helper.from_array(weight, "w"))


def feeds(seed: int = 0, kind: Any = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 8, 8, 8)).astype(kind)}


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the provider "cuda" what its record describes, but on the CPU."""
    record = providers.PROVIDERS["cuda"]
    fake = dataclasses.replace(record, onnxruntime="CPUExecutionProvider", device="cpu")
    monkeypatch.setitem(providers.PROVIDERS, "cuda", fake)
