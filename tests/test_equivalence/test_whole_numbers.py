"""Whole-number outputs behind a proven rewrite: rounding flips near ties, and only those are forgiven."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.equivalence import AuditOptions, audit
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named


def tied(tail: onnx.NodeProto, kind: int, seed: int) -> Model:
    """Grouped convolution with weights in tenths, so that many values nearly tie, and one more node."""
    rng = np.random.default_rng(seed)
    weight = (rng.integers(-9, 10, (8, 4, 3, 3)) * np.float32(0.1)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["t"], group=8, pads=[1] * 4)
    constants = {"w": weight, "s": np.float32(0.2), "z": np.int8(0)}
    graph = helper.make_graph(
        [conv, tail],
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32, 16, 16])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return Model.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


QUANTIZE = helper.make_node("QuantizeLinear", ["t", "s", "z"], ["y"])


@pytest.mark.parametrize("seed", range(3))
def test_flips_near_ties_are_rounding(seed: int) -> None:
    before = tied(QUANTIZE, TensorProto.INT8, seed)
    after, applied, _ = sweep(before, Step(pass_named("regroup"), {"factor": 2}), {})
    assert applied
    found = audit(before, after, AuditOptions())
    assert found.verdict == "equivalent"
    assert not found.outputs[0].bitwise


def test_flips_in_an_unproven_region_are_not_forgiven() -> None:
    before = tied(QUANTIZE, TensorProto.INT8, 0)
    proto = before.to_proto()
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            node.input[1] = "s2"
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(0.1003, np.float32), "s2"))
    assert audit(before, Model.load(proto), AuditOptions()).verdict == "different"
