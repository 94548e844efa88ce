"""Why an execution provider cannot be used on this machine, and what to do about it, in one or two sentences.

Only what was found on this machine is said: a convolution is run, libraries are loaded, the driver is asked.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from rewriter import logs, nvidia
from rewriter.errors import BadInput, NotVerified
from rewriter.providers import PROVIDERS, Provider, available, preload

_QUIET: Final = 4  # fatal only
_LONGEST_REASON: Final = 300
# "…/reshape_helper.h:84 onnxruntime::ReshapeHelper::ReshapeHelper(const TensorShape&) ", or "utils.cc:7 Function "
_CPP_LOCATION: Final = re.compile(r"\S+\.(?:cc|cpp|h|cu):\d+ (?:[\w:~]+ (?=[A-Z])|.*?\) (?:const )?)?")
# "… CUDA failure 2: out of memory ; GPU=0 ; hostname=… ; file=… ; line=… ; expr=…", from CUDA, CUDNN_FE, CUBLAS, …
_NVIDIA_FAILURE: Final = re.compile(r"\b(CU[A-Z_]+ failure -?\w+: .*?) ; GPU=")
_UNKNOWN_OPTION: Final = re.compile(r'Unknown provider option: "([^"]*)"')
_REFUSED_VALUE: Final = re.compile(r'Failed to (?:find|parse) provider option "([^"]*)"')
_MISSING: Final = re.compile(r"(\S+\.so[.\d]*): cannot open shared object file")
_NOT_PRELOADED: Final = re.compile(r"Failed to load (\S+\.\w+):")
_BEYOND: Final = re.compile(r"Invalid device ID: (-?\d+)\D.*?(\d+) \(exclusive\)")
_CUDA_LIBRARY: Final = re.compile(r"(?:lib)?(?:cublas|cudart|cufft|curand|nvrtc|nvJitLink)")

_REINSTALL: Final = "run `pip install --force-reinstall onnxruntime-gpu`"
_OLDEST_DRIVER: Final = {12: "525", 13: "580"}
"""The oldest driver that runs any CUDA version of a major number (NVIDIA's table for minor-version compatibility)."""


def explain(provider: Provider, device: int = 0) -> str:
    """What is wrong first, and how to put it right; that nothing is wrong, where a model ran.  It never raises."""
    return problem(provider, device) or f"Nothing is wrong with the {provider} provider: a convolution was run on it."


def problem(provider: Provider, device: int = 0) -> str | None:
    """The first thing that keeps `provider` from running a convolution; None when one was seen to run there.

    `device` is its device's number, where it has several.  It never raises.
    """
    if provider not in PROVIDERS:
        return f"There is no provider {provider!r}: choose one of {', '.join(PROVIDERS)}."
    try:
        return _first_problem(provider, device)
    except Exception as error:  # noqa: BLE001 - it is called while another error is reported, which must not get lost
        return f"Why the {provider} provider does not work could not be found out: {reason(error)}."


def _first_problem(provider: Provider, device: int) -> str | None:
    record = PROVIDERS[provider]
    cuda = record.onnxruntime == "CUDAExecutionProvider"
    built = available(provider)
    said = _trial(provider, {"device_id": str(device)} if device else {}) if built else ""
    if said is None:
        return None
    if cuda and platform.system() == "Darwin":
        return "There is no CUDA on macOS: use the cpu provider."
    packages = distributions()
    if len(packages) > 1:
        return _several(packages, record.package)
    if not built and (not cuda or "onnxruntime-gpu" not in packages):
        return _not_built(provider, packages)
    found = (_library_problem() or _driver_problem(said) or _device_problem(said)) if cuda else None
    if found:
        return found
    if not built:
        return f"The installed onnxruntime-gpu {ort.__version__} has no CUDA provider: {_REINSTALL}."
    told = f"ONNX Runtime says: {said}." if said else "ONNX Runtime leaves it out and does not say why."
    return f"The {provider} provider does not start. {told}" + (" `nvidia-smi` may say more." if cuda else "")


def distributions() -> tuple[str, ...]:
    """The installed distributions that bring the module onnxruntime, which should be one; none under conda."""
    found = metadata.packages_distributions().get("onnxruntime", [])
    return tuple(sorted(set(found)))


def built_for() -> tuple[int, int] | None:
    """The CUDA version that the installed ONNX Runtime was built for, major and minor; None for one without CUDA."""
    numbers = re.match(r"(\d+)\.(\d+)", str(getattr(ort, "cuda_version", "")))
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def probe_model() -> onnx.ModelProto:
    """One convolution, `x [1, 1, 4, 4]` to `y [1, 1, 2, 2]`: on CUDA the first node that needs cuDNN, too.

    Its opset and IR version are old, so that every supported ONNX Runtime loads it.
    """
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 1, 4, 4]), ("y", [1, 1, 2, 2]))
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "probe", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def probe_feeds() -> dict[str, np.ndarray]:
    """What `probe_model` is run with."""
    return {"x": np.ones((1, 1, 4, 4), np.float32)}


def leave_nothing_to_the_cpu(options: ort.SessionOptions, name: str) -> None:
    """Let a session on the provider that ONNX Runtime calls `name` be refused where it has not all kernels itself.

    Otherwise ONNX Runtime silently runs on the CPU what the provider cannot.
    """
    if name != "CPUExecutionProvider":  # which may not be told to do without itself
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


def reason(error: BaseException) -> str:
    """ONNX Runtime's message on one line, without error code and C++ source location, shortened, no full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    node = re.match(r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: (.*)", text)
    where, text = (f"{node[1]} node {node[2]!r}: ", node[3]) if node else ("", text)
    failure = _NVIDIA_FAILURE.search(text)
    text = failure[1] if failure else _CPP_LOCATION.sub("", text)
    text = text.rpartition(" was false. ")[2]  # the failed C++ condition stands before the explanation
    return (where + _shortened(text)).rstrip(". ")


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_REASON:
        return text
    sentences, stop, _ = text[:_LONGEST_REASON].rpartition(". ")
    return sentences if stop else text[:_LONGEST_REASON].rpartition(" ")[0] + " …"


def check_options(provider: Provider, options: Sequence[tuple[str, str]]) -> None:
    """Raise BadInput for an option that ONNX Runtime refuses, NotVerified where no session opens with them otherwise.

    Asked only where the provider runs without them.
    """
    said = _trial(provider, dict(options), run=False)
    if said is None:
        return
    unknown = _UNKNOWN_OPTION.search(said)
    if unknown:
        raise BadInput(f"the {provider} provider of ONNX Runtime {ort.__version__} has no option '{unknown[1]}'.")
    refused = _REFUSED_VALUE.search(said)
    if refused:
        value = dict(options).get(refused[1], "")
        raise BadInput(f"ONNX Runtime does not take '{value}' for the option {refused[1]} of its {provider} provider.")
    given = " ".join(f"{key}={value}" for key, value in options)
    raise NotVerified(f"ONNX Runtime could not start its {provider} provider with {given}: {said or 'no reason'}.")


def _trial(provider: Provider, own: Mapping[str, str], *, run: bool = True) -> str | None:
    """None when a convolution ran, or was loaded; else what ONNX Runtime said, "" where it left the provider out.

    `own` are the provider's options.
    """
    preload(provider)
    name = PROVIDERS[provider].onnxruntime
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    leave_nothing_to_the_cpu(options, name)
    model = probe_model().SerializeToString()
    try:
        with logs.silenced(name):
            session = ort.InferenceSession(
                model, options, providers=[name], provider_options=[dict(own)], enable_fallback=0
            )
        if name not in session.get_providers():
            return ""
        if run:
            session.run(None, probe_feeds())
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no base class but Exception
        beyond = _BEYOND.search(str(error))
        return beyond[0] if beyond else reason(error)
    return None


def _several(packages: Sequence[str], package: str) -> str:
    return (
        f"The packages {' and '.join(packages)} are both installed and overwrite each other's files: run "
        f"`pip uninstall -y {' '.join(packages)}`, then `pip install {_quoted(package)}`."
    )


def _not_built(provider: Provider, packages: Sequence[str]) -> str:
    installed = packages[0] if packages else "onnxruntime"
    package = _quoted(PROVIDERS[provider].package)
    where = "on a machine with an NVIDIA GPU, " if provider == "cuda" else ""
    return (
        f"The installed ONNX Runtime {ort.__version__} (package {installed}) has no {provider.upper()} provider: "
        f"{where}run `pip uninstall -y {installed}`, then `pip install {package}`."
    )


def _library_problem() -> str | None:
    """The first library that ONNX Runtime's part for CUDA cannot load, and what brings it."""
    windows = platform.system() == "Windows"
    name = "onnxruntime_providers_cuda.dll" if windows else "libonnxruntime_providers_cuda.so"
    file = Path(ort.__file__).parent / "capi" / name
    if not file.is_file():
        return (
            f"{name} is missing from the installed ONNX Runtime: run `pip install --force-reinstall onnxruntime-gpu`."
        )
    why = _unloadable(str(file))
    if why is None:
        # ONNX Runtime loads cuDNN by itself, when it needs it.
        return None if _unloadable(nvidia.CUDNN_LIBRARY) is None else _missing(nvidia.CUDNN_LIBRARY)
    told = _MISSING.search(why)
    if told:
        return _missing(told[1])
    # Windows does not say which one; what could not be loaded before it does.
    left = (library for library in _NOT_PRELOADED.findall(preload("cuda")) if _unloadable(library) is not None)
    library = next(left, "")
    return _missing(library) if library else f"ONNX Runtime's library for CUDA cannot be loaded: {why.rstrip('.')}."


def _missing(library: str) -> str:
    if library == nvidia.DRIVER_LIBRARY:
        return (
            f"The NVIDIA driver is not installed, or not visible here ({library} is missing): install it, or start the "
            "container with GPU access, as `docker run --gpus all` does."
        )
    built = built_for()
    if "cudnn" in library:
        part = "cuDNN 9"
    elif _CUDA_LIBRARY.match(library):
        part = f"CUDA {built[0]}" if built else "CUDA"
    else:
        return f"{library} is missing, which ONNX Runtime's library for CUDA needs: install the package that has it."
    text = (
        f"{library} is missing, which is part of {part}: run `pip install {_quoted(PROVIDERS['cuda'].package)}`, "
        "which brings it."
    )
    # Said at once, before gigabytes are loaded to no avail.
    driver = _unloadable(nvidia.DRIVER_LIBRARY) is not None
    return text + (f" The NVIDIA driver is missing, too ({nvidia.DRIVER_LIBRARY})." if driver else "")


def _driver_problem(said: str) -> str | None:
    driver, built = nvidia.driver_cuda(), built_for()
    called = f"The NVIDIA driver {nvidia.driver_version() or ''}".rstrip()
    # Within one major number older drivers run newer libraries.
    if driver and built and driver[0] < built[0]:
        oldest = _OLDEST_DRIVER.get(built[0])
        return (
            f"{called} is too old: it supports CUDA {_dotted(driver)}, and ONNX Runtime {ort.__version__} was built "
            f"for CUDA {_dotted(built)}; install {f'driver {oldest} or newer' if oldest else 'a newer one'}."
        )
    if "driver version is insufficient" in said:
        runtime = nvidia.cuda_runtime(built[0]) if built else None
        found = f" (CUDA {_dotted(runtime)})" if runtime else ""
        return f"{called} is too old for the CUDA libraries found here{found}: install a newer one."
    return None


def _device_problem(said: str) -> str | None:
    beyond = _BEYOND.search(said)
    if beyond:
        return (
            f"There is no CUDA device {beyond[1]}: devices are numbered from 0, and CUDA sees {beyond[2]}; give the "
            "provider option device_id a smaller number, or show more devices with CUDA_VISIBLE_DEVICES."
        )
    if "no CUDA-capable device" not in said and "invalid device ordinal" not in said:
        return None
    known = ", ".join(device.name for device in nvidia.devices())
    seen = "CUDA sees no GPU" + (f" (the driver lists {known})" if known else "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return (
            f"{seen}, and the environment variable CUDA_VISIBLE_DEVICES is {hidden!r}: unset it, or set it to a device "
            "that `nvidia-smi -L` lists."
        )
    return (
        f"{seen}: see whether `nvidia-smi` lists one; a container has to be started with GPU access, as "
        "`docker run --gpus all` does."
    )


def _unloadable(library: str) -> str | None:
    """Why the system's loader does not load it; None when it does."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _quoted(package: str) -> str:
    return f'"{package}"' if "[" in package else package  # shells take brackets for a pattern
