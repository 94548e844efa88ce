"""The equivalence audit: does one model compute what another computes?

It does not trust the rewriter: it finds the differing regions by itself and shares no weight algebra with the passes.
"""

from __future__ import annotations

from rewriter.equivalence.crossing import cross, cross_audit
from rewriter.equivalence.ladder import audit
from rewriter.equivalence.records import (
    Audit,
    AuditOptions,
    CrossAudit,
    Grade,
    LevelResult,
    OutputAudit,
    RegionAudit,
    Verdict,
    Witness,
)

__all__ = [
    "Audit",
    "AuditOptions",
    "CrossAudit",
    "Grade",
    "LevelResult",
    "OutputAudit",
    "RegionAudit",
    "Verdict",
    "Witness",
    "audit",
    "cross",
    "cross_audit",
]
