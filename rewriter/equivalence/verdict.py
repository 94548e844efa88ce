"""From what the levels found to a verdict: pure functions, tested as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rewriter.equivalence.records import GRADES, Grade, Level, LevelResult, Outcome, Verdict

_SLACK = 8.0
"""A whole-model error up to this many times the allowance, with every region proven, is amplified rounding."""


def region_verdict(outcomes: Mapping[Level, Outcome], blind: bool | None, whole: Outcome | None) -> tuple[Verdict, str]:
    """The verdict of one region from L1–L3 and L5, whether the outputs are blind to it, and the outcome of L4."""
    failures = [level for level in ("L1", "L2", "L3", "L5") if outcomes.get(level) == "fail"]
    if failures:
        return "different", f"{failures[0]} refutes it."
    proven, exact, bounded = (outcomes.get(level) == "pass" for level in ("L1", "L2", "L3"))
    if proven and (exact or bounded):
        ran = " and ".join(level for level, found in (("L2", exact), ("L3", bounded)) if found)
        return "equivalent", f"Shown statically (L1) and confirmed by running it ({ran})."
    if exact and bounded:
        return "equivalent", "Equal on integers (L2), and within the rounding bound on real data (L3)."
    if proven:
        return "not_verified", "Shown statically (L1), but no run could confirm it."
    if bounded:
        return "approximate", "As accurate as the original on real data (L3), but neither L1 nor L2 could prove it."
    if whole == "pass" and blind is False:
        return "approximate", "The graph outputs respond to it and agree (L4), but nothing proves it."
    return "not_verified", "No level could compare it."


def audit_verdict(
    structure: LevelResult,
    regions: Sequence[tuple[Verdict, Grade | None, Outcome | None]],
    whole: LevelResult,
    *,
    identical: bool,
    ran: bool,
    same_definitions: bool = False,
    problem: str = "",
    sizes: LevelResult | None = None,
) -> tuple[Verdict, Grade | None, str]:
    """The verdict on the whole; `regions` are (verdict, grade, outcome of L3), `ran` whether the original ran.

    `same_definitions`: operator sets and functions are equal, so that no region at all is a proof that needs no run.
    `problem`: why the original ran on nothing, as a clause.  `sizes`: L5 of the whole models, if it was asked for.
    """
    if structure.outcome == "fail":
        return "different", None, structure.detail
    if identical:
        return "equivalent", "bitwise", "The two models are identical byte for byte."
    wrong = sum(verdict == "different" for verdict, _, _ in regions)
    if wrong:
        return "different", None, f"{_of(wrong, len(regions), 'computes', 'compute')} something else."
    if sizes is not None and sizes.outcome == "fail":
        return "different", None, sizes.detail
    if not regions and same_definitions and whole.outcome != "fail":
        return "equivalent", "bitwise", "No operator and no constant differs."
    if not ran:
        why = f": {problem.rstrip('. ')}." if problem else "."
        return "not_verified", None, f"ONNX Runtime could not run the original on any input{why}"
    bounded = all(outcome == "pass" for _, _, outcome in regions)
    proven = all(verdict == "equivalent" for verdict, _, _ in regions)
    if whole.outcome == "fail":
        ratio = whole.figures.get("worst")
        if regions and proven and bounded and isinstance(ratio, float) and ratio <= _SLACK:
            reason = f"Every region is equivalent, but the network amplifies rounding: {whole.detail}"
            return "approximate", None, reason
        return "different", None, whole.detail
    grade = GRADES[max((GRADES.index(grade or "rounding") for _, grade, _ in regions), default=0)]
    if whole.outcome != "pass" and not (regions and bounded and proven):
        return "not_verified", None, f"No output of the whole model could be compared ({whole.detail})"
    open_ = sum(verdict == "not_verified" for verdict, _, _ in regions)
    if open_:
        return "not_verified", None, f"{_of(open_, len(regions), 'could', 'could')} not be verified."
    if not proven:
        weak = sum(verdict == "approximate" for verdict, _, _ in regions)
        subject = _of(weak, len(regions), "agrees", "agree")
        return "approximate", None, f"{subject} in every run, but nothing proves it."
    if not regions:
        return "equivalent", "bitwise", "No operator and no constant differs."
    subject = "The region that differs is" if len(regions) == 1 else f"All {len(regions)} regions that differ are"
    return "equivalent", grade, f"{subject} equivalent ({grade})."


def _of(count: int, total: int, one: str, many: str) -> str:
    """Subject and verb: `one` is the verb's singular, `many` its plural."""
    if total == 1:
        return f"The region that differs {one}"
    return f"{count} of {total} regions {one if count == 1 else many}"


_ORDER: tuple[Verdict, ...] = ("equivalent", "approximate", "not_verified", "different")


def weakest(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that claims least: different before not_verified before approximate before equivalent."""
    return max(verdicts, key=_ORDER.index)
