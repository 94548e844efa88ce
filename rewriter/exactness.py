"""Whether a provider adds small integers exactly: found out once per machine by running it, and kept on disk.

The audit's integer level demands equality bit for bit.  That says nothing where the kernels are transforms (Winograd,
FFT) or round their operands (TF32), because there even the original differs from its own integers.  Which kernels a
provider chooses is not documented and changes with its version, so it is probed.

Results lie in the user's cache folder, `platformdirs.user_cache_dir("onnx-conv-rewriter")`/exactness; the environment
variable REWRITER_CACHE names another folder in its place.  A file that is damaged or of another machine is replaced.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import platformdirs
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state
from pydantic import BaseModel, ConfigDict, ValidationError

from rewriter.errors import BadInput
from rewriter.exactness_cases import CASES, Exercise, Precision, exercise
from rewriter.providers import PROVIDERS, preload
from rewriter.saving import write_atomically
from rewriter.session import Level, Runtime, SessionFailed, open_session, require_provider, run

Execute = Callable[[onnx.ModelProto, Mapping[str, NDArray[Any]], Runtime], NDArray[Any]]
"""Runs a model of one output on these feeds; raises SessionFailed."""

VERSION: Final = 1
"""Of the probe: to be raised whenever its cases change, so that what older ones stored is probed again."""
_MOST_NAMED: Final = 3
_UNKNOWN_GPU: Final = "unknown GPU"
_LEFT_TO_THE_CPU: Final = "fallback to CPU EP has been explicitly disabled"
"""What ONNX Runtime says where a provider lacks a kernel and the CPU may not stand in."""
_CUBLAS: Final = ("libcublasLt.so.13", "libcublasLt.so.12", "cublasLt64_13.dll", "cublasLt64_12.dll")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Setting(_Record):
    """Everything that the answer depends on."""

    version: int
    """Of the probe."""
    provider: str
    device: str
    """Name of the GPU or of the processor."""
    instructions: str | None
    """Digest of the processor's instruction sets, which its kernels are chosen by; None on a GPU."""
    driver: str | None
    """Of the GPU; None on a processor."""
    libraries: tuple[str, ...]
    """Those that bring the GPU's kernels, with their versions, where they tell."""
    onnxruntime: str
    build: str
    level: Level
    """The deployed level of ONNX Runtime; "disable" is probed besides."""
    threads: int
    options: dict[str, str]
    """Provider options, as audits set them; but use_tf32 is 1 where the precision is "tf32"."""


class CaseResult(_Record):
    """What one case gave, at one precision and level."""

    name: str
    precision: Precision
    level: Level
    exact: bool | None
    """None where it could not be run."""
    elements: int = 0
    wrong: int = 0
    """Elements that are not the right integers."""
    largest_error: float = 0.0
    reason: str = ""
    """A clause saying why it could not be run, or why its output cannot be compared."""
    missing: bool = False
    """Whether it could not be run because the provider has no such kernel; otherwise another run may succeed."""


class Exactness(Setting):
    """Which integer sums a provider computes exactly."""

    cases: tuple[CaseResult, ...]

    @property
    def setting(self) -> Setting:
        """What the answer holds for."""
        return Setting(**{name: getattr(self, name) for name in Setting.model_fields})

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those probed, in order."""
        return tuple(dict.fromkeys(case.precision for case in self.cases))

    @property
    def exact(self) -> dict[Precision, bool | None]:
        """Whether every case that could be run was exact, by precision; None where none could be run."""
        return {precision: _overall(self.results(precision)) for precision in self.precisions}

    def results(self, precision: Precision) -> tuple[CaseResult, ...]:
        """The results at one precision, at each level."""
        return tuple(case for case in self.cases if case.precision == precision)

    def summary(self) -> str:
        """One line, such as "float32: exact (22 of 22 cases); float16: exact but for gemm (2 wrong of 4096, …)"."""
        return "; ".join(f"{precision}: {_summed_up(self.results(precision))}" for precision in self.precisions)


def exactness(runtime: Runtime) -> Exactness:
    """What is stored for this machine and runtime; otherwise probed now, and stored if it can be.

    Raises NotVerified where the provider cannot be used.
    """
    known = stored(runtime)
    if known is not None:
        return known
    found = probe(runtime)
    # What failed for want of memory, say, may succeed next time: only what is the provider's nature is kept.
    lasting = all(case.exact is not None or case.missing for case in found.cases)
    if lasting and found.device != _UNKNOWN_GPU:
        _store(found)
    return found


def stored(runtime: Runtime) -> Exactness | None:
    """What was stored for this machine and runtime; None where nothing was, or nothing that can be believed.

    Raises NotVerified where ONNX Runtime has no such provider.
    """
    setting = setting_of(runtime)
    try:
        found = Exactness.model_validate_json(_file(setting).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.setting == setting and _asked(found.cases) == _questions(runtime) else None


def probe(runtime: Runtime, execute: Execute | None = None) -> Exactness:
    """Run every case at every precision, unoptimized and at the runtime's level; about a second on a processor.

    The options are those of an audit of the runtime.  `execute` runs the models in place of ONNX Runtime.  Raises
    NotVerified where the provider cannot be used, which is no finding about its kernels.
    """
    setting = setting_of(runtime)
    if execute is None:
        _require_running(runtime)
    exercises: dict[tuple[str, Precision], Exercise] = {}
    cases = {case.name: case for case in CASES}
    found = []
    for name, precision, level in _questions(runtime):
        if (name, precision) not in exercises:
            exercises = {(name, precision): exercise(cases[name], precision)}  # the levels of one come together
        found.append(examine(exercises[name, precision], runtime.at(level), execute))
    return Exactness(**setting.model_dump(), cases=tuple(found))


def examine(asked: Exercise, runtime: Runtime, execute: Execute | None = None) -> CaseResult:
    """One case at the runtime's level; `execute` runs it in place of ONNX Runtime."""
    name, precision = asked.case.name, asked.precision
    try:
        y = (execute or _execute)(asked.model, asked.feeds, _runtime(runtime, precision))
    except SessionFailed as error:
        left_over = _LEFT_TO_THE_CPU in str(error)
        missing = left_over or isinstance(error.__cause__, onnxruntime_pybind11_state.NotImplemented)
        reason = "the provider has no kernel for it" if left_over else str(error).rstrip(".")
        return CaseResult(
            name=name, precision=precision, level=runtime.level, exact=None, reason=reason, missing=missing
        )
    wrong, largest, reason = _compared(y, asked.answer)
    return CaseResult(
        name=name,
        precision=precision,
        level=runtime.level,
        exact=not wrong,
        elements=y.size,
        wrong=wrong,
        largest_error=largest,
        reason=reason,
    )


def _execute(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], runtime: Runtime) -> NDArray[Any]:
    # Of a sum that ONNX Runtime leaves to the CPU nothing is learned about the provider.
    return run(open_session(model, runtime, cpu_fallback=False), feeds)["y"]


def _compared(y: NDArray[Any], right: NDArray[Any]) -> tuple[int, float, str]:
    """Wrong elements, the largest error, and why they cannot be compared; ±0 are equal, NaN is not."""
    if y.shape != right.shape or y.dtype != right.dtype:
        said = f"the output is {y.dtype} {list(y.shape)} instead of {right.dtype} {list(right.shape)}"
        return max(y.size, 1), float("inf"), said
    wrong = y != right
    with np.errstate(invalid="ignore"):
        errors = np.abs(y.astype(np.float64) - right.astype(np.float64))
    return int(wrong.sum()), float(np.nan_to_num(errors, nan=np.inf, posinf=np.inf).max(initial=0)), ""


def _runtime(runtime: Runtime, precision: Precision) -> Runtime:
    audited = runtime.for_audit()
    return audited.with_options(use_tf32="1") if precision == "tf32" else audited


def _require_running(runtime: Runtime) -> None:
    """Raise NotVerified where the provider cannot run the least of models."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "least", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    _execute(model, {"x": np.ones(1, np.float32)}, runtime.for_audit())


Question = tuple[str, Precision, Level]


def _questions(runtime: Runtime) -> tuple[Question, ...]:
    """Every case at every precision and level."""
    reduces = PROVIDERS[runtime.provider].reduces
    precisions: tuple[Precision, ...] = ("float32", "tf32", "float16") if reduces else ("float32", "float16", "float64")
    levels: tuple[Level, ...] = ("disable",) if runtime.level == "disable" else ("disable", runtime.level)
    return tuple((case.name, precision, level) for precision in precisions for case in CASES for level in levels)


def _asked(results: tuple[CaseResult, ...]) -> tuple[Question, ...]:
    return tuple((result.name, result.precision, result.level) for result in results)


def setting_of(runtime: Runtime) -> Setting:
    """The machine and the runtime as their answers are stored by.  Raises NotVerified without the provider."""
    require_provider(runtime)
    preload(runtime.provider)
    record = PROVIDERS[runtime.provider]
    on_gpu = record.device != "cpu"
    device, driver, libraries = _gpu(runtime) if on_gpu else (_processor(), None, ())
    return Setting(
        version=VERSION,
        provider=runtime.provider,
        device=device,
        instructions=None if on_gpu else _instructions(),
        driver=driver,
        libraries=libraries,
        onnxruntime=ort.__version__,
        build=ort.get_build_info(),
        level=runtime.level,
        threads=runtime.threads,
        options=dict(sorted(runtime.for_audit().provider_options)) if record.takes_options else {},
    )


def _gpu(runtime: Runtime) -> tuple[str, str | None, tuple[str, ...]]:
    """Name of the GPU that the runtime takes, its driver's version, and those of the libraries with its kernels."""
    from rewriter import nvidia  # not needed where models run on the processor

    names = [device.name for device in nvidia.devices()]
    device = names[0] if len(set(names)) == 1 else _UNKNOWN_GPU
    if len(set(names)) > 1:  # CUDA has an order of its own, in which some may be hidden
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        device = f"device {runtime.device} of {', '.join(names)} ({visible} visible)"
    libraries = {"cuDNN": nvidia.cudnn(), "cuBLASLt": _cublas()}
    return device, nvidia.driver_version(), tuple(f"{name} {found}" for name, found in libraries.items() if found)


def _cublas() -> str | None:
    """The version of the cuBLASLt that is loaded, or that the system finds."""
    for library in _CUBLAS:
        with suppress(OSError, AttributeError):  # not here, or too old to tell
            ask = ctypes.CDLL(library).cublasLtGetVersion
            ask.restype = ctypes.c_size_t
            return str(ask())
    return None


def processor() -> str:
    """The processor's name, with a digest of its instruction sets: what ONNX Runtime and NumPy choose kernels by."""
    return f"{_processor()} ({_instructions()})"


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    flags = _cpuinfo("flags") or _cpuinfo("Features") or platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:16]


def _cpuinfo(key: str) -> str:
    """The first processor's entry in Linux's list; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _file(setting: Setting) -> Path:
    folder = os.environ.get("REWRITER_CACHE") or platformdirs.user_cache_dir("onnx-conv-rewriter")
    key = hashlib.sha256(setting.model_dump_json().encode()).hexdigest()[:32]
    return Path(folder) / "exactness" / f"{key}.json"


def _store(found: Exactness) -> None:
    """Keep it for the next time; where the folder cannot be written, it is probed again then."""
    file = _file(found.setting)
    with suppress(OSError, BadInput):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, found.model_dump_json(indent=1).encode())


def _overall(results: tuple[CaseResult, ...]) -> bool | None:
    known = [result.exact for result in results if result.exact is not None]
    return all(known) if known else None


def _summed_up(results: tuple[CaseResult, ...]) -> str:
    """The levels of a case are counted as one."""
    names = tuple(dict.fromkeys(result.name for result in results))
    by_name = {name: tuple(result for result in results if result.name == name) for name in names}
    known = [name for name in names if _overall(by_name[name]) is not None]
    if not known:
        return f"none of {len(names)} cases could be run ({results[0].reason})"
    failed = [name for name in names if any(result.exact is None for result in by_name[name])]
    no_kernel = [name for name in failed if all(result.missing for result in by_name[name] if result.exact is None)]
    left = f", no kernel for {len(no_kernel)}" if no_kernel else ""
    left += f", {len(failed) - len(no_kernel)} could not be run" if len(failed) > len(no_kernel) else ""
    bad = [_described(by_name[name]) for name in known if not _overall(by_name[name])]
    if not bad:
        return f"exact ({len(known)} of {len(names)} cases{left})"
    more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    start = "exact but for" if len(bad) < len(known) else "not exact:"
    return f"{start} {', '.join(bad[:_MOST_NAMED])}{more}{left}"


def _described(results: tuple[CaseResult, ...]) -> str:
    """Such as "gemm (2 wrong of 4096, at most 1)", from its worst level, which is named where another was exact."""
    worst = max(results, key=lambda result: (result.wrong, result.largest_error))
    where = f" at level '{worst.level}'" if any(result.exact for result in results) else ""
    what = worst.reason or f"{worst.wrong} wrong of {worst.elements}, at most {worst.largest_error:g}"
    return f"{worst.name}{where} ({what})"
