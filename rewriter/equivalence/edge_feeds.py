"""What L5 feeds to a region: captured activations with NaN or infinity at a few places, zeros, and denormal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.precision import largest_finite, significand_bits
from rewriter.shapes import Shape

_SMALLEST_NORMAL: Final = {11: 2.0**-14, 8: 2.0**-126, 24: 2.0**-126, 53: 2.0**-1022}
"""By bits of the significand: of float16, bfloat16, float32 and float64."""
_INSIDE: Final = 2  # places drawn anywhere, besides two corners and one at the border of the last axis
_MANY: Final = 1 << 16  # elements: products of denormal numbers take a processor many times as long as others
_BELOW: Final = 0.875  # of the smallest normal number: the largest denormal one that is fed

Feeds = Mapping[str, Array]


def is_floating(value: Array) -> bool:
    """Whether it holds floating-point numbers, which alone have such edges."""
    return significand_bits(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)) is not None


def smallest_normal(value: Array) -> float:
    """The smallest positive number of the array's type that has the full significand."""
    bits = significand_bits(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    assert bits is not None
    return _SMALLEST_NORMAL[bits]


def with_special(feeds: Feeds, specials: tuple[float, ...], seed: int) -> dict[str, Array]:
    """The feeds with each of `specials` at places of its own: two corners, the border of the last axis, some inside."""

    def placed(value: Array, rng: np.random.Generator) -> Array:
        result = value.copy()
        for number, special in enumerate(specials):
            for place in _places(value.shape, rng, number):
                result[place] = special
        return result

    return _changed(feeds, seed, placed)


def _places(shape: Shape, rng: np.random.Generator, number: int) -> list[tuple[int, ...]]:
    """The first kind gets the first and the last element; further ones the corners of one channel further inside."""
    if not math.prod(shape):
        return []
    inside = [tuple(int(rng.integers(size)) for size in shape) for _ in range(_INSIDE)]
    corner = tuple(min(number, size - 1) if axis == 1 else 0 for axis, size in enumerate(shape))
    other = tuple(max(size - 1 - number, 0) if axis == 1 else size - 1 for axis, size in enumerate(shape))
    border = (*(int(rng.integers(size)) for size in shape[:-1]), *(size - 1 for size in shape[-1:]))
    return [corner, other, border, *inside]


def zeros(feeds: Feeds, seed: int) -> dict[str, Array]:
    """Zeros of both signs in place of all floating-point numbers."""
    return _changed(
        feeds, seed, lambda value, rng: np.where(rng.random(value.shape) < 0.5, 0.0, -0.0).astype(value.dtype)
    )


def denormals(feeds: Feeds, seed: int) -> dict[str, Array]:
    """The same numbers, scaled so that the largest lies below the smallest normal one of the type.

    Of large tensors only a slice along the last axis is not zero.
    """

    def scaled(value: Array, rng: np.random.Generator) -> Array:
        wide = value.astype(np.float64)
        size = largest_finite(value)
        if not size:
            wide = rng.standard_normal(value.shape)
            size = float(np.abs(wide).max(initial=0)) or 1.0
        wide = wide / size * (_BELOW * smallest_normal(value))
        if value.size > _MANY and value.ndim:
            last = value.shape[-1]
            count = max(1, last * _MANY // value.size)
            first = int(rng.integers(last - count + 1))
            wide[..., :first] = 0
            wide[..., first + count :] = 0
        return wide.astype(value.dtype)

    return _changed(feeds, seed, scaled)


def _changed(feeds: Feeds, seed: int, change: Callable[[Array, np.random.Generator], Array]) -> dict[str, Array]:
    rng = np.random.default_rng([seed, 5])
    return {name: change(value, rng) if is_floating(value) else value for name, value in feeds.items()}
