"""The audit: find the regions in which two models differ, take each up the ladder, and decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx

from rewriter.bindings import Binding, find_bindings
from rewriter.constants import Array, tensor_value
from rewriter.equivalence.blind import measure_blindness
from rewriter.equivalence.cut import Runner, cut
from rewriter.equivalence.exact import LARGE, Exchange, Rerun, compare_exactly
from rewriter.equivalence.identical import identical
from rewriter.equivalence.inputs import trials
from rewriter.equivalence.numeric import compare_on_activations, finite_weights, unit_of
from rewriter.equivalence.records import (
    Audit,
    AuditOptions,
    Grade,
    LevelResult,
    Outcome,
    OutputAudit,
    RegionAudit,
    Witness,
    not_applicable,
)
from rewriter.equivalence.regions import Diff, Region, Side
from rewriter.equivalence.static import StaticResult, compare_static
from rewriter.equivalence.structural import compare_structure
from rewriter.equivalence.verdict import audit_verdict, region_verdict
from rewriter.equivalence.whole import Run, Whole
from rewriter.model import Model
from rewriter.session import require_provider
from rewriter.shapes import bind

Progress = Callable[[str, int, int], None]
_BATCHES = (1, 3)


def audit(
    before: Model,
    after: Model,
    options: AuditOptions,
    *,
    rerun: Rerun | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Whether `after` computes what `before` computes.

    `rerun` applies the rewrite under audit to a region with other weights; L2 uses it where weights were combined.
    `progress` is told (stage, done, total).  Raises NotVerified when the provider is missing, and BadInput when weights
    cannot be read or an input shape given does not fit; everything about the two models is in the result instead.
    """
    with np.errstate(all="ignore"):  # infinity and NaN in weights are compared like any other value
        return _audited(before, after, options, rerun, progress or _silent)


def _audited(before: Model, after: Model, options: AuditOptions, rerun: Rerun | None, tell: Progress) -> Audit:
    require_provider(options.runtime.provider)
    bindings = find_bindings(before, options.input_shapes, _BATCHES, vary_given=True)  # refuses shapes that do not fit
    structure, notes = compare_structure(before, after)
    same = identical(before, after)
    if structure.outcome == "fail" or same:
        return _short(before, after, options, structure, notes, same)
    diffs = [Diff(before, after, (found.bound, bind(after, found.shapes))) for found in bindings]
    parts = diffs[0].regions()
    whole = Whole(before, after, options.runtime, _captures(before, diffs[0].before, parts))
    tell("runs of the original", 0, 1)
    large = any(_elements(region, diff) > LARGE for region in parts for diff in diffs)
    whole.run_original(trials(before, bindings, options), defer=large)
    diffs, unusable = _usable(diffs, bindings, whole.runs)
    notes = (*notes, *unusable)
    regions, statics = _static(diffs, parts, tell)
    levels: list[list[LevelResult]] = []
    units: list[float] = []
    finite = True
    for number, (region, static) in enumerate(zip(regions, statics, strict=True)):
        tell("regions", number, len(regions))
        exchange = None if static.result.outcome == "fail" else _exchange(region, diffs, options)
        finite = finite and (exchange is None or finite_weights(exchange.before.cut))
        found, unit = _run_region(region, static, diffs, exchange, whole.runs, rerun)
        levels.append(found)
        units.append(unit)
    tell("whole model", 0, 1)
    products = max((static.products for static in statics), default=0)
    proven = bool(statics) and all(static.result.outcome == "pass" for static in statics)
    whole_level, outputs = whole.compare(max(units, default=0.0), products, finite=finite, proven=proven)
    blind = _blind(before, bindings, regions, levels, whole, options)
    records = [
        _record(region, diffs[0], static, found, hidden, whole_level)
        for region, static, found, hidden in zip(regions, statics, levels, blind, strict=True)
    ]
    tell("whole model", 1, 1)
    proof = _same_definitions(diffs[0])
    return _audit(before, after, options, structure, notes, records, whole_level, outputs, whole.witnesses, proof=proof)


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody wants to know."""
    del stage, done, total


def _usable(diffs: list[Diff], bindings: Sequence[Binding], runs: Sequence[Run]) -> tuple[list[Diff], Sequence[str]]:
    """Without the bindings that the original does not run at, though it runs at the first, and a note on each.

    Nobody asked for those shapes: what the rewritten model does there says nothing against it.
    """
    ran = {run.binding for run in runs}
    if 0 not in ran:
        return diffs, ()
    notes = []
    for index, binding in enumerate(bindings):
        if index not in ran:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in binding.shapes.items())
            notes.append(f"The original does not run with the inputs' shapes {shapes}, so nothing was compared there.")
    return [diff for index, diff in enumerate(diffs) if index in ran], notes


def _static(
    diffs: Sequence[Diff], regions: tuple[Region, ...], tell: Progress
) -> tuple[tuple[Region, ...], list[StaticResult]]:
    """Regions and their L1.  Where L1 refutes, names may have been reused for other contents: try larger regions."""
    pairs = [(diff.before, diff.after) for diff in diffs]
    operators = diffs[0].operators
    statics = []
    for number, region in enumerate(regions):
        tell("static comparison", number, len(regions))
        statics.append(compare_static(region, pairs, operators))
    if any(static.result.outcome == "fail" for static in statics):
        larger = diffs[0].regions(meet=False)
        if larger != regions:
            others = [compare_static(region, pairs, operators) for region in larger]
            if all(static.result.outcome != "fail" for static in others):
                return larger, others
    return regions, statics


def _captures(model: Model, side: Side, regions: Sequence[Region]) -> dict[str, onnx.TypeProto]:
    """Tensors inside the original that enter regions and are neither known nor inputs or outputs already."""
    listed = {value.name for value in (*model.skeleton.graph.input, *model.outputs)}
    return {
        name: side.bound.types[name]
        for region in regions
        for name in region.inputs
        if name not in listed and name in side.bound.types
    }


def _run_region(
    region: Region,
    static: StaticResult,
    diffs: Sequence[Diff],
    exchange: Exchange | None,
    runs: Sequence[Run],
    rerun: Rerun | None,
) -> tuple[list[LevelResult], float]:
    """L1 to L3 of one region, and the unit roundoff it works in.  What L1 refutes is not run."""
    if static.result.outcome == "fail":
        return [static.result], 0.0
    if exchange is None:
        why = "Not applicable: the region cannot be cut out, because types or shapes in it are not known."
        return [static.result, not_applicable("L2", why), not_applicable("L3", why)], 0.0
    exact = compare_exactly(exchange, moved=static.moved, offsets_moved=static.offsets_moved, rerun=rerun)
    if exact.outcome == "pass" and static.altered:
        exact = not_applicable("L2", "Not applicable: no operator changed, but the values of constants did.")
    if exact.outcome == "fail":
        return [static.result, exact], 0.0
    captured = [_entering(region, diffs[0].before, run) for run in runs if run.binding == 0]
    complete = [feeds for feeds in captured if len(feeds) == len(region.inputs)][:2]
    numeric = compare_on_activations(exchange, complete, static.products)
    return [static.result, exact, numeric], max(unit_of(exchange.before.cut), unit_of(exchange.after.cut))


def _exchange(region: Region, diffs: Sequence[Diff], options: AuditOptions) -> Exchange | None:
    if not region.before and not region.after:
        return None
    sides = [diff.before for diff in diffs]
    if any(side.bound.shape(name) is None for side in sides for name in region.inputs):
        return None
    if any(name not in sides[0].bound.types for name in region.inputs):
        return None
    types = {name: sides[0].bound.types[name] for name in region.inputs}
    shapes = [{name: side.bound.shape(name) or () for name in region.inputs} for side in sides]
    known = [{name: value for name in region.inputs if (value := side.bound.value(name)) is not None} for side in sides]
    old = cut(diffs[0].before, region.before, region, types, shapes)
    new = cut(diffs[0].after, region.after, region, types, shapes)
    runners = Runner(old, options.runtime), Runner(new, options.runtime)
    elements = tuple(_elements(region, diff) for diff in diffs)
    return Exchange(*runners, types, shapes, known, options.runtime, options.seed, options.draws, frozenset(), elements)


def _elements(region: Region, diff: Diff) -> int:
    """Elements of the largest tensor in the region, where shapes are known."""
    sides = ((diff.before, region.before), (diff.after, region.after))
    made = (side.bound.shape(name) for side, nodes in sides for i in nodes for name in side.model.nodes[i].output)
    return max((math.prod(shape) for shape in made if shape is not None), default=0)


def _entering(region: Region, side: Side, run: Run) -> dict[str, Array]:
    """The region's inputs in one run of the original; incomplete when something was not captured."""
    found: dict[str, Array] = {}
    for name in region.inputs:
        if name in run.captured:
            found[name] = run.captured[name]
        elif name in side.model.overridable:
            found[name] = tensor_value(side.model, side.model.initializer(name))
        elif name in run.plain:
            found[name] = run.plain[name]
        elif (value := side.bound.value(name)) is not None:
            found[name] = value
    return found


def _blind(
    before: Model,
    bindings: Sequence[Binding],
    regions: Sequence[Region],
    levels: Sequence[Sequence[LevelResult]],
    whole: Whole,
    options: AuditOptions,
) -> list[bool | None]:
    first = next((run for run in whole.runs if run.binding == 0), None)
    if first is None or not regions or any(level.outcome == "fail" for found in levels for level in found):
        return [None] * len(regions)
    weak = [i for i, found in enumerate(levels) if found[-1].level != "L3" or found[-1].outcome != "pass"]
    step = max(1, math.ceil(len(regions) / max(1, options.perturbed_regions)))
    chosen = list(dict.fromkeys([*weak, *range(0, len(regions), step)]))[: options.perturbed_regions]
    return measure_blindness(before, bindings[0].bound, regions, first, chosen, options.runtime)


def _record(
    region: Region,
    diff: Diff,
    static: StaticResult,
    levels: Sequence[LevelResult],
    blind: bool | None,
    whole: LevelResult,
) -> RegionAudit:
    verdict, reason = region_verdict({level.level: level.outcome for level in levels}, blind, whole.outcome)
    refuted = next((level for level in levels if level.outcome == "fail"), None)
    grade: Grade | None = None
    if verdict == "equivalent":
        grade = static.grade or "rounding"
    return RegionAudit(
        inputs=region.inputs,
        outputs=region.outputs,
        before=_operators(diff.before, region.before),
        after=_operators(diff.after, region.after),
        verdict=verdict,
        grade=grade,
        levels=tuple(levels),
        blind=blind,
        reason=refuted.detail if refuted else reason,
    )


def _same_definitions(diff: Diff) -> bool:
    """Whether operator sets and functions are equal, and no initializer is there twice (which one counts, is open)."""
    graphs = [side.model.skeleton.graph for side in (diff.before, diff.after)]
    once = all(len({tensor.name for tensor in graph.initializer}) == len(graph.initializer) for graph in graphs)
    return once and diff.operators.same_versions and diff.operators.same_functions


def _operators(side: Side, nodes: Sequence[int]) -> dict[str, int]:
    kinds = sorted(side.model.nodes[index].op_type for index in nodes)
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _short(
    before: Model, after: Model, options: AuditOptions, structure: LevelResult, notes: Sequence[str], same: bool
) -> Audit:
    """An audit that needs no run: the interface differs, or nothing does."""
    why = "the models are identical" if structure.outcome == "pass" else "the models cannot be run side by side"
    whole = not_applicable("L4", f"Not applicable: {why}.")
    return _audit(before, after, options, structure, notes, [], whole, (), [], same=same)


def _audit(
    before: Model,
    after: Model,
    options: AuditOptions,
    structure: LevelResult,
    notes: Sequence[str],
    regions: Sequence[RegionAudit],
    whole: LevelResult,
    outputs: Sequence[OutputAudit],
    witnesses: Sequence[Witness],
    *,
    same: bool = False,
    proof: bool = False,
) -> Audit:
    summary = [(region.verdict, region.grade, _outcome(region)) for region in regions]
    verdict, grade, reason = audit_verdict(
        structure,
        summary,
        whole,
        identical=same,
        ran=any(not witness.problem for witness in witnesses),
        same_definitions=proof,
        problem=_problem(witnesses),
    )
    wrong = next((region for region in regions if region.verdict == verdict and verdict != "equivalent"), None)
    if wrong is not None and not reason.startswith("The output"):
        reason = f"{reason} First: '{wrong.outputs[0]}': {wrong.reason}"
    return Audit(
        verdict=verdict,
        grade=grade,
        reason=reason,
        regions=tuple(regions),
        levels=(structure, whole),
        outputs=tuple(outputs),
        witnesses=tuple(witnesses),
        notes=tuple(notes),
        before_sha256=before.sha256,
        after_sha256=after.sha256,
        provider=options.runtime.provider,
        threads=options.runtime.threads,
        level=options.runtime.level,
        seed=options.seed,
    )


def _problem(witnesses: Sequence[Witness]) -> str:
    """Why the original could not be run, and what to give where the auditor had to choose sizes; empty if it could."""
    if not witnesses or not witnesses[0].problem:
        return ""
    first = witnesses[0]
    if not first.chosen or "cannot load" in first.problem or "--input" in first.problem:
        return first.problem
    names = ", ".join(f"'{name}'" for name in first.chosen)
    return f"{first.problem.rstrip('. ')} (nobody gave all sizes of {names}: give them with --input-shape, or --inputs)"


def _outcome(region: RegionAudit) -> Outcome | None:
    found = region.level("L3")
    return found.outcome if found else None
