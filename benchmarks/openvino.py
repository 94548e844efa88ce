"""OpenVINO as a contender of a measurement: the same inputs, threads and float32 as ONNX Runtime has."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.session import Runtime, SessionFailed
from rewriter.timing import Contender
from rewriter.timing.runners import Runner, open_runner


def openvino_version() -> str:
    """The version that is installed; empty where it is not."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return ""


def open_with(contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Runner:
    """OpenVINO for the contender of that name, ONNX Runtime for all others."""
    if contender.name != "openvino":
        return open_runner(contender, runtime, feeds)
    return _OpenVINO(contender, runtime, feeds)


class _OpenVINO:
    """A compiled model whose inputs are given as arrays, as with `session.run`."""

    def __init__(self, contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> None:
        assert isinstance(contender.model, Path)
        core: Any = importlib.import_module("openvino").Core()
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            **({"INFERENCE_NUM_THREADS": str(runtime.threads)} if runtime.threads else {}),
        }
        try:
            model = core.read_model(contender.model)
            model.reshape({name: list(value.shape) for name, value in feeds.items()})
            self._compiled = core.compile_model(model, "CPU", config)
        except Exception as error:  # OpenVINO's exceptions have no base class but RuntimeError and others
            raise SessionFailed(f"OpenVINO cannot load it: {str(error).splitlines()[0]}") from error
        self._feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        self._request = self._compiled.create_infer_request()

    def repeat(self, runs: int) -> None:
        for _ in range(runs):
            self._request.infer(self._feeds)

    def outputs(self) -> dict[str, np.ndarray]:
        results = self._request.infer(self._feeds)
        return {port.get_any_name(): np.array(value) for port, value in results.items()}
