"""Constant sources: which tensors are constants, with which values, and what is said of those that are not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphs import grouped_conv, model, node, several_convs_ir3, tensor, value, weights
from rewriter.constants import attributes, constant, is_constant, tensor_value, why_not_constant
from rewriter.errors import BadInput
from rewriter.model import Model

SHAPE = tensor("shape", np.array([2, 3], np.int64))


def loaded(*nodes: onnx.NodeProto, initializers: tuple[onnx.TensorProto, ...] = (), opset: int = 21) -> Model:
    """A model of the nodes beside x -> Relu -> y, at IR version 10."""
    inputs = [value("x", [2, 3])]
    relu = node("Relu", ["x"], ["y"])
    return Model.load(
        model([*nodes, relu], inputs, [value("y", [2, 3])], list(initializers), opset=opset, ir_version=10)
    )


def assert_constant(made: Model, expected: Any, dtype: Any) -> None:
    """Tensor `c` of the model has this value, type and shape."""
    found = constant(made, "c")
    assert is_constant(made, "c")
    assert found is not None
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.asarray(expected, dtype), strict=True)


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint16, np.bool_, ml_dtypes.int4],
)
def test_initializers(dtype: Any) -> None:
    expected = np.array([[0, 1, 2], [3, 1, 0]]).astype(dtype)
    assert_constant(loaded(initializers=(tensor("c", expected),)), expected, dtype)


def test_a_large_initializer_is_read_whole() -> None:
    big = weights("c", 40, 40)
    assert_constant(loaded(initializers=(big,)), onnx.numpy_helper.to_array(big), np.float32)


@pytest.mark.parametrize(
    ("content", "expected", "dtype"),
    [
        ({"value": tensor("", np.array([[1.5]], np.float16))}, [[1.5]], np.float16),
        ({"value_float": 0.1}, np.float32(0.1), np.float32),
        ({"value_floats": [1.0, 2.0]}, [1, 2], np.float32),
        ({"value_int": -7}, -7, np.int64),
        ({"value_ints": [1, 2, 3]}, [1, 2, 3], np.int64),
    ],
)
def test_constant_nodes(content: dict[str, Any], expected: Any, dtype: Any) -> None:
    assert_constant(loaded(node("Constant", [], ["c"], **content)), expected, dtype)


@pytest.mark.parametrize("content", [{"value_string": "s"}, {"value_strings": ["s"]}, {}])
def test_constant_nodes_that_hold_no_numbers(content: dict[str, Any]) -> None:
    made = loaded(node("Constant", [], ["c"], **content))
    assert not is_constant(made, "c")
    assert constant(made, "c") is None


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (None, np.zeros((2, 3), np.float32)),
        (np.array([7], np.int64), np.full((2, 3), 7)),
        (np.array([0.1], np.float16), np.full((2, 3), np.float16(0.1))),
        (np.array([1.5], ml_dtypes.bfloat16), np.full((2, 3), 1.5, ml_dtypes.bfloat16)),
    ],
)
def test_constant_of_shape(fill: np.ndarray | None, expected: np.ndarray) -> None:
    content = {} if fill is None else {"value": tensor("", fill)}
    made = loaded(node("ConstantOfShape", ["shape"], ["c"], **content), initializers=(SHAPE,))
    assert_constant(made, expected, expected.dtype)


def test_constant_of_an_empty_shape_is_a_scalar() -> None:
    empty = tensor("shape", np.array([], np.int64))
    assert_constant(loaded(node("ConstantOfShape", ["shape"], ["c"]), initializers=(empty,)), 0, np.float32)


@pytest.mark.parametrize(
    ("to", "expected", "dtype"),
    [
        (TensorProto.DOUBLE, [1.5, -2.5, 70000], np.float64),
        (TensorProto.FLOAT16, [1.5, -2.5, np.inf], np.float16),
        (TensorProto.INT64, [1, -2, 70000], np.int64),
        (TensorProto.BOOL, [True, True, True], np.bool_),
        (TensorProto.BFLOAT16, [1.5, -2.5, 70144], ml_dtypes.bfloat16),
    ],
)
def test_cast(to: int, expected: Any, dtype: Any) -> None:
    given = tensor("w", np.array([1.5, -2.5, 70000], np.float32))
    assert_constant(loaded(node("Cast", ["w"], ["c"], to=to), initializers=(given,)), expected, dtype)


@pytest.mark.parametrize("to", [TensorProto.FLOAT8E4M3FN, TensorProto.STRING, TensorProto.INT4])
def test_casts_that_numpy_does_otherwise_are_no_constants(to: int) -> None:
    made = loaded(node("Cast", ["w"], ["c"], to=to), initializers=(weights("w", 3),))
    assert not is_constant(made, "c")


def test_chains() -> None:
    made = loaded(
        node("Identity", ["shape"], ["s1"]),
        node("Cast", ["s1"], ["s2"], to=TensorProto.INT64),
        node("ConstantOfShape", ["s2"], ["filled"], value=tensor("", np.array([3], np.int32))),
        node("Cast", ["filled"], ["f"], to=TensorProto.FLOAT),
        node("Identity", ["f"], ["c"], domain="ai.onnx"),
        initializers=(SHAPE,),
    )
    assert_constant(made, np.full((2, 3), 3), np.float32)


FOLD = "from constants; fold constants first, e.g. with onnxslim or onnxsim"


@pytest.mark.parametrize(
    ("made", "name", "why"),
    [
        (loaded(), "x", "'x' is a graph input"),
        (loaded(), "y", "'y' is computed at run time by Relu"),
        (loaded(), "nothing", "'nothing' has no producer that is a constant"),
        (loaded(node("Identity", ["x"], ["c"])), "c", "'c' is computed at run time by Identity"),
        (loaded(node("ConstantOfShape", ["y"], ["c"])), "c", "'c' is computed at run time by ConstantOfShape"),
        (loaded(node("Constant", [], ["c"], value_int=1, domain="com.example")), "c", "run time by Constant"),
        (loaded(node("ConstantOfShape", [], ["c"])), "c", "run time by ConstantOfShape"),
        (loaded(node("Cast", ["w"], ["c"]), initializers=(weights("w", 1),)), "c", "by Cast from constants"),
        (loaded(node("Identity", ["c"], ["c"])), "c", "run time by Identity"),
        (loaded(node("Identity", ["d"], ["c"]), node("Identity", ["c"], ["d"])), "d", "run time by Identity"),
        (loaded(node("Neg", ["w"], ["c"]), initializers=(weights("w", 1),)), "c", f"'c' is computed by Neg {FOLD}"),
        (loaded(node("Transpose", ["w"], ["t"]), node("Reshape", ["t", "shape"], ["c"]),
                initializers=(weights("w", 3, 2), SHAPE)), "c", f"'c' is computed by Reshape {FOLD}"),
        (loaded(node("Transpose", ["x"], ["t"]), node("Reshape", ["t", "shape"], ["c"]), initializers=(SHAPE,)),
         "c", "run time by Reshape"),
        (loaded(node("Add", ["w", "x"], ["c"]), initializers=(weights("w", 1),)), "c", "run time by Add"),
        (loaded(node("Neg", ["w"], ["c"], domain="d"), initializers=(weights("w", 1),)), "c", "run time by Neg"),
        (loaded(node("RandomNormal", [], ["c"], shape=[1])), "c", "run time by RandomNormal"),
        (loaded(node("Bernoulli", ["w"], ["c"]), initializers=(weights("w", 1),)), "c", "run time by Bernoulli"),
        (loaded(node("DequantizeLinear", ["w", "w"], ["c"]), initializers=(weights("w", 1),)), "c",
         "'c' is computed by DequantizeLinear from quantized constants"),
    ],
)  # fmt: skip
def test_what_is_no_constant_and_why(made: Model, name: str, why: str) -> None:
    assert not is_constant(made, name)
    assert constant(made, name) is None
    assert why in why_not_constant(made, name)


@pytest.mark.parametrize("ir_version", [4, 8])
def test_an_initializer_that_callers_may_override_is_no_constant(ir_version: int) -> None:
    made = grouped_conv()
    made.ir_version = ir_version
    made.graph.input.append(value("w", [8, 2, 3, 3]))
    made.graph.node.append(node("Identity", ["w"], ["again"]))
    overridable = Model.load(made)
    for name in ("w", "again"):
        assert not is_constant(overridable, name)
        assert constant(overridable, name) is None
    assert why_not_constant(overridable, "w") == (
        "'w' is an initializer that callers may override (it is a graph input too)"
    )
    assert is_constant(overridable, "b")


def test_up_to_ir_version_3_initializers_are_inputs_and_constants() -> None:
    made = Model.load(several_convs_ir3())
    assert all(is_constant(made, name) for name in ("w", "b", "shape", "filled"))
    filled = constant(made, "filled")
    assert filled is not None
    np.testing.assert_array_equal(filled, np.full((8, 2, 3, 3), 0.5, np.float32), strict=True)
    assert not is_constant(made, "x")


@pytest.mark.parametrize(
    "bad",
    [
        TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], raw_data=bytes(8)),
        TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], raw_data=bytes(11)),
        TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3]),
        TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], float_data=[1, 2]),
        TensorProto(name="t", data_type=TensorProto.UNDEFINED, dims=[3], raw_data=bytes(12)),
        TensorProto(name="t", data_type=999, dims=[3], raw_data=bytes(12)),
        TensorProto(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"]),
    ],
)
def test_data_that_does_not_fit_is_told(bad: onnx.TensorProto) -> None:
    with pytest.raises(BadInput, match=r"^the data of tensor 't' does not fit its shape \[\d\]: .*\.$"):
        tensor_value(Model.load(grouped_conv()), bad)


def test_attributes_as_values() -> None:
    made = node("N", [], [], a=1, b=[1.0], c="s")
    assert attributes(made) == {"a": 1, "b": [1.0], "c": b"s"}
    assert attributes(helper.make_node("N", [], [])) == {}


def test_chains_longer_than_the_stack_are_followed() -> None:
    nodes = [node("Identity", [f"t{index}" if index else "w"], [f"t{index + 1}"]) for index in range(3000)]
    made = Model.load(model([*nodes, node("Relu", ["t3000"], ["y"])], [], [value("y", None)], [weights("w", 2, 3)]))
    found = constant(made, "t3000")
    assert found is not None
    assert found.shape == (2, 3)
