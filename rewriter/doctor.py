"""What this machine offers: versions, processor, providers and GPUs, the fast path, and the other tools installed."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import onnxruntime as ort

from rewriter import nvidia
from rewriter.census import nchwc_block
from rewriter.diagnosis import built_for, distributions, problem
from rewriter.errors import RewriterError
from rewriter.exactness import exactness
from rewriter.providers import PROVIDERS, Provider, preload
from rewriter.report.record import environment
from rewriter.session import Runtime

_PACKAGES: Final = ("numpy", "scipy", "protobuf", "pydantic", "typer", "rich")
_TOOLS: Final = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "polygraphy", "torch", "tensorflow")
"""Tools that are not needed, but that users compare with or export from."""
_NARROWEST: Final = 30
"""Columns that sentences get, however narrow the terminal."""
_GIB: Final = 2**30


@dataclass(frozen=True)
class Fact:
    """One thing found out: what, and what was found."""

    what: str
    found: str
    """In lines that fit behind the longest `what` and two blanks; the later ones are indented."""


def examine(columns: int = 80, *, tools: bool = False) -> list[Fact]:
    """Everything, one fact each, folded to `columns`; what is missing is a fact too, never an error.

    With `tools` also those beside this one.
    """
    facts = list(_facts())
    if tools:
        facts += (Fact(f"other tool {name}", _version(name)) for name in _TOOLS)
    indent = max(len(fact.what) for fact in facts) + 2
    return [Fact(fact.what, folded(fact.found, indent, columns)) for fact in facts]


def _facts() -> Iterator[Fact]:
    known = environment(Runtime())
    for name in ("onnx-conv-rewriter", "python", "machine", "processor"):
        yield Fact(name, known[name])
    yield Fact("cores", cores())
    yield Fact("onnx", known["onnx"])
    yield Fact("onnxruntime", ort.__version__)
    yield Fact("onnxruntime package", packages())
    yield Fact("onnx-graphsurgeon", known["onnx-graphsurgeon"])
    yield Fact("other packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    for provider in PROVIDERS:
        yield from provider_facts(provider)
    yield from gpu_facts()
    yield Fact("fast convolutions", fast_path())


def folded(text: str, indent: int, columns: int) -> str:
    """`text` in lines that leave room for `indent` of the columns; commands between backticks stay whole."""
    fixed = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\xa0"), text)
    lines = textwrap.wrap(fixed, max(_NARROWEST, columns - indent), break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines).replace("\xa0", " ")


def cores() -> str:
    """Processors in the machine, and those this process may use."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return f"{total}" if usable == total else f"{total}, of which this process may use {usable}"


def packages() -> str:
    """The distributions that bring ONNX Runtime, of which only one may be installed."""
    found = distributions()
    named = " and ".join(f"{name} {_version(name)}" for name in found) or "unknown (not installed by pip)"
    if len(found) < 2:
        return named
    return (
        f"{named}, which overwrite each other's files: `pip uninstall -y {' '.join(found)}`, then install one of them"
    )


def provider_facts(provider: Provider) -> Iterator[Fact]:
    """Whether a model can run on `provider`, which is said only when one was seen to run, and how exactly it adds."""
    wrong = problem(provider)
    yield Fact(f"{provider} provider", f"not available: {wrong}" if wrong else "works")
    if wrong:
        yield Fact(f"{provider} exactness", "not probed")
        return
    try:
        found = exactness(Runtime(provider)).summary()
    except RewriterError as error:
        found = f"unknown: {error}"
    yield Fact(f"{provider} exactness", found)


def gpu_facts() -> Iterator[Fact]:
    """CUDA and cuDNN, those wanted and those found, the driver, and the devices."""
    yield Fact("cuda libraries", cuda_libraries())
    yield Fact("nvidia driver", driver())
    devices = nvidia.devices()
    if not devices:
        yield Fact("gpus", "none found")
    for device in devices:
        memory = "" if device.memory is None else f", {device.memory / _GIB:.1f} GiB"
        major, minor = device.capability
        yield Fact(f"gpu {device.index}", f"{device.name}, compute capability {major}.{minor}{memory}")


def cuda_libraries() -> str:
    """What ONNX Runtime was built for, and what is there: as packages, or where the system looks."""
    built = built_for()
    if built is None:
        return "not used: the installed ONNX Runtime was built without CUDA"
    preload("cuda")
    runtime, cudnn = nvidia.cuda_runtime(built[0]), nvidia.cudnn()
    found = [f"CUDA runtime {runtime[0]}.{runtime[1]}"] if runtime else [f"no CUDA {built[0]} runtime"]
    found.append(f"cuDNN {cudnn}" if cudnn else "no cuDNN 9")
    return f"ONNX Runtime was built for CUDA {built[0]}.{built[1]} and cuDNN 9; found: {', '.join(found)}"


def driver() -> str:
    """The version of NVIDIA's driver, and the newest CUDA that it supports."""
    name, cuda = nvidia.driver_version(), nvidia.driver_cuda()
    if name is None and cuda is None:
        return "not found"
    supports = f", supports CUDA up to {cuda[0]}.{cuda[1]}" if cuda else ""
    return (name or "version unknown") + supports


def fast_path() -> str:
    """Whether ONNX Runtime has blocked (NCHWc) convolutions for this processor, and their width."""
    try:
        block = nchwc_block()
    except RewriterError as error:
        return f"unknown: {error}"
    if not block:
        return "none: ONNX Runtime has no blocked (NCHWc) convolutions for this processor"
    return f"blocks of {block} channels (NCHWc): a group takes them when its width is a multiple of {block}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
