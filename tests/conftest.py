"""Shared by all tests: how hypothesis searches, and what happens to the tests marked `cuda` where there is no GPU."""

from __future__ import annotations

import functools
import os

import hypothesis
import onnxruntime
import pytest
from onnx import TensorProto, helper

# No timed assertions, and the same examples in every run; `--hypothesis-profile=search` looks further, at new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    problem = cuda_problem()
    if problem is None:
        return
    if os.environ.get("REWRITER_REQUIRE_CUDA") == "1":
        pytest.fail(f"this run was asked to use CUDA, but {problem}", pytrace=False)
    pytest.skip(f"{problem}; `make test-cuda` on a machine with a GPU runs it")


@functools.cache
def cuda_problem() -> str | None:
    """Why nothing can run on CUDA here; None when a model was seen to run there."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "the installed ONNX Runtime has no CUDA provider"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    probe = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CUDAExecutionProvider"])
    used = session.get_providers()  # ONNX Runtime falls back to the CPU when the driver or a library is missing
    return None if used[0] == "CUDAExecutionProvider" else f"ONNX Runtime fell back to {used[0]}"
