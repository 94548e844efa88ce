"""A model that is run many times in a row: on the CPU as users do, on CUDA with everything kept on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import onnxruntime as ort

from rewriter.session import Runtime, SessionFailed, open_session, prepare, reason, run
from rewriter.timing.records import Contender


class Runner(Protocol):
    """A loaded model with its inputs. Both methods raise SessionFailed."""

    def repeat(self, runs: int) -> None:
        """Run the model `runs` times and return when the last run is complete."""

    def outputs(self) -> dict[str, np.ndarray]:
        """Run the model once and return what it computed."""


OpenRunner = Callable[[Contender, Runtime, Mapping[str, np.ndarray]], Runner]


def open_runner(contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Runner:
    """A session of its own for `contender`. Raises NotVerified without the provider, SessionFailed if it cannot load.

    Worker threads spin while a run is under way, as they do for users, and sleep while other sessions are timed.
    """
    session = open_session(contender.model, runtime, external_folder=contender.external_folder, spin=True)
    return PlainRunner(session, feeds) if runtime.provider == "cpu" else BoundRunner(session, feeds, runtime)


class NamedRunner:
    """Another runner, whose failures say which model they are about."""

    def __init__(
        self, contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray], open_with: OpenRunner
    ) -> None:
        self._name = contender.name
        with self._named():
            self._runner = open_with(contender, runtime, feeds)

    def repeat(self, runs: int) -> None:
        with self._named():
            self._runner.repeat(runs)

    def outputs(self) -> dict[str, np.ndarray]:
        with self._named():
            return self._runner.outputs()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SessionFailed as error:
            raise SessionFailed(f"{self._name!r} cannot be timed: {error}") from error


class PlainRunner:
    """`session.run` with NumPy arrays: what users call, copies and allocations included."""

    def __init__(self, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> None:
        self._session = session
        self._feeds = feeds
        self._once = prepare(session, feeds)

    def repeat(self, runs: int) -> None:
        for _ in range(runs):
            self._once()

    def outputs(self) -> dict[str, np.ndarray]:
        return run(self._session, self._feeds)


class BoundRunner:
    """Inputs and outputs stay on the device, so that no copy over the bus is timed; waits for the device at the end."""

    def __init__(
        self, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], runtime: Runtime, device: str = "cuda"
    ) -> None:
        self._session = session
        self._names = [value.name for value in session.get_outputs()]
        self._binding = session.io_binding()
        number = int(dict(runtime.provider_options).get("device_id", "0"))
        try:
            for name, value in feeds.items():
                self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, number))
            for name in self._names:
                self._binding.bind_output(name, device, number)
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise SessionFailed(
                f"ONNX Runtime cannot place the model's inputs on {device}: {reason(error)}."
            ) from error

    def repeat(self, runs: int) -> None:
        try:
            for _ in range(runs):
                self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise SessionFailed(f"ONNX Runtime cannot run the model: {reason(error)}.") from error

    def outputs(self) -> dict[str, np.ndarray]:
        self.repeat(1)
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))
