"""OpenVINO as a contender of a measurement: the same inputs, threads and float32 as ONNX Runtime has."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_tools import openvino_config
from rewriter.session import Runtime, SessionFailed
from rewriter.timing import Contender


class OpenVINO:
    """A compiled model whose inputs are given as arrays, which it reads in place as `session.run` does.

    Raises SessionFailed where OpenVINO cannot load or run the model.
    """

    def __init__(self, contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> None:
        assert isinstance(contender.model, Path)
        core: Any = importlib.import_module("openvino").Core()
        self._feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        try:
            model = core.read_model(contender.model)
            model.reshape({name: list(value.shape) for name, value in feeds.items()})
            self._compiled = core.compile_model(model, "CPU", openvino_config(runtime.threads))
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # OpenVINO's exceptions have no base class but RuntimeError and others
            raise SessionFailed(f"OpenVINO cannot load it: {_said(error)}") from error

    @property
    def threads(self) -> int:
        """How many it runs with."""
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def repeat(self, runs: int) -> None:
        try:
            for _ in range(runs):
                self._request.infer(self._feeds, share_inputs=True, share_outputs=True)
        except Exception as error:  # as above
            raise SessionFailed(f"OpenVINO cannot run it: {_said(error)}") from error

    def outputs(self) -> dict[str, np.ndarray]:
        """By any of the names that OpenVINO gives an output: see `named` for which."""
        self.repeat(1)
        found: dict[str, np.ndarray] = {}
        for port in self._compiled.outputs:
            value = np.array(self._request.get_tensor(port).data)
            found |= {str(name): value for name in port.get_names()}
        return found


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-2:])[:300] or type(error).__name__
