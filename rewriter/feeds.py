"""One set of inputs to run a model with: the user's own, or seeded ones at the shapes that are known or chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from rewriter.bindings import describe, find_bindings
from rewriter.errors import BadInput, NotVerified
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.shapes import Shape


@dataclass(frozen=True)
class Inputs:
    """Feeds for one run, and the shapes of those inputs that had a dimension nobody gave."""

    feeds: Feeds
    chosen: Mapping[str, Shape]

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(array.shape) for name, array in self.feeds.items()}


def representative(model: Model, options: RunOptions) -> Inputs:
    """The user's first sample, or inputs of batch 1: standard normal floats, integers below 2, all seeded.

    Raises BadInput when the sample lacks an input, NotVerified when an input is no tensor or has no known rank.
    """
    if options.samples:
        missing = [value.name for value in model.inputs if value.name not in options.samples[0]]
        if missing:
            raise BadInput(f"the given inputs have no array for the model's input '{missing[0]}'.")
        return Inputs({value.name: options.samples[0][value.name] for value in model.inputs}, {})
    binding = find_bindings(model, options.input_shapes, (1,))[0]
    rng = np.random.default_rng(options.seed)
    feeds = {value.name: _draw(value, binding.shapes.get(value.name), rng) for value in model.inputs}
    return Inputs(feeds, binding.chosen)


def _draw(value: onnx.ValueInfoProto, shape: Shape | None, rng: np.random.Generator) -> np.ndarray:
    if shape is None:
        raise NotVerified(f"input '{value.name}' has {describe(value)}: give its shape with --input-shape or --inputs.")
    elem_type = value.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    if dtype.kind == "O" or elem_type == onnx.TensorProto.STRING:
        raise NotVerified(f"input '{value.name}' holds strings: give its values with --inputs.")
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
