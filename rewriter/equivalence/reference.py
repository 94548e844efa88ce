"""Single nodes run by ONNX's reference operators, for the auditor's symbolic evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from rewriter.constants import Array, attributes
from rewriter.equivalence.forms import Impossible, Unsupported
from rewriter.equivalence.regions import Side
from rewriter.session import reason


def run_reference(side: Side, node: onnx.NodeProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The node's outputs by ONNX's reference operator; raises Impossible when it refuses the operands."""
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=list(side.model.skeleton.opset_import))
    try:
        return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, dict(feeds))]
    except Exception as error:  # the reference operators raise whatever NumPy raises
        raise Impossible(f"{node.op_type} '{node.output[0]}' cannot be computed: {reason(error)}") from error


def require_zero_padding(node: onnx.NodeProto, feeds: dict[str, Array]) -> None:
    """Make a Pad fit for position numbers, where 0 is padding; raises Unsupported when it fills in something else."""
    found = attributes(node)
    value = feeds.get(node.input[2]) if len(node.input) > 2 and node.input[2] else found.get("value", 0.0)
    if found.get("mode", b"constant") == b"constant" and np.any(np.asarray(value) != 0):
        raise Unsupported(f"Pad '{node.output[0]}' fills in something other than zero")
    if len(node.input) > 2 and node.input[2]:
        feeds[node.input[2]] = np.zeros((), np.int64)
