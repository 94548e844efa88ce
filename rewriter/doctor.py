"""What this machine offers: versions, processor, providers, the fast path, and the other tools that are installed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from onnx import TensorProto, helper

from rewriter.census import nchwc_block
from rewriter.errors import RewriterError
from rewriter.report.record import environment
from rewriter.session import Provider, Runtime, open_session, run

_TOOLS = ("numpy", "scipy", "protobuf", "pydantic", "typer", "rich")
_PEERS = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "polygraphy", "onnxruntime-gpu", "torch", "tensorflow")
"""Tools that are not needed, but that users compare with or export from."""


@dataclass(frozen=True)
class Fact:
    """One thing found out: what, and what was found."""

    what: str
    found: str


def examine() -> list[Fact]:
    """Everything, one fact each; what is missing is a fact too, never an error."""
    known = environment(Runtime())
    facts = [Fact(name, known[name]) for name in ("onnx-conv-rewriter", "python", "machine", "processor")]
    facts.append(Fact("cores", cores()))
    facts += [Fact(name, known[name]) for name in ("onnx", "onnxruntime", "onnx-graphsurgeon")]
    facts.append(Fact("other packages", ", ".join(f"{name} {_version(name)}" for name in _TOOLS)))
    facts.append(Fact("cpu provider", provider_problem("cpu") or "works"))
    facts.append(Fact("cuda provider", provider_problem("cuda") or "works"))
    facts.append(Fact("fast convolutions", fast_path()))
    facts += [Fact(f"peer {name}", _version(name)) for name in _PEERS]
    return facts


def cores() -> str:
    """Processors in the machine, and those this process may use."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return f"{total}" if usable == total else f"{total}, of which this process may use {usable}"


def provider_problem(provider: Provider) -> str | None:
    """Why a model cannot run on `provider` here; None when one was seen to run."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", values[:1], values[1:])
    # An old opset and IR version, so that every supported ONNX Runtime loads it.
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    try:
        run(open_session(probe, Runtime(provider)), {"x": np.ones(1, np.float32)})
    except RewriterError as error:
        return f"not available: {error}"
    return None


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
