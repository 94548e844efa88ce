"""What NVIDIA's driver and libraries say about themselves: devices, versions, clocks.

Asked through NVML, the library behind nvidia-smi, which needs no CUDA context.  Where there is no driver, every answer
is None or empty; nothing here raises for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")

_WINDOWS: Final = platform.system() == "Windows"
DRIVER_LIBRARY: Final = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"
"""The library of the driver, which no package brings."""
CUDNN_LIBRARY: Final = "cudnn64_9.dll" if _WINDOWS else "libcudnn.so.9"
"""The library of cuDNN 9, which ONNX Runtime loads when a convolution asks for it."""

# Bits of nvmlClocksEventReasons, as NVML's header documents them.
_REASONS: Final = (
    (0x001, "idle"),
    (0x002, "clocks set by the user"),
    (0x004, "power limit"),
    (0x008, "hardware slowdown"),
    (0x010, "sync boost"),
    (0x020, "temperature, by the driver"),
    (0x040, "temperature, by the hardware"),
    (0x080, "power brake"),
    (0x100, "display clocks"),
)


@dataclass(frozen=True)
class Device:
    """One GPU."""

    index: int
    """In NVML's order, that of the PCI bus, hidden ones counted: not always CUDA's number."""
    name: str
    capability: tuple[int, int]
    """Compute capability, major and minor."""
    memory: int | None
    """Bytes; None where it has none of its own."""


@dataclass(frozen=True)
class Clocks:
    """How fast a GPU runs at this moment, and could run, in MHz; None where the device does not tell."""

    sm: int | None
    memory: int | None
    sm_max: int | None
    memory_max: int | None
    slowed: tuple[str, ...]
    """Why the clocks are below their maxima, in words; "idle" is one of them."""


def devices() -> tuple[Device, ...]:
    """All devices of the machine, those that CUDA_VISIBLE_DEVICES hides among them."""

    def ask(nvml: Any) -> tuple[Device, ...]:
        return tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))

    return _asked(ask) or ()


def driver_version() -> str | None:
    """The driver's own version, like "580.65.06"."""
    return _asked(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, major and minor."""
    told = _asked(lambda nvml: int(nvml.nvmlSystemGetCudaDriverVersion_v2()))
    return _pair(told or _number(DRIVER_LIBRARY, "cuDriverGetVersion"))  # some containers have the one, but no NVML


def clocks(index: int = 0) -> Clocks | None:
    """The clocks of the device with this index of `Device`, now; None where there is no such device."""

    def ask(nvml: Any) -> Clocks:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        now, most = nvml.nvmlDeviceGetClockInfo, nvml.nvmlDeviceGetMaxClockInfo
        sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
        return Clocks(
            _unless(nvml, lambda: int(now(handle, sm))),
            _unless(nvml, lambda: int(now(handle, memory))),
            _unless(nvml, lambda: int(most(handle, sm))),
            _unless(nvml, lambda: int(most(handle, memory))),
            _slowed(nvml, handle),
        )

    return _asked(ask)


def cuda_runtime(major: int) -> tuple[int, int] | None:
    """The version of the CUDA runtime library that is loaded, or that the system finds; it needs no driver."""
    library = f"cudart64_{major}.dll" if _WINDOWS else f"libcudart.so.{major}"
    return _pair(_number(library, "cudaRuntimeGetVersion"))


def cudnn() -> str | None:
    """The version of the cuDNN 9 that is loaded, or that the system finds, like "9.28.0"."""
    try:
        ask = ctypes.CDLL(CUDNN_LIBRARY).cudnnGetVersion
    except (OSError, AttributeError):
        return None
    ask.restype = ctypes.c_size_t
    version = int(ask())
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"  # CUDNN_VERSION of cuDNN 9


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """NVML, initialised; None where it is missing or refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old package of this name warns that it is old
            import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no library, no driver, or a driver that does not fit: all mean None
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _asked(question: Callable[[Any], T]) -> T | None:
    with _session() as nvml:
        return None if nvml is None else _unless(nvml, lambda: question(nvml))


def _unless(nvml: Any, answer: Callable[[], T]) -> T | None:
    """The answer; None where NVML has none: virtual and integrated GPUs do not know everything."""
    try:
        return answer()
    except nvml.NVMLError:
        return None


def _device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _unless(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    return Device(index, str(nvml.nvmlDeviceGetName(handle)), nvml.nvmlDeviceGetCudaComputeCapability(handle), memory)


def _slowed(nvml: Any, handle: Any) -> tuple[str, ...]:
    bits = _unless(nvml, lambda: int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))
    if bits is None:  # drivers before 535 know it by its old name only
        bits = _unless(nvml, lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
    return tuple(words for bit, words in _REASONS if (bits or 0) & bit)


def _number(library: str, function: str) -> int | None:
    """What a function of the form `int f(int *version)` answers; None where it is missing or fails."""
    version = ctypes.c_int()
    try:
        failed = getattr(ctypes.CDLL(library), function)(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value


def _pair(version: int | None) -> tuple[int, int] | None:
    """CUDA's 13050 as (13, 5)."""
    return (version // 1000, version % 1000 // 10) if version else None
