"""The command line: exit codes, what is written and what never is, what is printed where."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import typer

import rewriter.api
import rewriter.equivalence
from cli_runs import ROOT, SEEDS, command, dense_model, environment, run, small_network
from rewriter import cli_options, providers, session
from rewriter.cli import app, main
from rewriter.equivalence import Audit
from rewriter.errors import Different, NotVerified
from timings import RECORD

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network every pass finds something in, and odd files to be refused."""
    (tmp_path / "net.onnx").write_bytes(small_network().SerializeToString())
    (tmp_path / "dense.onnx").write_bytes(dense_model().SerializeToString())
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("This is no model, it is a sentence.")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "other.npz", other=np.zeros(3, np.float32))
    np.savez(tmp_path / "good.npz", input=np.ones((1, 3, 32, 32), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REWRITE = ("rewrite", "net.onnx", "-o", "out.onnx", "--pass", "regroup")
OPTIMIZE = ("optimize", "net.onnx", "-o", "out.onnx")
BAD: tuple[tuple[Sequence[str], str], ...] = (
    ((), ""),
    (("nonsense",), "No such command 'nonsense'"),
    (("rewrite",), "Missing argument 'MODEL'"),
    (("rewrite", "net.onnx"), "Missing option '--pass'"),
    (("inspect", "missing.onnx"), "'missing.onnx' does not exist"),
    (("inspect", "empty.onnx"), "is empty"),
    (("inspect", "text.onnx"), "'text.onnx' is not an ONNX model"),
    (("inspect", "folder"), "'folder' is a folder"),
    (("audit", "net.onnx", "missing.onnx"), "'missing.onnx' does not exist"),
    (("bench", "text.onnx"), "is not an ONNX model"),
    (("rewrite", "net.onnx", "-o", "net.onnx", "--pass", "regroup"), "is the input model itself"),
    (("optimize", "net.onnx", "-o", "folder/../net.onnx"), "is the input model itself"),
    (("optimize", "net.onnx", "-o", "net.onnx", "--dry-run"), "is the input model itself"),
    (("optimize", "net.onnx", "-o", "nowhere/out.onnx"), "folder 'nowhere' does not exist"),
    (("optimize", "net.onnx", "-o", "folder"), "'folder' is a folder"),
    (("rewrite", "net.onnx", "--pass", "fold-everything"), "There is no pass 'fold-everything'"),
    ((*OPTIMIZE, "--only", "fold-everything"), "There is no pass 'fold-everything'"),
    ((*OPTIMIZE, "--only", "regroup", "--skip", "regroup"), "leave no pass to try"),
    ((*REWRITE, "--set", "factor=2"), "not of the form pass.key=value"),
    ((*REWRITE, "--set", "regroup.size=2"), "has no setting 'size'"),
    ((*REWRITE, "--set", "regroup.factor=two"), "'two' is no whole number"),
    ((*REWRITE, "--set", "regroup.factor=" + "9" * 5000), "is no whole number"),
    ((*REWRITE, "--set", "regroup.factor=-1"), "-1 is negative; it must be 0 or more"),
    ((*REWRITE, "--set", "regroup.factor=2", "--set", "regroup.factor=4"), "regroup.factor is set twice"),
    ((*REWRITE, "--set", "nothing.factor=2"), "there is no pass 'nothing'"),
    ((*REWRITE, "--set", "depthwise-sum-to-grouped.shuffle=gather"), "add --pass depthwise-sum-to-grouped"),
    ((*REWRITE, "--input-shape", "input"), "not of the form name:1,3,224,224"),
    ((*REWRITE, "--input-shape", "input:\u00b2,3,32,32"), "not of the form name:1,3,224,224"),
    ((*REWRITE, "--input-shape", "input:1,3,32," + "9" * 5000), "not of the form name:1,3,224,224"),
    ((*REWRITE, "--input-shape", "input:1,3,32,32", "--input-shape", "input:2,3,32,32"), "'input' twice"),
    ((*REWRITE, "--input-shape", "inputs:1,3,32,32"), "inputs"),
    ((*REWRITE, "--input-shape", "input:1,3,33,33"), "33"),
    ((*REWRITE, "--inputs", "broken.npz"), "'broken.npz' is no .npz archive"),
    ((*REWRITE, "--inputs", "missing.npz"), "'missing.npz' does not exist"),
    (("bench", "net.onnx", "--inputs", "other.npz"), "no array for the model's input 'input'"),
    ((*REWRITE, "--report", "report.html"), "there are .txt, .json, .md and .xml."),
    ((*REWRITE, "--report", "nowhere/r.json"), "folder 'nowhere' does not exist"),
    (("rewrite", "net.onnx", "-o", "a.json", "--pass", "regroup", "--report", "a.json"), "is also a model"),
    ((*REWRITE, "--threads", "-1"), "--threads"),
    ((*REWRITE, "--threads", "99999999999999"), "less than or equal to 1024"),
    ((*REWRITE, "--seed", "-1"), "--seed"),
    ((*REWRITE, "--provider", "tpu"), "Invalid value for '--provider': 'tpu' is not one of"),
    ((*REWRITE, "--provider-option", "arena"), "not of the form key=value"),
    ((*REWRITE, "--provider-option", "foo=bar"), "--provider-option foo has no effect on the cpu provider"),
    *(
        ((*asked, "--provider", "cuda", "--provider", "cpu"), "only rewriter audit takes several providers")
        for asked in (REWRITE, OPTIMIZE, ("bench", "net.onnx"))
    ),
    (
        (*REWRITE, "--provider", "cuda", "--provider-option", "use_tf32=1", "--provider-option", "use_tf32=0"),
        "--provider-option use_tf32 is given twice: as 1 and as 0",
    ),
    ((*REWRITE, "--ort-level", "99"), "--ort-level"),
    ((*OPTIMIZE, "--budget", "0"), "no positive number of seconds"),
    ((*OPTIMIZE, "--budget", "nan"), "no positive number of seconds"),
)


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(arguments)[:90] for arguments, _ in BAD])
def test_bad_usage(arguments: Sequence[str], sentence: str, folder: Path, capsys: Captured) -> None:
    before = files(folder)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert files(folder) == before
    assert "Traceback" not in said.err + said.out
    if not arguments:
        assert "Usage: rewriter" in said.out
        return
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_a_missing_provider_cannot_verify(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for arguments in (REWRITE, OPTIMIZE, ("audit", "net.onnx", "dense.onnx"), ("bench", "net.onnx")):
        assert main([*arguments, "--provider", "cuda", "--report", "r.json"]) == 3
        assert "onnxruntime-gpu" in capsys.readouterr().err
        report = json.loads(Path("r.json").read_text())
        assert (report["command"], report["verdict"], report["timing"]) == (arguments[0], "not_verified", None)
        assert "onnxruntime-gpu" in report["reason"]
        assert not Path("out.onnx").exists()


def test_rewrite_writes_and_reports(folder: Path, capsys: Captured) -> None:
    before, original = files(folder), Path("net.onnx").read_bytes()
    assert main([*REWRITE, "--report", "r.json", "--report", "folder/r.json", "--inputs", "good.npz"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-1] == "EQUIVALENT | 2 rewrites | saved out.onnx"
    assert files(folder).keys() - before.keys() == {"out.onnx", "r.json", "folder/r.json"}
    assert Path("net.onnx").read_bytes() == original
    report = json.loads(Path("r.json").read_text())
    assert Path("folder/r.json").read_text() == Path("r.json").read_text()
    expected = {"schema", "command", "verdict", "grade", "reason", "changed", "attempts", "timing", "audit"}
    assert expected | {"before", "after", "environment"} <= report.keys()
    assert (report["verdict"], report["grade"], report["changed"]) == ("equivalent", "finite", True)
    accepted = [entry for entry in report["attempts"] if entry["outcome"] == "accepted"]
    assert [entry["pass"] for entry in accepted] == ["regroup", "regroup"]
    assert all(entry["site"] and entry["reason"] for entry in report["attempts"])
    assert report["before"]["bytes"] == len(original)
    assert report["before"]["path"] == "net.onnx"
    assert report["after"]["path"] == "out.onnx"
    assert report["before"]["sha256"] != report["after"]["sha256"]
    assert main(["audit", "net.onnx", "out.onnx", "-q"]) == 0
    assert capsys.readouterr().out.startswith("EQUIVALENT | grade finite | 2 regions")


def test_the_default_output_lies_beside_the_model(folder: Path) -> None:
    assert main(["rewrite", str(folder / "net.onnx"), "--pass", "regroup", "-q"]) == 0
    assert (folder / "net.rewritten.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("rewrite", "--pass", "regroup"), "It is dense (group 1): there are no groups to merge."),
        (("optimize", "--budget", "2"), "No sum over channels follows"),
    ],
)
def test_nothing_to_do_is_a_copy(arguments: Sequence[str], reason: str, folder: Path, capsys: Captured) -> None:
    assert main([arguments[0], "dense.onnx", "-o", "out.onnx", *arguments[1:]]) == 0
    assert Path("out.onnx").read_bytes() == Path("dense.onnx").read_bytes()
    out = capsys.readouterr().out
    assert reason in out
    assert out.splitlines()[-1].startswith("UNCHANGED | ")
    assert out.splitlines()[-1].endswith("| out.onnx is a byte-identical copy")


def judged(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    """Let every audit come to this verdict."""
    real = rewriter.equivalence.audit

    def audit(*arguments: Any, **options: Any) -> Audit:
        found = real(*arguments, **options)
        regions = [entry.model_copy(update={"verdict": verdict}) for entry in found.regions]
        update = {"verdict": verdict, "grade": None, "reason": f"Pretended {verdict}.", "regions": tuple(regions)}
        return found.model_copy(update=update)

    monkeypatch.setattr(rewriter.equivalence, "audit", audit)


VERDICTS = (("different", 1, "DIFFERENT"), ("not_verified", 3, "NOT VERIFIED"), ("approximate", 3, "APPROXIMATE"))


@pytest.mark.parametrize(("verdict", "code", "word"), VERDICTS)
def test_nothing_is_written_unless_equivalent(
    verdict: str, code: int, word: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    judged(monkeypatch, verdict)
    Path("out.onnx").write_bytes(b"what was there before")
    assert main([*REWRITE, "--report", "r.json"]) == code
    assert Path("out.onnx").read_bytes() == b"what was there before"
    assert capsys.readouterr().out.splitlines()[-1] == f"{word} | Pretended {verdict} | nothing written"
    report = json.loads(Path("r.json").read_text())
    assert (report["verdict"], report["changed"]) == (verdict, False)
    assert report["after"]["sha256"] == report["before"]["sha256"]
    outcome = "different" if verdict == "different" else "not_verified"
    assert {entry["outcome"] for entry in report["attempts"]} - {"declined"} == {outcome}


@pytest.mark.parametrize("verdict", ["different", "not_verified", "approximate"])
def test_the_api_saves_nothing_unless_equivalent(verdict: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, verdict)
    result = rewriter.api.rewrite("net.onnx", ["regroup"])
    with pytest.raises(Different if verdict == "different" else NotVerified, match="nothing was written"):
        result.save("out.onnx")
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(("verdict", "code", "word"), VERDICTS)
def test_the_exit_code_of_audit_is_the_verdict(
    verdict: str, code: int, word: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    judged(monkeypatch, verdict)
    assert main(["audit", "net.onnx", "net.onnx", "--report", "r.json"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == f"{word} | Pretended {verdict}"
    report = json.loads(Path("r.json").read_text())
    assert (report["schema"], report["command"]) == ("https://onnx-conv-rewriter/report/1", "audit")
    assert (report["verdict"], report["attempts"], report["timing"]) == (verdict, [], None)


def test_audit_tells_the_wrong_program_from_the_right_one(capsys: Captured) -> None:
    right, wrong = SEEDS / "seed1_cardinal_static.onnx", SEEDS / "seed1_wrong_static.onnx"
    assert main(["audit", str(right), str(right)]) == 0
    assert main(["audit", str(right), str(wrong)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("DIFFERENT | ")


def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `optimize` find what `rewrite` does, 2.41 times faster, without measuring."""

    def optimize(model: Path, options: Any, **_asked: Any) -> rewriter.Result:
        made = rewriter.api.rewrite(model, ["regroup"], options)
        return dataclasses.replace(made, report=made.report.model_copy(update={"timing": RECORD}))

    monkeypatch.setattr(rewriter.api, "optimize", optimize)


def test_optimize_says_how_much_faster(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    faster(monkeypatch)
    assert main(list(OPTIMIZE)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "EQUIVALENT | 2 rewrites | 2.41x faster (2.38 to 2.44) at 1 thread | saved out.onnx"
    assert any("24.12 ms -> 10.00 ms, 2.41x (95 % interval 2.38 to 2.44), 1 thread, cpu" in line for line in lines)


def test_a_dry_run_writes_the_report_only(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    faster(monkeypatch)
    before = files(folder)
    assert main([*OPTIMIZE, "--dry-run", "-q", "--report", "r.json"]) == 0
    assert files(folder).keys() - before.keys() == {"r.json"}
    last = "EQUIVALENT | 2 rewrites | 2.41x faster (2.38 to 2.44) at 1 thread | dry run, nothing written\n"
    assert capsys.readouterr().out == last
    timing = json.loads(Path("r.json").read_text())["timing"]
    assert {"provider", "threads", "speedup", "interval", "before_ms", "after_ms"} <= timing.keys()


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("a bug"), 4, "Internal error: ZeroDivisionError: a bug (test_cli.py, line"),
        (MemoryError(), 3, "memory"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_what_goes_wrong_inside(
    error: BaseException, code: int, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(rewriter.api, "rewrite", failing(error))
    before = files(folder)
    assert main(REWRITE) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert files(folder) == before
    assert main([*REWRITE, "-v"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 4)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_a_write_that_fails_leaves_nothing(
    error: BaseException, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(os, "fsync", failing(error))
    before = files(folder)
    assert main(REWRITE) == code
    assert files(folder) == before
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(folder: Path) -> None:
    before = files(folder)
    arguments = ("optimize", "net.onnx", "-v", "--budget", "300")
    # What starts the tests in the background may have them ignore interrupts, and a child inherits that.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    signal.signal(signal.SIGINT, usual)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("measuring"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out.splitlines()[-1].endswith("| interrupted, nothing written")
    assert err.splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in err
    assert files(folder) == before


def test_options_agree_with_the_engine() -> None:
    assert get_args(cli_options.Provider) == get_args(providers.Provider) == tuple(providers.PROVIDERS)
    assert tuple(cli_options.ProviderName) == get_args(providers.Provider)
    assert get_args(cli_options.Level) == get_args(session.Level)


def test_every_option_has_a_help_sentence() -> None:
    commands: Any = typer.main.get_command(app)
    listed = [parameter for entry in commands.commands.values() for parameter in entry.params]
    assert len(listed) > 50
    assert [entry.name for entry in listed if not (entry.help or "").endswith(".")] == []
    assert [name for name, entry in commands.commands.items() if not entry.help] == []


def test_help_does_not_load_onnx(tmp_path: Path) -> None:
    code = (
        "import sys; from rewriter.cli import main; main(['optimize', '--help']); "
        "print([name for name in ('onnx', 'onnxruntime', 'numpy', 'scipy') if name in sys.modules])"
    )
    (*shown, loaded) = subprocess.run(
        [command()[0], "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert any("--budget" in line for line in shown)
    assert loaded == "[]"


def test_version_is_that_of_the_project(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    said = capsys.readouterr().out.split()
    text = (ROOT / "pyproject.toml").read_text()
    assert said[0] == "rewriter"
    assert said[1] == "of" or f'version = "{said[1]}"' in text  # a source tree on the path has no version


def test_a_real_run_in_a_process_of_its_own(folder: Path) -> None:
    done = run(*REWRITE, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "EQUIVALENT | 2 rewrites | saved out.onnx"
