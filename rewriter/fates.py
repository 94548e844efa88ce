"""What became of rewrites that were made, as attempts for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from rewriter.equivalence import Audit
from rewriter.propose import Applied
from rewriter.remake import made_by
from rewriter.rule import Attempt
from rewriter.timing import Timing


def accepted(applied: Sequence[Applied], audit: Audit, *, again: bool = False) -> list[Attempt]:
    """One attempt per rewrite in a model that was accepted; `again`: in a second audit, without those that failed."""
    found = []
    for done in applied:
        region = next((entry for entry in audit.regions if set(entry.outputs) & made_by(done)), None)
        details: dict[str, object] = {
            "safety": done.rewrite.safety.name,
            "grade": audit.grade if region is None else region.grade,
        }
        if done.why:
            details["measured"] = done.why
        if done.rewrite.deviation is not None:
            audited = region.level("L3") if region else None
            measured = {"audited_error": audited.figures.get("error")} if audited else {}
            details["deviation"] = asdict(done.rewrite.deviation) | measured
        reason = f"{done.rewrite.summary}: {done.rewrite.safety.value}."
        if again:
            reason += " Verified again, without those that did not pass the audit."
        found.append(
            Attempt(
                done.step.rule.name,
                done.rewrite.site,
                "accepted",
                reason,
                summary=done.rewrite.summary,
                details=details,
            )
        )
    return found


def demoted(applied: Sequence[Applied], timing: Timing, how: str) -> list[Attempt]:
    """One attempt per rewrite that served its place, in a model that was not (`how`) "measured faster", say."""
    outcome: Literal["slower", "not_worth_it"] = "slower" if timing.verdict == "SLOWER" else "not_worth_it"
    return [
        Attempt(
            done.step.rule.name,
            done.rewrite.site,
            outcome,
            f"{done.why}, but the whole model was not {how}.",
            summary=done.rewrite.summary,
        )
        for done in applied
    ]


def left_out(done: Applied) -> Attempt:
    """One that was likely faster in context, without which the whole model is faster."""
    reason = f"{done.why}, and the whole model was faster without it."
    return Attempt(done.step.rule.name, done.rewrite.site, "not_worth_it", reason, summary=done.rewrite.summary)
