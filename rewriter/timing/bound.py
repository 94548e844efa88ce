"""A model whose inputs and outputs stay on the device while it is timed, captured as a CUDA graph if that is asked for.

How ONNX Runtime captures: the run option gpu_graph_id is -1 for runs that must stay ordinary; any other run of a
session with enable_cuda_graph=1 makes the ordinary runs it needs, captures one, and from then on only replays it. The
graph belongs to the thread that captured it, reads and writes the addresses it was captured with, and takes only
models without control flow whose nodes all run on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnxruntime as ort

from rewriter.session import SessionFailed, reason
from rewriter.timing.tensors import BoundTensor, Place, Signature, reserve, signature_of, upload

# What ONNX Runtime says when it refuses a graph, and what that means.
_REFUSALS: Final = (
    ("control flow", "it has control flow (If, Loop or Scan)"),
    ("partitioned", "some of its nodes run on the CPU"),
    ("assigned", "some of its nodes run on the CPU"),
)


class BoundRunner:
    """Inputs are placed on the device once and outputs have fixed addresses there, so that no copy is ever timed.

    The outputs' shapes are those of two ordinary runs, in which cuDNN also chooses its algorithms. ONNX Runtime waits
    for the device at the end of each run, as it does for users, so a block is that many complete runs.
    """

    def __init__(
        self, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], place: Place, *, captures: bool = False
    ) -> None:
        """Raises SessionFailed where the model cannot be bound, run or captured."""
        self._session = session
        self._place = place
        self._binding = session.io_binding()
        self._ordinary = _uncaptured() if captures else None
        self.inputs = self._placed_inputs(feeds)
        """What the model reads; a tensor written to is what the next run sees, replays included."""
        self.bound_outputs = self._placed_outputs(self._signatures())
        """What the model writes into."""
        if captures:
            self._capture()

    def repeat(self, runs: int) -> None:
        """Run the model `runs` times; returns when the device is done."""
        self._complete(runs, None)

    def outputs(self) -> dict[str, np.ndarray]:
        """Run the model once more and copy its outputs from where they are bound."""
        self.repeat(1)
        return {name: tensor.read() for name, tensor in self.bound_outputs.items()}

    def _complete(self, runs: int, options: ort.RunOptions | None) -> None:
        try:
            for _ in range(runs):
                self._session.run_with_iobinding(self._binding, options)
            self._binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise SessionFailed(f"ONNX Runtime cannot run the model: {reason(error)}.") from error

    def _placed_inputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, BoundTensor]:
        tensors = {}
        try:
            for name, array in feeds.items():
                tensors[name] = upload(name, array, self._place)
                tensors[name].bind_input(self._binding, name)
            self._binding.synchronize_inputs()
        except SessionFailed:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise self._unplaced("inputs", error) from error
        return tensors

    def _signatures(self) -> dict[str, Signature]:
        """Type and shape of every output: those of one ordinary run, and of another on the same inputs."""
        first, second = self._ran_freely(), self._ran_freely()
        for name, signature in first.items():
            if signature != second[name]:
                raise SessionFailed(
                    f"The output {name!r} has shape {list(signature.shape)} in one run and "
                    f"{list(second[name].shape)} in the next on the same inputs, and bound outputs need fixed shapes: "
                    "time the model on the cpu."
                )
        return first

    def _ran_freely(self) -> dict[str, Signature]:
        """Run once with outputs that ONNX Runtime allocates on the device."""
        names = [value.name for value in self._session.get_outputs()]
        try:
            for name in names:  # anew each time: what a run has allocated stays bound
                self._binding.bind_output(name, self._place.device, self._place.number)
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise self._unplaced("outputs", error) from error
        self._complete(1, self._ordinary)
        return {name: signature_of(name, value) for name, value in zip(names, self._binding.get_outputs(), strict=True)}

    def _placed_outputs(self, signatures: Mapping[str, Signature]) -> dict[str, BoundTensor]:
        tensors = {}
        try:
            for name, signature in signatures.items():
                tensors[name] = reserve(name, signature, self._place)
                tensors[name].bind_output(self._binding, name)
        except SessionFailed:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
            raise self._unplaced("outputs", error) from error
        return tensors

    def _capture(self) -> None:
        try:
            self._complete(1, None)
        except SessionFailed as error:
            raise cannot_capture(error) from error

    def _unplaced(self, what: str, error: Exception) -> SessionFailed:
        return SessionFailed(f"ONNX Runtime cannot place the model's {what} on {self._place}: {reason(error)}.")


def refuses_capture(error: SessionFailed) -> bool:
    """Whether a session could not be opened only because its graph cannot be captured."""
    return "graph capture feature" in str(error)


def cannot_capture(error: SessionFailed) -> SessionFailed:
    """The error in one sentence that says what to do."""
    text = str(error).rstrip(".")
    why = next((why for mark, why in _REFUSALS if refuses_capture(error) and mark in text), f"it failed ({text})")
    return SessionFailed(
        f"The model cannot be captured as a CUDA graph, because {why}: time it without the provider option "
        "enable_cuda_graph=1."
    )


def _uncaptured() -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options
