"""The swap of onnxruntime for onnxruntime-gpu, as docs/cuda.md tells it, in a clean virtual environment.

Without the CUDA libraries, which are 2 GB: what is tested is that the rewriter says what is missing, and that
everything else goes on working.  The tests are steps of one story and run in this order.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest

from cli_runs import small_network

ROOT = Path(__file__).resolve().parents[1]
PASS = "depthwise-sum-to-grouped"

pytestmark = [
    pytest.mark.swap,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "darwin", reason="onnxruntime-gpu has no wheels for macOS"),
]


class Environment:
    """A clean virtual environment, with an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.empty = folder / "empty"
        self.cache = folder / "cache"
        self.empty.mkdir()
        venv.create(folder / "venv", with_pip=True)

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        # Nothing of this process's environment may lend the command modules.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
        return subprocess.run(
            [self.bin / program, *map(str, arguments)],
            cwd=self.empty,
            env={**clean, "REWRITER_CACHE": str(self.cache)},
            capture_output=True,
            text=True,
            check=False,
        )

    def pip(self, *arguments: str | Path) -> None:
        done = self.run("python", "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check")
        assert done.returncode == 0, done.stdout + done.stderr

    def doctor(self) -> Mapping[str, str]:
        """What the doctor found, with its lines joined."""
        done = self.run("rewriter", "doctor")
        assert (done.returncode, done.stderr) == (0, "")
        found: dict[str, str] = {}
        for line in done.stdout.splitlines():
            what, _, text = line.partition("  ")
            key = what or list(found)[-1]
            found[key] = f"{found.get(key, '')} {text.strip()}".strip()
        return found


@pytest.fixture(scope="module")
def version() -> str:
    """The ONNX Runtime that is tested with."""
    pinned = re.search(r"^onnxruntime==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned is not None
    return pinned[1]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel is installed; two models lie in the folder, the second rewritten from the first."""
    folder = tmp_path_factory.mktemp("swap")
    built = folder / "dist"
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", built, ROOT], check=True)
    (wheel,) = built.glob("*.whl")
    environment = Environment(folder)
    environment.pip("install", "-c", ROOT / "constraints.txt", wheel)
    onnx.save(small_network("depthwise_sum"), environment.empty / "a.onnx")
    done = environment.run("rewriter", "rewrite", "a.onnx", "-o", "b.onnx", "--pass", PASS)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment


@pytest.fixture(scope="module")
def cpu_facts(before: Environment) -> Mapping[str, str]:
    return before.doctor()


@pytest.fixture(scope="module")
def after(before: Environment, cpu_facts: Mapping[str, str], version: str) -> Environment:
    """The same environment after the swap; `cpu_facts` have been taken before it."""
    before.pip("uninstall", "-y", "onnxruntime")
    before.pip("install", f"onnxruntime-gpu=={version}")
    return before


@pytest.fixture
def incomplete() -> None:
    """Skips where the system has CUDA's libraries, so that nothing may be missing."""
    name = "cublasLt64_13.dll" if os.name == "nt" else "libcublasLt.so.13"
    try:
        ctypes.CDLL(name)
    except OSError:
        return
    pytest.skip(f"this system has {name}: nothing is missing from CUDA")


def test_with_the_cpu_package(cpu_facts: Mapping[str, str], version: str) -> None:
    assert cpu_facts["onnxruntime package"] == f"onnxruntime {version}"
    assert cpu_facts["cpu provider"] == "works"
    assert cpu_facts["cuda provider"].startswith("not available: ")
    if sys.platform == "linux":
        assert "`pip uninstall -y onnxruntime`" in cpu_facts["cuda provider"]
        assert '`pip install "onnxruntime-gpu[cuda,cudnn]"`' in cpu_facts["cuda provider"]


def test_the_doctor_names_the_missing_library(after: Environment, incomplete: None, version: str) -> None:
    found = after.doctor()
    assert found["onnxruntime package"] == f"onnxruntime-gpu {version}"
    assert found["onnxruntime"] == version
    assert found["cpu provider"] == "works"
    assert re.search(
        r"not available: (lib)?cublasLt\S* is missing, .* CUDA 13: run `pip install ", found["cuda provider"]
    )
    assert "built for CUDA 13.0" in found["cuda libraries"]


def test_an_audit_on_cuda_says_so_and_exits_3(after: Environment, incomplete: None) -> None:
    done = after.run("rewriter", "audit", "a.onnx", "b.onnx", "--provider", "cuda")
    assert done.returncode == 3
    assert "EQUIVALENT" not in done.stdout
    (sentence,) = done.stderr.splitlines()  # nothing of ONNX Runtime's own
    assert re.match(r"Error: ONNX Runtime could not start its cuda provider\. (lib)?cublasLt\S* is missing, ", sentence)


def test_everything_else_works_as_before(after: Environment) -> None:
    done = after.run("rewriter", "audit", "a.onnx", "b.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("EQUIVALENT")
    done = after.run("rewriter", "optimize", "a.onnx", "-o", "c.onnx", "--budget", "10", "--report", "c.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert onnx.load(after.empty / "c.onnx").graph.node


def test_pip_misses_the_package_that_was_replaced(after: Environment) -> None:
    done = after.run("python", "-m", "pip", "check", "--disable-pip-version-check")
    assert done.returncode == 1
    assert re.fullmatch(r"onnx-conv-rewriter \S+ requires onnxruntime, which is not installed\.", done.stdout.strip())


def test_both_packages_at_once_are_told_apart(after: Environment, version: str) -> None:
    """What `pip install --upgrade` of the rewriter does without --no-deps."""
    after.pip("install", f"onnxruntime=={version}")
    found = after.doctor()
    assert found["onnxruntime package"].startswith(f"onnxruntime {version} and onnxruntime-gpu {version}, which ")
    assert "`pip uninstall -y onnxruntime onnxruntime-gpu`" in found["cuda provider"]
    done = after.run("rewriter", "audit", "a.onnx", "b.onnx", "--provider", "cuda")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "`pip uninstall -y onnxruntime onnxruntime-gpu`" in done.stderr
