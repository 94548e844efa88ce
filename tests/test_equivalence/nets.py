"""Small networks for the auditor's tests: 1×1 conv → ReLU → the convolution under test → ReLU → 1×1 conv."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rewriter.equivalence import Audit, AuditOptions, audit
from rewriter.model import Model

Array = np.ndarray[Any, Any]


def net(
    *,
    groups: int = 4,
    inputs: int = 2,
    outputs: int = 2,
    kernel: Sequence[int] = (3, 3),
    size: Sequence[int] = (6, 7),
    batch: int | str = 2,
    bias: bool = True,
    seed: int = 0,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """Input `x` [batch, C, *size] → `a` = ReLU(1×1 conv) → `t` = Conv(group) → `r` = ReLU → `y` = 1×1 conv."""
    rng = np.random.default_rng(seed)
    c, m = groups * inputs, groups * outputs
    ones = (1,) * len(kernel)
    if "pads" not in attributes and "auto_pad" not in attributes:
        attributes["pads"] = [k // 2 for k in kernel] * 2
    weights = {
        "w_head": rng.standard_normal((c, c, *ones)),
        "w": rng.standard_normal((m, inputs, *kernel)),
        "w_tail": rng.standard_normal((5, m, *ones)),
    }
    if bias:
        weights["b"] = rng.standard_normal(m)
    nodes = [
        helper.make_node("Conv", ["x", "w_head"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Conv", ["a", "w", *(["b"] if bias else [])], ["t"], group=groups, **attributes),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Conv", ["r", "w_tail"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, c, *size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5, *(None for _ in size)])
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 in place of float32."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return made


def chain(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], x: Sequence[int | str], opset: int = 17
) -> onnx.ModelProto:
    """A model of the given nodes with input `x` and output `y` of any shape."""
    dtype = next(iter(weights.values())).dtype
    code = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        list(nodes),
        "chain",
        [helper.make_tensor_value_info("x", code, list(x))],
        [helper.make_tensor_value_info("y", code, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@contextmanager
def by_name_only() -> Iterator[None]:
    """Tensors are told apart by their names alone, so that L1 has to show what renaming them would."""
    with mock.patch("rewriter.equivalence.attempts.TRUSTS", ("nothing",)):
        yield


def audited(before: onnx.ModelProto, after: onnx.ModelProto, **options: Any) -> Audit:
    rerun = options.pop("rerun", None)
    return audit(Model.load(before), Model.load(after), AuditOptions(**options), rerun=rerun)


def caught(result: Audit) -> str | None:
    """The level that refuted, the lowest if several did."""
    levels = [*result.levels, *(level for region in result.regions for level in region.levels)]
    return min((level.level for level in levels if level.outcome == "fail"), default=None)
