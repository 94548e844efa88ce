"""The execution providers of ONNX Runtime that models are run on, as data: one record each, looked up by name.

What is different about a provider stands here and nowhere else; the rest of the code asks the record.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
        for folder in _library_folders():
            # A folder has one or the other; for what it has not, the system's copy would be loaded too, and first.
            cudnn = folder is None or any(Path(folder).glob("libcudnn*"))
            try:
                ort.preload_dlls(cuda=folder is None or not cudnn, cudnn=cudnn, directory=folder)
            except Exception as error:  # noqa: BLE001 - never a reason to stop: opening a session shows what is missing
                said.write(f"{error}\n")
    return " ".join(said.getvalue().split())


def _library_folders() -> tuple[str | None, ...]:
    """Where to look for NVIDIA's libraries, in order; None is where ONNX Runtime looks by itself.

    That is beside itself, and then where the operating system's loader looks.  Packages that lie elsewhere on Python's
    path (ONNX Runtime in a folder of its own, they in another) come before it, or else the system's copy would be
    loaded besides theirs.
    """
    try:
        import nvidia
    except ImportError:
        return (None,)
    beside = Path(ort.__file__).resolve().parents[1] / "nvidia"
    roots = [Path(root) for root in nvidia.__path__]
    if any(root.resolve() == beside for root in roots):
        return (None,)
    return (*(str(folder) for root in roots for folder in sorted(root.glob("*/lib")) if folder.is_dir()), None)
