"""Where NVIDIA's libraries are looked for, in which order, and which of them in which folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from rewriter import providers


class Machine:
    """ONNX Runtime in `own`, and what it is asked to load, from where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.asked: list[tuple[str | None, bool, bool]] = []
        self.own = folder / "own"
        (self.own / "onnxruntime").mkdir(parents=True)
        self.patch = monkeypatch
        monkeypatch.setattr(ort, "__file__", str(self.own / "onnxruntime" / "__init__.py"))
        monkeypatch.setattr(ort, "preload_dlls", self.preload, raising=False)

    def preload(self, cuda: bool = True, cudnn: bool = True, directory: str | None = None) -> None:
        self.asked.append((directory, cuda, cudnn))
        sys.stdout.write("Failed to load something\n")  # as ONNX Runtime does

    def packages(self, *roots: Path) -> list[Path]:
        """NVIDIA's packages in these folders; returns the first one's with libraries."""
        for root in roots:
            for name, library in (("cu13", "libcublas.so.13"), ("cudnn", "libcudnn.so.9")):
                (root / "nvidia" / name / "lib").mkdir(parents=True)
                (root / "nvidia" / name / "lib" / library).touch()
        self.patch.setitem(sys.modules, "nvidia", SimpleNamespace(__path__=[str(root / "nvidia") for root in roots]))
        return [roots[0] / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def preloaded() -> str:
    return providers._preloaded.__wrapped__()


def test_packages_elsewhere_come_before_the_system(machine: Machine, tmp_path: Path) -> None:
    """Each folder is asked for what it has only: what it has not would be taken from the system, and first."""
    cuda, cudnn = machine.packages(tmp_path / "other")
    said = preloaded()
    assert machine.asked == [(str(cuda), True, False), (str(cudnn), False, True), (None, True, True)]
    assert said == " ".join(["Failed to load something"] * 3)


def test_packages_beside_onnxruntime_are_found_by_itself(machine: Machine, tmp_path: Path) -> None:
    machine.packages(machine.own, tmp_path / "other")
    preloaded()
    assert machine.asked == [(None, True, True)]


def test_without_packages_it_is_the_systems(machine: Machine) -> None:
    machine.patch.setitem(sys.modules, "nvidia", None)
    preloaded()
    assert machine.asked == [(None, True, True)]


def test_what_cannot_be_loaded_is_no_error(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("The directory does not exist!")

    machine.patch.setitem(sys.modules, "nvidia", None)
    machine.patch.setattr(ort, "preload_dlls", fail, raising=False)
    assert preloaded() == "The directory does not exist!"
    assert capfd.readouterr() == ("", "")
