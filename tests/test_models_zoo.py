"""The zoo refills to the reference bytes and runs; the reference programs reproduce TensorFlow."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_runs import attribute, error, normal_input, response, run, serialised
from models.zoo.refill import FOLDER, refill, zoo_model, zoo_names

SEEDS = Path(__file__).parent / "data" / "seeds"
# Of the files that the zoo's own stripping tool (skeleton.py) refilled, one for each exporter.
REFERENCE_SHA256 = {
    "keras_mobilenet": "a0bf2b39795c58e66805d905b6b35f35765e17d7e46be28748b25d033daf8abb",
    "regnet_y_400mf_dynamo": "692072175461746432961537180a6f10b5cb13c0377040e7431fce8f1229e0a7",
    "shufflenet_v2_x1_0": "67bdd753fe3c59081ed78c9d0af5e257478ac14b3319737d3d29774f845409e6",
}


# The zoo.


def parameter_count(name: str) -> int:
    return sum(prod(tensor.dims) for tensor in onnx.load(FOLDER / f"{name}.onnx").graph.initializer)


SMALLER_HALF = sorted(zoo_names(), key=parameter_count)[: (len(zoo_names()) + 1) // 2]


def test_the_readme_lists_every_graph() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8").split("## Nearly blind outputs")[0]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert sorted(rows[2:]) == zoo_names()
    assert f"{len(zoo_names())} files" in text


@pytest.mark.parametrize("name", zoo_names())
def test_every_zoo_graph_refills(name: str) -> None:
    stripped = onnx.load(FOLDER / f"{name}.onnx")
    model = zoo_model(name)
    onnx.checker.check_model(model)
    filled = 0
    for before, after in zip(stripped.graph.initializer, model.graph.initializer, strict=True):
        if not before.doc_string.startswith("normal "):
            assert before == after
            continue
        values = numpy_helper.to_array(after)
        low, high = (np.float32(word) for word in before.doc_string.split()[3:])
        assert np.isfinite(values).all()
        assert low <= values.min() <= values.max() <= high
        filled += 1
        for tensor in (before, after):
            tensor.ClearField("doc_string")
            tensor.ClearField("raw_data")
    assert filled > 10
    # Only the data came in and only the marks went out.
    assert [node for node in model.graph.node if node.op_type != "Constant"] == [
        node for node in stripped.graph.node if node.op_type != "Constant"
    ]
    assert "normal " not in str([node for node in model.graph.node if node.op_type == "Constant"])


@pytest.mark.parametrize("name", SMALLER_HALF)
def test_smaller_zoo_graphs_run(name: str) -> None:
    model = zoo_model(name)
    outputs = run(model, normal_input(model, seed=1))
    assert outputs
    for value in outputs.values():
        assert value.size > 1
        assert np.isfinite(value).all()


@pytest.mark.parametrize("name", sorted(REFERENCE_SHA256))
def test_refill_is_the_reference_algorithm(name: str) -> None:
    assert hashlib.sha256(serialised(zoo_model(name))).hexdigest() == REFERENCE_SHA256[name]


def test_other_seeds_give_other_weights() -> None:
    first, second = (zoo_model("shufflenet_v2_x1_0", seed) for seed in (0, 1))
    assert hashlib.sha256(serialised(second)).hexdigest() != REFERENCE_SHA256["shufflenet_v2_x1_0"]
    large = [
        (a.raw_data, b.raw_data)
        for a, b in zip(first.graph.initializer, second.graph.initializer, strict=True)
        if prod(a.dims) > 64 and a.data_type == onnx.TensorProto.FLOAT
    ]
    assert len(large) > 50
    assert all(a != b for a, b in large)


def test_refill_reaches_constants_subgraphs_and_float16() -> None:
    def stripped(name: str, data_type: int) -> onnx.TensorProto:
        # More than one block of the streaming, and not a multiple of it.
        return onnx.TensorProto(name=name, data_type=data_type, dims=[300, 301], doc_string="normal 0.5 2 -3 4")

    inner = onnx.GraphProto(initializer=[stripped("w", onnx.TensorProto.FLOAT)])
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], value=stripped("w", onnx.TensorProto.FLOAT16)),
        onnx.helper.make_node("If", ["p"], ["y"], then_branch=inner),
    ]
    model = onnx.ModelProto(graph=onnx.GraphProto(node=nodes, initializer=[stripped("w", onnx.TensorProto.FLOAT)]))
    refill(model)
    tensors = [
        model.graph.initializer[0],
        model.graph.node[0].attribute[0].t,
        attribute(model.graph.node[1], "then_branch").initializer[0],
    ]
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    assert [a.dtype.name for a in arrays] == ["float32", "float16", "float32"]
    for array in arrays:
        assert array.shape == (300, 301)
        assert (array.min(), array.max()) == (-3, 4)
        assert abs(array.mean(dtype=np.float64) - 0.5) < 0.03
    # Equal names, other places: other numbers.
    assert np.abs(arrays[0] - arrays[2]).max() > 1
    assert np.abs(arrays[0] - arrays[1]).max() > 1


@pytest.mark.parametrize(
    ("name", "at_most"), [("keras_mobilenet", 0.0), ("mobilenet_v2", 1e-6), ("shufflenet_v2_x1_0", 1e-3)]
)
def test_some_zoo_outputs_are_blind(name: str, at_most: float) -> None:
    model = zoo_model(name)
    assert response(model, model.graph.output[0].name) <= at_most


def test_other_zoo_outputs_are_not_blind() -> None:
    model = zoo_model("regnet_y_400mf")
    assert response(model, model.graph.output[0].name) >= 0.005


# The reference programs.

PRINTED = {
    "seed1_eight_channels": [6, 6, 6, 6, 22, 22, 22, 22],
    "seed2_conv2d": [9, 63, 9, 81] * 2,
    "seed2_depthwise": [0, 36, 9, 27, 0, 54, 9, 27] * 2,
    "seed3_regular_ones": list(np.repeat([15, 27, 39, 51, 63, 75, 87, 99], 2)),
    "seed3_separable_ones": list(np.repeat([15, 27, 39, 51, 63, 75, 87, 99], 2)),
}
SEED_NAMES = sorted(path.stem for path in SEEDS.glob("*.onnx"))


def test_the_seed_files_are_complete() -> None:
    assert len(SEED_NAMES) == 17
    assert sorted(path.stem for path in SEEDS.glob("*.npz")) == SEED_NAMES
    readme = (SEEDS / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in SEED_NAMES)


@pytest.mark.parametrize("name", SEED_NAMES)
def test_seed_programs_reproduce_tensorflow(name: str) -> None:
    with np.load(SEEDS / f"{name}.npz") as pair:
        x, y = pair["x"], pair["y"]
    (actual,) = run(onnx.load(SEEDS / f"{name}.onnx"), {"x": x}).values()
    assert error(actual, y) <= 1e-6
    if name in PRINTED:
        assert y.ravel().tolist() == PRINTED[name]
    if name == "seed0_depthwise_multiplier":
        centre = [2.0, 2.1, 2.2, 2.3, 3.0, 3.1, 3.2, 3.3, 4.0, 4.1, 4.2, 4.3]
        assert np.allclose(y[0, 6, 6], centre, rtol=0, atol=1e-6)
