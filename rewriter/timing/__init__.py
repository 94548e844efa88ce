"""Timing: paired and interleaved, with the original timed against itself as control and an interval for every ratio.

`compare` times candidates against an original, `latency` one model by itself.
"""

from __future__ import annotations

from rewriter.timing.compare import compare, latency
from rewriter.timing.digest import output_sha256, tensor_sha256
from rewriter.timing.records import Contender, Latency, Timing
from rewriter.timing.rounds import Clock, Progress
from rewriter.timing.statistics import MINIMUM_EFFECT, MINIMUM_PAIRS, Verdict

__all__ = [
    "MINIMUM_EFFECT",
    "MINIMUM_PAIRS",
    "Clock",
    "Contender",
    "Latency",
    "Progress",
    "Timing",
    "Verdict",
    "compare",
    "latency",
    "output_sha256",
    "tensor_sha256",
]
