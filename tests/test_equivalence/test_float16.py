"""Rewrites of float16 models: weights so small that their type rounds them absolutely, not relatively."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from test_equivalence.nets import audited


def scaled(weight: np.ndarray, scale: np.ndarray | None) -> onnx.ModelProto:
    """float16 `x` [2, 4, 6, 6] → Conv → Mul by `scale` [1, 8, 1, 1], if any."""
    values = {"w": weight} if scale is None else {"v": weight, "s": scale}
    nodes = [helper.make_node("Conv", ["x", next(iter(values))], ["y" if scale is None else "t"])]
    nodes += [] if scale is None else [helper.make_node("Mul", ["t", "s"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6])
def test_a_scale_folded_into_weights_of_any_size_is_rounding(size: float) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((8, 4, 3, 3)) * size).astype(np.float16)
    scale = rng.uniform(0.1, 0.9, (1, 8, 1, 1)).astype(np.float16)
    folded = (weight.astype(np.float64) * scale.reshape(8, 1, 1, 1)).astype(np.float16)
    found = audited(scaled(weight, scale), scaled(folded, None))
    assert (found.verdict, found.grade) == ("equivalent", "rounding"), found.reason


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_a_weight_off_by_more_than_its_rounding_is_found(size: float) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((8, 4, 3, 3)) * size).astype(np.float16)
    scale = rng.uniform(0.1, 0.9, (1, 8, 1, 1)).astype(np.float16)
    folded = (weight.astype(np.float64) * scale.reshape(8, 1, 1, 1)).astype(np.float16)
    folded[3, 2, 1, 1] *= np.float16(1.25)
    found = audited(scaled(weight, scale), scaled(folded, None))
    assert found.verdict == "different"
    assert "output channel 3" in found.reason
