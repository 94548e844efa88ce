"""L1: the old and the new region compute the same linear function, shown without running either.

Both are evaluated symbolically at concrete shapes (two bindings where the batch is free).  Every output element must
read one batch and one position, the same way at all of them; what is left is one effective kernel and one offset per
output channel, compared bitwise where constants only moved, against a stated rounding bound where they were combined.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from rewriter.equivalence.endings import beneath, require_same, shows
from rewriter.equivalence.forms import NOTHING, Floats, Form, Impossible, Integers, Unsupported
from rewriter.equivalence.kernels import Mixing, Refuted, Tally, compare_kernels, deviation, gamma, signatures, within
from rewriter.equivalence.linear import Evaluation
from rewriter.equivalence.matching import Alike, inner_elements, multiplies, pair
from rewriter.equivalence.operators import Operators
from rewriter.equivalence.precision import unit_roundoff
from rewriter.equivalence.reading import Reading, mixings_of
from rewriter.equivalence.records import Grade, LevelResult, failed, not_applicable, passed
from rewriter.equivalence.regions import Region, Side
from rewriter.equivalence.rows import rows_by_position, same_rows
from rewriter.equivalence.unchanged import Changed, changed_constants, naming, unexplained


@dataclass(frozen=True)
class StaticResult:
    """L1's result, the grade it supports, and what the numeric levels need to know."""

    result: LevelResult
    grade: Grade | None = None
    moved: bool = False
    """Every weight was only moved: a re-weighting by value must give equal outputs, offsets aside."""
    offsets_moved: bool = False
    """The same of the offsets (biases)."""
    altered: bool = False
    """No operator changed, but constants did, by more than moving values: equal outputs on weights that stand for them
    would be a coincidence of the choice of these."""
    products: int = 0
    """Most products summed into one output element; 0 where not known."""
    sizes: bool = False
    """It may differ at sizes that are not tried: equal outputs at those that are prove nothing."""


def compare_static(region: Region, pairs: Sequence[tuple[Side, Side]], operators: Operators) -> StaticResult:
    """Compare a region under each of the bindings that `pairs` were made with.

    Where no operator changed, no weights were combined either, and a difference is not rounding: constants must be
    the same bits (0.0 and a kernel's -0.0 aside), unless they give the same effective weights without any error.
    """
    tally, offsets = Tally(), _Offsets()
    known: dict[bytes, Tally] = {}
    try:
        for before, after in pairs:
            _compare_binding(region, before, after, tally, offsets, known)
    except Unsupported as reason:
        result = not_applicable("L1", f"Not applicable: {str(reason).rstrip('.')}.")
        other = changed_constants(region, *pairs[0], operators) or ()
        if len(other) == 1 and not other[0].may_be_neutral:  # nothing else could make up for it
            return StaticResult(failed("L1", unexplained(other[0])))
        return StaticResult(result, altered=any(not pair.same_values for pair in other))
    except Refuted as reason:
        return StaticResult(failed("L1", naming(str(reason), changed_constants(region, *pairs[0], operators) or ())))
    rounded = bool(tally.rounded) or offsets.rounded
    merged = rounded or tally.merged > 0
    changed = changed_constants(region, *pairs[0], operators)
    wrong = next((pair for pair in changed or () if _is_wrong(pair, rounded=rounded)), None)
    if wrong is not None:
        return StaticResult(failed("L1", unexplained(wrong)))
    zeros = tally.inserted + tally.dropped + tally.cleared
    grade: Grade = "rounding" if merged else "finite" if zeros or tally.skipped else "exact"
    detail = {
        "exact": "The effective weights are the same bit for bit.",
        "finite": f"The effective weights are the same bit for bit but for {f'{zeros} ' if zeros else ''}zeros.",
        "rounding": "Constants were combined; all lie within the stated rounding bound.",
    }[grade]
    figures = {"taps": tally.taps, "zeros": zeros, "combined": tally.combined, "worst": max(tally.worst, offsets.worst)}
    result = passed("L1", detail, **figures, bindings=len(pairs))
    return StaticResult(result, grade, not tally.combined, not offsets.combined, False, tally.products + offsets.terms)


def _is_wrong(pair: Changed, *, rounded: bool) -> bool:
    """Whether a constant differs in a way that nothing explains where no operator changed, moving values aside."""
    return (pair.only_signs_of_zero and not pair.cleared) or (rounded and not pair.same_values)


@dataclass
class _Offsets:
    combined: bool = False
    rounded: bool = False
    worst: float = 0.0
    terms: int = 0

    def add(self, other: _Offsets) -> None:
        self.combined |= other.combined
        self.rounded |= other.rounded
        self.worst = max(self.worst, other.worst)
        self.terms = max(self.terms, other.terms)


def _compare_binding(
    region: Region, before: Side, after: Side, tally: Tally, offsets: _Offsets, known: dict[bytes, Tally]
) -> None:
    entering, wide = _entering(region, before, after)
    count = wide + inner_elements(before, region.before) + inner_elements(after, region.after)
    multiplied = any(
        multiplies(side, side.model.nodes[index])
        for side, nodes in ((before, region.before), (after, region.after))
        for index in nodes
    )
    products, first = (count, count + count * count) if multiplied else (0, count)
    old = Evaluation(before, region.before, entering, first, products)
    new = Evaluation(after, region.after, entering, first, products)
    try:
        same = functools.partial(_same, old, new, tally, offsets, known)
        pairs = pair(old, new, wide, same, functools.partial(_permuted, old, new))
    except Impossible as reason:
        raise Unsupported(f"a part of the region cannot be evaluated ({reason})") from reason
    try:
        old.advance()
        values = {name: beneath(old, name) for name in region.outputs}
    except Impossible as reason:
        raise Unsupported(f"the original cannot be evaluated ({reason})") from reason
    try:
        new.advance()
        others = {name: beneath(new, name) for name in region.outputs}
    except Impossible as reason:
        raise Refuted(f"With the inputs' shapes {_shapes(before)} the rewritten model fails: {reason}.") from reason
    tally.combined += old.computed + new.computed
    tally.merged += old.rescaled + new.rescaled
    tally.skipped |= any(conv.skips for run in (old, new) for conv in run.convs)
    for name in region.outputs:
        (ends, a), (other_ends, b) = values[name], others[name]
        require_same(name, ends, other_ends)
        if not isinstance(a, Form) and not isinstance(b, Form):
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                raise Refuted(f"The constant tensor '{name}' differs.")
            continue
        kinds = [side.bound.types.get(name) for side in (before, after)]
        codes = [kind.tensor_type.elem_type for kind in kinds if kind is not None]
        if len(set(codes)) > 1:
            raise Refuted(f"'{name}' has another element type after the rewrite.")
        if a.shape != b.shape:
            raise Refuted(f"'{name}' had the shape {list(a.shape)} and has {list(b.shape)}.")
        unit = unit_roundoff(codes[0] if codes else onnx.TensorProto.FLOAT)
        try:
            _compare_forms(name, (old, old.as_form(a)), (new, new.as_form(b)), unit, tally, offsets, known)
        except Refuted as reason:
            if pairs:  # behind a nonlinear operator not everything occurs
                raise Unsupported(f"beyond its nonlinear operators the region differs ({reason})") from reason
            if not ends or shows(ends, old, new):
                raise
            raise Unsupported(f"a channel of '{name}' is constant beneath its activation ({reason})") from reason


def _same(
    old: Evaluation,
    new: Evaluation,
    tally: Tally,
    offsets: _Offsets,
    known: dict[bytes, Tally],
    name: str,
    a: Form,
    b: Form,
) -> bool:
    """Whether two forms of a tensor inside the region are the same; takes what was met into account only if so."""
    kinds = [side.bound.types.get(name) for side in (old.side, new.side)]
    codes = [kind.tensor_type.elem_type for kind in kinds if kind is not None]
    unit = unit_roundoff(codes[0] if codes else onnx.TensorProto.FLOAT)
    trial, shifts = Tally(), _Offsets()
    met = dict(known)
    try:
        _compare_forms(name, (old, a), (new, b), unit, trial, shifts, met)
    except (Refuted, Unsupported):
        return False
    known |= met
    tally.add(trial)
    offsets.add(shifts)
    return True


def _permuted(old: Evaluation, new: Evaluation, name: str, a: Form, b: Form) -> Alike | None:
    """Channels of tensors `[N, C, *S]` and `[N, C', *S]` that look the same, as many as the fewer; None where none do.

    Channels are told apart by one number each; whether those found are the same is for `_same` to say.
    """
    try:
        first, second = Reading.of(name, old, a), Reading.of(name, new, b)
        if first.family is None and second.family is None:
            return _same_symbols(a, b)
        if first.family is None or second.family is None:
            return None
        rows, others = (
            rows_by_position(side.position, np.flatnonzero(side.position >= 0), form.shape)
            for side, form in ((first, a), (second, b))
        )
        if rows is None or others is None or rows.shape[1] != a.shape[1] or others.shape[1] != b.shape[1]:
            return None
        if len(rows) != len(others):
            return None
        found = signatures(*mixings_of(name, first, second, rows, others))
    except (Refuted, Unsupported):
        return None
    shifts = [
        0.0 if form.offset is None else math.pi * form.offset.reshape(-1)[own[0]]
        for form, own in ((a, rows), (b, others))
    ]
    return _matched(found[0] + shifts[0], found[1] + shifts[1])


def _same_symbols(a: Form, b: Form) -> Alike | None:
    """The same for selections of what enters."""
    if not (a.pure and b.pure):
        return None
    return _matched(*(form.index.reshape(*form.shape[:2], -1)[0, :, 0] for form in (a, b)))


def _matched(old: NDArray[np.number], new: NDArray[np.number]) -> Alike:
    """Places in both of entries that go together: of the same rank, or the nearest where one side has more."""
    first, second = np.argsort(old, kind="stable"), np.argsort(new, kind="stable")
    if len(first) < len(second):
        return first, second[_nearest(old[first], new[second])]
    if len(second) < len(first):
        return first[_nearest(new[second], old[first])], second
    return first, second


def _nearest(few: NDArray[np.number], many: NDArray[np.number]) -> Integers:
    """For each entry of one ascending sequence the place of the nearest in another: each its own, in order."""
    found = np.empty(len(few), np.int64)
    place = 0
    for at, value in enumerate(few):
        last = len(many) - (len(few) - at)  # leaves enough for those to come
        place += int(np.argmin(np.abs(many[place : last + 1] - value)))
        found[at] = place
        place += 1
    return found


def _entering(region: Region, before: Side, after: Side) -> tuple[dict[str, int], int]:
    """First symbol of each entering tensor of unknown value, and the first symbol behind them."""
    found: dict[str, int] = {}
    free = 0
    for name in region.inputs:
        if before.bound.value(name) is not None:
            continue
        shape = before.bound.shape(name)
        if shape is None or after.bound.shape(name) != shape:
            raise Unsupported(f"the shape of the entering tensor '{name}' is not known, or not the same")
        found[name] = free
        free += math.prod(shape)
    return found, free


def _shapes(side: Side) -> str:
    found = {value.name: side.bound.shape(value.name) for value in side.model.inputs}
    return ", ".join(f"{name} {list(shape or ())}" for name, shape in found.items())


_Sided = tuple[Evaluation, Form]


def _compare_forms(
    name: str, old: _Sided, new: _Sided, unit: float, tally: Tally, offsets: _Offsets, known: dict[bytes, Tally]
) -> None:
    a, b = Reading.of(name, *old), Reading.of(name, *new)
    _compare_direct(name, a, b, unit, tally)
    if a.family is None and b.family is None:
        _compare_offsets(name, a.form, b.form, np.arange(a.count), unit, offsets)
        return
    if a.family is None or b.family is None:
        raise Unsupported(f"'{name}' comes from a convolution in one model only")
    if not np.array_equal(a.position < 0, b.position < 0):
        # Where it reads nothing but padding, it gives zero.
        raise Unsupported(f"some elements of '{name}' read a convolution in one model only")
    live = np.flatnonzero(a.position >= 0)
    dead = np.flatnonzero(a.position < 0)
    if dead.size:
        _compare_offsets(name, a.form, b.form, dead, unit, offsets)
    rows = rows_by_position(a.position, live, a.form.shape)
    if rows is None:
        raise Unsupported(f"'{name}' has more channels at some positions than at others")
    mixings = mixings_of(name, a, b, rows)
    key = _signature(mixings)
    if key not in known:
        known[key] = compare_kernels(mixings[0], mixings[1], unit)
        tally.add(known[key])
    _compare_offsets(name, a.form, b.form, rows, unit, offsets)


def _signature(mixings: Sequence[Mixing]) -> bytes:
    """Equal for two bindings under which the kernels to compare are the same.

    Which channels both sides have in common counts, and the weights: effective ones can differ between bindings.
    """
    convs = [conv for mixing in mixings for conv in mixing.convs]
    found = hashlib.sha256()
    if convs:
        sources = np.concatenate([np.full(1, NOTHING), *(conv.sources for conv in convs)])
        found.update(np.unique(sources, return_inverse=True)[1].astype(np.int64).tobytes())
    for conv in convs:
        found.update(repr((conv.first, conv.group, conv.dilations, conv.weight.dtype, conv.weight.shape)).encode())
        for values in (conv.weight, conv.terms, conv.magnitude):
            found.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
    for mixing in mixings:
        found.update(repr((mixing.channel.shape, len(mixing.convs), mixing.shifts)).encode())
        found.update(mixing.channel.astype(np.int64).tobytes())
        found.update(b"none" if mixing.coef is None else mixing.coef.tobytes())
    return found.digest()


def _compare_direct(name: str, a: Reading, b: Reading, unit: float, tally: Tally) -> None:
    """Terms that read entering tensors without a convolution in between."""
    if not (a.direct >= 0).any() and not (b.direct >= 0).any():
        return
    a, b = (replace(side, direct=np.broadcast_to(side.direct, side.channel.shape)) for side in (a, b))
    old, new = _sorted_direct(name, a), _sorted_direct(name, b)
    same = old[0].shape == new[0].shape and np.array_equal(old[0], new[0])
    if not (same and np.array_equal(old[1], new[1])) and _may_pass(a, b):
        raise Unsupported(f"'{name}' reads elements of what enters that a convolution may pass on, too")
    if not same:
        raise Refuted(f"'{name}' reads other elements of what enters the region.")
    error = deviation(old[1], new[1])
    bound = gamma(8.0 + old[0].shape[1], unit) * np.maximum(np.abs(old[1]), np.abs(new[1]))
    worst = within(
        error.reshape(-1), bound.reshape(-1), unit, lambda at: f"element {at // old[0].shape[1]} of '{name}'"
    )
    scaled = int(((old[1] != 1) & (old[0] >= 0)).sum())
    tally.add(Tally(taps=int((old[0] >= 0).sum()), combined=scaled, rounded=int((error > 0).sum()), worst=worst))


def _may_pass(*sides: Reading) -> bool:
    """Whether a convolution on either side reads one of the tensors that elements of either side are read of without.

    With a weight of one at the right offset it gives the same.
    """
    starts = sorted({*sides[0].run.entering.values(), sides[0].run.products})
    direct = np.concatenate([np.unique(side.direct) for side in sides])
    read = np.concatenate([conv.sources for side in sides for conv in side.convs] or [np.zeros(0, np.int64)])
    first, second = (set(np.searchsorted(starts, found[found >= 0], side="right").tolist()) for found in (direct, read))
    return bool(first & second)


def _sorted_direct(name: str, reading: Reading) -> tuple[Integers, Floats]:
    order = np.argsort(reading.direct, axis=1)
    index = np.take_along_axis(reading.direct, order, axis=1)
    used = int((index >= 0).sum(axis=1).max(initial=0))
    index = index[:, index.shape[1] - used :]
    if ((index[:, 1:] == index[:, :-1]) & (index[:, 1:] >= 0)).any():
        raise Unsupported(f"'{name}' adds an element to itself")
    if reading.form.coef is None:
        return index, np.where(index >= 0, 1.0, 0.0)
    coef = np.take_along_axis(reading.form.coef.reshape(reading.direct.shape), order, axis=1)
    return index, np.where(index >= 0, coef[:, coef.shape[1] - used :], 0.0)


def _compare_offsets(name: str, a: Form, b: Form, rows: Integers, unit: float, tally: _Offsets) -> None:
    """Offsets (biases) of the elements `rows`, `[E]`, or `[Q, J]` of J channels: one each where constant over Q."""
    tally.terms = max(tally.terms, a.offset_terms, b.offset_terms)
    if a.offset is None and b.offset is None:
        return
    steady = rows.ndim == 2 and all(_is_steady(form, rows) for form in (a, b))
    rows = rows[0] if steady else rows.reshape(-1)
    old, new = _offsets(a, rows), _offsets(b, rows)

    def describe(at: int) -> str:
        return f"the bias of {f'output channel {at}' if steady else f'element {rows[at]}'} of '{name}'"

    if a.offset_terms <= 1 and b.offset_terms <= 1:
        wrong = (old[0].view(np.int64) != new[0].view(np.int64)) & ((old[0] != 0) | (new[0] != 0))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise Refuted(f"T{describe(at)[1:]} was {old[0][at]:.9g} and is {new[0][at]:.9g}.")
        return
    tally.combined = True
    error = deviation(old[0], new[0])
    bound = gamma(8.0 + a.offset_terms + b.offset_terms, unit) * np.maximum(old[1], new[1])
    tally.worst = max(tally.worst, within(error, bound, unit, describe))
    tally.rounded = tally.rounded or bool((error > 0).any())


def _is_steady(form: Form, rows: Integers) -> bool:
    """Whether each channel has one offset at all positions."""
    return form.offset is None or same_rows(form.offset.reshape(-1)[:, None], rows)


def _offsets(form: Form, rows: Integers) -> tuple[Floats, Floats]:
    """Offsets and magnitudes of the elements `rows` `[E]`."""
    if form.offset is None:
        return np.zeros(rows.size), np.zeros(rows.size)
    assert form.magnitude is not None
    return np.ascontiguousarray(form.offset.reshape(-1)[rows]), form.magnitude.reshape(-1)[rows]
