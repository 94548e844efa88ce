"""Timing on a GPU: what is bound, replayed and timed there computes what it should, and is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.session import Runtime, SessionFailed, open_session, run
from rewriter.timing import Contender, compare, latency, runners
from rewriter.timing.bound import BoundRunner
from timed_models import FULL, GRAPH, conv, feeds, model


def plainly(proto: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> np.ndarray:
    return run(open_session(proto, FULL), values)["y"]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within what two float32 algorithms (Winograd, say) for 36 products of about 1 differ by; TF32 misses by 1e-3."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("runtime", [FULL, GRAPH], ids=["plain", "graph"])
def test_cuda_computes_the_same_bound_and_replayed(runtime: Runtime) -> None:
    runner = runners.open_runner(Contender("m", conv()), runtime, feeds())
    assert isinstance(runner, BoundRunner)
    assert runner.bound_outputs["y"].value.device_name() != "cpu"
    runner.repeat(5)
    first = runner.outputs()["y"]
    close(first, plainly(conv(), feeds()))
    close(first, run(open_session(conv(), Runtime()), feeds())["y"])
    runner.bound_outputs["y"].write(np.full_like(first, np.nan))  # the next run writes all of it again ...
    close(runner.outputs()["y"], first)
    runner.inputs["x"].write(feeds(1)["x"])  # ... and reads what is there now
    close(runner.outputs()["y"], plainly(conv(), feeds(1)))
    assert not np.allclose(runner.outputs()["y"], first)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("runtime", [FULL, GRAPH], ids=["plain", "graph"])
def test_cuda_binds_half_precision(kind: Any, runtime: Runtime) -> None:
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    proto = model([helper.make_node("Add", ["x", "x"], ["y"])], code, [2, 3])
    array = np.arange(6).reshape(2, 3).astype(kind)
    found = runners.open_runner(Contender("m", proto), runtime, {"x": array}).outputs()["y"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.astype(np.float32), 2 * array.astype(np.float32))


@pytest.mark.cuda
def test_cuda_is_timed_with_and_without_a_graph_in_one_measurement() -> None:
    graph = Contender("graph", conv(), runtime=GRAPH)
    (entry,) = compare(Contender("plain", conv()), [graph], feeds(), FULL, budget_seconds=30, block_seconds=0.02)
    assert (entry.provider, entry.bound) == ("cuda", True)
    assert (entry.before_cuda_graph, entry.cuda_graph) == (False, True)
    assert entry.before_ms > 0
    assert entry.after_ms > 0
    assert entry.control_interval is not None
    assert set(entry.before_sha256) == set(entry.after_sha256) == {"y"}
    assert all(clocks is not None and clocks.sm for clocks in entry.clocks)


@pytest.mark.cuda
def test_cuda_is_timed_by_itself() -> None:
    alone = latency(Contender("m", conv()), feeds(), GRAPH, budget_seconds=5)
    assert alone.ms > 0
    assert alone.cuda_graph
    assert all(clocks is not None and clocks.sm for clocks in alone.clocks)


@pytest.mark.cuda
def test_cuda_says_that_control_flow_cannot_be_captured() -> None:
    branch = [
        helper.make_graph([helper.make_node(op, ["x"], ["b"])], op, [], [onnx.ValueInfoProto(name="b")])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    proto = model(nodes, TensorProto.FLOAT, [2, 3])
    array = {"x": np.ones((2, 3), np.float32)}
    assert runners.open_runner(Contender("m", proto), FULL, array).outputs()["y"].sum() == 6
    with pytest.raises(SessionFailed, match=r"cannot be captured as a CUDA graph, because .*enable_cuda_graph=1"):
        runners.open_runner(Contender("m", proto), GRAPH, array)
