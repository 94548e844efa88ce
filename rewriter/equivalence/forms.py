"""Linear form tensors: every element is `offset + Σ_t coef[..., t] · symbol[index[..., t]]`.

Symbols are numbered: the elements of the tensors that enter a region, then the elements of its convolutions' outputs.
An identity matrix of the same content would need terabytes; the index arrays need four bytes per term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]
NOTHING = -1
"""Index of a term that is not there (its value is zero)."""
_LIMIT = 1 << 27


class Unsupported(Exception):
    """The region is outside what symbolic evaluation covers; the message is a clause saying why."""


class Impossible(Exception):
    """The node cannot be computed at these shapes; the message is a clause saying why."""


@dataclass(frozen=True, eq=False)
class Form:
    """A tensor of linear forms: `index` and `coef` `[*shape, T]`, `offset` `[*shape]`; None: all 1, or all 0."""

    index: Integers
    coef: Floats | None = None
    offset: Floats | None = None
    magnitude: Floats | None = None
    """Σ|·| of what the offset was summed from, `[*shape]`."""
    offset_terms: int = 0
    """How many constants and coefficients the offset combines: 1 means its bits are those of one constant."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.index.shape[:-1])

    @property
    def terms(self) -> int:
        return int(self.index.shape[-1])

    @property
    def pure(self) -> bool:
        """A plain selection of symbols."""
        return self.terms == 1 and self.coef is None and self.offset is None


def symbols(shape: Sequence[int], first: int, dtype: np.dtype[np.signedinteger]) -> Form:
    """The form of a tensor whose elements are the symbols first, first + 1, …"""
    count = math.prod(shape)
    return Form(np.arange(first, first + count, dtype=dtype).reshape(*shape, 1))


def constant_form(value: NDArray[np.generic], dtype: np.dtype[np.signedinteger]) -> Form:
    """A form without symbols."""
    offset = np.asarray(value, np.float64)
    return Form(np.full((*offset.shape, 1), NOTHING, dtype), None, offset, np.abs(offset), 1)


def take(form: Form, positions: NDArray[np.int64]) -> Form:
    """The form whose element e is element `positions[e] - 1` of `form`, or zero where `positions` is 0."""
    flat = np.asarray(positions) - 1
    empty = flat < 0
    padded = bool(empty.any())
    index = form.index.reshape(-1, form.terms)[flat]
    if padded:
        index[empty] = NOTHING

    def pick(values: Floats | None) -> Floats | None:
        return None if values is None else np.where(empty, 0.0, values.reshape(-1)[flat])

    coef = None if form.coef is None else form.coef.reshape(-1, form.terms)[flat]
    return Form(index, coef, pick(form.offset), pick(form.magnitude), form.offset_terms)


def reshape(form: Form, shape: Sequence[int]) -> Form:
    """The same elements in row-major order under another shape."""
    target = tuple(shape)
    wide = (*target, form.terms)
    return Form(
        form.index.reshape(wide),
        None if form.coef is None else form.coef.reshape(wide),
        None if form.offset is None else form.offset.reshape(target),
        None if form.magnitude is None else form.magnitude.reshape(target),
        form.offset_terms,
    )


def transpose(form: Form, perm: Sequence[int]) -> Form:
    """Axes permuted; the term axis stays last."""
    wide = (*perm, len(perm))
    return Form(
        form.index.transpose(wide),
        None if form.coef is None else form.coef.transpose(wide),
        None if form.offset is None else form.offset.transpose(perm),
        None if form.magnitude is None else form.magnitude.transpose(perm),
        form.offset_terms,
    )


def concatenate(forms: Sequence[Form]) -> Form:
    """All elements of all forms, flattened, one after the other."""
    terms = max(form.terms for form in forms)
    wide = [_widen(form, terms) for form in forms]
    index = np.concatenate([form.index.reshape(-1, terms) for form in wide])
    coef = None
    if any(form.coef is not None for form in wide):
        coef = np.concatenate([_coef(form).reshape(-1, terms) for form in wide])
    offset = magnitude = None
    if any(form.offset is not None for form in wide):
        offset = np.concatenate([_offset(form).reshape(-1) for form in wide])
        magnitude = np.concatenate([_magnitude(form).reshape(-1) for form in wide])
    return Form(index, coef, offset, magnitude, max(form.offset_terms for form in wide))


def add(a: Form, b: Form) -> Form:
    """Element-wise sum with broadcasting."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = broadcast(a, shape), broadcast(b, shape)
    parts = [form for form in (a, b) if (form.index >= 0).any()] or [a]
    _check_size(shape, sum(form.terms for form in parts))
    index = np.concatenate([form.index for form in parts], axis=-1)
    coef = None
    if any(form.coef is not None for form in parts):
        coef = np.concatenate([_coef(form) for form in parts], axis=-1)
    offset, magnitude = a.offset, a.magnitude
    if b.offset is not None:
        offset = b.offset if offset is None else offset + b.offset
        magnitude = b.magnitude if a.magnitude is None else a.magnitude + _magnitude(b)
    return Form(index, coef, offset, magnitude, a.offset_terms + b.offset_terms)


def scale(form: Form, factor: NDArray[np.generic]) -> Form:
    """Element-wise product with a constant, with broadcasting."""
    by = np.asarray(factor, np.float64)
    form = broadcast(form, np.broadcast_shapes(form.shape, by.shape))
    by = np.broadcast_to(by, form.shape)
    offset = magnitude = None
    if form.offset is not None:
        offset, magnitude = form.offset * by, _magnitude(form) * np.abs(by)
    wide = by[..., None]
    coef = np.broadcast_to(wide, form.index.shape) if form.coef is None else form.coef * wide
    return Form(form.index, coef, offset, magnitude, form.offset_terms + (offset is not None))


def product(a: Form, b: Form, count: int) -> Form:
    """Element-wise product of two forms of the first `count` symbols; 0: not covered.

    That of symbols i ≤ j is the symbol `count + i·count + j`.
    """
    for form in (a, b):
        if form.index.max(initial=NOTHING) >= count:
            raise Unsupported("two run-time tensors are multiplied that are computed in the region")
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = broadcast(a, shape), broadcast(b, shape)
    _check_size(shape, (a.terms + 1) * (b.terms + 1))
    wide = (*shape, a.terms * b.terms)
    one, other = a.index[..., :, None].astype(np.int64), b.index[..., None, :].astype(np.int64)
    low, high = np.minimum(one, other), np.maximum(one, other)
    index = np.where(low < 0, NOTHING, count + low * count + high).reshape(wide)
    scaled = a.coef is not None or b.coef is not None
    coef = (_coef(a)[..., :, None] * _coef(b)[..., None, :]).reshape(wide) if scaled else None
    found = Form(index, coef)
    plain = (replace(form, offset=None, magnitude=None, offset_terms=0) for form in (a, b))
    for form, other_one in zip(plain, (b, a), strict=True):
        if other_one.offset is not None:
            found = add(found, scale(form, other_one.offset))
    if a.offset is None or b.offset is None:
        return found
    magnitude = _magnitude(a) * _magnitude(b)
    terms = a.offset_terms + b.offset_terms + 1
    return replace(found, offset=a.offset * b.offset, magnitude=magnitude, offset_terms=terms)


def negate(form: Form) -> Form:
    """The form times −1."""
    return replace(scale(form, np.asarray(-1.0)), offset_terms=form.offset_terms)


def reduce_sum(form: Form, axes: Sequence[int], keepdims: bool) -> Form:
    """Sum over the given non-negative axes: their elements become terms."""
    kept = [axis for axis in range(len(form.shape)) if axis not in axes]
    size = math.prod(form.shape[axis] for axis in axes)
    order = [*kept, *axes]
    shape = tuple(form.shape[axis] for axis in kept)
    _check_size(shape, size * form.terms)
    moved = transpose(form, order)
    index = moved.index.reshape(*shape, size * form.terms)
    coef = None if moved.coef is None else moved.coef.reshape(*shape, size * form.terms)
    offset = magnitude = None
    if moved.offset is not None:
        offset = moved.offset.reshape(*shape, size).sum(axis=-1)
        magnitude = _magnitude(moved).reshape(*shape, size).sum(axis=-1)
    result = Form(index, coef, offset, magnitude, form.offset_terms * size)
    if not keepdims:
        return result
    return reshape(result, [1 if axis in axes else n for axis, n in enumerate(form.shape)])


def broadcast(form: Form, shape: Sequence[int]) -> Form:
    """The form under a broadcast shape; nothing is copied."""
    target = tuple(shape)
    if form.shape == target:
        return form
    wide = (*target, form.terms)
    lead = (1,) * (len(target) - len(form.shape))

    def spread(values: Floats | None, to: tuple[int, ...]) -> Floats | None:
        return None if values is None else np.broadcast_to(values.reshape(lead + values.shape), to)

    index = np.broadcast_to(form.index.reshape(lead + form.index.shape), wide)
    return Form(
        index, spread(form.coef, wide), spread(form.offset, target), spread(form.magnitude, target), form.offset_terms
    )


def _widen(form: Form, terms: int) -> Form:
    missing = terms - form.terms
    if not missing:
        return form
    pads = [(0, 0)] * len(form.shape) + [(0, missing)]
    coef = None if form.coef is None else np.pad(form.coef, pads)
    return replace(form, index=np.pad(form.index, pads, constant_values=NOTHING), coef=coef)


def _coef(form: Form) -> Floats:
    return np.ones(form.index.shape) if form.coef is None else form.coef


def _offset(form: Form) -> Floats:
    return np.zeros(form.shape) if form.offset is None else form.offset


def _magnitude(form: Form) -> Floats:
    return np.zeros(form.shape) if form.magnitude is None else form.magnitude


def _check_size(shape: Sequence[int], terms: int) -> None:
    if math.prod(shape) * terms > _LIMIT:
        raise Unsupported(f"its forms would have {math.prod(shape) * terms} terms")
