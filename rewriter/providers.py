"""The execution providers of ONNX Runtime that models are run on, as data: one record each, looked up by name.

What is different about a provider stands here and nowhere else; the rest of the code asks the record.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import onnxruntime as ort

Provider = Literal["cpu", "cuda"]
"""Where a model is run."""


@dataclass(frozen=True)
class ExecutionProvider:
    """One execution provider, and how it has to be treated."""

    name: Provider
    onnxruntime: str
    """Its name in ONNX Runtime."""
    package: str
    """What to install for it, as pip takes it."""
    device: str
    """The device of I/O binding that holds its tensors."""
    bound: bool = False
    """Timed with inputs and outputs bound to the device, as deployments that care for time do."""
    takes_options: bool = False
    """Whether it has options at all; ONNX Runtime accepts any for its CPU provider and ignores them."""
    audit_options: tuple[tuple[str, str], ...] = ()
    """Options that audits set over the user's: full precision, and plain runs that NumPy arrays can be fed to."""
    reduces: bool = False
    """Whether float32 products are rounded to TF32 (11 bits) unless the option use_tf32 is 0."""
    widths: tuple[int, ...] = ()
    """Channels per group worth a measurement: what the matrix units of such devices take at once."""


PROVIDERS: Final[dict[Provider, ExecutionProvider]] = {
    "cpu": ExecutionProvider("cpu", "CPUExecutionProvider", "onnxruntime", "cpu"),
    "cuda": ExecutionProvider(
        "cuda",
        "CUDAExecutionProvider",
        "onnxruntime-gpu[cuda,cudnn]",
        "cuda",
        bound=True,
        takes_options=True,
        audit_options=(("enable_cuda_graph", "0"), ("use_tf32", "0")),
        reduces=True,
        # cuDNN's tensor-core kernels want multiples of 4 channels in TF32 and of 8 in float16; wider ones for reuse.
        widths=(4, 8, 16, 32),
    ),
}


def available(provider: Provider) -> bool:
    """Whether the installed ONNX Runtime was built with `provider` (its libraries may still fail to load)."""
    return PROVIDERS[provider].onnxruntime in ort.get_available_providers()


def merged(options: tuple[tuple[str, str], ...], over: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """`options` with those of `over` in their place, or behind them."""
    kept = tuple((key, over.get(key, value)) for key, value in options)
    present = dict(options)
    return kept + tuple((key, value) for key, value in over.items() if key not in present)


def preload(provider: Provider) -> str:
    """Load the provider's libraries out of their own pip packages, once; returns what ONNX Runtime says about it.

    `onnxruntime-gpu[cuda,cudnn]` brings CUDA and cuDNN as packages, which the loader of the operating system does not
    search; without this the provider would not start.  Libraries that are not in packages are left to that loader.
    """
    return _preloaded() if PROVIDERS[provider].onnxruntime == "CUDAExecutionProvider" else ""


@functools.cache
def _preloaded() -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it cannot load
        for folder in (None, *_library_folders()):
            try:
                ort.preload_dlls(directory=folder)
            except Exception as error:  # noqa: BLE001 - never a reason to stop: opening a session shows what is missing
                said.write(f"{error}\n")
    return " ".join(said.getvalue().split())


def _library_folders() -> tuple[str, ...]:
    """Folders with NVIDIA's libraries that are on Python's path, but not beside ONNX Runtime where it looks itself."""
    try:
        import nvidia
    except ImportError:
        return ()
    from pathlib import Path

    beside = Path(ort.__file__).resolve().parents[1] / "nvidia"
    roots = [Path(root) for root in nvidia.__path__ if Path(root).resolve() != beside]
    return tuple(str(folder) for root in roots for folder in sorted(root.glob("*/lib")) if folder.is_dir())
