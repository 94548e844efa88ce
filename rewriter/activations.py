"""What tensors hold when the model runs: captured by running it once with them as further outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from rewriter.model import Model
from rewriter.options import Feeds
from rewriter.session import Runtime, open_session, run


def capture(model: Model, names: Collection[str], samples: Sequence[Feeds], runtime: Runtime) -> list[Feeds]:
    """Each sample, complete with the tensors named: one run of the unoptimized model each.

    Raises SessionFailed where the model does not run on a sample.
    """
    known = {value.name for value in model.skeleton.graph.input}
    present = {value.name for value in model.outputs}
    asked = sorted(set(names) - known)
    if not asked:
        return [dict(sample) for sample in samples]
    extra = [onnx.ValueInfoProto(name=name) for name in asked if name not in present]
    whole = model.with_outputs(extra) if extra else model
    session = open_session(whole.to_bytes(), runtime.plain().at("disable"), external_folder=model.folder)
    return [
        {**sample, **run(session, {name: sample[name] for name in sample if name in known}, asked)}
        for sample in samples
    ]


@dataclass(frozen=True, eq=False)
class Activations:
    """What the convolutions of a model read on given inputs, captured when it is first asked for."""

    model: Model
    samples: Sequence[Feeds]
    runtime: Runtime

    def at(self, tensor: str) -> tuple[np.ndarray, ...]:
        """The tensor on each sample; empty where no convolution reads it, or the model makes nothing of it."""
        return tuple(found[tensor] for found in self._captured if tensor in found)

    @cached_property
    def _captured(self) -> list[Feeds]:
        made = {name for node in self.model.nodes for name in node.output}
        read = {node.input[0] for node in self.model.nodes if node.op_type == "Conv" and node.input}
        return capture(self.model, read & made, self.samples, self.runtime)
