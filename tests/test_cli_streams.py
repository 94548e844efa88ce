"""The command line where its surroundings fail: closed or full streams, full disks, Ctrl-C while loading, odd names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cli_runs import command, dense_model, environment, run, small_network
from rewriter import saving
from rewriter.cli import main
from rewriter.cli_show import interrupted
from rewriter.errors import BadInput

Captured = pytest.CaptureFixture[str]
REWRITE = ("rewrite", "net.onnx", "-o", "out.onnx", "--pass", "regroup")
FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.onnx").write_bytes(small_network().SerializeToString())
    (tmp_path / "dense.onnx").write_bytes(dense_model().SerializeToString())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without(stream: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run with standard output or error closed, as a shell's `2>&-` does it."""
    line = ["/bin/sh", "-c", f'exec "$@" {stream}', "sh", *command(*arguments)]
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def test_closed_standard_error(folder: Path) -> None:
    assert without("2>&-", ("inspect", "missing.onnx"), folder).returncode == 2
    done = without("2>&-", REWRITE, folder)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "EQUIVALENT | 2 rewrites | saved out.onnx")


def test_closed_standard_output(folder: Path) -> None:
    done = without(">&-", REWRITE, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out.onnx").exists()


def test_what_is_opened_never_gets_the_number_of_a_closed_stream(folder: Path) -> None:
    code = (
        "import os; from rewriter.cli import main; main(['--version']); print(os.open(os.devnull, os.O_RDONLY) > 2); "
        "os.fstat(2)"
    )
    line = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "True")


@full_disk
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("inspect", "net.onnx"), ("--help",), ("inspect", "net.onnx", "--json")])
def test_standard_output_on_a_full_disk(arguments: Sequence[str], unbuffered: str, folder: Path) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            command(*arguments),
            cwd=folder,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Standard output cannot be written: No space left on device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "code"), [(("--help",), 0), (("audit", "dense.onnx", "net.onnx"), 1)])
def test_nobody_reads(arguments: Sequence[str], code: int, folder: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), stdout=theirs, stderr=subprocess.PIPE, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (code, b"")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@full_disk
def test_a_report_on_a_full_disk_keeps_the_model_from_being_written(folder: Path, capsys: Captured) -> None:
    (folder / "r.json").symlink_to(FULL)
    before = files(folder)
    assert main([*REWRITE, "--report", "r.json", "--report", "second.json"]) == 2
    assert "'r.json' cannot be written: No space left" in capsys.readouterr().err
    assert files(folder) == before


def test_the_last_of_several_reports_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.json").write_text("what was there before")
    real, before = os.fsync, files(folder)
    calls: list[int] = []

    def fsync(number: int) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    assert main([*REWRITE, "--report", "a.json", "--report", "b.json"]) == 2
    assert files(folder) == before
    assert (folder / "a.json").read_text() == "what was there before"


def test_a_model_that_cannot_be_written_keeps_the_reports_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise BadInput("the disk is full.")

    monkeypatch.setattr(saving, "save", fail)
    before = files(folder)
    assert main([*REWRITE, "--report", "a.json"]) == 2
    assert files(folder) == before


def test_a_report_in_a_folder_that_is_read_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (folder / "locked").mkdir()
    real = os.access
    # Root may write anywhere, so the system's answer is made up.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and real(path, mode))
    assert main([*REWRITE, "--report", "locked/r.json"]) == 2
    assert "is not writable" in capsys.readouterr().err
    assert not (folder / "out.onnx").exists()


LOADING = """
import sys, rewriter.__main__ as program

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise {error}

sys.meta_path.insert(0, Interrupts())
sys.argv[1:] = ["bench", "net.onnx"]
sys.exit(program.main())
"""


@pytest.mark.parametrize("name", ["typer", "rewriter.cli", "onnxruntime", "numpy"])
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "ImportError('no module') from KeyboardInterrupt()"])
def test_ctrl_c_while_loading(name: str, error: str, folder: Path) -> None:
    code = LOADING.format(name=name, error=error)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Interrupted: nothing half-written is left behind.\n"


def test_an_import_that_fails_is_no_ctrl_c(folder: Path) -> None:
    code = LOADING.format(name="onnxruntime", error="ImportError('no module')")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "Internal error: ImportError: no module" in done.stderr
    assert not interrupted(ImportError("no module"))


ODD = "\N{CJK UNIFIED IDEOGRAPH-540D}/\u202eevil\x1b[31m\n[bold]EQUIVALENT | y\r:0"
SHOWN = "\N{CJK UNIFIED IDEOGRAPH-540D}/\\u202eevil\\x1b[31m\\n[bold]EQUIVALENT | y\\r:0"


def odd_model(scale: float = 1.0) -> onnx.ModelProto:
    """A grouped convolution whose output has a name that would paint the terminal, break lines and turn the text."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 5, 5]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2, 1, 1], [scale * (0.5 + k) for k in range(8)])
    nodes = [helper.make_node("Conv", ["x", "w"], [ODD], group=2), helper.make_node("Relu", [ODD], ["y"])]
    graph = helper.make_graph(nodes, "odd", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "odd.onnx"),
        ("inspect", "odd.onnx", "-v"),
        ("rewrite", "odd.onnx", "-o", "out.onnx", "--pass", "grouped-to-depthwise-sum", "-v"),
        ("rewrite", "odd.onnx", "-o", "out.onnx", "--pass", "depthwise-sum-to-grouped"),
        ("audit", "odd.onnx", "odd2.onnx", "-v"),
    ],
    ids=" ".join,
)
def test_names_cannot_paint_the_terminal(arguments: Sequence[str], folder: Path) -> None:
    (folder / "odd.onnx").write_bytes(odd_model().SerializeToString())
    (folder / "odd2.onnx").write_bytes(odd_model(2).SerializeToString())
    done = run(*arguments, cwd=folder, PYTHONIOENCODING="utf-8")
    assert done.returncode in (0, 1)
    assert SHOWN in done.stdout
    said = (done.stdout + done.stderr).split("\n")
    assert [line for line in said if not line.isprintable()] == []
    assert [line for line in said if line.startswith("[bold]")] == []


def test_names_in_errors_cannot_either(folder: Path, capsys: Captured) -> None:
    assert main(["inspect", "\x1b[31m\nError: no.onnx"]) == 2
    assert capsys.readouterr().err == "Error: '\\x1b[31m\\nError: no.onnx' does not exist.\n"


def write_samples(folder: Path) -> None:
    good = np.ones((1, 3, 32, 32), np.float32)
    np.savez(folder / "type.npz", input=good.astype(np.float64))
    np.savez(folder / "shape.npz", input=good[:, :2])
    np.savez(folder / "rank.npz", input=good[0])
    np.savez(folder / "more.npz", input=good, other=good)
    np.savez(folder / "other.npz", other=good)
    np.savez(folder / "objects.npz", input=np.array([{}], dtype=object))
    np.save(folder / "plain.npy", good)
    (folder / "text.npz").write_text("hi")


DECLARED = "float32 [1, 3, 32, 32]"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("type.npz", f"have float64 [1, 3, 32, 32] for 'input', which the model declares {DECLARED}."),
        ("shape.npz", f"have float32 [1, 2, 32, 32] for 'input', which the model declares {DECLARED}."),
        ("rank.npz", f"have float32 [3, 32, 32] for 'input', which the model declares {DECLARED}."),
        ("more.npz", "have an array 'other', but the model's inputs are: 'input'."),
        ("other.npz", f"have no array for the model's input 'input' ({DECLARED})."),
        ("objects.npz", "the array 'input' of the inputs file 'objects.npz' is Python objects, not numbers."),
        ("plain.npy", "'plain.npy' is one array without a name"),
        ("text.npz", "'text.npz' is no .npz archive: write one with numpy.savez."),
        (".", "'.' cannot be read: Is a directory."),
    ],
)
@pytest.mark.parametrize("words", [REWRITE, ("optimize", "net.onnx", "--dry-run"), ("audit", "net.onnx", "dense.onnx")])
def test_inputs_that_do_not_fit(words: Sequence[str], name: str, sentence: str, folder: Path, capsys: Captured) -> None:
    write_samples(folder)
    before = files(folder)
    assert main([*words, "--inputs", name]) == 2
    assert sentence.lower() in capsys.readouterr().err.lower()
    assert files(folder) == before


def invalid_model(outputs: int) -> onnx.ModelProto:
    """A Conv with another number of outputs than one, and a Relu that makes the model's output."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 5, 5]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2, 1, 1], [0.5 + k for k in range(8)])
    conv = helper.make_node("Conv", ["x", "w"], [f"c{k}" for k in range(outputs)], name="conv", group=2)
    nodes = [conv, helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "invalid", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("outputs", "reason"), [(2, "It has 2 outputs: a Conv has exactly one"), (0, "This Conv has no output")]
)
@pytest.mark.parametrize("name", ["regroup", "grouped-to-depthwise-sum", "depthwise-sum-to-grouped"])
def test_a_conv_with_another_number_of_outputs(
    name: str, outputs: int, reason: str, folder: Path, capsys: Captured
) -> None:
    (folder / "invalid.onnx").write_bytes(invalid_model(outputs).SerializeToString())
    assert main(["rewrite", "invalid.onnx", "-o", "out.onnx", "--pass", name]) == 0
    assert reason in capsys.readouterr().out
    assert (folder / "out.onnx").read_bytes() == (folder / "invalid.onnx").read_bytes()
    assert main(["inspect", "invalid.onnx"]) == 0
    assert reason in capsys.readouterr().out


def test_a_model_without_a_convolution(folder: Path, capsys: Captured) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "relu.onnx").write_bytes(made.SerializeToString())
    for words in (("optimize", "--budget", "1"), ("rewrite", "--pass", "regroup")):
        assert main([words[0], "relu.onnx", "-o", "out.onnx", *words[1:]]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == "UNCHANGED | The model has no convolution | out.onnx is a byte-identical copy"
