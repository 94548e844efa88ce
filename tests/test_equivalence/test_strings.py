"""Regions that give out strings: compared element by element, never as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.equivalence import AuditOptions, audit
from rewriter.model import Model


def choosing(inner: str, zero: float) -> Model:
    """Strings chosen by the sign of x - zero, with x given out as well so that something numeric can be compared."""
    nodes = [
        helper.make_node("Greater", ["x", "z"], [inner]),
        helper.make_node("Where", [inner, "a", "b"], ["text"]),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "choosing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(np.asarray(zero, np.float32), "z"),
            numpy_helper.from_array(np.array(["more"], object), "a"),
            numpy_helper.from_array(np.array(["less"], object), "b"),
        ],
    )
    return Model.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(("zero", "refuted"), [(0.0, False), (0.5, True)])
def test_strings_are_compared_as_strings(zero: float, refuted: bool) -> None:
    found = audit(choosing("t", 0.0), choosing("u", zero), AuditOptions())
    assert (found.verdict == "different") == refuted
