"""ONNX Runtime sessions: one way to open a model and one way to run it, for audits, timing and census alike.

Providers are explicit and never silently replaced, errors arrive as one sentence, nothing is printed, and tensors of
types NumPy does not know (bfloat16, float8, int4, …) come out as the `ml_dtypes` arrays that onnx uses for them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from rewriter import logs
from rewriter.diagnosis import check_options, explain, leave_nothing_to_the_cpu, problem
from rewriter.diagnosis import reason as reason  # noqa: PLC0414 - others look for it here
from rewriter.errors import BadInput, NotVerified
from rewriter.providers import PROVIDERS, ExecutionProvider, Provider, available, merged, preload

Level = Literal["disable", "basic", "extended", "layout", "all"]
"""Graph optimization levels of ONNX Runtime; "all" is what is deployed by default."""

_LEVELS: Final[Mapping[Level, ort.GraphOptimizationLevel]] = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_QUIET: Final = 4  # fatal only: at 3, a failing node is printed on stderr *and* raised

_NUMPY_KNOWS: Final = frozenset(
    """tensor(float) tensor(double) tensor(float16) tensor(int8) tensor(int16) tensor(int32) tensor(int64)
    tensor(uint8) tensor(uint16) tensor(uint32) tensor(uint64) tensor(bool) tensor(string)""".split()  # noqa: SIM905 - readable
)
_PACKED: Final = frozenset({"int4", "uint4", "int2", "uint2", "float4_e2m1fn"})  # several elements per byte


class SessionFailed(NotVerified):
    """ONNX Runtime could not load or run the model."""


@dataclass(frozen=True)
class Runtime:
    """How a model is run. Raises BadInput for an unknown provider or level, or a negative number of threads."""

    provider: Provider = "cpu"
    threads: int = 1
    """Intra-op threads; 0 means ONNX Runtime's own default (all physical cores)."""
    level: Level = "all"
    provider_options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.provider not in get_args(Provider):
            raise BadInput(f"Unknown provider {self.provider!r}: choose one of {', '.join(get_args(Provider))}.")
        if self.level not in get_args(Level):
            raise BadInput(f"Unknown ONNX Runtime level {self.level!r}: choose one of {', '.join(get_args(Level))}.")
        if self.threads < 0:
            raise BadInput(f"The number of threads is {self.threads}: give 1 or more, or 0 for ONNX Runtime's default.")
        device = dict(self.provider_options).get("device_id", "0")
        if not (device.isascii() and device.isdecimal()):
            raise BadInput(f"The provider option device_id is {device!r}: give the number of a device, from 0 on.")

    def at(self, level: Level) -> Runtime:
        """The same runtime at another optimization level."""
        return replace(self, level=level)

    def with_options(self, **options: str) -> Runtime:
        """The same runtime with these provider options in place of the same ones it had, or besides its own."""
        return replace(self, provider_options=merged(self.provider_options, options))

    def for_audit(self) -> Runtime:
        """The same runtime in full precision, and such that NumPy arrays can be fed to it."""
        return self.with_options(**dict(PROVIDERS[self.provider].audit_options))

    def plain(self) -> Runtime:
        """The same runtime without capture, so that NumPy arrays can be fed to it."""
        return self.with_options(enable_cuda_graph="0") if self.captures else self

    @property
    def device(self) -> int:
        """The number of the provider's device that models run on."""
        return int(dict(self.provider_options).get("device_id", "0"))

    @property
    def tf32(self) -> bool:
        """Whether float32 products are computed in TF32, whose significand has 11 bits."""
        return PROVIDERS[self.provider].reduces and self._has("use_tf32", "1")

    @property
    def captures(self) -> bool:
        """Whether runs are captured as a CUDA graph and replayed: at fixed shapes and addresses only."""
        return self._has("enable_cuda_graph", "0")

    def _has(self, option: str, default: str) -> bool:
        return dict(self.provider_options).get(option, default) in ("1", "true", "True")  # as ONNX Runtime reads it


def require_provider(runtime: Runtime) -> None:
    """Do nothing where a model was seen to run on the runtime's device; otherwise raise NotVerified saying what to do.

    Raises BadInput for provider options that ONNX Runtime refuses.
    Asked before the work starts: a provider that does not start must not look like a model that does not run.
    """
    if not available(runtime.provider):
        raise NotVerified(explain(runtime.provider))
    _require_running(PROVIDERS[runtime.provider], runtime.device)
    if runtime.provider_options:
        _require_options(PROVIDERS[runtime.provider], runtime.provider_options)


@functools.cache  # what was raised is not kept
def _require_running(provider: ExecutionProvider, device: int) -> None:
    found = problem(provider.name, device)
    if found is not None:
        raise NotVerified(f"ONNX Runtime could not start its {provider.name} provider. {found}")


@functools.cache
def _require_options(provider: ExecutionProvider, options: tuple[tuple[str, str], ...]) -> None:
    check_options(provider.name, options)


def open_session(
    model: bytes | Path | onnx.ModelProto,
    runtime: Runtime,
    *,
    external_folder: Path | None = None,
    spin: bool = False,
    optimized_to: Path | None = None,
    profiled_to: Path | None = None,
    cpu_fallback: bool = True,
) -> ort.InferenceSession:
    """Load `model` into ONNX Runtime, exactly as `runtime` says.

    A path is opened by ONNX Runtime itself, which looks for external data beside it; for bytes and protos
    `external_folder` is where it looks. `optimized_to` saves the graph as ONNX Runtime optimized it, weights in a data
    file beside it. `profiled_to` starts the name of the file that `end_profiling` writes. With `spin`, idle worker
    threads wait actively during a run, as in ONNX Runtime's default, but stop when the run ends, so that sessions do
    not disturb each other; without it they sleep.  Operators that the provider has no kernel for run on the CPU, as
    they do for users; without `cpu_fallback` such a model is refused.  Raises NotVerified where the provider is
    missing, SessionFailed where the model cannot be loaded.
    """
    if not available(runtime.provider):
        raise NotVerified(explain(runtime.provider))
    preload(runtime.provider)
    wanted = PROVIDERS[runtime.provider].onnxruntime
    options = _options(runtime, external_folder, spin, optimized_to)
    if profiled_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profiled_to)
    if not cpu_fallback:
        leave_nothing_to_the_cpu(options, wanted)
    source = str(model) if isinstance(model, Path) else _serialised(model)
    try:
        # Without fallback: otherwise a provider that cannot start is replaced by the CPU's, with a print.
        with logs.silenced(wanted):
            session = ort.InferenceSession(
                source,
                options,
                providers=[wanted],
                provider_options=[dict(runtime.provider_options)],
                enable_fallback=0,
            )
    except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
        said = reason(error)
        # Then it may be the driver, or that there is no device, and not the model.
        cause = problem(runtime.provider, runtime.device) if said.startswith("CUDA failure") else None
        raise SessionFailed(
            f"ONNX Runtime cannot load {_called(model)}: {said}." + (f" {cause}" if cause and said not in cause else "")
        ) from error
    if wanted not in session.get_providers():
        why = explain(runtime.provider, runtime.device)
        raise SessionFailed(f"ONNX Runtime could not start its {runtime.provider} provider. {why}")
    return session


def run(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Run `session` once; returns the named outputs (default: all, in graph order). Raises SessionFailed."""
    kinds = _kinds(session, outputs)
    if not kinds:
        return {}
    values = prepare(session, feeds, outputs)()
    return {name: _tensor(name, value, kind) for (name, kind), value in zip(kinds.items(), values, strict=True)}


def prepare(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> Callable[[], list[Any]]:
    """A function that runs `session` once and does nothing else, so that it can be timed: plain `session.run`.

    Its values are raw: NumPy arrays, or OrtValues where a tensor's type is none of NumPy's. It raises SessionFailed.
    """
    kinds = _kinds(session, outputs)
    names = list(kinds)
    exotic = not _NUMPY_KNOWS.issuperset(kinds.values()) or any(map(_exotic, feeds.values()))
    values = {name: _ort_value(name, value) if exotic else value for name, value in feeds.items()}
    call = session.run_with_ort_values if exotic else session.run

    def once() -> list[Any]:
        try:
            return list(call(names, values))
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise SessionFailed(f"ONNX Runtime cannot run the model: {reason(error)}.") from error

    return once


def _options(runtime: Runtime, external: Path | None, spin: bool, optimized_to: Path | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.graph_optimization_level = _LEVELS[runtime.level]
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if external is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(external))
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
        # In a data file, because a protobuf message ends at 2 GB.
        data = optimized_to.name + ".data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    return options


def _serialised(model: bytes | onnx.ModelProto) -> bytes:
    if isinstance(model, bytes):
        return model
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # protobuf says ValueError, EncodeError or RuntimeError, depending on its backend
        raise SessionFailed(
            f"The model cannot be serialised ({reason(error)}): keep its weights as external data."
        ) from error


def _kinds(session: ort.InferenceSession, outputs: Sequence[str] | None) -> dict[str, str]:
    """ONNX Runtime's type, like "tensor(float)", of each output asked for."""
    kinds: dict[str, str] = {value.name: value.type for value in session.get_outputs()}
    if outputs is None:
        return kinds
    for name in outputs:
        if name not in kinds:
            raise SessionFailed(f"The model has no output {name!r}: its outputs are {_listed(list(kinds))}.")
    return {name: kinds[name] for name in outputs}


def _exotic(value: np.ndarray) -> bool:
    return value.dtype.isbuiltin == 2  # registered with NumPy by a package, as ml_dtypes does


def _ort_value(name: str, value: np.ndarray) -> ort.OrtValue:
    """`value` for ONNX Runtime, which reads the array's memory in place and keeps it alive."""
    array = np.asarray(value, order="C")
    if not _exotic(array):
        return ort.OrtValue.ortvalue_from_numpy(array)
    code = helper.np_dtype_to_tensor_dtype(array.dtype)
    if array.dtype.name in _PACKED:
        raise SessionFailed(f"The input {name!r} is {array.dtype.name}, which ONNX Runtime's Python API cannot be fed.")
    raw = array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, code)


def _tensor(name: str, value: Any, kind: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, ort.OrtValue) or not value.is_tensor():
        raise SessionFailed(f"The output {name!r} is {kind}, not a tensor: it cannot be compared.")
    if kind in _NUMPY_KNOWS:
        return np.asarray(value.numpy())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    proto = TensorProto(data_type=value.element_type(), dims=value.shape(), raw_data=raw)
    return np.asarray(numpy_helper.to_array(proto))


def _called(model: bytes | Path | onnx.ModelProto) -> str:
    return str(model) if isinstance(model, Path) else "the model"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
