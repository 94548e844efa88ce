"""L5 of the whole models: other sizes of the dimensions that are free, none among them.

Each free dimension alone, and all at once, at 1, 2 and an odd prime; the batch at 0, too.  Where the original runs, the
rewritten model has to run, with outputs of the same shapes, as accurate as L4 demands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rewriter.bindings import Binding, known_size
from rewriter.equivalence.empty_batch import run_empty
from rewriter.equivalence.inputs import NoFeeds, Trial, feeds
from rewriter.equivalence.records import AuditOptions, LevelResult, Witness, failed, not_applicable, passed
from rewriter.equivalence.whole import Run, Whole
from rewriter.model import Model
from rewriter.shapes import Shape

SIZES: Final = (1, 2, 7)
"""1, 2 and an odd prime that no two free sizes of the other levels share."""
_EMPTY: Final = 0
_ALONE: Final = 6
"""Free dimensions that are varied alone; further ones only with all others."""
_SLACK: Final = 8.0
"""The same as L4's: an error up to this many times the allowance is amplified rounding where regions are proven."""
_MOST_ELEMENTS: Final = 1 << 24
"""Of the inputs: a case with more is left out."""
_BELOW: Final = (8, 2)

Axis = tuple[str, int]


@dataclass(frozen=True)
class Case:
    """One choice of sizes: what was changed, as text, and the inputs' shapes."""

    label: str
    shapes: Mapping[str, Shape]


def free_dimensions(model: Model) -> dict[str, tuple[Axis, ...]]:
    """The dimensions that the model leaves free, by name: those of one name are one, and so are all batches."""
    found: dict[str, list[Axis]] = {}
    batch = ""
    for value in model.inputs:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if known_size(dim) is not None:
                continue
            label = dim.dim_param or f"{value.name}[{axis}]"
            if axis == 0 and len(dims) > 1:
                batch = label = batch or label
            found.setdefault(label, []).append((value.name, axis))
    return {label: tuple(axes) for label, axes in found.items()}


def cases(model: Model, bindings: Sequence[Binding]) -> tuple[Case, ...]:
    """The sizes to run at that are not those of a binding already; empty batches are not among them."""
    base = dict(bindings[0].shapes)
    free = free_dimensions(model)
    groups = [(label, axes) for label, axes in list(free.items())[:_ALONE]]
    choices = [
        (f"{label} = {size}", _with(base, axes, size))
        for label, axes in groups
        for size in _sizes(_size(base, axes), batch=_is_batch(axes, base), varied=len(bindings) > 1)
    ]
    every = tuple(axis for axes in free.values() for axis in axes)
    if len(free) > 1:
        choices += [(f"all free sizes = {size}", _with(base, every, size)) for size in SIZES]
    known = [dict(binding.shapes) for binding in bindings]  # whose second batch is an odd prime
    found: list[Case] = []
    for label, shapes in choices:
        if shapes not in known and sum(map(math.prod, shapes.values())) <= _MOST_ELEMENTS:
            known.append(shapes)
            found.append(Case(label, shapes))
    return tuple(found)


def empty_case(model: Model, bindings: Sequence[Binding]) -> Case | None:
    """The batch of no element at all; None where the batch is not free."""
    for label, axes in free_dimensions(model).items():
        if _is_batch(axes, bindings[0].shapes):
            return Case(f"{label} = {_EMPTY}", _with(dict(bindings[0].shapes), axes, _EMPTY))
    return None


def _sizes(size: int, *, batch: bool, varied: bool) -> tuple[int, ...]:
    """What a dimension of this size is set to; `varied`: the model was run at another one, a batch of 3 if it can be.

    Where it was not, the model may take multiples only, of clips of so many frames, say: then twice the size, too.
    """
    if not varied:
        return (*SIZES, 2 * size)
    return SIZES[:-1] if batch else SIZES


def _size(base: Mapping[str, Shape], axes: Sequence[Axis]) -> int:
    return next((base[name][axis] for name, axis in axes if axis < len(base.get(name, ()))), 1)


def _is_batch(axes: Sequence[Axis], shapes: Mapping[str, Shape]) -> bool:
    return any(axis == 0 and len(shapes.get(name, ())) > 1 for name, axis in axes)


def _with(base: Mapping[str, Shape], axes: Sequence[Axis], size: int) -> dict[str, Shape]:
    shapes = {name: list(shape) for name, shape in base.items()}
    for name, axis in axes:
        if axis < len(shapes.get(name, ())):
            shapes[name][axis] = size
    return {name: tuple(shape) for name, shape in shapes.items()}


def compare_sizes(
    done: Whole, bindings: Sequence[Binding], options: AuditOptions, unit: float, products: int, *, proven: bool
) -> tuple[LevelResult, str] | None:
    """Level L5 of the whole models, and the sizes that were run, as text; None where no dimension is free
    or nobody asks.

    `done` is the comparison of L4, `unit` and `products` are those of its regions, `proven` whether L1 showed them all.
    """
    model = done.before
    chosen = cases(model, bindings)
    empty = empty_case(model, bindings)
    if not options.full or options.runtime.tf32 or not done.runs or not (chosen or empty):
        return None
    whole = Whole(model, done.after, options.runtime, {}, certified=done.certified, approximate=done.approximate)
    whole.run_original(_trial(model, case, number, options) for number, case in enumerate(chosen))
    runs = whole.runs
    ran = [chosen[run.binding].label for run in runs]
    notes = [f"{case.label} (the original does not run)" for n, case in enumerate(chosen) if case.label not in ran]
    if runs:
        wrong = _first_wrong(whole, runs, unit, products, proven)
        if wrong is not None:
            return failed("L5", f"At {chosen[wrong[0].binding].label}: {wrong[1]}"), ", ".join(ran)
    if empty is not None:
        note, problem = _empty(done, empty, options)
        if problem:
            return failed("L5", f"At {empty.label}: {problem}"), empty.label
        ran, notes = (ran, [*notes, note]) if note else ([*ran, empty.label], notes)
    text = ", ".join([*ran, *notes])
    if not ran:
        return not_applicable("L5", "Not applicable: the original runs at none of the other sizes tried."), text
    return passed("L5", f"The same at other sizes: {', '.join(ran)}.", runs=len(ran)), text


def _first_wrong(whole: Whole, runs: list[Run], unit: float, products: int, proven: bool) -> tuple[Run, str] | None:
    """The first run in which the models differ, and a sentence on it; all are compared together first."""
    if not _problem(whole, unit, products, proven):
        return None
    for run in runs:
        whole.runs = [run]
        problem = _problem(whole, unit, products, proven)
        if problem:
            return run, problem
    return None


def _problem(whole: Whole, unit: float, products: int, proven: bool) -> str:
    level, _ = whole.compare(unit, products, proven=proven)
    worst = level.figures.get("worst")
    if level.outcome != "fail" or (proven and isinstance(worst, float) and worst <= _SLACK):
        return ""
    return level.detail


def _empty(done: Whole, case: Case, options: AuditOptions) -> tuple[str, str]:
    """A note where nothing was compared, and a sentence where the models differ, on a batch of no element."""
    models = done.before, done.after
    found = run_empty(models, options.runtime, case.shapes, options.seed, options.ranges)
    if found.refused:
        return f"{case.label} (the original does not run)", ""
    return (f"{case.label} ({found.note})" if found.note else ""), found.problem


def _trial(model: Model, case: Case, number: int, options: AuditOptions) -> Trial:
    witness = Witness(recipe="normal", seed=options.seed + number, shapes=dict(case.shapes), chosen=())
    try:
        attempts = [feeds(model.inputs, case.shapes, "normal", options.seed, below, options.ranges) for below in _BELOW]
    except NoFeeds as reason:
        return Trial(witness.model_copy(update={"problem": str(reason)}), (), number)
    return Trial(witness, attempts, number)
