"""Why a provider does not work: each cause on a made-up machine, in order, and each with what to do about it."""

from __future__ import annotations

import ctypes
import dataclasses
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from rewriter import diagnosis, logs, nvidia
from rewriter.diagnosis import built_for, distributions, explain, problem
from rewriter.providers import PROVIDERS

GPU_PACKAGE = '`pip install "onnxruntime-gpu[cuda,cudnn]"`'
NO_DEVICE = (
    "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=h ; file=f.cc ; line=355 ; expr=e; "
)
OLD = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=h ; file=f.cc"
NEEDED = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13", "libcuda.so.1")


class Machine:
    """A Linux machine on which CUDA works, until something is taken away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.packages = ["onnxruntime-gpu"]
        self.providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.missing: set[str] = set()
        self.driver = 13000
        self.devices = 2
        self.failure = ""
        """What ONNX Runtime raises."""
        self.library = folder / "capi" / "libonnxruntime_providers_cuda.so"
        self.library.parent.mkdir()
        self.library.touch()
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", "libcuda.so.1")
        monkeypatch.setattr(nvidia, "CUDNN_LIBRARY", "libcudnn.so.9")
        monkeypatch.setitem(sys.modules, "pynvml", None)
        monkeypatch.setattr(
            metadata, "packages_distributions", lambda: {"onnxruntime": [*self.packages, *self.packages]}
        )
        monkeypatch.setattr(ort, "__file__", str(folder / "__init__.py"))
        monkeypatch.setattr(ort, "__version__", "1.31.1")
        monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
        monkeypatch.setattr(ort, "get_available_providers", lambda: self.providers)
        monkeypatch.setattr(ort, "InferenceSession", self.session)
        monkeypatch.setattr(ctypes, "CDLL", self.load)
        monkeypatch.setattr(diagnosis, "preload", lambda provider: "")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def session(
        self, model: bytes, options: Any, *, providers: list[str], provider_options: list[Any], enable_fallback: int
    ) -> Any:
        assert enable_fallback == 0
        if providers == ["CUDAExecutionProvider"]:  # a convolution that the CPU ran would prove nothing
            assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        number = int(provider_options[0].get("device_id", "0"))
        if number >= self.devices:
            raise RuntimeError(
                "/a/provider_options_utils.h:151 onnxruntime::Status Parse(const Options&) status.IsOK() was false. "
                f"Invalid device ID: {number}, must be between 0 (inclusive) and {self.devices} (exclusive)."
            )
        if self.failure:
            raise RuntimeError(self.failure)
        starts = self.missing.isdisjoint(NEEDED)
        used = [*providers, "CPUExecutionProvider"] if starts else ["CPUExecutionProvider"]
        return SimpleNamespace(get_providers=lambda: used, run=self.run)

    def run(self, names: None, feeds: Any) -> list[Any]:
        if "libcudnn.so.9" in self.missing:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : cuDNN is not available. Install cuDNN.")
        return []

    def load(self, name: str) -> Any:
        wanted = NEEDED if name == str(self.library) else (name,)
        for library in wanted:
            if library in self.missing:
                raise OSError(f"{library}: cannot open shared object file: No such file or directory")

        def telling(version: int) -> Callable[[Any], int]:
            def ask(reference: Any) -> int:
                reference._obj.value = version
                return 0

            return ask

        return SimpleNamespace(cuDriverGetVersion=telling(self.driver), cudaRuntimeGetVersion=telling(13050))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def change(**values: Any) -> Callable[[Machine], None]:
    def apply(machine: Machine) -> None:
        vars(machine).update(values)

    return apply


SITUATIONS = {
    "both": (
        change(packages=["onnxruntime-gpu", "onnxruntime"], missing={"libcuda.so.1"}),
        "The packages onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: run "
        f"`pip uninstall -y onnxruntime onnxruntime-gpu`, then {GPU_PACKAGE}.",
    ),
    "cpu wheel": (
        change(packages=["onnxruntime"], providers=["CPUExecutionProvider"]),
        "The installed ONNX Runtime 1.31.1 (package onnxruntime) has no CUDA provider: on a machine with an NVIDIA "
        f"GPU, run `pip uninstall -y onnxruntime`, then {GPU_PACKAGE}.",
    ),
    "gpu wheel without the provider": (
        change(providers=["CPUExecutionProvider"]),
        "The installed onnxruntime-gpu 1.31.1 has no CUDA provider: run `pip install --force-reinstall "
        "onnxruntime-gpu`.",
    ),
    "cuda": (
        change(missing={"libcurand.so.10"}),
        f"libcurand.so.10 is missing, which is part of CUDA 13: run {GPU_PACKAGE}, which brings it.",
    ),
    "cuda and driver": (
        change(missing={"libcublas.so.13", "libcuda.so.1"}),
        f"libcublas.so.13 is missing, which is part of CUDA 13: run {GPU_PACKAGE}, which brings it. The NVIDIA driver "
        "is missing, too (libcuda.so.1).",
    ),
    "cudnn": (
        change(missing={"libcudnn.so.9"}),
        f"libcudnn.so.9 is missing, which is part of cuDNN 9: run {GPU_PACKAGE}, which brings it.",
    ),
    "driver": (
        change(missing={"libcuda.so.1"}),
        "The NVIDIA driver is not installed, or not visible here (libcuda.so.1 is missing): install it, or start the "
        "container with GPU access, as `docker run --gpus all` does.",
    ),
    "old driver": (
        change(failure=OLD, driver=12040),
        "The NVIDIA driver is too old: it supports CUDA 12.4, and ONNX Runtime 1.31.1 was built for CUDA 13.0; install "
        "driver 580 or newer.",
    ),
    "old driver of the same major number": (
        change(failure=OLD, driver=13000),
        "The NVIDIA driver is too old for the CUDA libraries found here (CUDA 13.5): install a newer one.",
    ),
    "old driver that does not tell": (
        change(failure=OLD, driver=0),
        "The NVIDIA driver is too old for the CUDA libraries found here (CUDA 13.5): install a newer one.",
    ),
    "no device": (
        change(failure=NO_DEVICE),
        "CUDA sees no GPU: see whether `nvidia-smi` lists one; a container has to be started with GPU access, as "
        "`docker run --gpus all` does.",
    ),
    "something else": (
        change(failure="CUDA failure 999: unknown error ; GPU=0 ; hostname=h"),
        "The cuda provider does not start. ONNX Runtime says: CUDA failure 999: unknown error. `nvidia-smi` may say "
        "more.",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_cause_has_its_sentence(name: str, machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    take_away, expected = SITUATIONS[name]
    assert problem("cuda") is None
    assert explain("cuda") == "Nothing is wrong with the cuda provider: a convolution was run on it."
    take_away(machine)
    assert problem("cuda") == explain("cuda") == expected
    assert capfd.readouterr() == ("", "")


def test_the_causes_come_in_the_order_in_which_they_are_put_right(machine: Machine) -> None:
    machine.packages = ["onnxruntime", "onnxruntime-gpu"]
    machine.providers = ["CPUExecutionProvider"]
    machine.missing = {"libcudart.so.13", "libcudnn.so.9", "libcuda.so.1"}
    machine.driver, machine.failure = 12040, NO_DEVICE
    said = [explain("cuda")]
    for put_right in (
        change(packages=["onnxruntime"]),
        change(packages=["onnxruntime-gpu"], providers=["CUDAExecutionProvider"]),
        change(missing={"libcudnn.so.9", "libcuda.so.1"}),
        change(missing={"libcudnn.so.9"}),
        change(missing=set()),
        change(driver=13000),
        change(failure=""),
    ):
        put_right(machine)
        said.append(explain("cuda"))
    words = ["both installed", "has no CUDA provider", "libcudart", "driver is not installed", "libcudnn", "too old"]
    for sentence, word in zip(said, [*words, "no GPU", "Nothing is wrong"], strict=True):
        assert word in sentence
        assert sentence.endswith(".")
        assert "hostname" not in sentence


@pytest.mark.parametrize("hidden", ["", "-1", "7"])
def test_hidden_devices_are_named(hidden: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.failure = NO_DEVICE
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(nvidia, "devices", lambda: (nvidia.Device(0, "NVIDIA H200", (9, 0), None),))
    assert explain("cuda") == (
        f"CUDA sees no GPU (the driver lists NVIDIA H200), and the environment variable CUDA_VISIBLE_DEVICES is "
        f"{hidden!r}: unset it, or set it to a device that `nvidia-smi -L` lists."
    )


def test_it_is_the_device_asked_for_that_is_tried(machine: Machine) -> None:
    assert problem("cuda", 1) is None
    assert explain("cuda", 1).startswith("Nothing is wrong")
    expected = (
        "There is no CUDA device 2: devices are numbered from 0, and CUDA sees 2; give the provider option device_id a "
        "smaller number, or show more devices with CUDA_VISIBLE_DEVICES."
    )
    assert [problem("cuda", 2), explain("cuda", 2)] == [expected, expected]


def test_a_provider_that_there_is_not_is_said(machine: Machine) -> None:
    assert explain("rocm") == "There is no provider 'rocm': choose one of cpu, cuda."  # type: ignore[arg-type] # as asked


@pytest.mark.parametrize("failure", ["", NO_DEVICE])
def test_nothing_is_logged_while_a_provider_is_tried(
    failure: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime logs the library that it misses on standard error, besides what is said here."""
    set_to: list[int] = []
    monkeypatch.setattr(ort, "set_default_logger_severity", set_to.append)
    monkeypatch.setattr(logs, "_silent", False)
    machine.failure = failure
    explain("cuda")
    assert set_to == [4, 2]  # and back to ONNX Runtime's default
    explain("cpu")
    assert set_to == [4, 2]
    logs.silence()
    explain("cuda")
    assert set_to == [4, 2, 4, 4]  # for good


def test_there_is_no_cuda_on_macos(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.packages, machine.providers = ["onnxruntime"], ["CPUExecutionProvider"]
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert explain("cuda") == "There is no CUDA on macOS: use the cpu provider."


def test_windows_does_not_say_which_library(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str) -> Any:
        if "cudart" not in name:
            raise FileNotFoundError(f"Could not find module '{name}' (or one of its dependencies).")

    (tmp_path / "capi" / "onnxruntime_providers_cuda.dll").touch()
    machine.missing = {"libcuda.so.1"}  # so that the provider does not start
    said = "Failed to load cudart64_13.dll: no. Failed to load cublasLt64_13.dll: Could not find module"
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", "nvcuda.dll")
    monkeypatch.setattr(diagnosis, "preload", lambda provider: said)
    assert explain("cuda").startswith("cublasLt64_13.dll is missing, which is part of CUDA 13: ")
    monkeypatch.setattr(diagnosis, "preload", lambda provider: "")
    assert explain("cuda").startswith("ONNX Runtime's library for CUDA cannot be loaded: Could not find module")


def test_a_library_of_nobody_known_and_one_that_is_broken(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.missing = {"libcuda.so.1"}

    def say(text: str) -> None:
        def load(name: str) -> Any:
            raise OSError(text)

        monkeypatch.setattr(ctypes, "CDLL", load)

    say("libz.so.1: cannot open shared object file: No such file or directory")
    assert explain("cuda").startswith("libz.so.1 is missing, which ONNX Runtime's library for CUDA needs: install")
    say("/lib/libcublas.so.13: file too short")
    assert explain("cuda") == "ONNX Runtime's library for CUDA cannot be loaded: /lib/libcublas.so.13: file too short."
    machine.library.unlink()
    assert explain("cuda").startswith("libonnxruntime_providers_cuda.so is missing from the installed ONNX Runtime: ")


def test_it_never_raises(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise ValueError("a broken package")

    machine.missing = {"libcuda.so.1"}
    monkeypatch.setattr(metadata, "packages_distributions", fail)
    assert explain("cuda") == "Why the cuda provider does not work could not be found out: a broken package."


# This machine


def test_the_cpu_works_and_so_does_what_stands_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem("cpu") is None
    assert explain("cpu") == "Nothing is wrong with the cpu provider: a convolution was run on it."
    stand_in = dataclasses.replace(PROVIDERS["cuda"], onnxruntime="CPUExecutionProvider", device="cpu")
    monkeypatch.setitem(PROVIDERS, "cuda", stand_in)
    assert problem("cuda") is None


def test_a_cpu_provider_that_fails_is_no_matter_of_cuda(machine: Machine) -> None:
    machine.failure = "[ONNXRuntimeError] : 1 : FAIL : It broke."
    assert explain("cpu") == "The cpu provider does not start. ONNX Runtime says: It broke."
    machine.packages, machine.providers = ["onnxruntime-odd"], ["CUDAExecutionProvider"]
    assert explain("cpu") == (
        "The installed ONNX Runtime 1.31.1 (package onnxruntime-odd) has no CPU provider: "
        "run `pip uninstall -y onnxruntime-odd`, then `pip install onnxruntime`."
    )


@pytest.mark.skipif(platform.system() != "Linux", reason="the words of Linux's loader")
def test_the_loader_really_speaks_like_this() -> None:
    said = diagnosis._unloadable("libof-nobody.so.13")
    assert said is not None
    found = diagnosis._MISSING.search(said)
    assert found is not None
    assert found[1] == "libof-nobody.so.13"
    assert diagnosis._unloadable("libc.so.6") is None


def test_what_is_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = distributions()
    assert metadata.version(name) == ort.__version__
    assert (built_for() is not None) == ("CUDAExecutionProvider" in ort.get_available_providers())
    monkeypatch.setattr(ort, "cuda_version", "12.8", raising=False)
    assert built_for() == (12, 8)
    monkeypatch.setattr(ort, "cuda_version", None, raising=False)
    assert built_for() is None


def test_a_machine_without_a_gpu_is_told_something_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    found = problem("cuda")
    if found is not None:
        assert re.search(r"`(pip|docker|nvidia-smi)|cpu provider|driver", found)
    assert capfd.readouterr().out == ""


@pytest.mark.cuda
def test_nothing_is_wrong_where_cuda_works() -> None:
    assert explain("cuda") == "Nothing is wrong with the cuda provider: a convolution was run on it."
    assert built_for() is not None
    assert diagnosis._library_problem() is None
