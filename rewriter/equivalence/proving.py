"""L1 of all regions, and what else shows that names stand for the same contents: which comparison is to be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.constants import Array
from rewriter.equivalence.approximation import UNPROVEN, allowed_error
from rewriter.equivalence.cut import Runner, cut
from rewriter.equivalence.exact import Exchange, compare_exactly
from rewriter.equivalence.inputs import USERS
from rewriter.equivalence.numeric import compare_on_activations
from rewriter.equivalence.parts import Progress, elements, entering
from rewriter.equivalence.records import AuditOptions, Outcome, failed
from rewriter.equivalence.regions import Diff, Region
from rewriter.equivalence.sizes import at_all_sizes
from rewriter.equivalence.static import StaticResult
from rewriter.equivalence.suspects import lone_change, same_numbers
from rewriter.equivalence.whole import Run


def prove(
    diffs: Sequence[Diff], regions: tuple[Region, ...], options: AuditOptions, runs: Sequence[Run], tell: Progress
) -> tuple[tuple[Region, ...], list[StaticResult]]:
    """Regions and their L1.  Where L1 refutes, names may have been reused for other contents: try larger regions.

    Larger regions that L1 says nothing of do not take a refutation back where the names do stand for the same contents,
    nor where what leaves them differs: then the smaller ones say better where that begins.
    """
    compare = at_all_sizes([(diff.before, diff.after) for diff in diffs], diffs[0].operators)
    statics = []
    for number, region in enumerate(regions):
        tell("static comparison", number, len(regions))
        approximate = allowed_error(region, diffs[0], options) is not None
        statics.append(UNPROVEN if approximate else _suspected(compare(region), region, diffs[0]))
    if any(static.result.outcome == "fail" for static in statics) and not options.approximated:
        larger = diffs[0].regions(meet=False)
        if larger != regions:
            others = [_suspected(compare(region), region, diffs[0]) for region in larger]
            outcomes = {static.result.outcome for static in others}
            refuted = [region for region, found in zip(regions, statics, strict=True) if found.result.outcome == "fail"]
            same = outcomes != {"pass"} and any(same_contents(region, diffs, options, runs) for region in refuted)
            if "fail" not in outcomes and not same and not _differ(larger, others, diffs, options, runs):
                return larger, others
    return regions, statics


def _suspected(found: StaticResult, region: Region, diff: Diff) -> StaticResult:
    """What L1 found, or, where it could say nothing, that one constant alone differs, and little of it."""
    if found.result.outcome != "not applicable" or found.sizes:
        return found
    clause = lone_change(region, diff.before, diff.after)
    return StaticResult(failed("L1", clause)) if clause else found


def same_contents(region: Region, diffs: Sequence[Diff], options: AuditOptions, runs: Sequence[Run]) -> bool:
    """Whether what leaves a region is the same in both models, up to rounding, where the original was run."""
    return _on_activations(region, diffs, options, runs) == "pass"


def _differ(
    regions: Sequence[Region],
    statics: Sequence[StaticResult],
    diffs: Sequence[Diff],
    options: AuditOptions,
    runs: Sequence[Run],
) -> bool:
    """Whether runs refute a region that L1 says nothing of."""
    unsure = [region for region, found in zip(regions, statics, strict=True) if found.result.outcome != "pass"]
    return any(_on_activations(region, diffs, options, runs) == "fail" for region in unsure)


def _on_activations(
    region: Region, diffs: Sequence[Diff], options: AuditOptions, runs: Sequence[Run]
) -> Outcome | None:
    exchange = exchange_of(region, diffs, options)
    return None if exchange is None else compare_on_activations(exchange, captured_of(region, diffs, runs), 0).outcome


def equal_on_integers(region: Region, static: StaticResult, diffs: Sequence[Diff], options: AuditOptions) -> bool:
    """Whether L2 alone shows a region: the same numbers are in it on both sides, and integers in their place agree."""
    if static.altered or static.sizes or not same_numbers(region, diffs[0].before, diffs[0].after):
        return False
    exchange = exchange_of(region, diffs, options)
    return exchange is not None and compare_exactly(exchange, moved=False).outcome == "pass"


def captured_of(region: Region, diffs: Sequence[Diff], runs: Sequence[Run]) -> list[dict[str, Array]]:
    """What entered the region in the original's first runs, where all of it is known.

    With the user's first inputs besides, where these have the shapes that the regions are looked at with.
    """
    generated = [run for run in runs if run.binding == 0]
    users = [run for run in runs if run.binding == USERS][:1]
    alike = [run for run in users if generated and run.witness.shapes == generated[0].witness.shapes]
    found = [entering(region, diffs[0].before, run) for run in [*generated[:2], *alike]]
    return [feeds for feeds in found if len(feeds) == len(region.inputs)]


def exchange_of(region: Region, diffs: Sequence[Diff], options: AuditOptions) -> Exchange | None:
    """Both sides of a region, to be run; None where it cannot be cut out, because types or shapes are not known."""
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
