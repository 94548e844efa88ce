"""The doctor: every fact fits 80 columns, "works" is said only of what ran, and GPUs are shown where there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
import pytest

from cli_runs import run
from rewriter import doctor, nvidia
from rewriter.doctor import examine, folded
from rewriter.errors import NotVerified
from rewriter.providers import PROVIDERS
from rewriter.session import Runtime


def facts() -> Mapping[str, str]:
    """What was found, with its lines joined."""
    found = examine()
    assert len({fact.what for fact in found}) == len(found)
    return {fact.what: " ".join(fact.found.split()) for fact in found}


def test_it_fits_80_columns_and_exits_0(tmp_path: Path) -> None:
    narrow, wide = (run("doctor", cwd=tmp_path, COLUMNS=columns) for columns in ("40", "200"))
    assert (narrow.returncode, narrow.stderr) == (0, "")
    assert narrow.stdout == wide.stdout
    lines = narrow.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    column = next(line.index(line.split()[1]) for line in lines if line.startswith("python "))
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)


def test_every_provider_is_named_with_its_exactness() -> None:
    found = facts()
    assert found["cpu provider"] == "works"
    assert "float32: " in found["cpu exactness"]
    assert found["cuda provider"] == "works" or found["cuda provider"].startswith("not available: ")
    assert (found["cuda exactness"] == "not probed") == (found["cuda provider"] != "works")
    assert found["onnxruntime"] == ort.__version__
    assert found["onnxruntime package"] in {f"{name} {ort.__version__}" for name in ("onnxruntime", "onnxruntime-gpu")}


def test_a_provider_that_does_not_work_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(runtime: Runtime) -> None:
        raise AssertionError(runtime)

    monkeypatch.setattr(doctor, "problem", lambda provider: f"The {provider} is asleep: wake it.")
    monkeypatch.setattr(doctor, "exactness", never)
    found = facts()
    for provider in PROVIDERS:
        assert found[f"{provider} provider"] == f"not available: The {provider} is asleep: wake it."
        assert found[f"{provider} exactness"] == "not probed"


def test_a_probe_that_fails_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(runtime: Runtime) -> None:
        raise NotVerified("It stopped.")

    monkeypatch.setattr(doctor, "exactness", fail)
    assert facts()["cpu exactness"] == "unknown: It stopped."


def test_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for CUDA, so that the provider works."""
    stand_in = dataclasses.replace(PROVIDERS["cuda"], onnxruntime="CPUExecutionProvider", device="cpu")
    devices = (
        nvidia.Device(0, "NVIDIA H200", (9, 0), 150 * 2**30 + 2**29),
        nvidia.Device(1, "NVIDIA GB10", (12, 1), None),
    )
    monkeypatch.setitem(PROVIDERS, "cuda", stand_in)
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(nvidia, "devices", lambda: devices)
    monkeypatch.setattr(nvidia, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(nvidia, "cuda_runtime", lambda major: (major, 5))
    monkeypatch.setattr(nvidia, "cudnn", lambda: None)
    found = facts()
    assert found["cuda provider"] == "works"
    assert "float32: " in found["cuda exactness"]
    assert found["cuda libraries"] == (
        "ONNX Runtime was built for CUDA 13.0 and cuDNN 9; found: CUDA runtime 13.5, no cuDNN 9"
    )
    assert found["nvidia driver"] == "580.65.06, supports CUDA up to 13.0"
    assert found["gpu 0"] == "NVIDIA H200, compute capability 9.0, 150.5 GiB"
    assert found["gpu 1"] == "NVIDIA GB10, compute capability 12.1"
    assert "gpus" not in found


def test_a_machine_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "cuda_version", "", raising=False)
    for name in ("driver_version", "driver_cuda"):
        monkeypatch.setattr(nvidia, name, lambda: None)
    monkeypatch.setattr(nvidia, "devices", tuple)
    found = facts()
    assert found["cuda libraries"] == "not used: the installed ONNX Runtime was built without CUDA"
    assert (found["nvidia driver"], found["gpus"]) == ("not found", "none found")
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (12, 4))
    assert facts()["nvidia driver"] == "version unknown, supports CUDA up to 12.4"


def test_two_packages_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where everything works: the files of the one that was installed last are in use."""
    monkeypatch.setattr(doctor, "distributions", lambda: ("onnxruntime", "onnxruntime-gpu"))
    found = facts()["onnxruntime package"]
    assert "overwrite each other's files: `pip uninstall -y onnxruntime onnxruntime-gpu`" in found
    monkeypatch.setattr(doctor, "distributions", tuple)
    assert facts()["onnxruntime package"] == "unknown (not installed by pip)"


def test_commands_are_not_broken_over_lines() -> None:
    command = '`pip install "onnxruntime-gpu[cuda,cudnn]"`'
    for length in range(40):
        lines = folded(f"{'x' * length} {command} and more", 20, 80).split("\n" + " " * 20)
        assert sum(command in line for line in lines) == 1
        assert max(map(len, lines)) <= 60
    assert folded("short", 20, 80) == "short"


def test_it_is_folded_to_the_width_it_gets() -> None:
    for columns in (60, 80, 150):
        found = examine(columns)
        behind = max(len(fact.what) for fact in found) + 2
        lines = [line.strip() for fact in found for line in fact.found.splitlines()]
        widest = max(len(line) for line in lines if "`" not in line)  # commands stay whole
        assert columns - 40 < behind + widest <= columns


def test_other_tools_are_told_when_asked(tmp_path: Path) -> None:
    said, more = (run("doctor", *options, cwd=tmp_path).stdout for options in ((), ("-v",)))
    assert "onnxsim" not in said
    assert "other tool onnxsim" in more


@pytest.mark.cuda
def test_a_real_gpu_is_described() -> None:
    found = facts()
    assert found["cuda provider"] == "works"
    assert "tf32: " in found["cuda exactness"]
    assert "CUDA runtime" in found["cuda libraries"]
    assert "supports CUDA up to" in found["nvidia driver"]
    assert "compute capability" in found["gpu 0"]
