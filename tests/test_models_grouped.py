"""Every spelling of a grouped convolution computes the convolution it specifies."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from model_runs import attribute, error, run
from models.emit import NEWEST_OPSET, OLDEST_OPSET
from models.errors import ModelError
from models.grouped import GroupedConv, example_input, grouped_conv_model, reference_outputs
from models.grouped_spec import Form
from models.reference import grouped_conv
from models.sample import draw_spec


def test_reference_convolution_by_hand() -> None:
    x = np.array([[[1.0, 2, 3, 4], [10, 20, 30, 40]]])
    weight = np.array([[[1.0, 10]], [[2.0, 0]]])
    y = grouped_conv(x, weight, np.array([0.5, 0]), groups=2, strides=[2], dilations=[2], begins=[1], ends=[0])
    assert y.tolist() == [[[0 + 10 * 2 + 0.5, 2 + 10 * 4 + 0.5], [0, 40]]]


@pytest.mark.parametrize("form", get_args(Form))
@given(st.integers(0, 10**9))
def test_grouped_conv_computes_its_definition(form: Form, seed: int) -> None:
    spec = draw_spec(random.Random(seed), form)
    model = grouped_conv_model(spec)
    onnx.checker.check_model(model, full_check=True)
    x = example_input(spec)
    expected = reference_outputs(spec, x)
    tolerance = {"float16": 1e-2, "float32": 2e-6, "float64": 1e-13}[spec.dtype]
    actual = run(model, {"x": x})
    assert actual.keys() == expected.keys()
    for name, y in expected.items():
        assert actual[name].dtype == x.dtype
        assert np.array_equal(actual[name], y) if spec.integers else error(actual[name], y) <= tolerance


WIDE = GroupedConv("depthwise_sum", bias="after", pads=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("spec", "operators"),
    [
        (replace(WIDE, form="grouped", bias="conv"), "Conv"),
        (replace(WIDE, form="grouped", order="interleaved"), "Gather Conv Add"),
        (replace(WIDE, form="grouped", layout="nhwc"), "Transpose Conv Transpose Add"),
        (WIDE, "Conv Reshape ReduceSum Reshape Add"),
        (replace(WIDE, bias="before"), "Conv Add Reshape ReduceSum Reshape"),
        (replace(WIDE, bias="conv", reduce="ReduceMean"), "Conv Reshape ReduceMean Reshape"),
        (replace(WIDE, order="interleaved"), "Conv Reshape ReduceSum Add"),
        (replace(WIDE, order="interleaved", keepdims=True, bias="none"), "Conv Reshape ReduceSum Reshape"),
        (replace(WIDE, layout="nhwc"), "Transpose Conv Transpose Reshape ReduceSum Reshape Add"),
        (replace(WIDE, weights="constant", bias="none"), "Constant Conv Reshape ReduceSum Reshape"),
        (replace(WIDE, weights="identity", bias="none"), "Identity Conv Reshape ReduceSum Reshape"),
        (replace(WIDE, weights="cast", bias="none"), "Cast Conv Reshape ReduceSum Reshape"),
        (replace(WIDE, weights="constant_of_shape", bias="none"), "ConstantOfShape Conv Reshape ReduceSum Reshape"),
        (
            replace(WIDE, bias="none", order="interleaved", shapes="dynamic"),
            "Conv Shape Cast Slice Gather Concat Cast Reshape ReduceSum",
        ),
        (
            replace(WIDE, bias="none", order="interleaved", weights="shared"),
            "Conv Reshape ReduceSum Neg Conv Reshape ReduceSum",
        ),
    ],
)
def test_grouped_conv_is_spelled_as_specified(spec: GroupedConv, operators: str) -> None:
    model = grouped_conv_model(spec)
    assert [node.op_type for node in model.graph.node] == operators.split()
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    groups = 4 if spec.form == "grouped" else 8
    assert {attribute(conv, "group") for conv in convs} == {groups}
    assert len({conv.input[1] for conv in convs}) == 1
    assert any(a.name == "pads" for a in convs[0].attribute)
    assert not any(a.name in ("strides", "dilations", "auto_pad") for a in convs[0].attribute)


@pytest.mark.parametrize(("opset", "ir_version", "inputs"), [(7, None, 1), (12, None, 1), (13, None, 1), (17, 3, 5)])
def test_old_opsets_and_ir_versions(opset: int, ir_version: int | None, inputs: int) -> None:
    model = grouped_conv_model(replace(WIDE, bias="none", opset=opset, ir_version=ir_version))
    (total,) = (node for node in model.graph.node if node.op_type == "ReduceSum")
    assert len(total.input) == (1 if opset < 13 else 2)
    assert len(model.graph.input) == inputs  # with IR 3 also the weight, both shapes and the axes
    assert model.ir_version == (ir_version or max(4, model.ir_version))


def test_run_time_shapes_start_inside_and_outside_the_region() -> None:
    nodes = grouped_conv_model(replace(WIDE, shapes="dynamic")).graph.node
    assert [node.input[0] for node in nodes if node.op_type == "Shape"] == ["wide", "x", "wide"]


@pytest.mark.parametrize("shapes", ["static", "dynamic_batch"])
@pytest.mark.parametrize("allowzero", [False, True])
def test_constant_shapes_say_what_stays_open(shapes: Any, allowzero: bool) -> None:
    model = grouped_conv_model(replace(WIDE, shapes=shapes, allowzero=allowzero))
    values = {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.name.endswith("shape")}
    first, second = (2, 2) if shapes == "static" else (-1 if allowzero else 0, -1)
    assert values == {"split_shape": [first, 4, 2, 3, 9, 8], "merged_shape": [second, 12, 9, 8]}
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape"]
    assert [any(a.name == "allowzero" for a in node.attribute) for node in reshapes] == [allowzero] * 2


@pytest.mark.parametrize("order", ["contiguous", "interleaved"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_dynamic_shapes_hold_for_other_sizes(layout: Any, order: Any) -> None:
    spec = replace(WIDE, shapes="dynamic", layout=layout, order=order, integers=True, strides=(2, 1))
    x = example_input(replace(spec, batch=5, spatial=(6, 11)))
    wide = run(grouped_conv_model(spec), {"x": x})["y"]
    assert np.array_equal(wide, run(grouped_conv_model(replace(spec, form="grouped")), {"x": x})["y"])
    assert np.array_equal(wide, reference_outputs(replace(spec, batch=5, spatial=(6, 11)), x)["y"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pads": (1, 1, 1, 1), "auto_pad": "VALID"}, "exclude each other"),
        ({"auto_pad": "SAME_UPPER", "dilations": (1, 2)}, "dilation 1"),
        ({"kernel": (3, 3, 3)}, "spatial must have 3 axes"),
        ({"pads": (1, 1)}, "4 entries"),
        ({"spatial": (2, 2)}, "does not fit"),
        ({"groups": 0}, "at least 1"),
        ({"layout": "NHWC"}, "layout must be one of"),
        ({"opset": OLDEST_OPSET - 1}, "choose one from 7 to"),
        ({"opset": NEWEST_OPSET + 1}, "choose one from 7 to"),
        ({"opset": 8, "weights": "constant_of_shape"}, "opset 9"),
        ({"opset": 13, "allowzero": True}, "opset 14"),
    ],
)
def test_contradictory_specifications_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        GroupedConv(**options)
