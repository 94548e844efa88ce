"""Made-up measurements, for tests of what is made of them."""

from __future__ import annotations

from rewriter.providers import Provider
from rewriter.report.record import TimingRecord
from rewriter.timing import Timing

RECORD = TimingRecord(
    provider="cpu",
    threads=1,
    speedup=2.412,
    interval=(2.383, 2.442),
    before_ms=24.12,
    after_ms=10.0,
    verdict="FASTER",
    reason="",
    pairs=11,
    control_interval=(0.99, 1.01),
    smallest_effect=0.01,
)
"""2.41 times faster, as reports have it."""


def timing(
    speedup: float, verdict: str, before: str = "original", after: str = "rewritten", provider: Provider = "cpu"
) -> Timing:
    """A measurement of two models by name."""
    return Timing(
        before=before,
        after=after,
        verdict=verdict,  # type: ignore[arg-type]  # tests name one of the three
        reason="Made up.",
        before_ms=speedup,
        after_ms=1.0,
        speedup=speedup,
        interval=(speedup * 0.99, speedup * 1.01),
        control_interval=(0.99, 1.01),
        smallest_effect=0.01,
        pairs=10,
        runs_per_block=(1, 1),
        threads=1,
        provider=provider,
        seconds=0.0,
        before_sha256={},
        after_sha256={},
    )
