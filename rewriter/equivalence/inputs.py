"""Inputs to run both models on: seeded recipes for every input type, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx

from rewriter.bindings import Binding
from rewriter.constants import Array
from rewriter.equivalence.precision import significand_bits
from rewriter.equivalence.records import AuditOptions, Witness
from rewriter.model import Model
from rewriter.ranges import Range, draw_between, range_of, takes_range
from rewriter.shapes import Shape

Recipe = Literal["normal", "uniform", "integers", "large"]
RECIPES: Final[tuple[Recipe, ...]] = ("normal", "uniform", "integers", "large")
"""normal: N(0, 1); uniform: in ±3; integers: −4 … 4, one in four times 4; large: N(0, 1) × 100 (× 8 in 16 bits)."""
_INDEX_RANGE: Final = (8, 2)
"""Integer inputs (often indices or flags) are drawn below these: the second where the model refuses the first."""
USERS: Final = -1
"""Which binding the user's own inputs are of."""


class NoFeeds(Exception):
    """An input cannot be made up; the message is a clause saying why."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Feeds for one run, and the alternatives to try where the original refuses them."""

    witness: Witness
    attempts: Sequence[Mapping[str, Array]]
    binding: int
    """Which binding its shapes are; USERS for the user's own inputs."""


def trials(model: Model, bindings: Sequence[Binding], options: AuditOptions) -> Iterator[Trial]:
    """The user's inputs, four recipes at the first binding (the first twice if it is the only one), two at others."""
    for number, sample in enumerate(options.samples):
        shapes = {name: tuple(value.shape) for name, value in sample.items()}
        witness = Witness(recipe=f"user's inputs {number}", seed=None, shapes=shapes, chosen=())
        yield Trial(witness, options.samples[number : number + 1], USERS)  # read again when run, where it is in a file
    for index, binding in enumerate(bindings):
        recipes = (*RECIPES, "normal") if index == 0 and len(bindings) == 1 else RECIPES if index == 0 else RECIPES[:2]
        for number, recipe in enumerate(recipes):
            seed = options.seed + 10 * index + number
            yield _trial(model, binding, index, recipe, seed, options.ranges)


def _trial(model: Model, binding: Binding, index: int, recipe: Recipe, seed: int, ranges: Mapping[str, Range]) -> Trial:
    shapes = {name: tuple(shape) for name, shape in binding.shapes.items()}
    witness = Witness(recipe=recipe, seed=seed, shapes=shapes, chosen=tuple(sorted(binding.chosen)))
    attempts = []
    whole = any(not significand_bits(value.type.tensor_type.elem_type) for value in model.inputs)
    try:
        for below in _INDEX_RANGE if whole else _INDEX_RANGE[:1]:
            attempts.append(feeds(model.inputs, shapes, recipe, seed, below, ranges))
    except NoFeeds as reason:
        return Trial(witness.model_copy(update={"problem": str(reason)}), (), index)
    return Trial(witness, tuple(attempts), index)


def feeds(
    values: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, Shape],
    recipe: Recipe,
    seed: int,
    below: int = 8,
    ranges: Mapping[str, Range] | None = None,
) -> dict[str, Array]:
    """Seeded feeds for the inputs, within `ranges` where the user gave one, whatever the recipe.

    Raises NoFeeds for an input of unknown rank or of strings.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in values:
        code = value.type.tensor_type.elem_type
        if value.type.WhichOneof("value") != "tensor_type" or code == onnx.TensorProto.STRING:
            raise NoFeeds(f"the input '{value.name}' is not a tensor of numbers: give inputs of your own (--inputs)")
        if value.name not in shapes:
            what = "give its shape (--input-shape), or inputs of your own (--inputs)"
            raise NoFeeds(f"the rank of the input '{value.name}' is not known: {what}")
        between = range_of(ranges or {}, value.name) if takes_range(code) else None
        found[value.name] = (
            _draw(rng, shapes[value.name], code, recipe, below)
            if between is None
            else draw_between(rng, shapes[value.name], code, between, recipe)
        )
    return found


def _draw(rng: np.random.Generator, shape: Shape, code: int, recipe: Recipe, below: int) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    bits = significand_bits(code)
    if bits is None:
        return rng.integers(0, 2 if dtype == np.dtype(bool) else below, shape).astype(dtype)
    if recipe == "uniform":
        return rng.uniform(-3, 3, shape).astype(dtype)
    if recipe == "integers":
        spikes = np.where(rng.random(shape) < 0.25, 4, 1)
        return (rng.integers(-4, 5, shape) * spikes).astype(dtype)
    size = 1.0 if recipe == "normal" else 100.0 if bits > 11 else 8.0
    return (rng.standard_normal(shape) * size).astype(dtype)


def nudged(values: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """The floating-point inputs with every element off by up to one unit in the last place."""
    rng = np.random.default_rng([seed, 3])
    found: dict[str, Array] = {}
    for name, value in values.items():
        bits = significand_bits(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        if bits is None:
            found[name] = value
            continue
        factor = 1 + rng.integers(-1, 2, value.shape) * 2.0 ** (1 - bits)
        found[name] = (value.astype(np.float64) * factor).astype(value.dtype)
    return found
