"""Runs small models and compares what comes out: shared by the tests of the reference models."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


def run(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    """All outputs by name; ONNX Runtime has no float64 convolution, ONNX's own evaluator has."""
    names = [output.name for output in model.graph.output]
    if any(x.dtype == np.float64 for x in inputs.values()):
        values = ReferenceEvaluator(model).run(names, inputs)
    else:
        session = onnxruntime.InferenceSession(serialised(model), providers=["CPUExecutionProvider"])
        values = session.run(names, inputs)
    return dict(zip(names, values, strict=True))


def serialised(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def normal_input(model: onnx.ModelProto, seed: int, batch: int = 1) -> Arrays:
    (value,) = model.graph.input
    shape = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Largest difference over the largest expected value; NaN counts as infinite."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(np.float64) - expected).max()
    return float(difference / np.abs(expected).max()) if np.isfinite(difference) else float("inf")


def response(model: onnx.ModelProto, name: str) -> float:
    """How much the output `name` differs between two inputs, over its largest value."""
    first, second = (run(model, normal_input(model, seed))[name] for seed in (1, 2))
    return error(second, first)


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
