"""Models in few words, for pairs that differ outside the nodes and the plain initializers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from test_equivalence.nets import Array

node = helper.make_node
UNSURE = ("approximate", "not_verified", "different")


def info(name: str, shape: Sequence[int | str] | None, code: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Array] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), tensors)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


W = random(4, 3, 3, 3)


def documented(before: onnx.ModelProto) -> onnx.ModelProto:
    after = onnx.ModelProto()
    after.CopyFrom(before)
    after.doc_string = "other"
    return after


def conv(shape: Sequence[int | str] | None) -> onnx.ModelProto:
    return model([node("Conv", ["x", "w"], ["y"])], [info("x", shape)], [info("y", None)], {"w": W})
