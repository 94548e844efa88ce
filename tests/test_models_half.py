"""Reference models in float16 are valid, run, and compute what the float32 ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cuda import MODELS
from model_runs import error, normal_input, run
from models.__main__ import main
from models.catalogue import Options, build
from models.errors import ModelError
from models.half import half_model
from models.resnext import ResNeXt, resnext_model
from models.zoo.refill import zoo_model

SMALL = ResNeXt(blocks=(1, 1), width=16, groups=8, image=32, classes=5)


def element_types(model: onnx.ModelProto) -> set[int]:
    """Of inputs, outputs and weights of more than one number."""
    found = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    return found | {tensor.data_type for tensor in model.graph.initializer if numpy_helper.to_array(tensor).size > 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_zoo_in_half(name: str) -> None:
    single = zoo_model(name)
    half = half_model(single)
    onnx.checker.check_model(half, full_check=True)
    assert TensorProto.FLOAT not in element_types(half)
    assert TensorProto.FLOAT16 in element_types(half)
    assert [value.name for value in half.graph.value_info] == [value.name for value in single.graph.value_info]
    inputs = normal_input(single, 0)
    (expected,) = run(single, inputs).values()
    (actual,) = run(half, {key: value.astype(np.float16) for key, value in inputs.items()}).values()
    assert actual.dtype == np.float16
    assert np.isfinite(actual).all()
    assert error(actual, expected) < 0.02  # 50 layers at 2^-11 each


def test_the_float32_model_is_left_alone_and_the_half_one_computes_the_same() -> None:
    single = resnext_model(SMALL)
    before = single.SerializeToString(deterministic=True)
    half = half_model(single)
    assert single.SerializeToString(deterministic=True) == before
    assert half.ByteSize() < 0.6 * single.ByteSize()
    inputs = normal_input(single, 0)
    (expected,) = run(single, inputs).values()
    (actual,) = run(half, {key: value.astype(np.float16) for key, value in inputs.items()}).values()
    assert 0 < error(actual, expected) < 0.01


def test_a_model_without_floats_is_refused() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "whole", values[:1], values[1:])
    with pytest.raises(ModelError, match="no float32 input and no float32 weight"):
        half_model(helper.make_model(graph))


def test_the_catalogue_and_the_command_line_offer_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TensorProto.FLOAT not in element_types(build("zoo:shufflenet_v2_x1_0", Options(float16=True)))
    out = tmp_path / "half.onnx"
    assert main(["zoo:shufflenet_v2_x1_0", "--float16", "-o", str(out)]) == 0
    assert TensorProto.FLOAT not in element_types(onnx.load(out))
    assert main(["zoo:shufflenet_v2_x1_0", "-o", str(out)]) == 0
    assert TensorProto.FLOAT16 not in element_types(onnx.load(out))
    assert "MB" in capsys.readouterr().out
