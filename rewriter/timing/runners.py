"""A model that is run many times in a row: on the CPU as users do, on a device with everything kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import onnxruntime as ort

from rewriter.providers import PROVIDERS
from rewriter.session import Runtime, SessionFailed, open_session, prepare, run
from rewriter.timing.bound import BoundRunner, cannot_capture, refuses_capture
from rewriter.timing.records import Contender
from rewriter.timing.tensors import Place


class Runner(Protocol):
    """A loaded model with its inputs. Both methods raise SessionFailed."""

    def repeat(self, runs: int) -> None:
        """Run the model `runs` times and return when the last run is complete."""

    def outputs(self) -> dict[str, np.ndarray]:
        """Run the model once and return what it computed."""


OpenRunner = Callable[[Contender, Runtime, Mapping[str, np.ndarray]], Runner]


def open_runner(contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Runner:
    """A session of its own for `contender`, bound to the device where the provider's record says so.

    Worker threads spin while a run is under way, as they do for users, and sleep while other sessions are timed.
    Raises NotVerified without the provider, SessionFailed if the model cannot load, or be captured if that is asked.
    """
    provider = PROVIDERS[runtime.provider]
    try:
        session = open_session(contender.model, runtime, external_folder=contender.external_folder, spin=True)
    except SessionFailed as error:
        raise (cannot_capture(error) if refuses_capture(error) else error) from error
    if not provider.bound:
        return PlainRunner(session, feeds)
    return BoundRunner(session, feeds, Place(provider.device, runtime.device), captures=runtime.captures)


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
