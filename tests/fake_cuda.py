"""A CUDA provider for machines without a GPU: the CPU's, under CUDA's name, with faults that GPUs have, if asked for.

Everything but the kernels is what runs on a GPU: options, bindings, audits, reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from rewriter.providers import PROVIDERS
from rewriter.session import Runtime

Array = np.ndarray[Any, Any]
Fault = Callable[[Array], Array]
Change = Callable[[onnx.NodeProto], Sequence[onnx.NodeProto]]

CUDA = Runtime("cuda", provider_options=(("device_id", "0"),))
"""A runtime whose sessions the faults below recognise by its having options, as the CPU's never do."""


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `cuda` mean ONNX Runtime's CPU provider."""
    stand_in = replace(PROVIDERS["cuda"], onnxruntime="CPUExecutionProvider", device="cpu")
    monkeypatch.setitem(PROVIDERS, "cuda", stand_in)


def faulty_cuda(
    monkeypatch: pytest.MonkeyPatch,
    *,
    outputs: Fault = lambda value: value,
    operands: Fault = lambda value: value,
    tf32_only: bool = False,
) -> list[Mapping[str, str]]:
    """The same with a fault on every floating-point output, or on every weight and input of a session.

    With `tf32_only` the fault is there only in sessions that may compute in TF32.  Returns the provider options of the
    sessions that had it, as they are opened.
    """
    fake_cuda(monkeypatch)
    bent: list[Mapping[str, str]] = []
    real = ort.InferenceSession

    def open_bent(source: Any, options: Any, *, providers: Any, provider_options: Any = ({},), **others: Any) -> Any:
        (given,) = provider_options
        wanted = bool(given) and not (tf32_only and given.get("use_tf32") == "0")
        model = _bent_model(source, operands) if wanted else source
        opened = real(model, options, providers=providers, provider_options=provider_options, **others)
        if not wanted:
            return opened
        bent.append(given)
        return _Bent(opened, operands, outputs)

    monkeypatch.setattr(ort, "InferenceSession", open_bent)
    return bent


def wrong_kernels(monkeypatch: pytest.MonkeyPatch, change: Change, *, optimized_only: bool = False) -> None:
    """The same with other nodes in place of some: what wrong kernels compute; an empty list keeps the node.

    With `optimized_only` they are there only at levels above ORT_DISABLE_ALL.
    """
    fake_cuda(monkeypatch)
    real = ort.InferenceSession

    def open_wrong(
        source: Any, options: Any, *, providers: Any, provider_options: Any = ({},), **others: Any
    ) -> ort.InferenceSession:
        plain = options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if not provider_options[0] or (optimized_only and plain):
            return real(source, options, providers=providers, provider_options=provider_options, **others)
        model = onnx.load(Path(source)) if isinstance(source, str) else onnx.load_from_string(source)
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for o in model.graph.node for n in change(o) or [o]]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        wrong = model.SerializeToString()
        return real(wrong, options, providers=providers, provider_options=provider_options, **others)

    monkeypatch.setattr(ort, "InferenceSession", open_wrong)


def to_tf32(value: Array) -> Array:
    """float32 rounded to the 11 bits of a TF32 operand; other types as they are."""
    if value.dtype != np.float32:
        return value
    mantissa, exponent = np.frexp(value)
    return np.asarray(np.ldexp(np.round(mantissa * 2.0**11) / 2.0**11, exponent), np.float32)


def _bent_model(source: str | bytes, fault: Fault) -> bytes:
    model = onnx.load(Path(source)) if isinstance(source, str) else onnx.load_from_string(source)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(fault(value), tensor.name))
    return bytes(model.SerializeToString())


class _Bent:
    """A session whose float operands and outputs go through a fault."""

    def __init__(self, opened: ort.InferenceSession, operands: Fault, outputs: Fault) -> None:
        self._opened, self._operands, self._outputs = opened, operands, outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Any]:
        bent = {name: self._operands(value) if value.dtype.kind == "f" else value for name, value in feeds.items()}
        found = self._opened.run(names, bent)
        return [self._outputs(value) if value.dtype.kind == "f" else value for value in found]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)
