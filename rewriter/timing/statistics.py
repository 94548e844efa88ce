"""The statistics of paired timing: an interval for a median, and when it may be called faster or slower.

Everything here works on natural logarithms of ratios (before / after), so that 2x faster and 2x slower are equally far
from no effect, and gives the same answer for the same samples: nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Verdict = Literal["FASTER", "SLOWER", "NOISE"]

MINIMUM_PAIRS: Final = 7
"""Fewest samples an interval is computed from: with fewer than 6, no 95 % interval of a median exists."""

MINIMUM_EFFECT: Final = 0.01
"""The smallest change of the running time that is ever called an effect."""

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of its samples."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of the ends."""
        return (self.high - self.low) / 2

    @property
    def reach(self) -> float:
        """The distance from zero of the end that is farther from it."""
        return max(abs(self.low), abs(self.high))


def median_interval(samples: Sequence[float] | np.ndarray) -> Interval:
    """The 95 % bootstrap interval of the median of `samples` [n], n >= MINIMUM_PAIRS.

    The bootstrap distribution of a median is known exactly, so nothing is resampled: the median of n draws is at most
    the k-th smallest sample when at least half of a Binomial(n, k/n) number of draws are (Efron 1979, "Bootstrap
    methods: another look at the jackknife", section 3). The tails are those of the expanded percentile interval
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.1), because the plain one covers too
    rarely for few samples: 87 % for n = 7. As its ends are samples, this one covers 93 to 99 %, depending on n.
    Raises ValueError for fewer samples or for a NaN.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = ordered.size
    if n < MINIMUM_PAIRS:
        raise ValueError(f"{n} samples are too few for an interval: {MINIMUM_PAIRS} are needed")
    if not np.isfinite(ordered).all():
        raise ValueError("a sample is not a finite number")
    from scipy import special  # here, because it takes a third of a second that commands without timing need not spend

    student = special.stdtrit(n - 1, (1 - _CONFIDENCE) / 2)
    tail = special.ndtr(math.sqrt(n / (n - 1)) * student)
    ranks = np.arange(1, n + 1)
    # For even n the lower of the two middle draws: its lower tail is the longer one, so the interval errs on the wide
    # side. The upper end follows by symmetry.
    at_most = special.bdtrc((n + 1) // 2 - 1, n, ranks / n)  # P(median of the draws <= k-th smallest sample)
    rank = int(np.argmax(at_most >= tail))
    return Interval(float(ordered[rank]), float(ordered[n - 1 - rank]))


def smallest_effect(control: Interval) -> float:
    """The smallest relative change that can be told from none, given the interval of original against original.

    The control's interval should lie about zero; its farther end, never less than its half-width, also counts a lasting
    difference between two sessions of the same model (another place in memory). At least MINIMUM_EFFECT.
    """
    return max(MINIMUM_EFFECT, math.expm1(control.reach))


def judge(interval: Interval, effect: float) -> Verdict:
    """FASTER or SLOWER only if the whole interval of log(before / after) is beyond the relative change `effect`."""
    if interval.low > math.log1p(effect):
        return "FASTER"
    if interval.high < -math.log1p(effect):
        return "SLOWER"
    return "NOISE"
