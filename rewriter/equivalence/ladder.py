"""The audit: find the regions in which two models differ, take each up the ladder, and decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewriter.bindings import Binding, find_bindings
from rewriter.constants import Array
from rewriter.equivalence.approximation import (
    NOT_EXACT,
    UNPROVEN,
    allowed_error,
    approximation_reason,
    compare_approximately,
)
from rewriter.equivalence.blind import measure_blindness
from rewriter.equivalence.cut import Runner, cut
from rewriter.equivalence.exact import LARGE, Exchange, Rerun, compare_exactly
from rewriter.equivalence.identical import identical
from rewriter.equivalence.inputs import USERS, trials
from rewriter.equivalence.numeric import compare_on_activations, finite_weights
from rewriter.equivalence.parts import (
    Progress,
    captures,
    deployed_too,
    elements,
    entering,
    problem_of,
    reached,
    silent,
    single_precision,
)
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
from rewriter.equivalence.rounding import coarsest, rounding_of
from rewriter.equivalence.static import StaticResult, compare_static
from rewriter.equivalence.structural import compare_structure
from rewriter.equivalence.verdict import audit_verdict, region_verdict
from rewriter.equivalence.whole import Run, Whole
from rewriter.model import Model
from rewriter.session import require_provider
from rewriter.shapes import bind

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
        return _audited(before, after, options, rerun, progress or silent)


def _audited(before: Model, after: Model, options: AuditOptions, rerun: Rerun | None, tell: Progress) -> Audit:
    require_provider(options.runtime)
    bindings = find_bindings(before, options.input_shapes, _BATCHES, vary_given=True)  # refuses shapes that do not fit
    strict = replace(options, runtime=options.runtime.for_audit())
    structure, notes = compare_structure(before, after)
    same = identical(before, after)
    if structure.outcome == "fail" or same:
        return _short(before, after, strict, structure, notes, same)
    pair = _Pair(before, after, tuple(bindings), structure, tuple(notes))
    full = _climb(pair, strict, rerun, tell)
    single = options.runtime.tf32 and (single_precision(before) or single_precision(after))
    if not single or full.verdict not in ("equivalent", "approximate"):
        return full
    return deployed_too(full, _climb(pair, replace(options, runtime=options.runtime.plain()), rerun, tell))


@dataclass(eq=False)
class _Pair:
    """Two models to compare, and what is known of them whatever they run on."""

    before: Model
    after: Model
    bindings: tuple[Binding, ...]
    structure: LevelResult
    notes: tuple[str, ...]
    proven: tuple[tuple[Region, ...], list[StaticResult]] | None = None
    """The regions and their L1, once found: no provider changes them."""


def _climb(pair: _Pair, options: AuditOptions, rerun: Rerun | None, tell: Progress) -> Audit:
    """The ladder from L1 up, run as `options` say."""
    before, after, bindings = pair.before, pair.after, pair.bindings
    diffs = [Diff(before, after, (found.bound, bind(after, found.shapes))) for found in bindings]
    parts = diffs[0].regions()
    whole = Whole(before, after, options.runtime, captures(before, diffs[0].before, parts))
    whole.approximate = reached(after, options.approximated)
    tell("runs of the original", 0, 1)
    large = any(elements(region, diff) > LARGE for region in parts for diff in diffs)
    whole.run_original(trials(before, bindings, options), defer=large)
    diffs, unusable = _usable(diffs, bindings, whole.runs)
    notes = (*pair.notes, *unusable)
    pair.proven = pair.proven or _static(diffs, parts, options, whole.runs, tell)
    regions, statics = pair.proven
    levels: list[list[LevelResult]] = []
    units: list[float] = []
    finite = True
    for number, (region, static) in enumerate(zip(regions, statics, strict=True)):
        tell("regions", number, len(regions))
        exchange = None if static.result.outcome == "fail" else _exchange(region, diffs, options)
        allowed = allowed_error(region, diffs[0], options)
        if allowed is not None:
            levels.append([static.result, NOT_EXACT, _approximation(region, diffs, exchange, whole.runs, allowed)])
            continue
        finite = finite and (exchange is None or finite_weights(exchange.before.cut))
        found, unit = _run_region(region, static, diffs, exchange, whole.runs, rerun)
        levels.append(found)
        units.append(unit)
    tell("whole model", 0, 1)
    products = max((static.products for static in statics), default=0)
    proven = bool(statics) and all(static.result.outcome == "pass" for static in statics)
    whole.certified = frozenset(
        name
        for region, static, found in zip(regions, statics, levels, strict=True)
        if static.result.outcome == "pass" and found[-1].outcome == "pass" and found[-1].figures.get("certified")
        for name in region.outputs
    )
    whole_level, outputs = whole.compare(max(units, default=0.0), products, finite=finite, proven=proven)
    blind = _blind(before, bindings, regions, levels, whole, options)
    records = [
        _record(region, diffs[0], static, found, hidden, whole_level, allowed_error(region, diffs[0], options))
        for region, static, found, hidden in zip(regions, statics, levels, blind, strict=True)
    ]
    tell("whole model", 1, 1)
    proof = _same_definitions(diffs[0])
    return _audit(
        before, after, options, pair.structure, notes, records, whole_level, outputs, whole.witnesses, proof=proof
    )


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
    diffs: Sequence[Diff], regions: tuple[Region, ...], options: AuditOptions, runs: Sequence[Run], tell: Progress
) -> tuple[tuple[Region, ...], list[StaticResult]]:
    """Regions and their L1.  Where L1 refutes, names may have been reused for other contents: try larger regions.

    Larger regions that L1 says nothing of do not take a refutation back where the names do stand for the same contents.
    """
    pairs = [(diff.before, diff.after) for diff in diffs]
    operators = diffs[0].operators
    statics = []
    for number, region in enumerate(regions):
        tell("static comparison", number, len(regions))
        approximate = allowed_error(region, diffs[0], options) is not None
        statics.append(UNPROVEN if approximate else compare_static(region, pairs, operators))
    if any(static.result.outcome == "fail" for static in statics) and not options.approximated:
        larger = diffs[0].regions(meet=False)
        if larger != regions:
            others = [compare_static(region, pairs, operators) for region in larger]
            outcomes = {static.result.outcome for static in others}
            refuted = [region for region, found in zip(regions, statics, strict=True) if found.result.outcome == "fail"]
            same = outcomes != {"pass"} and any(_same_contents(region, diffs, options, runs) for region in refuted)
            if "fail" not in outcomes and not same:
                return larger, others
    return regions, statics


def _same_contents(region: Region, diffs: Sequence[Diff], options: AuditOptions, runs: Sequence[Run]) -> bool:
    """Whether what leaves a region is the same in both models, up to rounding, where the original was run."""
    exchange = _exchange(region, diffs, options)
    return (
        exchange is not None and compare_on_activations(exchange, _captured(region, diffs, runs), 0).outcome == "pass"
    )


def _captured(region: Region, diffs: Sequence[Diff], runs: Sequence[Run]) -> list[dict[str, Array]]:
    """What entered the region in the original's first runs, where all of it is known."""
    found = [entering(region, diffs[0].before, run) for run in runs if run.binding == 0]
    return [feeds for feeds in found if len(feeds) == len(region.inputs)][:2]


def _approximation(
    region: Region, diffs: Sequence[Diff], exchange: Exchange | None, runs: Sequence[Run], allowed: float
) -> LevelResult:
    """How far off a region is on the user's inputs."""
    if exchange is None:
        why = "Not applicable: the region cannot be cut out, because types or shapes in it are not known."
        return not_applicable("L3", why)
    found = [entering(region, diffs[0].before, run) for run in runs if run.binding == USERS]
    return compare_approximately(exchange, [feeds for feeds in found if len(feeds) == len(region.inputs)], allowed)


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
    numeric = compare_on_activations(exchange, _captured(region, diffs, runs), static.products)
    sides = exchange.before, exchange.after
    return [static.result, exact, numeric], coarsest(rounding_of(side.cut, side.runtime) for side in sides).unit


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
    sizes = tuple(elements(region, diff) for diff in diffs)
    return Exchange(*runners, types, shapes, known, options.runtime, options.seed, options.draws, frozenset(), sizes)


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
    allowed: float | None,
) -> RegionAudit:
    verdict, reason = region_verdict({level.level: level.outcome for level in levels}, blind, whole.outcome)
    if allowed is not None and verdict != "different":
        # A run that measured the error, or nothing: what L4 says of the outputs says nothing of what is allowed here.
        verdict, reason = ("approximate" if levels[-1].outcome == "pass" else "not_verified"), levels[-1].detail
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
        allowed_error=allowed,
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
        problem=problem_of(witnesses),
    )
    off = [region for region in regions if region.allowed_error is not None]
    if off and verdict == "approximate" and all(region.accepted for region in regions):
        reason = approximation_reason(off, len(regions), whole)
    wrong = next((region for region in regions if region.verdict == verdict and not region.accepted), None)
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
        provider_options=dict(options.runtime.provider_options),
        precision="tf32" if options.runtime.tf32 else "full",
    )


def _outcome(region: RegionAudit) -> Outcome | None:
    found = region.level("L3")
    return found.outcome if found else None
