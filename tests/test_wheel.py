"""The wheel: what is inside, and that the command works where only the wheel is installed."""

from __future__ import annotations

import configparser
import email.message
import email.parser
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIST_INFO = f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built the way a release is: a source distribution first, the wheel from that."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> frozenset[str]:
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(f"{DIST_INFO}/METADATA").decode())


def test_top_level_names(files: frozenset[str]) -> None:
    assert {name.partition("/")[0] for name in files} == {"rewriter", "passes", DIST_INFO}


@pytest.mark.parametrize("package", ["rewriter", "passes"])
def test_every_source_file_is_shipped(package: str, files: frozenset[str]) -> None:
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
    assert f"{package}/__init__.py" in sources
    assert sources == {name for name in files if name.startswith(f"{package}/") and name.endswith(".py")}


def test_what_is_no_source_file_is_shipped(files: frozenset[str]) -> None:
    assert {"rewriter/py.typed", "rewriter/report/report.md.j2", f"{DIST_INFO}/licenses/LICENSE"} <= files


def test_metadata(metadata: email.message.Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    required = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert required == set(PROJECT["dependencies"])


def test_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{DIST_INFO}/entry_points.txt").decode()
    points = configparser.ConfigParser()
    points.read_string(text)
    assert {name: dict(points[name]) for name in points.sections()} == {
        "console_scripts": {"rewriter": "rewriter.__main__:main"},
        "rewriter.passes": {"conv": "passes"},
    }


class Installed:
    """A clean virtual environment that holds the wheel and its dependencies, used from an empty folder."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.empty = folder / "empty"
        self.empty.mkdir()
        venv.create(folder / "venv", with_pip=True)
        self.run("python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)

    def run(self, program: str, *arguments: str | Path) -> str:
        return run(self.bin / program, *arguments, cwd=self.empty)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.mark.wheel
@pytest.mark.slow
class TestInstalled:
    def test_help(self, installed: Installed) -> None:
        assert "optimize" in installed.run("rewriter", "--help")

    def test_passes_are_found(self, installed: Installed) -> None:
        listed = installed.run("rewriter", "passes")
        expected = [path.stem.replace("_", "-") for path in (ROOT / "passes").glob("[!_]*.py")]
        assert expected
        assert [name for name in expected if name not in listed] == []

    def test_only_our_names_are_importable(self, installed: Installed) -> None:
        names = "('rewriter', 'passes', 'models', 'tests', 'benchmarks')"
        code = f"from importlib.util import find_spec; print(*(name for name in {names} if find_spec(name)))"
        assert installed.run("python", "-c", code).split() == ["rewriter", "passes"]

    def test_it_is_the_installed_copy(self, installed: Installed) -> None:
        imported = Path(installed.run("python", "-c", "import rewriter; print(rewriter.__file__)").strip())
        assert imported.is_relative_to(installed.bin.parent)

    def test_dependencies_agree(self, installed: Installed) -> None:
        assert "No broken requirements" in installed.run("python", "-m", "pip", "check")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The command's standard output; fails with all it said when it does not exit 0."""
    # Nothing of this process's environment may lend the command modules; wide, so that no table is cut.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    environment = {**clean, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout
