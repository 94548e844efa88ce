"""ResNeXt-50 is equal in all its forms and stays alive, and `python -m models` writes what it says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest

from model_runs import attribute, error, normal_input, run, serialised
from models.__main__ import main
from models.catalogue import Options, build, catalogue
from models.emit import NEWEST_OPSET
from models.errors import ModelError
from models.resnext import ResNeXt, ResNeXtForm, resnext_model
from models.zoo.refill import FOLDER, zoo_names

ROOT = Path(__file__).resolve().parents[1]
SMALL = ResNeXt(blocks=(1, 2), width=16, groups=8, image=32, classes=10)
MARK = {"split_concat": "Split", "depthwise_sum": "ReduceSum"}
FORMS: tuple[ResNeXtForm, ...] = get_args(ResNeXtForm)


# ResNeXt-50 in three forms.


def conv_signatures(graph: onnx.GraphProto) -> Counter[tuple[Any, ...]]:
    """Weight shape, groups and strides of every convolution, order aside."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: Counter[tuple[Any, ...]] = Counter()
    for node in graph.node:
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            found[shapes[node.input[1]], groups, tuple(attribute(node, "strides"))] += 1
    return found


def conv_macs(model: onnx.ModelProto) -> int:
    """Multiplications of all convolutions: output elements × input channels per group × kernel positions."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    sizes = {v.name: prod(d.dim_value for d in v.type.tensor_type.shape.dim) for v in inferred.value_info}
    weights = {tensor.name: prod(tensor.dims[1:]) for tensor in inferred.initializer}
    return sum(sizes[n.output[0]] * weights[n.input[1]] for n in inferred.node if n.op_type == "Conv")


@pytest.fixture(scope="module")
def full() -> onnx.ModelProto:
    return build("resnext50")


def test_resnext50_is_torchvisions(full: onnx.ModelProto) -> None:
    exported = onnx.load(FOLDER / "resnext50_32x4d.onnx")
    assert conv_signatures(full.graph) == conv_signatures(exported.graph)
    operators = Counter(node.op_type for node in full.graph.node)
    assert operators == Counter(node.op_type for node in exported.graph.node)
    assert operators["Conv"] == 53
    values = sum(prod(tensor.dims) for tensor in full.graph.initializer)
    assert values == sum(prod(tensor.dims) for tensor in exported.graph.initializer)


@pytest.mark.parametrize(
    ("form", "operators"),
    [
        ("grouped", {"Conv": 53, "Add": 16}),
        ("split_concat", {"Conv": 37 + 16 * 32, "Split": 16, "Concat": 16, "Add": 16}),
        ("depthwise_sum", {"Conv": 53, "Reshape": 32, "ReduceSum": 16, "Add": 32}),
    ],
)
def test_operators_shapes_and_multiplications_of_each_form(form: ResNeXtForm, operators: dict[str, int]) -> None:
    model = resnext_model(ResNeXt(form, width=8, groups=4))
    common = {"Relu": 49, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    many_groups = resnext_model(ResNeXt(form, width=32, groups=32))
    assert Counter(node.op_type for node in many_groups.graph.node) == operators | common
    assert conv_macs(model) == conv_macs(resnext_model(ResNeXt(width=8, groups=4)))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    assert shapes["stage1.block1.conv2"] == [1, 16, 56, 56]
    assert shapes["stage4.block3.conv2"] == [1, 128, 7, 7]


def test_multiplications_of_resnext50(full: onnx.ModelProto) -> None:
    # torchvision's table gives 4.23 G with the classifier's 2048 · 1000 included.
    assert round((conv_macs(full) + 2048 * 1000) / 1e9, 2) == 4.23


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", [7, 12, 13, 18, NEWEST_OPSET])
def test_forms_are_equivalent_in_every_opset(form: ResNeXtForm, opset: int) -> None:
    model = resnext_model(replace(SMALL, form=form, opset=opset, batch=None))
    onnx.checker.check_model(model, full_check=True)
    x = normal_input(model, seed=1, batch=3)
    expected = run(resnext_model(replace(SMALL, batch=3)), x)["logits"]
    logits = run(model, x)["logits"]
    assert logits.shape == (3, 10)
    assert error(logits, expected) <= 2e-6


@pytest.mark.parametrize("form", ["split_concat", "depthwise_sum"])
def test_forms_of_resnext50_are_equivalent(full: onnx.ModelProto, form: ResNeXtForm) -> None:
    x = normal_input(full, seed=1)
    model = build(f"resnext50:{form}")
    assert {"Split", "ReduceSum"} & {node.op_type for node in model.graph.node} == {MARK[form]}
    logits = run(model, x)["logits"]
    assert error(logits, run(full, x)["logits"]) <= 5e-6


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    def weights(spec: ResNeXt) -> dict[str, bytes]:
        return {t.name: t.raw_data for t in resnext_model(spec).graph.initializer if t.name.startswith("stage1.block1")}

    assert weights(SMALL) == weights(replace(SMALL, blocks=(1, 1), image=64, batch=None, opset=7))
    other = weights(replace(SMALL, seed=1))
    assert all(other[name] != data for name, data in weights(SMALL).items())


@pytest.mark.parametrize(("seed", "batch"), [(0, 2), (7, 2)])
def test_activations_stay_alive(seed: int, batch: int) -> None:
    model = resnext_model(ResNeXt(batch=batch, seed=seed))
    watched = {"Conv", "Relu"}
    inner = [node.output[0] for node in model.graph.node if node.op_type in watched]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    values = run(model, normal_input(model, seed=1))
    assert len(inner) == 53 + 49
    for node in model.graph.node:
        value = values.get(node.output[0])
        if node.op_type == "Conv":
            assert value is not None
            assert 0.2 <= value.std() <= 3, node.name
        if node.op_type == "Relu":
            assert value is not None
            assert (value.max(axis=(0, 2, 3)) <= 0).mean() <= 0.02, node.name
            # The two images of the batch are told apart everywhere on the way.
            assert error(value[1], value[0]) >= 0.3, node.name
    logits = values["logits"]
    assert 0.3 <= logits.std() <= 3
    assert error(logits[1], logits[0]) >= 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "dense"}, "no form of ResNeXt"),
        ({"groups": 48}, "not divisible into 48 groups"),
        ({"batch": 0}, "at least 1"),
        ({"blocks": ()}, "at least 1"),
        ({"width": 1, "groups": 2}, "at least 2"),
        ({"seed": -1}, "seed"),
        ({"opset": 6}, "opset 6"),
    ],
)
def test_impossible_resnexts_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ResNeXt(**options)


# The command line.


@pytest.mark.parametrize("name", ["resnext50:depthwise_sum", "zoo:shufflenet_v2_x1_0"])
def test_command_line_writes_the_same_bytes_in_every_process(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.onnx"
    command = [sys.executable, "-m", "models", name, "-o", str(path), "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    data = path.read_bytes()
    model = build(name, Options(seed=3))
    assert data == serialised(model)
    assert done.stdout == f"{path}: {len(data) / 1e6:.1f} MB, {len(model.graph.node)} nodes\n"
    assert done.stderr == ""
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_command_line_options_reach_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for batch, expected in (("4", 4), ("N", "N")):
        assert main(["resnext50:depthwise_sum", "-o", str(path), "--batch", batch, "--opset", "11"]) == 0
        model = onnx.load(path)
        dim = model.graph.input[0].type.tensor_type.shape.dim[0]
        assert (dim.dim_param or dim.dim_value) == expected
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 11)]


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == list(catalogue())
    assert names[:2] == ["resnext50", "resnext50:grouped"]
    assert {f"zoo:{name}" for name in zoo_names()} | {f"resnext50:{form}" for form in FORMS} < set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnext51", "-o", "out.onnx"], "no model named resnext51: did you mean resnext50"),
        (["zoo:mobilenet", "-o", "out.onnx"], "did you mean zoo:"),
        (["???", "-o", "out.onnx"], "--list shows all names"),
        (["resnext50", "-o", "out.onnx", "--opset", "99"], "opset 99 is not supported: choose one from 7 to"),
        (["resnext50", "-o", "out.onnx", "--batch", "many"], "batch many is neither a number nor N"),
        (["resnext50", "-o", "out.onnx", "--batch", "-1"], "at least 1"),
        (["resnext50", "-o", "out.onnx", "--seed", "-1"], "seed is at least 0"),
        (["zoo:mobilenet_v2", "-o", "out.onnx", "--seed", "-1"], "seed is at least 0"),
        (["zoo:mobilenet_v2", "-o", "out.onnx", "--batch", "2"], "leave out --batch and --opset"),
        (["zoo:mobilenet_v2", "-o", "out.onnx", "--opset", "20"], "leave out --batch and --opset"),
        (["zoo:shufflenet_v2_x1_0", "-o", "folder"], "cannot write folder: folder is a folder"),
        (["zoo:shufflenet_v2_x1_0", "-o", "file/out.onnx"], "cannot write file/out.onnx: "),
    ],
)
def test_bad_requests_are_one_sentence_and_write_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("kept")
    Path("out.onnx").write_text("kept")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("models: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(p.name for p in Path().iterdir()) == ["file", "folder", "out.onnx"]
    assert Path("file").read_text() == Path("out.onnx").read_text() == "kept"


@pytest.mark.parametrize(
    "arguments", [[], ["resnext50"], ["-o", "out.onnx"], ["resnext50", "-o", "x", "--seed", "one"]]
)
def test_incomplete_commands_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err
