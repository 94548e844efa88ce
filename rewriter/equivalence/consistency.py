"""What an audit cannot say at once: for records that come from elsewhere, where anyone may have changed a word."""

from __future__ import annotations

from rewriter.equivalence.records import GRADES, Audit, CrossAudit, RegionAudit
from rewriter.equivalence.verdict import weakest

_REFUTES = ("L1", "L2", "L3")


def contradiction(audit: Audit | CrossAudit) -> str:
    """Where the record contradicts itself, as a clause; empty where it does not, which is no proof of anything."""
    if isinstance(audit, CrossAudit):
        return _crossed(audit)
    for region in audit.regions:
        problem = _in_region(region)
        if problem:
            return f"the region of '{', '.join(region.outputs)}' {problem}"
    if (audit.grade is not None) != (audit.verdict == "equivalent"):
        return f"the verdict '{audit.verdict}' does not go with the grade '{audit.grade}'"
    if audit.deployed is not None:
        problem = contradiction(audit.deployed)
        return problem or _deployed(audit, audit.deployed)
    return _in_whole(audit)


def _in_region(region: RegionAudit) -> str:
    failed = [entry.level for entry in region.levels if entry.outcome == "fail" and entry.level in _REFUTES]
    if failed and region.verdict != "different":
        return f"is said to be {region.verdict}, although {failed[0]} refutes it"
    if region.verdict == "different" and not any(entry.outcome == "fail" for entry in region.levels):
        return "is said to be different, although no level refutes it"
    if region.verdict == "equivalent" and not any(entry.outcome == "pass" for entry in region.levels):
        return "is said to be equivalent, although no level shows it"
    if (region.grade is not None) != (region.verdict == "equivalent"):
        return f"has the verdict '{region.verdict}' and the grade '{region.grade}'"
    return ""


def _in_whole(audit: Audit) -> str:
    refuted = [entry.level for entry in audit.levels if entry.outcome == "fail"]
    verdicts = [region.verdict for region in audit.regions]
    if audit.verdict == "different":
        return "" if refuted or "different" in verdicts else "it says 'different', although nothing is"
    if "different" in verdicts:
        return f"it says '{audit.verdict}', although a region is different"
    if audit.verdict != "equivalent":
        return ""
    if refuted:
        return f"it says 'equivalent', although {refuted[0]} refutes it"
    if set(verdicts) - {"equivalent"}:
        return "it says 'equivalent', although a region is not"
    grades = [region.grade for region in audit.regions if region.grade is not None]
    least = max((GRADES.index(grade) for grade in grades), default=0)
    if audit.grade is not None and GRADES.index(audit.grade) < least:
        return f"it claims the grade '{audit.grade}', and a region of it only '{GRADES[least]}'"
    return ""


def _deployed(full: Audit, deployed: Audit) -> str:
    """In full precision and as deployed: the verdict is the weaker one, and cannot be better than as deployed."""
    if weakest((full.verdict, deployed.verdict)) != full.verdict:
        return f"it says '{full.verdict}', and of what is deployed '{deployed.verdict}'"
    return ""


def _crossed(audit: CrossAudit) -> str:
    if not audit.audits:
        return "it compares nothing"
    for found in audit.audits:
        problem = contradiction(found)
        if problem:
            return problem
    least = weakest(found.verdict for found in audit.audits)
    return "" if least == audit.verdict else f"it says '{audit.verdict}', and one of its audits '{least}'"
