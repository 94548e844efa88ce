"""Collects nodes and constants and hides what changed between ONNX operator sets.

The builders say *what* they compute; this file knows that `ReduceSum` took its axes as an attribute before
opset 13 and `ReduceMean` before 18, `Split` its sizes before 13 and `Slice` its bounds before 10, and that
up to IR version 3 every initializer must be listed among the graph's inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from models.errors import ModelError

Array: TypeAlias = npt.NDArray[Any]

OLDEST_OPSET = 7
# The newest opset that onnx 1.23 (28) and ONNX Runtime 1.31 (26) both support as released.
NEWEST_OPSET = 26
OPSETS = range(OLDEST_OPSET, NEWEST_OPSET + 1)
_LAST_IR_WITHOUT_OVERRIDABLE_INITIALIZERS = 3


def check_opset(opset: int) -> None:
    """Raise `ModelError` unless `opset` is one the builders can write and ONNX Runtime can load."""
    if opset not in OPSETS:
        raise ModelError(f"opset {opset} is not supported: choose one from {OLDEST_OPSET} to {NEWEST_OPSET}")


def lowest_ir_version(opset: int) -> int:
    """The lowest IR version that may carry `opset` and still treats initializers as constants (at least 4)."""
    opsets = [helper.make_opsetid("", opset)]
    return max(_LAST_IR_WITHOUT_OVERRIDABLE_INITIALIZERS + 1, int(helper.find_min_ir_version_for(opsets)))


class GraphBuilder:
    """Nodes and initializers in the order they were added, each node named after its first output."""

    def __init__(self, opset: int, ir_version: int | None = None) -> None:
        check_opset(opset)
        self.opset = opset
        self.ir_version = lowest_ir_version(opset) if ir_version is None else ir_version
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def initializer(self, name: str, value: Array) -> str:
        """Store `value` as the initializer `name`; storing the same name twice is a programming error."""
        if name in self._initializers:
            raise KeyError(f"initializer {name} exists already")
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, name: str, values: Sequence[int], dtype: npt.DTypeLike = np.int64) -> str:
        """Store a vector of integers (a shape, axes, indices) as an initializer."""
        return self.initializer(name, np.array(values, dtype=dtype))

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output and return that output's name."""
        return self.nodes(op_type, inputs, [output], **attributes)[0]

    def nodes(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add one node with several outputs and return their names."""
        self._nodes.append(helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes))
        return list(outputs)

    def reduce(self, op_type: str, x: str, axis: int, output: str, keepdims: bool = False) -> str:
        """Add a ReduceSum or ReduceMean over one axis, its axes as an input where the opset has one."""
        axes_are_input_since = {"ReduceSum": 13, "ReduceMean": 18}[op_type]
        if self.opset < axes_are_input_since:
            return self.node(op_type, [x], output, axes=[axis], keepdims=int(keepdims))
        axes = self.integers(f"{output}.axes", [axis])
        return self.node(op_type, [x, axes], output, keepdims=int(keepdims))

    def split(self, x: str, axis: int, sizes: Sequence[int], outputs: Sequence[str]) -> list[str]:
        """Add a Split of `x` into pieces of the given sizes."""
        if self.opset < 13:
            return self.nodes("Split", [x], outputs, axis=axis, split=list(sizes))
        return self.nodes("Split", [x, self.integers(f"{outputs[0]}.sizes", sizes)], outputs, axis=axis)

    def first(self, x: str, output: str) -> str:
        """Add `x[0:1]` for a vector `x`, as Slice (how exporters take the batch size out of a shape)."""
        if self.opset < 10:
            return self.node("Slice", [x], output, starts=[0], ends=[1], axes=[0])
        zero = self.integers(f"{output}.zero", [0])
        one = self.integers(f"{output}.one", [1])
        return self.node("Slice", [x, zero, one, zero], output)

    def reshape(self, x: str, shape: str, output: str, allowzero: bool = False) -> str:
        """Add a Reshape of `x` to the shape held by the tensor `shape`."""
        if allowzero:
            return self.node("Reshape", [x, shape], output, allowzero=1)
        return self.node("Reshape", [x, shape], output)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished model, with the builder's opset as its only opset import."""
        graph_inputs = list(inputs)
        if self.ir_version <= _LAST_IR_WITHOUT_OVERRIDABLE_INITIALIZERS:
            graph_inputs += [
                helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self._initializers.values()
            ]
        graph = helper.make_graph(self._nodes, name, graph_inputs, outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
