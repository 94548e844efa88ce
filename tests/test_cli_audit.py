"""`rewriter audit`, and what the other commands take of it: data of the user's own, ranges, tolerances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rewriter
import rewriter.api
from audited_models import AUDIT, REWRITE, report, sample, write_models
from cli_runs import SEEDS, run
from rewriter import session
from rewriter.cli import main
from rewriter.equivalence import Audit

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the models to audit."""
    monkeypatch.chdir(tmp_path)
    return write_models(tmp_path)


def recipes() -> list[str]:
    return [entry["recipe"] for entry in report()["witnesses"]]


def give_data() -> None:
    """Each kind of data: 2 samples in a file, 2 in a folder, 3 of a script, which leaves a mark when it is run."""
    np.savez("two.npz", **{"input/0": sample(0), "input/1": sample(1)})  # type: ignore[arg-type]
    Path("data/test_data_set_0").mkdir(parents=True)
    np.savez("data/one.npz", input=sample(2))
    Path("data/test_data_set_0/input_0.pb").write_bytes(numpy_helper.from_array(sample(3)).SerializeToString())
    Path("loader.py").write_text(
        "import numpy as np\nopen('was-run', 'w').close()\nprint('loading')\n"
        "def load_data():\n    for _ in range(3):\n        yield {'input': np.ones((1, 3, 32, 32), np.float32)}\n"
    )


def test_the_help_asks_for_a_report_of_any_kind(capsys: Captured) -> None:
    assert main(["audit", "--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["--report"]]
    assert line.split()[1] == "FILE"


DATA = ("--inputs", "two.npz", "--inputs-dir", "data", "--data-loader", "loader.py")


def test_audit_runs_on_all_data_given(folder: Path, capsys: Captured) -> None:
    give_data()
    assert main([*AUDIT, *DATA, "--report", "r.json"]) == 0
    assert [name for name in recipes() if "user" in name] == [f"user's inputs {k}" for k in range(7)]
    found = report()
    assert all(not entry["problem"] for entry in found["witnesses"])
    whole = next(level for level in found["levels"] if level["level"] == "L4")
    assert whole["figures"]["runs"] == len(found["witnesses"]) >= 12
    said = capsys.readouterr()
    assert "loading" not in said.out
    assert said.err.startswith("loading")


@pytest.mark.parametrize(
    "command",
    [REWRITE, ("bench", "net.onnx", "--budget", "0.2", "-q"), ("optimize", "net.onnx", "--dry-run", "--budget", "0.5")],
)
def test_other_commands_take_data_too(command: Sequence[str], folder: Path) -> None:
    give_data()
    assert main([*command, *DATA]) == 0
    assert Path("was-run").exists()
    np.savez("two.npz", input=sample(0)[:, :2])
    assert main([*command, *DATA]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "net.onnx", "out.onnx", "--data-loader", "loader.py", "--help"),
        ("audit", "net.onnx", "missing.onnx", "--data-loader", "loader.py", "--report", "nowhere/r.json"),
        ("audit", "net.onnx", "--data-loader", "loader.py"),
        ("rewrite", "net.onnx", "-o", "net.onnx", "--pass", "regroup", "--data-loader", "loader.py"),
        ("audit", "net.onnx", "out.onnx", "--data-loader", "loader.py", "--val-range", "other:0,1"),
    ],
)
def test_a_script_is_run_only_when_all_else_is_right(arguments: Sequence[str], folder: Path) -> None:
    give_data()
    assert main(arguments) == (0 if "--help" in arguments else 2)
    assert not Path("was-run").exists()


BAD: tuple[tuple[Sequence[str], str], ...] = (
    (("--inputs-dir", "nowhere"), "The inputs folder 'nowhere' does not exist."),
    (("--data-loader", "nothing.py"), "The data loader 'nothing.py' does not exist."),
    (("--data-loader", "broken.py"), "The data loader 'broken.py' failed in line 2: ZeroDivisionError: division by"),
    (("--inputs", "wide.npz"), "The inputs in 'wide.npz' have float64 [1, 3, 32, 32] for 'input', which the model"),
    (("--val-range", "1,0"), "--val-range 1,0 is empty"),
    (("--val-range", "image:0,1"), "--val-range names 'image', but the model's inputs are: 'input'."),
    (("--rtol", "probabilities:1"), "A tolerance is for 'probabilities', but the model's outputs are: 'logits'."),
    (("--atol", "-1"), "--atol -1 is not of the form [OUTPUT:]V"),
    (("--certificate", "c.txt"), "The certificate 'c.txt' does not end in .json."),
    (("--certificate", "nowhere/c.json"), "The certificate's folder 'nowhere' does not exist: create it first."),
    (("--certificate", "c.json", "--report", "c.json"), "The certificate 'c.json' is also a report"),
    (("--replay", "nothing.json"), "The certificate 'nothing.json' does not exist."),
    (("--replay", "broken.py"), "'broken.py' is no certificate"),
)


@pytest.mark.parametrize(("more", "sentence"), BAD, ids=[" ".join(more) for more, _ in BAD])
def test_bad_data_is_a_sentence(more: Sequence[str], sentence: str, folder: Path, capsys: Captured) -> None:
    Path("broken.py").write_text("def load_data():\n    1 / 0\n")
    np.savez("wide.npz", input=sample(0).astype(np.float64))
    arguments = [entry for entry in AUDIT if entry != "--fast" or "--replay" not in more]
    assert main([*arguments, *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Error: {sentence}")
    assert len(said.err.splitlines()) == 1
    assert not Path("c.json").exists()


def test_a_tolerance_never_decides(folder: Path, capsys: Captured) -> None:
    assert main(["audit", "net.onnx", "wrong.onnx", "--fast", "--rtol", "1e9", "--report", "r.json"]) == 1
    said = capsys.readouterr().out
    assert "decide nothing" in said
    assert said.splitlines()[-1].startswith("DIFFERENT | ")
    assert [entry["within_tolerance"] for entry in report()["outputs"]] == [True]
    assert main([*AUDIT, "--rtol", "0", "--atol", "logits:1e-12", "--report", "r.json"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("EQUIVALENT | ")
    assert [entry["within_tolerance"] for entry in report()["outputs"]] == [False]
    assert "exceeded" in said
    assert main([*AUDIT, "--report", "r.json"]) == 0
    assert [entry["within_tolerance"] for entry in report()["outputs"]] == [None]
    assert "your tolerance" not in capsys.readouterr().out.lower()


def test_generated_inputs_are_drawn_from_the_range(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    seen: list[np.ndarray] = []
    usual = session.run

    def spied(opened: Any, feeds: Any, *more: Any) -> Any:
        seen.extend(feeds.values())
        return usual(opened, feeds, *more)

    monkeypatch.setattr("rewriter.equivalence.whole.run", spied)
    assert main([*AUDIT, "--val-range", "0.25,0.75"]) == 0
    assert len(seen) > 8
    assert all(array.min() >= 0.25 and array.max() <= 0.75 for array in seen)
    assert "Inputs were drawn only where you said: every input from 0.25 to 0.75" in capsys.readouterr().out
    seen.clear()
    assert main([*AUDIT]) == 0
    assert max(array.max() for array in seen) > 100


def judged(monkeypatch: pytest.MonkeyPatch, asked: list[bool]) -> None:
    """Note of every audit whether it was a full one, and let it be a fast one."""
    usual = rewriter.equivalence.ladder.audit

    def noting(before: Any, after: Any, options: Any, **more: Any) -> Audit:
        asked.append(options.full)
        return usual(before, after, dataclasses.replace(options, full=False), **more)

    monkeypatch.setattr(rewriter.equivalence, "audit", noting)


def test_audit_is_full_unless_fast_and_the_others_are_fast_unless_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    judged(monkeypatch, asked)
    for arguments in (
        ["audit", "net.onnx", "out.onnx"],
        ["audit", "net.onnx", "out.onnx", "--fast"],
        [*REWRITE],
        [*REWRITE, "--full-audit"],
    ):
        assert main(arguments) == 0
    assert asked == [True, False, False, True]


def test_two_seeds_as_a_process_of_their_own(tmp_path: Path) -> None:
    """Piped: the result on standard output, nothing on standard error, the verdict as the exit code."""
    right, wrong = SEEDS / "seed1_cardinal_static.onnx", SEEDS / "seed1_wrong_static.onnx"
    done = run("audit", right, wrong, "--fast", "--atol", "1e9", "--val-range", "0,1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1].startswith("DIFFERENT | ")
    assert "Note: Inputs were drawn only where you said: every input from 0 to 1" in done.stdout


def test_reports_in_every_format(folder: Path) -> None:
    files = ["r.json", "r.md", "r.xml", "r.txt"]
    assert main([*AUDIT, *(word for file in files for word in ("--report", file))]) == 0
    assert all(Path(file).stat().st_size > 200 for file in files)
    assert Path("r.txt").read_text().splitlines()[-1].startswith("EQUIVALENT | ")


def captured(monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """What L3 runs the regions on, by region, and the array that enters each."""
    seen: list[list[np.ndarray]] = []
    usual = rewriter.equivalence.numeric.compare_on_activations

    def noting(exchange: Any, feeds: Sequence[Any], products: int) -> Any:
        seen.append([next(iter(entry.values())) for entry in feeds])
        return usual(exchange, feeds, products)

    monkeypatch.setattr("rewriter.equivalence.ladder.compare_on_activations", noting)
    return seen


def test_regions_are_run_on_data_given_besides_generated_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = captured(monkeypatch)
    np.savez("x.npz", input=1000 * sample(0))
    assert main([*AUDIT, "-q"]) == 0
    assert [len(feeds) for feeds in seen] == [2, 2]
    largest = max(np.abs(feeds[0]).max() for feeds in seen)
    seen.clear()
    assert main([*AUDIT, "-q", "--inputs", "x.npz"]) == 0
    assert [len(feeds) for feeds in seen] == [3, 3]
    assert all(np.abs(feeds[2]).max() > 10 * largest for feeds in seen)


def test_regions_are_not_run_on_data_of_another_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at with the shapes of the generated inputs."""
    seen = captured(monkeypatch)
    for name in ("net.onnx", "out.onnx"):
        model = onnx.load(name)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "n"
        onnx.save(model, name)
    np.savez("x.npz", input=np.repeat(sample(0), 5, axis=0))
    assert main([*AUDIT, "--inputs", "x.npz", "--report", "r.json"]) == 0
    assert [len(feeds) for feeds in seen] == [2, 2]
    assert recipes()[0] == "user's inputs 0"


def test_an_output_is_not_constant_because_two_samples_are_alike(folder: Path) -> None:
    np.savez("x.npz", **{"input/0": sample(0), "input/1": sample(0)})  # type: ignore[arg-type]
    assert main([*AUDIT, "--inputs", "x.npz", "--report", "r.json"]) == 0
    assert [entry["compared"] for entry in report()["outputs"]] == [True]
