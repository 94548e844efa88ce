"""How a device was timed, in words: whether as a CUDA graph, at which clocks, and what those say about the figures."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.report.record import TimingRecord
from rewriter.timing import Latency, Timing
from rewriter.timing.clocks import ClockPair, unsteadiness
from rewriter.visible import visible


def device_paragraphs(timed: Latency | Timing | TimingRecord, graphs: Sequence[bool]) -> list[str]:
    """What there is to say; nothing on the CPU.  `graphs`: of each model, whether it was timed as a CUDA graph."""
    if not timed.bound:
        return []
    used = "as a captured CUDA graph" if all(graphs) else "some as a captured CUDA graph" if any(graphs) else ""
    hint = used or "without a CUDA graph (--provider-option enable_cuda_graph=1 captures one)"
    device = visible(timed.device) or timed.provider
    said = f"Timed on {device}, {hint}; inputs and outputs stay on the device."
    return [said, *_clock_paragraphs(timed.clocks)]


def _clock_paragraphs(clocks: ClockPair) -> list[str]:
    before, after = clocks
    if before is None or after is None or before.sm is None or after.sm is None:
        return ["Clocks: the device does not tell them."]
    most = "" if before.sm_max is None else f" of {before.sm_max}"
    told = f"Clocks: {before.sm}{most} MHz before, {after.sm} after."
    unsteady = unsteadiness(clocks)
    if not unsteady:
        return [told]
    return [
        told,
        visible(
            f"Note: the device was not steady, since {unsteady}: ratios are paired and hold, but the milliseconds do "
            "not compare with those of another run."
        ),
    ]
