"""What the README says is executed: its commands and Python on a small model, its installation against the Makefile."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli_runs import ROOT, small_network
from fake_cuda import fake_cuda
from models.catalogue import catalogue
from rewriter import cli_errors
from rewriter.cli import main
from rewriter.equivalence.records import GRADES
from rewriter.registry import all_passes

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = ("make", "python3 -m venv", ".venv/bin/python -m pip", "source ")
"""How the lines begin that set up a machine; `make` and the plain lines behind it are checked, not run."""


def blocks(language: str) -> list[str]:
    """The fenced code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def lines() -> list[str]:
    """Every line of every command block."""
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def examples() -> list[str]:
    """The commands of ours, in order."""
    return [line for line in lines() if not line.startswith(SETUP)]


def run_line(line: str) -> int:
    """Run one command; the model comes from a small network, and nothing is given more than a few seconds."""
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "models"]:
        name, option, path = words[3:]
        assert (name in catalogue(), option) == (True, "-o")
        Path(path).write_bytes(small_network().SerializeToString())
        return 0
    assert words[0] == "rewriter", f"the README has a command that this test cannot run: {line}"
    budget = ["--budget", "2"] if words[1] in ("optimize", "bench") else []
    return main([*words[1:], *budget])


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_examples_of_every_command() -> None:
    used = {line.split()[1] for line in examples() if line.startswith("rewriter ")}
    assert used == {"inspect", "passes", "optimize", "rewrite", "audit", "bench", "doctor"}


@pytest.mark.slow
def test_the_commands_do_what_is_said(
    empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda(monkeypatch)  # those for a GPU run everywhere
    for line in examples():
        assert run_line(line) == 0, f"{line}\n{capsys.readouterr().err}"
    written = {path.name for path in empty.iterdir()}
    names = ("model", "faster", "served", "small", "depthwise", "grouped", "wider", "thin")
    models = {f"{name}.onnx" for name in names}
    assert written == {*models, "report.json", "channels.svg", "audit.md", "audit.xml", "audit.json"}


@pytest.mark.slow
def test_the_python_runs(empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, on_a_gpu = (code.replace("budget=20", "budget=2") for code in blocks("python"))
    Path("model.onnx").write_bytes(small_network().SerializeToString())
    exec(compile(plain, "README.md", "exec"), {})
    assert Path("faster.onnx").exists()
    said = capsys.readouterr().out
    assert "equivalent finite" in said
    assert "conv2" in said.splitlines()[-1]
    fake_cuda(monkeypatch)  # it runs everywhere, too
    exec(compile(on_a_gpu, "README.md", "exec"), {})
    first, last = capsys.readouterr().out.splitlines()
    assert first == "equivalent cuda"
    assert last == "equivalent [('cuda', 'cpu', 'rounding')]"


def made(*targets: str) -> list[str]:
    """The commands that make would run, from scratch."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed here, so its targets cannot be asked")
    done = subprocess.run(
        ["make", "-n", "-B", "--no-print-directory", "PYTHON=python3", *targets],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.replace('"', "").replace("'", "") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("line", [line for line in lines() if line.startswith("make")])
def test_make_knows_the_target(line: str) -> None:
    assert made(*line.split()[1:])


@pytest.mark.parametrize("line", [line for line in lines() if line.startswith((SETUP[1], SETUP[2]))])
def test_the_plain_lines_are_those_behind_make(line: str) -> None:
    wanted = line.replace("'", "").replace("-m pip install", "-m pip install --quiet --disable-pip-version-check")
    assert wanted in [" ".join(entry.split()) for entry in made("venv")]


def rows(heading: Sequence[str]) -> list[list[str]]:
    """The cells of the table with these first headings."""
    found, inside = [], False
    for line in README.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[: len(heading)] == list(heading):
            inside = True
        elif not cells:
            inside = False
        elif inside and not set(cells[0]) <= set("-"):
            found.append(cells)
    assert found, f"the README has no table {heading}"
    return found


def test_exit_codes() -> None:
    known = {getattr(cli_errors, name) for name in ("DONE", "DIFFERENT", "BAD_INPUT", "NOT_VERIFIED", "BUG")}
    assert {int(row[0]) for row in rows(("code", "meaning"))} == {*known, cli_errors.INTERRUPTED}


def test_passes_and_their_safety() -> None:
    said = {row[0].strip("`"): row[3].split()[0] for row in rows(("pass", "from", "to", "safety"))}
    assert said == {name: rule.safety.name for name, rule in all_passes().items()}


def test_grades() -> None:
    assert tuple(row[0].strip("`") for row in rows(("grade of `equivalent`",))) == GRADES


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("optimize", "rewrite", "audit", "bench"):
        assert main([command, "--help"]) == 0
        helped = capsys.readouterr().out
        for row in rows(("option", "meaning")):
            names = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row[0])
            assert names
            assert [name for name in names if name not in helped] == []


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_links(target: str) -> None:
    assert not target.startswith("http")
    assert (ROOT / target).exists()


def test_the_figures_are_those_of_the_results() -> None:
    """The tables are built from benchmarks/results, never typed."""
    command = [sys.executable, "-m", "benchmarks.readme", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
