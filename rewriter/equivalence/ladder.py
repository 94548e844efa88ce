"""The audit: find the regions in which two models differ, take each up the ladder, and decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewriter.bindings import Binding, find_bindings
from rewriter.equivalence.approximation import (
    NOT_EXACT,
    allowed_error,
    approximation_reason,
    compare_approximately,
)
from rewriter.equivalence.attempts import Proven, attempts, settled
from rewriter.equivalence.blind import measure_blindness
from rewriter.equivalence.edge_sizes import compare_sizes
from rewriter.equivalence.edges import Edges, region_edges, summed_flags
from rewriter.equivalence.exact import LARGE, Exchange, Rerun, compare_exactly
from rewriter.equivalence.identical import identical
from rewriter.equivalence.inexact import unconvincing
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
    usable,
)
from rewriter.equivalence.proving import captured_of, equal_on_integers, exchange_of, prove, same_contents
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
from rewriter.equivalence.rounding import rounding_of
from rewriter.equivalence.static import StaticResult
from rewriter.equivalence.structural import compare_structure
from rewriter.equivalence.tolerances import data_notes
from rewriter.equivalence.verdict import audit_verdict, region_verdict
from rewriter.equivalence.whole import Run, Whole
from rewriter.model import Model
from rewriter.session import require_provider

_BATCHES = (1, 3)
_FEW_SAMPLES = 4
"""Of the user's inputs, up to which the original's outputs on all of them are kept in memory."""


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
    proven: tuple[Sequence[Diff], Proven] | None = None
    """How they are compared, the regions and their L1, once found: no provider changes them."""


def _climb(pair: _Pair, options: AuditOptions, rerun: Rerun | None, tell: Progress) -> Audit:
    """The ladder from L1 up, run as `options` say."""
    before, after, bindings = pair.before, pair.after, pair.bindings
    tried = attempts(before, after, bindings, options.approximated)
    parts = tried[0][0].regions()
    looked_at = [region for found in tried for region in found[0].regions()]
    whole = Whole(before, after, options.runtime, captures(before, tried[0][0].before, looked_at))
    whole.approximate = reached(after, options.approximated)
    whole.full = options.full
    whole.tolerances = options.tolerances
    tell("runs of the original", 0, 1)
    large = any(elements(region, diff) > LARGE for region in parts for diff in tried[0])
    many = len(options.samples) > _FEW_SAMPLES and not options.approximated  # which are measured on all of them
    whole.run_original(trials(before, bindings, options), defer=large or many)
    _, unusable = usable(tried[0], bindings, whole.runs)
    notes = (*pair.notes, *unusable, *data_notes(options))
    pair.proven = pair.proven or settled(
        [usable(found, bindings, whole.runs)[0] for found in tried],
        lambda found: prove(found, found[0].regions(), options, whole.runs, tell),
        lambda region, found: same_contents(region, found, options, whole.runs),
        lambda region, static, found: equal_on_integers(region, static, found, options),
    )
    diffs, (regions, statics) = pair.proven
    levels: list[list[LevelResult]] = []
    edges: list[Edges | None] = []
    units: list[float] = []
    finite = True
    for number, (region, static) in enumerate(zip(regions, statics, strict=True)):
        tell("regions", number, len(regions))
        exchange = None if static.result.outcome == "fail" else exchange_of(region, diffs, options)
        allowed = allowed_error(region, diffs[0], options)
        if allowed is not None:
            levels.append([static.result, NOT_EXACT, _approximation(region, diffs, exchange, whole.runs, allowed)])
            edges.append(None)
            continue
        finite = finite and (exchange is None or finite_weights(exchange.before.cut))
        found, unit = _run_region(region, static, diffs, exchange, whole.runs, rerun)
        levels.append(found)
        units.append(unit)
        edges.append(region_edges(options, exchange, found, captured_of(region, diffs, whole.runs), static))
    tell("whole model", 0, 1)
    products = max((static.products for static in statics), default=0)
    proven = bool(statics) and all(static.result.outcome == "pass" for static in statics)
    whole.certified = frozenset(
        name
        for region, static, found in zip(regions, statics, levels, strict=True)
        if static.result.outcome == "pass" and found[-1].outcome == "pass" and found[-1].figures.get("certified")
        for name in region.outputs
    )
    whole_level, outputs = whole.compare(max(units, default=0.0), products, finite=finite, proven=proven, tell=tell)
    sizes = compare_sizes(whole, bindings, options, max(units, default=0.0), products, proven=proven)
    blind = _blind(before, bindings, regions, levels, whole, options)
    records = [
        _record(region, diffs[0], static, found, hidden, whole_level, allowed_error(region, diffs[0], options), edge)
        for region, static, found, hidden, edge in zip(regions, statics, levels, blind, edges, strict=True)
    ]
    tell("whole model", 1, 1)
    proof = _same_definitions(diffs[0])
    all_found = before, after, options, pair.structure, notes, records, whole_level, outputs, whole.witnesses
    return _audit(*all_found, proof=proof, sizes=sizes)


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
    why = unconvincing(static, exchange.before.cut, exchange.after.cut)
    if exact.outcome == "pass" and why:
        exact = not_applicable("L2", f"Not applicable: {why}.")
    if rerun is not None and not static.moved:  # the two models alone do not say how
        exact = exact.model_copy(update={"figures": {**exact.figures, "rerun": True}})
    if exact.outcome == "fail":
        return [static.result, exact], 0.0
    numeric = compare_on_activations(exchange, captured_of(region, diffs, runs), static.products)
    return [static.result, exact, numeric], rounding_of(exchange.before.cut, exchange.before.runtime).unit


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
    edges: Edges | None,
) -> RegionAudit:
    levels = [*levels, *([edges.result] if edges else [])]
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
        flags=edges.flags if edges else {},
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
    sizes: tuple[LevelResult, str] | None = None,
) -> Audit:
    summary = [(region.verdict, region.grade, _outcome(region)) for region in regions]
    verdict, grade, reason = audit_verdict(
        structure,
        summary,
        whole,
        identical=same,
        ran=any(not witness.problem for witness in witnesses),
        same_definitions=proof,
        sizes=sizes[0] if sizes else None,
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
        levels=(structure, whole, *sizes[:1]) if sizes else (structure, whole),
        flags=summed_flags([region.flags for region in regions], sizes),
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
