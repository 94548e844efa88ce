"""Which of several whole models are worth having: none of the others is better in one respect and as good in the rest.

Respects are latency, size of the file and peak memory.  What differs within the noise of its measurement is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.footprint import NOISE_MIB


@dataclass(frozen=True)
class Variant:
    """One whole model that was considered: the original, or it with a set of rewrites."""

    name: str
    rewrites: int
    ms: float
    """Milliseconds of one run."""
    speedup: float | None
    """Over the original, paired; None for the original itself."""
    interval: tuple[float, float] | None
    """The 95 % interval of the speed-up; None for the original, and where there were too few pairs."""
    bytes: int
    peak_mib: float | None
    """Peak memory in MiB; None: not measured."""
    chosen: bool = False


def efficient(variants: Sequence[Variant]) -> list[bool]:
    """Of each variant, whether no other one is at least as good in every respect and better in one.

    A variant is faster than another only where the intervals of their speed-ups do not overlap; that of the original
    is [1, 1], and without an interval nothing is known to be faster or slower.  Peak memory differs where it does by
    more than NOISE_MIB, and is left out of account between two of which either's is unknown.  Sizes are exact.

    Equal within the noise is not transitive: A may be as fast as B, and B as C, with A faster than C.  So "better" is
    no order: A better than B and B better than C do not make A better than C, and what is not efficient may be beaten
    only by something that is not efficient either.  It may even go in circles (of five models, three steps by latency
    and two by memory): then no model of the circle is efficient, and there may be none at all.  Of one that is called
    efficient it holds that nothing measured is shown to be better.
    """
    return [not any(_better(other, one) for other in variants if other is not one) for one in variants]


def _better(one: Variant, other: Variant) -> bool:
    """Whether one is at least as good in every respect, and better in one."""
    found = (_faster(one, other), _sign(other.bytes - one.bytes), _leaner(one, other))
    return min(found) >= 0 and max(found) > 0


def _faster(one: Variant, other: Variant) -> int:
    """1 if it surely is, -1 if the other one is, 0 if that is open."""
    mine, theirs = _interval(one), _interval(other)
    if mine is None or theirs is None:
        return 0
    return int(mine[0] > theirs[1]) - int(theirs[0] > mine[1])


def _leaner(one: Variant, other: Variant) -> int:
    """1 if it takes less memory, -1 if the other one does, 0 if that is within the noise or unknown."""
    if one.peak_mib is None or other.peak_mib is None or abs(one.peak_mib - other.peak_mib) <= NOISE_MIB:
        return 0
    return _sign(other.peak_mib - one.peak_mib)


def _interval(variant: Variant) -> tuple[float, float] | None:
    return (1.0, 1.0) if variant.speedup is None else variant.interval


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
