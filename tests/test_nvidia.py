"""NVIDIA's own answers: read from a made-up NVML, and None or empty where there is none, or no driver."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from rewriter import nvidia
from rewriter.nvidia import Clocks, Device


class Refusal(Exception):
    """NVML's error."""


class Nvml(SimpleNamespace):
    """NVML with two GPUs, the second of which has no memory and no clocks of its own."""

    def __init__(self, reasons: int = 0x24) -> None:
        self.opened = 0
        clocks = {("now", 1): 1755, ("now", 2): 3201, ("most", 1): 1980, ("most", 2): 3201}
        super().__init__(
            NVMLError=Refusal,
            NVML_CLOCK_SM=1,
            NVML_CLOCK_MEM=2,
            nvmlInit=lambda: self.count(1),
            nvmlShutdown=lambda: self.count(-1),
            nvmlDeviceGetCount=lambda: 2,
            nvmlDeviceGetHandleByIndex=lambda index: self.only(index < 2, index),
            nvmlDeviceGetName=lambda handle: f"GPU {'AB'[handle]}",
            nvmlDeviceGetCudaComputeCapability=lambda handle: (9, handle),
            nvmlDeviceGetMemoryInfo=lambda handle: self.only(handle == 0, SimpleNamespace(total=150_754_820_096)),
            nvmlSystemGetDriverVersion=lambda: "580.65.06",
            nvmlSystemGetCudaDriverVersion_v2=lambda: 12080,
            nvmlDeviceGetClockInfo=lambda handle, kind: self.only(handle == 0, clocks["now", kind]),
            nvmlDeviceGetMaxClockInfo=lambda handle, kind: self.only(handle == 0, clocks["most", kind]),
            nvmlDeviceGetCurrentClocksEventReasons=lambda handle: self.only(handle == 0, reasons),
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x1,
        )

    def count(self, step: int) -> None:
        self.opened += step

    def only(self, known: bool, value: Any) -> Any:
        assert self.opened == 1
        if not known:
            raise Refusal
        return value


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)


def test_every_name_is_one_of_the_real_module() -> None:
    names = set(vars(Nvml())) - {"opened"}
    assert len(names) > 10
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_devices_driver_and_clocks(nvml: Nvml) -> None:
    assert nvidia.devices() == (Device(0, "GPU A", (9, 0), 150_754_820_096), Device(1, "GPU B", (9, 1), None))
    assert nvidia.driver_version() == "580.65.06"
    assert nvidia.driver_cuda() == (12, 8)
    assert nvidia.clocks() == Clocks(1755, 3201, 1980, 3201, ("power limit", "temperature, by the driver"))
    assert nvml.opened == 0


def test_what_a_device_does_not_tell_is_none(nvml: Nvml) -> None:
    assert nvidia.clocks(1) == Clocks(None, None, None, None, ("idle",))  # by the older of the two names
    assert nvidia.clocks(2) is None
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x000, ()),
        (0x001, ("idle",)),
        (0x002, ("clocks set by the user",)),
        (0x008, ("hardware slowdown",)),
        (0x010, ("sync boost",)),
        (0x040, ("temperature, by the hardware",)),
        (0x080, ("power brake",)),
        (0x100, ("display clocks",)),
        (0x1000, ()),
    ],
)
def test_the_reasons_for_low_clocks_are_words(bits: int, words: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(reasons=bits))
    found = nvidia.clocks()
    assert found is not None
    assert found.slowed == words


@pytest.mark.parametrize("broken", [RuntimeError("no driver"), Refusal()])
def test_nothing_is_known_and_nothing_raised_without_a_driver(
    broken: Exception, nvml: Nvml, no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise broken

    nvml.nvmlInit = init
    assert answers() == [(), None, None, None, None, None]
    assert nvml.opened == 0  # what did not open is not shut
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert answers() == [(), None, None, None, None, None]


def answers() -> list[Any]:
    asked: list[Callable[[], Any]] = [
        nvidia.devices,
        nvidia.driver_version,
        nvidia.driver_cuda,
        nvidia.clocks,
        lambda: nvidia.cuda_runtime(13),
        nvidia.cudnn,
    ]
    return [ask() for ask in asked]


def test_a_question_that_fails_shuts_nvml_down(nvml: Nvml) -> None:
    nvml.nvmlSystemGetDriverVersion = lambda: nvml.only(False, "")
    assert nvidia.driver_version() is None
    nvml.nvmlSystemGetDriverVersion = lambda: 1 // 0
    with pytest.raises(ZeroDivisionError):
        nvidia.driver_version()
    assert nvml.opened == 0


def test_libraries_are_asked_by_their_c_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver too, where NVML is missing: some containers have the one without the other."""

    def telling(version: int, status: int = 0) -> Callable[[Any], int]:
        def ask(reference: Any) -> int:
            reference._obj.value = version
            return status

        return ask

    libraries = {
        nvidia.DRIVER_LIBRARY: SimpleNamespace(cuDriverGetVersion=telling(13000)),
        "libcudart.so.13": SimpleNamespace(cudaRuntimeGetVersion=telling(13050)),
        "libcudart.so.12": SimpleNamespace(cudaRuntimeGetVersion=telling(12040, status=35)),
        "libcudart.so.11": SimpleNamespace(),
    }
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(ctypes, "CDLL", libraries.__getitem__)
    monkeypatch.setattr(nvidia, "_WINDOWS", False)
    assert nvidia.driver_cuda() == (13, 0)
    assert nvidia.cuda_runtime(13) == (13, 5)
    assert nvidia.cuda_runtime(12) is None
    assert nvidia.cuda_runtime(11) is None

    def cudnn() -> int:
        return 92801

    monkeypatch.setattr(ctypes, "CDLL", {nvidia.CUDNN_LIBRARY: SimpleNamespace(cudnnGetVersion=cudnn)}.__getitem__)
    assert nvidia.cudnn() == "9.28.1"
    assert vars(cudnn)["restype"] is ctypes.c_size_t  # an int would cut it


def test_a_package_that_says_it_is_old_is_asked_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package pynvml, which nvidia-ml-py replaces, warns when it is imported; here warnings are errors."""
    text = "import warnings\nwarnings.warn('old', FutureWarning)\nNVMLError = OSError\n"
    text += "nvmlInit = nvmlShutdown = lambda: None\nnvmlSystemGetDriverVersion = lambda: '580.65.06'\n"
    (tmp_path / "pynvml.py").write_text(text)
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.syspath_prepend(tmp_path)
    assert nvidia.driver_version() == "580.65.06"
    monkeypatch.delitem(sys.modules, "pynvml")


def test_this_machine_is_asked_without_an_error() -> None:
    found = nvidia.devices()
    assert (nvidia.driver_version() is None) == (nvidia.clocks() is None) == (found == ())


@pytest.mark.cuda
def test_a_real_gpu_tells_everything() -> None:
    found = nvidia.devices()
    assert [device.index for device in found] == list(range(len(found)))
    assert found[0].name.startswith("NVIDIA")
    assert found[0].capability >= (5, 0)
    clocks, cuda = nvidia.clocks(), nvidia.driver_cuda()
    assert clocks is not None
    assert clocks.sm is not None
    assert clocks.sm_max is not None
    assert 0 < clocks.sm <= clocks.sm_max
    assert cuda is not None
    assert cuda >= (12, 0)
    assert nvidia.driver_version() is not None
