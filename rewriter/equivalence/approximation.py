"""Regions that only have to approximate: the error on captured activations against what the user allows.

Nothing is proven there and nothing could be; what can be known is how far off a region is on the inputs given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from rewriter.constants import Array
from rewriter.equivalence.exact import Exchange
from rewriter.equivalence.numeric import mismatch
from rewriter.equivalence.precision import relative_error
from rewriter.equivalence.records import AuditOptions, LevelResult, RegionAudit, failed, not_applicable, passed
from rewriter.equivalence.regions import Diff, Region
from rewriter.equivalence.static import StaticResult
from rewriter.session import SessionFailed

_MARGIN = 1e-4
"""Of the error allowed: what rounding may add between two ways to compute the same error."""


UNPROVEN: Final = StaticResult(not_applicable("L1", "Not applicable: it only has to approximate."))
"""L1 of such a region, and L2."""
NOT_EXACT: Final = not_applicable("L2", "Not applicable: it only has to approximate.")


def allowed_error(region: Region, diff: Diff, options: AuditOptions) -> float | None:
    """The largest relative error allowed in a region; None where it has to be equivalent.

    Every tensor that is made there must be named: what else came into the region is not to hide behind it.
    """
    side = diff.after
    made = {
        name
        for index in region.after
        for name in side.model.nodes[index].output
        if name and not side.constant(name) and side.bound.value(name) is None
    }
    if not made or not made <= options.approximated.keys():
        return None
    return max(options.approximated[name] for name in made)


def approximation_reason(off: Sequence[RegionAudit], total: int, whole: LevelResult) -> str:
    """What to say of two models of which these regions, of so many, are approximations as was asked."""
    errors = [level.figures.get("error", 0.0) for region in off if (level := region.level("L3"))]
    largest = max((error for error in errors if isinstance(error, float)), default=0.0)
    others = "" if len(off) == total else f", and {total - len(off)} equivalent"
    if len(off) == 1:
        subject = f"{'The region that differs' if total == 1 else '1 region'} is an approximation"
    else:
        subject = f"{f'All {total}' if len(off) == total else len(off)} regions are approximations"
    return f"{subject}, off by up to {largest:.3g} on the inputs given{others}. {whole.detail}"


def compare_approximately(exchange: Exchange, captured: Sequence[Mapping[str, Array]], allowed: float) -> LevelResult:
    """Level L3 of such a region: root mean square of the error over that of the output, all inputs together."""
    if not captured:
        return not_applicable("L3", "Not applicable: no run of the original reached the region.")
    before, after = exchange.before, exchange.after
    try:
        old = before.deployed(captured, before.cut.weights)
        again = [before.plain(feeds, before.cut.weights) for feeds in captured]
    except SessionFailed as problem:
        return not_applicable("L3", f"Not applicable: the original region does not run on its own ({problem}).")
    try:
        new = [
            after.deployed(captured, after.cut.weights),
            [after.plain(feeds, after.cut.weights) for feeds in captured],
        ]
    except SessionFailed as problem:
        return failed("L3", f"The rewritten region does not run: {problem}")
    largest = 0.0
    for name in old[0]:
        if not any(
            np.isfinite(found[name]).any() and found[name].any() for found in old if found[name].dtype.kind == "f"
        ):
            return not_applicable("L3", f"Not applicable: '{name}' is zero, empty or not finite on the inputs given.")
        for found in new:
            pairs = [(left[name], right[name]) for left, right in zip(old, found, strict=True)]
            for (left, right), control in zip(pairs, again, strict=True):
                clause = mismatch(left, right, control[name])
                if clause:
                    return failed("L3", f"On captured activations, '{name}' {clause}.")
            error = relative_error(pairs)
            largest = error if np.isnan(error) else max(largest, error)
    figures = {"runs": len(captured), "error": largest, "allowed": allowed}
    if not largest <= allowed * (1 + _MARGIN):
        return failed(
            "L3", f"It is off by {largest:.3g} on captured activations, where {allowed:g} is allowed.", **figures
        )
    return passed("L3", f"Off by {largest:.3g} on captured activations, where {allowed:g} is allowed.", **figures)
