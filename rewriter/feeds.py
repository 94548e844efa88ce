"""One set of inputs to run a model with: the user's own, or seeded ones at the shapes that are known or chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from rewriter.bindings import describe, find_bindings, known_size
from rewriter.errors import BadInput, NotVerified
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.ranges import Range, check_ranges, draw_between, range_of, takes_range
from rewriter.samples import Samples
from rewriter.shapes import Shape


@dataclass(frozen=True)
class Inputs:
    """Feeds for one run, and the shapes of those inputs that had a dimension nobody gave."""

    feeds: Feeds
    chosen: Mapping[str, Shape]

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(array.shape) for name, array in self.feeds.items()}

    @property
    def batch(self) -> int:
        """Items that one run takes: the size of the first axis, where that is the same of all inputs; else 1."""
        sizes = {shape[0] if shape else None for shape in self.shapes.values()}
        (size,) = sizes if len(sizes) == 1 else (None,)
        return size or 1


def representative(model: Model, options: RunOptions) -> Inputs:
    """The user's first sample, or inputs of batch 1 or as asked: standard normal floats, integers below 2, all seeded.

    Where the user gave a range they are uniform in it.  Raises BadInput when the sample does not fit the model (see
    `check_samples`), NotVerified when an input is no tensor or has no known rank.
    """
    if options.samples:
        check_samples(model, options.samples[:1])
        first = options.samples[0]
        return Inputs({value.name: first[value.name] for value in model.inputs}, {})
    binding = find_bindings(model, options.input_shapes, (options.batch or 1,))[0]
    rng = np.random.default_rng(options.seed)
    feeds = {
        value.name: _draw(value, binding.shapes.get(value.name), rng, range_of(options.ranges, value.name))
        for value in model.inputs
    }
    return Inputs(feeds, binding.chosen)


def check_samples(model: Model, samples: Sequence[Feeds]) -> None:
    """Raise BadInput unless every sample has an array of the declared type and shape for each input, and no other."""
    for number, sample in enumerate(samples):
        which = _which(samples, number)
        for value in model.inputs:
            if value.name not in sample:
                raise BadInput(f"{which} have no array for the model's input '{value.name}' ({_declared(value)}).")
            array = sample[value.name]
            if not _fits(value, array):
                found = f"{array.dtype} {list(array.shape)}"
                raise BadInput(f"{which} have {found} for '{value.name}', which the model declares {_declared(value)}.")
        known = [value.name for value in model.inputs]
        for name in sample:
            if name not in known:
                listed = ", ".join(f"'{entry}'" for entry in known) or "none"
                raise BadInput(f"{which} have an array '{name}', but the model's inputs are: {listed}.")


def check_names(model: Model, options: RunOptions) -> None:
    """Raise BadInput for a range that does not fit the model's inputs, and for a tolerance of no output."""
    check_ranges(model.inputs, options.ranges)
    known = [value.name for value in model.outputs]
    for name in options.tolerances:
        if name and name not in known:
            listed = ", ".join(f"'{entry}'" for entry in known) or "none"
            raise BadInput(f"a tolerance is for '{name}', but the model's outputs are: {listed}.")


def _which(samples: Sequence[Feeds], number: int) -> str:
    if isinstance(samples, Samples):
        return samples.where(number)
    return "the given inputs" if len(samples) == 1 else f"the given inputs number {number + 1}"


def _fits(value: onnx.ValueInfoProto, array: np.ndarray) -> bool:
    """Whether an array has the type, rank and fixed sizes that are declared; what is no tensor is not judged."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return True
    if kind.elem_type == onnx.TensorProto.STRING:
        same = array.dtype.kind in "OUST"
    else:
        same = array.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if not same or not kind.HasField("shape"):
        return same
    dims = kind.shape.dim
    return len(dims) == array.ndim and all(
        known_size(dim) in (None, size) for dim, size in zip(dims, array.shape, strict=True)
    )


def _declared(value: onnx.ValueInfoProto) -> str:
    """`float32 [N, 3, 224, ?]`."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return "as no tensor"
    if kind.elem_type == onnx.TensorProto.STRING:
        name = "string"
    else:
        name = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return f"{name} {describe(value)}" if kind.HasField("shape") else f"{name} of any shape"


def _draw(
    value: onnx.ValueInfoProto, shape: Shape | None, rng: np.random.Generator, between: Range | None
) -> np.ndarray:
    if shape is None:
        raise NotVerified(f"input '{value.name}' has {describe(value)}: give its shape with --input-shape or --inputs.")
    elem_type = value.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    if dtype.kind == "O" or elem_type == onnx.TensorProto.STRING:
        raise NotVerified(f"input '{value.name}' holds strings: give its values with --inputs.")
    if between is not None and takes_range(elem_type):
        return draw_between(rng, shape, elem_type, between, "uniform")
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
