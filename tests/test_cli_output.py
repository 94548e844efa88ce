"""What the commands print: plain and whole when piped, fitted in a terminal, JSON where asked for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cli_runs import command, dense_model, environment, run, small_network
from rewriter.cli import main
from rewriter.registry import all_passes

Captured = pytest.CaptureFixture[str]
pty = pytest.importorskip("pty", reason="terminals are tried where there are pseudo-terminals")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.onnx").write_bytes(small_network("depthwise_sum").SerializeToString())
    (tmp_path / "dense.onnx").write_bytes(dense_model().SerializeToString())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_terminal(*arguments: str, cwd: Path, columns: int) -> str:
    """What a terminal of this width gets on both streams."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(COLUMNS=str(columns), TERM="xterm"),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    got = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        got += chunk
    os.close(ours)
    assert process.wait() == 0
    return got.decode()


def test_piped_output_is_plain_and_as_wide_as_it_needs(folder: Path) -> None:
    arguments = ("inspect", "net.onnx", "-v")
    narrow, *others = (run(*arguments, cwd=folder, COLUMNS=columns) for columns in ("30", "130", "300"))
    assert [other.stdout == narrow.stdout for other in others] == [True, True]
    assert (narrow.returncode, narrow.stderr.splitlines()) == (0, ["looking at the convolutions ..."])
    assert "\x1b" not in narrow.stdout
    assert narrow.stdout.isascii()  # neither boxes nor ellipses
    assert max(map(len, narrow.stdout.splitlines())) > 100
    assert all(line == line.rstrip() for line in narrow.stdout.splitlines())


def test_a_terminal_gets_colour_and_a_bar_and_everything_too(folder: Path) -> None:
    piped = run("rewrite", "net.onnx", "-o", "a.onnx", "--pass", "depthwise-sum-to-grouped", cwd=folder).stdout
    shown = in_terminal(
        "rewrite", "net.onnx", "-o", "a.onnx", "--pass", "depthwise-sum-to-grouped", cwd=folder, columns=400
    )
    assert "\x1b[1;32mEQUIVALENT\x1b[0m" in shown
    assert "━" in shown  # the progress bar
    missing = [word for word in piped.split() if word not in shown]
    assert missing == []


def test_a_narrow_terminal_cuts_nothing(folder: Path) -> None:
    piped = run("inspect", "net.onnx", cwd=folder).stdout
    shown = in_terminal("inspect", "net.onnx", cwd=folder, columns=60)
    names = [line.split()[0] for line in piped.splitlines() if line and "1x1" in line]
    assert len(names) >= 4
    assert [name for name in names if name not in shown] == []
    assert "…" not in shown


def test_a_reader_who_stops_is_no_error(folder: Path) -> None:
    process = subprocess.Popen(
        command("inspect", "net.onnx"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_quiet_is_the_last_line_and_verbose_is_more(folder: Path, capsys: Captured) -> None:
    shown = {}
    for option in ("-q", "--seed=0", "-v"):
        assert main(["rewrite", "net.onnx", "-o", "a.onnx", "--pass", "depthwise-sum-to-grouped", option]) == 0
        shown[option] = capsys.readouterr().out.splitlines()
    assert len(shown["-q"]) == 1
    assert shown["-q"][-1] == shown["--seed=0"][-1] == shown["-v"][-1]
    assert len(shown["-q"]) < len(shown["--seed=0"]) < len(shown["-v"])


def test_inspect_as_json(folder: Path, capsys: Captured) -> None:
    assert main(["inspect", "net.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "https://onnx-conv-rewriter/inspect/1"
    assert found["inputs"] == {"input": {"type": "float", "shape": [1, 3, 32, 32]}}
    assert found["model"]["path"] == "net.onnx"
    assert found["unreachable"] == []
    keys = {"site", "form", "group", "channels_in", "channels_out", "kernel", "macs", "passes"}
    assert all(keys <= site.keys() for site in found["sites"])
    forms = [site["form"] for site in found["sites"]]
    assert forms.count("depthwise_sum") == 2
    opinions = [entry for site in found["sites"] for entry in site["passes"]]
    asked = {entry["pass"] for entry in opinions}
    assert asked == {name for name in all_passes() if not name.endswith("-transposed")}, "those for what it has"
    assert all(isinstance(entry["applies"], bool) and entry["reason"] for entry in opinions)


def test_inspect_hides_trivial_reasons_unless_verbose(folder: Path, capsys: Captured) -> None:
    assert main(["inspect", "net.onnx"]) == 0
    short = capsys.readouterr().out
    assert main(["inspect", "net.onnx", "-v"]) == 0
    long = capsys.readouterr().out
    assert "It is dense (group 1)" in long
    assert "It is dense (group 1)" not in short
    assert "-v shows them" in short


def test_bench_times_one_or_several(folder: Path, capsys: Captured) -> None:
    assert main(["bench", "dense.onnx", "--budget", "1", "--report", "one.json"]) == 0
    assert "dense.onnx | 1 thread | cpu" in capsys.readouterr().out.splitlines()[-1]
    one = json.loads(Path("one.json").read_text())
    assert one["latency"]["ms"] > 0
    assert one["timing"] is None
    assert (one["verdict"], one["attempts"]) == ("not_verified", [])
    assert main(["bench", "dense.onnx", "dense.onnx", "--budget", "1", "--report", "two.json"]) == 0
    out = capsys.readouterr().out
    assert "bitwise equal" in out
    two = json.loads(Path("two.json").read_text())
    assert (two["schema"], two["command"]) == ("https://onnx-conv-rewriter/report/1", "bench")
    assert two["timing"] == two["timings"][0]
    assert (two["verdict"], two["grade"]) == ("not_verified", None)
    assert "audit" in two["reason"]
    assert {"provider", "threads", "speedup", "interval", "before_ms", "after_ms"} <= two["timing"].keys()
    assert two["before"]["sha256"] == two["after"]["sha256"]


def test_passes(capsys: Captured) -> None:
    assert main(["passes"]) == 0
    listed = capsys.readouterr().out
    for name, rule in all_passes().items():
        assert any(line.startswith(name) and rule.safety.name in line for line in listed.splitlines())
        assert main(["passes", name]) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"{name}: ")
        assert [key for key in rule.defaults if f"{name}.{key}" not in told] == []
    assert main(["passes", "nothing"]) == 2


def test_doctor(capsys: Captured) -> None:
    assert main(["doctor"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    facts = {line.split("  ")[0]: line for line in lines}
    assert len(facts) == len(lines)
    assert {"python", "onnx", "onnxruntime", "processor", "cores", "cpu provider", "cuda provider"} <= facts.keys()
    assert facts["cpu provider"].endswith(" works")
    assert facts["cuda provider"].endswith(" works") or "not available: " in facts["cuda provider"]
    assert "NCHWc" in facts["fast convolutions"]
