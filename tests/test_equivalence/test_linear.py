"""Symbolic evaluation against running the same nodes: the forms, filled with numbers, give what ONNX computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriter.equivalence.forms import Form, Unsupported
from rewriter.equivalence.linear import Evaluation
from rewriter.equivalence.regions import Side
from rewriter.model import Model
from rewriter.shapes import bind
from test_equivalence.nets import audited, chain

X = (2, 4, 6)
NODES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "transpose": ([helper.make_node("Transpose", ["x"], ["y"], perm=[2, 0, 1])], {}),
    "transpose default": ([helper.make_node("Transpose", ["x"], ["y"])], {}),
    "reshape": ([helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": [0, -1, 3]}),
    "flatten": ([helper.make_node("Flatten", ["x"], ["y"], axis=2)], {}),
    "squeeze": (
        [helper.make_node("Unsqueeze", ["x", "a"], ["u"]), helper.make_node("Squeeze", ["u", "a"], ["y"])],
        {"a": [1]},
    ),
    "slice": (
        [helper.make_node("Slice", ["x", "b", "e", "a", "t"], ["y"])],
        {"b": [-1], "e": [-9], "a": [1], "t": [-2]},
    ),
    "gather": ([helper.make_node("Gather", ["x", "i"], ["y"], axis=-2)], {"i": [3, 0, 0]}),
    "split and concat": (
        [
            helper.make_node("Split", ["x", "p"], ["a", "b"], axis=1),
            helper.make_node("Concat", ["b", "a"], ["y"], axis=1),
        ],
        {"p": [1, 3]},
    ),
    "pad": ([helper.make_node("Pad", ["x", "p"], ["y"])], {"p": [0, 1, 0, 0, 0, 2]}),
    "expand": ([helper.make_node("Expand", ["x", "s"], ["y"])], {"s": [3, 1, 1, 1]}),
    "tile": ([helper.make_node("Tile", ["x", "s"], ["y"])], {"s": [1, 2, 1]}),
    "sum": ([helper.make_node("ReduceSum", ["x", "a"], ["y"], keepdims=0)], {"a": [-2]}),
    "sum of all": ([helper.make_node("ReduceSum", ["x"], ["y"])], {}),
    "sum of none": ([helper.make_node("ReduceSum", ["x", "a"], ["y"], noop_with_empty_axes=1)], {"a": []}),
    "mean": ([helper.make_node("ReduceMean", ["x"], ["y"], axes=[0, 2], keepdims=1)], {}),
    "affine": (
        [
            helper.make_node("Mul", ["m", "x"], ["a"]),
            helper.make_node("Sub", ["c", "a"], ["b"]),
            helper.make_node("Div", ["b", "m"], ["d"]),
            helper.make_node("Neg", ["d"], ["n"]),
            helper.make_node("Sum", ["n", "x", "c"], ["y"]),
        ],
        {"m": np.asarray([[2.0], [3.0], [5.0], [7.0]]), "c": np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])},
    ),
    "normalization": (
        [helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=0.5)],
        {
            "g": np.asarray([1.0, 2.0, 3.0, 4.0]),
            "b": np.asarray([0.5, 0.0, -1.0, 2.0]),
            "m": np.asarray([1.0, -1.0, 2.0, 0.0]),
            "v": np.asarray([1.0, 2.0, 0.5, 3.0]),
        },
    ),
    "offset moved": (
        [
            helper.make_node("Add", ["x", "c"], ["a"]),
            helper.make_node("Pad", ["a", "p"], ["b"]),
            helper.make_node("Concat", ["b", "b"], ["d"], axis=2),
            helper.make_node("Transpose", ["d"], ["e"], perm=[1, 2, 0]),
            helper.make_node("ReduceSum", ["e", "r"], ["y"], keepdims=0),
        ],
        {"c": np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "p": [0, 1, 0, 0, 0, 2], "r": [1]},
    ),
}


def evaluated(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> tuple[onnx.ModelProto, Form]:
    tensors = [numpy_helper.from_array(_array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "nodes",
        [helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, X)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model = Model.load(proto)
    side = Side("before", model, bind(model, {"x": X}))
    run = Evaluation(side, range(len(nodes)), {"x": 0}, int(np.prod(X)))
    return proto, run.form("y")


def _array(value: Any) -> Any:
    return np.asarray(value, np.int64) if isinstance(value, list) else value


def filled(form: Form, x: Any) -> Any:
    """The numbers of a form, its symbols being the elements of x."""
    flat = np.append(x.reshape(-1), 0.0)
    terms = flat[form.index] * (1.0 if form.coef is None else form.coef)
    return terms.sum(axis=-1) + (0.0 if form.offset is None else form.offset)


@pytest.mark.parametrize("name", list(NODES))
def test_forms_give_what_the_nodes_compute(name: str) -> None:
    proto, form = evaluated(*NODES[name])
    x = np.random.default_rng(0).standard_normal(X)
    outputs: Any = ReferenceEvaluator(proto).run(None, {"x": x})
    expected = np.asarray(outputs[0])
    assert form.shape == expected.shape
    np.testing.assert_allclose(filled(form, x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["affine", "normalization", "offset moved"])
def test_magnitudes_bound_the_offsets(name: str) -> None:
    _, form = evaluated(*NODES[name])
    assert form.offset is not None
    assert form.magnitude is not None
    assert (form.magnitude >= np.abs(form.offset) * (1 - 1e-12)).all()
    assert form.offset_terms > 1


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        [helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)],
        [helper.make_node("Pad", ["x", "p", "one"], ["y"])],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_what_is_not_linear_is_unsupported(nodes: list[onnx.NodeProto]) -> None:
    with pytest.raises(Unsupported):
        evaluated(nodes, {"p": [0, 0, 0, 0, 0, 1], "one": np.asarray(1.0)})


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1), (4, 3, 1, 2)])
def test_where_a_weight_changed_is_said_with_its_tap_if_there_are_several(shape: tuple[int, ...]) -> None:
    """A matrix and a 1×1 kernel have no taps to tell apart."""
    right = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + np.float32(0.5)
    wrong = right.copy()
    wrong[2, 1] += 1
    node = helper.make_node("MatMul" if len(shape) == 2 else "Conv", ["x", "w"], ["y"])
    x = (5, 4) if len(shape) == 2 else (5, 3, 4, 4)
    reason = audited(chain([node], {"w": right}, x), chain([node], {"w": wrong}, x)).reason
    taps = ", tap offset [0]" if shape[-1] == 2 else ""
    output, channel = (1, 2) if len(shape) == 2 else (2, 1)
    assert f"output channel {output}, input channel {channel}{taps} (weight 'w'): " in reason
