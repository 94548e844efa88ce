"""Shapes under a binding: chains of shape arithmetic, whole networks, and what cannot be known or does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphs import exotic_model, model, node, tensor, value, weights
from models.zoo.refill import FOLDER, zoo_names
from rewriter.model import Model
from rewriter.shapes import Shape, bind, reshape_target, static_shape


def numbers(name: str, *values: int) -> onnx.TensorProto:
    return tensor(name, np.array(values, np.int64))


def loaded(
    nodes: Sequence[onnx.NodeProto],
    *initializers: onnx.TensorProto,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 21,
) -> Model:
    """A model with input x [N, 8, H, W] unless told otherwise."""
    given = inputs or [value("x", ["N", 8, "H", "W"])]
    return Model.load(model(nodes, given, [value("y", None)], initializers, opset=opset, ir_version=10))


# Arithmetic on shapes.


def test_a_size_that_takes_a_detour_through_floats() -> None:
    """As exporters spell `int(c / 4)`, and constants where those may be no integers."""
    made = loaded(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "one"], ["channels"], axis=0),
            node("Cast", ["channels"], ["float"], to=TensorProto.FLOAT),
            node("Div", ["float", "three"], ["parts"]),
            node("Floor", ["parts"], ["floor"]),
            node("Cast", ["floor"], ["whole"], to=TensorProto.INT64),
            node("Unsqueeze", ["whole", "axes"], ["whole1"]),
            node("Constant", [], ["held"], value=tensor("", np.array([3.0, 4.0, -1.0]))),
            node("Cast", ["held"], ["rest"], to=TensorProto.INT64),
            node("Concat", ["whole1", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        tensor("one", np.array(1)),
        tensor("three", np.float32(3)),
        numbers("axes", 0),
    )
    assert bind(made, {"x": (3, 8, 5, 7)}).shape("y") == (2, 3, 4, 35)
    assert bind(made, {}).value("target") is None


def test_a_reshape_to_a_shape_computed_at_run_time() -> None:
    """As exporters spell `reshape(x, [x.shape[0], 4, 2, *x.shape[2:]])`."""
    made = loaded(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "zero"], ["batch"], axis=0),
            node("Unsqueeze", ["batch", "axes"], ["batch1"]),
            node("Slice", ["shape", "two", "four"], ["space"]),
            node("Cast", ["space"], ["space32"], to=TensorProto.INT32),
            node("Cast", ["space32"], ["space64"], to=TensorProto.INT64),
            node("Concat", ["batch1", "split", "space64"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        tensor("zero", np.array(0, np.int64)),
        numbers("axes", 0),
        numbers("two", 2),
        numbers("four", 4),
        numbers("split", 4, 2),
    )
    bound = bind(made, {"x": (3, 8, 5, 7)})
    assert bound.problems == ()
    assert bound.shape("y") == (3, 4, 2, 5, 7)
    values = {name: bound.value(name) for name in ("shape", "batch", "batch1", "space", "space32", "target")}
    expected = {
        "shape": [3, 8, 5, 7],
        "batch": 3,
        "batch1": [3],
        "space": [5, 7],
        "space32": [5, 7],
        "target": [3, 4, 2, 5, 7],
    }
    assert {name: found.tolist() for name, found in values.items() if found is not None} == expected
    assert values["space32"] is not None
    assert values["space32"].dtype == np.int32
    unbound = bind(made, {})
    assert unbound.shape("y") is None
    assert unbound.value("target") is None


FLOATS = {"half": 0.5, "quarter": 0.25, "nothing": 0.0, "endless": float("inf")}


@pytest.mark.parametrize(
    ("op_type", "attributes", "operands", "expected"),
    [
        ("Shape", {}, ["x"], [3, 8, 5, 7]),
        ("Shape", {"start": 1, "end": -1}, ["x"], [8, 5]),
        ("Shape", {"start": -2}, ["x"], [5, 7]),
        ("Size", {}, ["x"], 840),
        ("Mul", {}, ["a", "b"], [12, 35]),
        ("Div", {}, ["b", "a"], [1, 1]),
        ("Div", {}, ["minus", "a"], [-1, -1]),  # towards zero, as ONNX Runtime does
        ("ReduceProd", {"keepdims": 0}, ["a"], 15),
        ("Range", {}, ["nought", "six", "step"], [0, 2, 4]),
        ("Equal", {}, ["a", "b"], [False, False]),
        ("Where", {}, ["choose", "a", "b"], [3, 7]),
        ("ConstantOfShape", {}, ["a"], None),  # floats by default: not about shapes
        ("Expand", {}, ["six", "a"], np.full((3, 5), 6).tolist()),
        ("Squeeze", {}, ["one"], 9),
        # The detour of older exporters through floats, a few at a time; what is no number is no size.
        ("Cast", {"to": TensorProto.FLOAT}, ["a"], [3.0, 5.0]),
        ("Cast", {"to": TensorProto.INT64}, ["halves"], [2, -3]),
        ("Div", {}, ["halves", "half"], [5.0, -7.0]),
        ("Mul", {}, ["halves", "half"], [1.25, -1.75]),
        ("Add", {}, ["halves", "half"], [3.0, -3.0]),
        ("Sub", {}, ["halves", "half"], [2.0, -4.0]),
        ("Floor", {}, ["halves"], [2.0, -4.0]),
        ("Ceil", {}, ["halves"], [3.0, -3.0]),
        ("Neg", {}, ["half"], -0.5),
        ("Sqrt", {}, ["quarter"], 0.5),
        ("Sqrt", {}, ["halves"], None),
        ("Div", {}, ["half", "nothing"], None),
        ("Cast", {"to": TensorProto.INT64}, ["endless"], None),
        ("Add", {}, ["endless", "half"], float("inf")),
        ("Exp", {}, ["half"], None),
        ("Cast", {"to": TensorProto.FLOAT}, ["many"], None),
        ("Add", {}, ["many", "one"], list(range(9, 26))),
    ],
)
def test_operators_on_shapes(op_type: str, attributes: dict[str, Any], operands: list[str], expected: Any) -> None:
    made = loaded(
        [node(op_type, operands, ["y"], **attributes)],
        numbers("a", 3, 5),
        numbers("b", 4, 7),
        numbers("minus", -5, -9),
        numbers("one", 9),
        tensor("nought", np.array(0)),
        tensor("six", np.array(6)),
        tensor("step", np.array(2)),
        tensor("choose", np.array([True, False])),
        tensor("halves", np.array([2.5, -3.5], np.float32)),
        *(tensor(name, np.float32(number)) for name, number in FLOATS.items()),
        numbers("many", *range(17)),
    )
    found = bind(made, {"x": (3, 8, 5, 7)}).value("y")
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_both_spellings_of_the_default_domain(domain: str) -> None:
    made = loaded(
        [node("Add", ["a", "a"], ["t"], domain=domain), node("Reshape", ["x", "t"], ["y"], domain=domain)],
        numbers("a", 1, 3),
        inputs=[value("x", [12])],
    ).to_proto()
    made.opset_import[0].domain = domain
    assert bind(Model.load(made), {}).shape("y") == (2, 6)


@pytest.mark.parametrize("opset", [9, 13, 18, 21])
def test_reductions_of_every_opset(opset: int) -> None:
    """Axes are an attribute of ReduceSum before 13 and of ReduceMean before 18."""
    nodes = []
    for op_type, since, output in (("ReduceSum", 13, "s"), ("ReduceMean", 18, "y")):
        operands, attributes = (["x", "axes"], {}) if opset >= since else (["x"], {"axes": [2]})
        nodes.append(node(op_type, operands, [output], keepdims=0, **attributes))
    bound = bind(loaded(nodes, numbers("axes", 2), opset=opset), {"x": (3, 8, 5, 7)})
    assert bound.shape("s") == bound.shape("y") == (3, 8, 7)


def test_large_results_are_not_made() -> None:
    """An attention mask of 10^12 elements is data: its shape is known, nobody computes it."""
    made = loaded(
        [
            node("Expand", ["one", "huge"], ["expanded"]),
            node("ConstantOfShape", ["huge"], ["filled"], value=tensor("", np.array([1], np.int64))),
            node("Range", ["zero", "limit", "one0"], ["range"]),
            node("Tile", ["one", "huge1"], ["tiled"]),
        ],
        numbers("one", 1),
        numbers("huge", 10**6, 10**6),
        numbers("huge1", 10**12),
        tensor("zero", np.array(0)),
        tensor("limit", np.array(10**12)),
        tensor("one0", np.array(1)),
    )
    bound = bind(made, {})
    assert all(bound.value(name) is None for name in ("expanded", "filled", "range", "tiled"))
    assert bound.shape("expanded") == bound.shape("filled") == (10**6, 10**6)


def test_a_constant_loop_is_not_run() -> None:
    body = helper.make_graph(
        [node("Identity", ["keep"], ["again"]), node("Identity", ["carried"], ["next"])],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("keep", [], TensorProto.BOOL),
            value("carried", [], TensorProto.INT64),
        ],
        [value("again", [], TensorProto.BOOL), value("next", [], TensorProto.INT64)],
    )
    loop = node("Loop", ["forever", "true", "start"], ["y"], body=body)
    forever, start = tensor("forever", np.array(2**62)), tensor("start", np.array(1))
    assert bind(loaded([loop], forever, start, tensor("true", np.array(True))), {}).value("y") is None


def test_constants_in_odd_places_are_no_shapes() -> None:
    """Pad's `value` before opset 11, ConstantOfShape's fill and strings are not the tensors that are read."""
    made = loaded(
        [
            node("Constant", [], ["big"], value=tensor("", np.zeros((70, 70), np.float32))),
            node("Pad", ["big"], ["p"], pads=[0, 0, 1, 1], value=1.0),
        ],
        TensorProto(name="words", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"]),
        opset=10,
    )
    bound = bind(made, {})
    assert bound.shape("big") == (70, 70)
    assert bound.shape("p") == (71, 71)


# Networks.


@pytest.mark.parametrize("name", zoo_names())
def test_every_tensor_of_the_zoo_has_a_shape(name: str) -> None:
    """At the declared sizes, and at batches 2 and 3 where it is open: what ONNX itself infers, too."""
    made = onnx.load(FOLDER / f"{name}.onnx")
    del made.graph.value_info[:]
    loaded = Model.load(made)
    (entry,) = loaded.inputs
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in entry.type.tensor_type.shape.dim]
    batches = (2, 3) if dims[0] is None else (dims[0],)
    for batch in batches:
        shape = tuple(size or batch for size in dims)
        bound = bind(loaded, {entry.name: shape})
        assert bound.problems == ()
        missing = [output for n in loaded.nodes for output in n.output if output and bound.shape(output) is None]
        assert not missing
        made.graph.input[[v.name for v in made.graph.input].index(entry.name)].CopyFrom(value(entry.name, shape))
        inferred = onnx.shape_inference.infer_shapes(made, data_prop=True)
        known = {v.name: static_shape(v.type) for v in (*inferred.graph.value_info, *inferred.graph.output)}
        compared = {n: s for n, s in known.items() if s is not None and bound.shape(n) != s}
        assert not compared
        assert sum(s is not None for s in known.values()) > 20


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_x_400mf", "resnext50_32x4d", "keras_mobilenet"])
def test_a_declared_batch_can_be_bound_to_another(name: str, batch: int) -> None:
    loaded = Model.load(FOLDER / f"{name}.onnx")
    (entry,) = loaded.inputs
    shape = (batch, *(dim.dim_value for dim in entry.type.tensor_type.shape.dim[1:]))
    bound = bind(loaded, {entry.name: shape})
    convs = [n.output[0] for n in loaded.nodes if n.op_type == "Conv"]
    assert len(convs) > 10
    assert {(bound.shape(output) or (0,))[0] for output in convs} == {batch}


def test_what_is_unknown_is_none() -> None:
    bound = bind(Model.load(exotic_model()), {})
    assert bound.shape("m") is None  # an unknown operator
    assert bound.shape("sequence") is None  # no tensor
    assert bound.shape("doubled") is None  # a function
    assert bound.shape("no such tensor") is None
    assert bound.value("no such tensor") is None
    assert bound.shape("b") == (2, 8, 8, 8)
    assert bound.problems == ()


def test_a_tensor_behind_what_is_unknown_can_be_given() -> None:
    bound = bind(Model.load(exotic_model()), {"doubled": (2, 8, 4, 4)})
    assert bound.shape("y") == (2, 8, 4, 4)


@pytest.mark.parametrize("trusted", [True, False])
def test_value_info_fills_in_only_where_it_is_trusted(trusted: bool) -> None:
    made = loaded([node("Unknown", ["x"], ["u"], domain="d"), node("Relu", ["u"], ["y"])]).to_proto()
    made.graph.value_info.extend([value("u", [1, 2]), value("x", [9, 9])])
    made.opset_import.append(helper.make_opsetid("d", 1))
    bound = bind(Model.load(made), {"x": (3, 8, 5, 7)}, for_every_input=not trusted)
    assert bound.shape("y") == ((1, 2) if trusted else None)
    assert bound.shape("x") == (3, 8, 5, 7)


def test_what_is_inferred_wins_over_value_info() -> None:
    made = loaded([node("Relu", ["x"], ["y"])]).to_proto()
    made.graph.value_info.append(value("y", [1, 8, 14, 14]))
    assert bind(Model.load(made), {"x": (3, 8, 5, 7)}).shape("y") == (3, 8, 5, 7)


def test_zero_and_minus_one_in_an_input_are_unknown_sizes() -> None:
    made = loaded(
        [node("Conv", ["x", "w"], ["y"], pads=[2] * 4)], weights("w", 4, 8, 3, 3), inputs=[value("x", [-1, 8, -1, 0])]
    )
    bound = bind(made, {})
    assert bound.shape("y") is None
    assert [dim.HasField("dim_value") for dim in bound.types["y"].tensor_type.shape.dim] == [False, True, False, False]


# What does not fit.


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([node("Reshape", ["x", "seven"], ["y"])], "Reshape 'y' cannot turn [3, 8, 5, 7] into [7, 7]"),
        ([node("Add", ["x", "table"], ["y"])], "Add 'y' cannot take [3, 8, 5, 7] and [1, 8, 14, 14]"),
        ([node("Concat", ["x", "table"], ["y"], axis=1)], "Concat 'y' cannot take [3, 8, 5, 7] and [1, 8, 14, 14]"),
        (
            [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "matrix"], ["y"])],
            "MatMul 'y' cannot take [3, 280] and [9, 2]",
        ),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[9, 9])], "MaxPool 'y' has nothing left of [3, 8, 5, 7]"),
    ],
)
def test_contradictions_are_reported(nodes: list[onnx.NodeProto], problem: str) -> None:
    made = loaded(nodes, numbers("seven", 7, 7), weights("table", 1, 8, 14, 14), weights("matrix", 9, 2))
    assert bind(made, {"x": (3, 8, 5, 7)}).problems == (problem,)
    assert bind(made, {}).problems == ()


@pytest.mark.parametrize(
    ("shape", "target", "allow_zero", "expected"),
    [
        ((2, 6), (3, 4), False, (3, 4)),
        ((2, 6), (0, -1), False, (2, 6)),
        ((2, 6), (-1,), False, (12,)),
        ((2, 6), (0, 2, -1), False, (2, 2, 3)),
        ((2, 6), (5, -1), False, None),
        ((2, 6), (3, 3), False, None),
        ((2, 6), (-1, -1), False, None),
        ((2, 6), (-2, -6), False, None),
        ((2, 6), (1, 1, 0), False, None),
        ((0, 6), (0, 6), True, (0, 6)),
        ((2, 6), (0, 6), True, None),
        ((0, 6), (0, -1), False, None),
        ((), (1, 1), False, (1, 1)),
        ((1,), (), False, ()),
    ],
)
def test_reshape_targets(shape: Shape, target: Shape, allow_zero: bool, expected: Shape | None) -> None:
    assert reshape_target(shape, target, allow_zero) == expected
