"""A failed audit as a folder: as small as it still fails, tried before it is kept; nothing where there is nothing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

import rewriter.repro
from culprits import Invalid, OneWeightOff, Overflowing, ReadsTheFormer, Scaled, chain
from rewriter import equivalence
from rewriter.base import Pass
from rewriter.cli import main
from rewriter.cutting import Cutter
from rewriter.equivalence import Audit
from rewriter.equivalence.records import audit_options
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Step, sweep
from rewriter.repro import Repro, check_folder, write_repro

OPTIONS = RunOptions()


def rewritten(model: Model, *steps: Step | Pass) -> Model:
    for step in steps:
        model, done, _ = sweep(model, step if isinstance(step, Step) else Step(step), {})
        assert done
    return model


def audited(before: Model, after: Model) -> Audit:
    return equivalence.audit(before, after, audit_options(OPTIONS))


def reproduced(folder: Path, before: Model, after: Model) -> tuple[Repro, Audit]:
    audit = audited(before, after)
    return write_repro(folder, before, after, audit, OPTIONS), audit


def command_in(folder: Path) -> list[str]:
    (line,) = re.findall("^    (rewriter audit .*)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    return shlex.split(line)[1:]


def seen_again(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code of the README's command, run in the folder; its last line begins as the README says."""
    monkeypatch.chdir(folder)
    code = main(command_in(folder))
    expected = re.search(r"^Expected: `([A-Z ]+)` \(exit code ([0-9])\)", (folder / "README.md").read_text(), re.M)
    assert expected
    assert capsys.readouterr().out.splitlines()[-1].startswith(expected[1])
    assert code == int(expected[2])
    return code


def nodes(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_wrong_weight_comes_down_to_its_convolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = chain(5)
    folder = tmp_path / "repro"
    made, audit = reproduced(folder, model, rewritten(model, OneWeightOff({"c3"})))
    assert (made.folder, made.what) == (folder, "the region of 'c3'")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "after.onnx", "before.onnx", "inputs.npz"]
    assert nodes(folder / "before.onnx") == ["Conv"]
    assert nodes(folder / "after.onnx") == ["Conv", "Div"]
    before = onnx.load(folder / "before.onnx", load_external_data=False)
    onnx.checker.check_model(before, full_check=True)
    assert [tensor.name for tensor in before.graph.initializer] == ["w3"]
    with np.load(folder / "inputs.npz") as archive:
        assert {name: archive[name].shape for name in archive.files} == {"r2": (1, 4, 6, 6)}
        assert (archive["r2"] >= 0).all()  # captured behind a Relu
    text = (folder / "README.md").read_text()
    assert audit.reason in text
    assert audit.before_sha256 in text
    assert command_in(folder) == ["audit", "before.onnx", "after.onnx", "--inputs", "inputs.npz"]
    assert seen_again(folder, monkeypatch, capsys) == 1


def test_what_only_large_inputs_show_comes_with_the_inputs_that_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = chain(3)
    after = rewritten(model, Overflowing({"c2"}))
    folder = tmp_path / "repro"
    made, audit = reproduced(folder, model, after)
    assert all(region.accepted for region in audit.regions)
    assert made.what == "the region of 'c2'"
    with np.load(folder / "inputs.npz") as archive:
        assert archive["r1"].max() > 50
    assert nodes(folder / "after.onnx") == ["Conv", "Div"]
    assert seen_again(folder, monkeypatch, capsys) == 1


def test_of_a_region_with_several_outputs_one_will_do(tmp_path: Path) -> None:
    model = chain(4)
    after = rewritten(
        model, Step(Scaled(), {}, frozenset({"c1"})), ReadsTheFormer("c2", "c1", wrong={"c2"}, strictly=True)
    )
    made, audit = reproduced(tmp_path / "repro", model, after)
    assert ("c1", "c2") in {region.outputs for region in audit.regions}
    assert made.what == "the part of the region of 'c1' that 'c2' is made by"
    outputs = onnx.load(tmp_path / "repro" / "after.onnx").graph.output
    assert [value.name for value in outputs] == ["c2"]


def test_where_the_region_does_not_fail_alone_it_is_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(5)
    after = rewritten(model, Step(OneWeightOff({"c3"}), {}, frozenset({"c3"})))
    audit = audited(model, after)
    smallest = Cutter.pair
    # As if the region alone computed the same: what is cut out of the original twice.
    monkeypatch.setattr(
        Cutter,
        "pair",
        lambda self, region: (
            smallest(Cutter(self.diff.before.model, self.diff.before.model, {}), region)
            if len(region.before) == 1
            else smallest(self, region)
        ),
    )
    made = write_repro(tmp_path / "repro", model, after, audit, OPTIONS)
    assert made.what == "the region of 'c3' with what is up to 1 node around it"
    assert nodes(tmp_path / "repro" / "before.onnx") == ["Relu", "Conv", "Relu"]
    assert nodes(tmp_path / "repro" / "after.onnx") == ["Relu", "Conv", "Div", "Relu"]


def test_a_region_grown_over_another_one_takes_it_along_and_ends_with_the_whole() -> None:
    model = chain(3)
    after = rewritten(model, Scaled())
    cutter = Cutter(model, after, {})
    region = next(found for found in cutter.regions if found.outputs == ("c1",))
    wider = cutter.grown(region, 2)
    assert [model.nodes[index].output[0] for index in wider.before] == ["c1", "r1", "c2"]
    assert [after.nodes[index].output[0] for index in wider.after] == ["c1/scaled", "c1", "r1", "c2/scaled", "c2"]
    assert (wider.inputs, wider.outputs) == (("x",), ("c2",))
    everything = cutter.grown(region, 9)
    assert len(everything.before) == len(model.nodes)
    assert len(everything.after) == len(after.nodes)
    assert (everything.inputs, everything.outputs) == (("x",), ("y",))


def test_where_there_is_no_region_the_whole_models_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = chain(2)
    folder = tmp_path / "repro"
    made, _ = reproduced(folder, model, rewritten(model, Invalid({"c2"})))
    assert made.what == "the whole models"
    assert (folder / "before.onnx").read_bytes() == model.to_bytes()
    assert seen_again(folder, monkeypatch, capsys) == 1


def test_external_weights_come_along_inline(tmp_path: Path) -> None:
    proto = chain(2).to_proto()
    source = tmp_path / "with_data.onnx"
    onnx.save(proto, source, save_as_external_data=True, location="data.bin", size_threshold=0)
    model = Model.load(source)
    made, _ = reproduced(tmp_path / "part", model, rewritten(model, OneWeightOff({"c2"})))
    assert made.what == "the region of 'c2'"
    made, _ = reproduced(tmp_path / "whole", model, rewritten(model, Invalid({"c2"})))
    assert made.what == "the whole models"
    for name in ("part", "whole"):
        assert sorted(path.name for path in (tmp_path / name).iterdir())[:3] == [
            "README.md",
            "after.onnx",
            "before.onnx",
        ]
        assert not (tmp_path / name / "data.bin").exists()
        assert onnx.load(tmp_path / name / "before.onnx", load_external_data=False).graph.initializer[-1].raw_data


def test_nothing_is_written_where_there_is_nothing_to_reproduce(tmp_path: Path) -> None:
    model = chain(2)
    made, audit = reproduced(tmp_path / "repro", model, rewritten(model, Scaled()))
    assert audit.verdict == "equivalent"
    assert made == Repro(None, "", "There is nothing to reproduce: the audit found the models equivalent.")
    assert not list(tmp_path.iterdir())


def test_a_verdict_that_does_not_come_again_is_not_called_a_reproduction(tmp_path: Path) -> None:
    model = chain(1)
    after = rewritten(model, Scaled())
    made_up = audited(model, after).model_copy(update={"verdict": "different"})
    made = write_repro(tmp_path / "repro", model, after, made_up, OPTIONS)
    assert made.folder is None
    assert "not even the whole models" in made.sentence
    assert not list(tmp_path.iterdir())


def test_the_folder_is_new_or_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not empty: name a new one"):
        check_folder(tmp_path)
    with pytest.raises(BadInput, match="is a file: give the name of a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(BadInput, match="does not exist: create it first"):
        check_folder(tmp_path / "no" / "such")


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    model = chain(2)
    after = rewritten(model, OneWeightOff({"c1"}))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        write_repro(tmp_path, model, after, audited(model, after), OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    model = chain(2)
    made, _ = reproduced(folder, model, rewritten(model, OneWeightOff({"c1"})))
    assert made.folder == folder
    assert (folder / "README.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_nothing_is_left_when_it_ends_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(2)
    after = rewritten(model, OneWeightOff({"c1"}))
    audit = audited(model, after)

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(rewriter.repro, "readme", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_repro(tmp_path / "repro", model, after, audit, OPTIONS)
    assert not list(tmp_path.iterdir())


def test_the_command_says_every_option_that_is_no_default(tmp_path: Path) -> None:
    from rewriter.repro_files import command
    from rewriter.session import Runtime

    options = RunOptions(
        runtime=Runtime("cuda", 2, "basic", (("use_tf32", "0"),)),
        input_shapes={"a b": (1, 3)},
        seed=7,
        ranges={"": (0.0, 1.0), "x": (-1.0, 2.5)},
    )
    assert shlex.split(command(options, fast=True, inputs=False)) == [
        *("rewriter", "audit", "before.onnx", "after.onnx"),
        *("--provider", "cuda", "--provider-option", "use_tf32=0", "--threads", "2", "--ort-level", "basic"),
        *("--input-shape", "a b:1,3", "--val-range", "0.0,1.0", "--val-range", "x:-1.0,2.5", "--seed", "7", "--fast"),
    ]
