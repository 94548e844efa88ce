"""Which models are worth having: by latency, size and memory, where what is within the noise is equal."""

from __future__ import annotations

from typing import Any

import pytest

from rewriter.footprint import NOISE_MIB
from rewriter.pareto import Variant, efficient


def variant(name: str = "", **known: Any) -> Variant:
    plain: dict[str, Any] = {
        "name": name,
        "rewrites": 1,
        "ms": 10.0,
        "speedup": 1.0,
        "interval": (0.98, 1.02),
        "bytes": 1000,
        "peak_mib": 50.0,
    }
    return Variant(**(plain | known))


ORIGINAL = variant("original", rewrites=0, speedup=None, interval=None)


def marks(*variants: Variant) -> str:
    """`+` for each that is efficient, `-` for each that is not."""
    return "".join("+" if mark else "-" for mark in efficient(variants))


def test_one_alone_is_efficient_and_none_are_none() -> None:
    assert marks(ORIGINAL) == "+"
    assert marks() == ""


@pytest.mark.parametrize(
    "better",
    [
        {"interval": (1.03, 1.10)},  # it begins where that of a plain variant has ended
        {"bytes": 999},
        {"peak_mib": 50.0 - NOISE_MIB - 0.01},
    ],
)
def test_one_better_respect_with_equal_others_is_enough(better: dict[str, Any]) -> None:
    assert marks(variant(), variant(**better)) == "-+"
    assert marks(variant(**better), variant()) == "+-"
    assert marks(variant(), variant(), variant(**better)) == "--+"


@pytest.mark.parametrize(
    "other",
    [
        {"interval": (1.02, 1.10)},  # they touch
        {"interval": None, "speedup": 3.0},  # too few pairs: nothing is known
        {"speedup": 3.0, "ms": 3.0},  # neither the middle nor milliseconds decide
        {"peak_mib": 50.0 - NOISE_MIB},
        {"peak_mib": None},
        {},
    ],
)
def test_within_the_noise_is_equal(other: dict[str, Any]) -> None:
    assert marks(variant(), variant(**other)) == "++"


def test_touching_intervals_are_equal_so_that_size_decides() -> None:
    assert marks(variant(interval=(1.02, 1.10)), variant(bytes=999)) == "-+"
    assert marks(variant(interval=(1.03, 1.10)), variant(bytes=999)) == "++"


def test_better_here_and_worse_there_are_both_efficient() -> None:
    fast = variant(interval=(1.9, 2.1), bytes=1001)
    lean = variant(interval=(1.4, 1.5), peak_mib=40.0)
    assert marks(ORIGINAL, fast, lean) == "-++"
    assert marks(ORIGINAL, fast, variant(interval=(1.4, 1.5), bytes=1001)) == "++-"


def test_the_original_is_at_exactly_one() -> None:
    assert marks(ORIGINAL, variant(interval=(1.0, 1.1))) == "++"
    assert marks(ORIGINAL, variant(interval=(1.001, 1.1))) == "-+"
    assert marks(ORIGINAL, variant(interval=(0.9, 0.999))) == "+-"
    assert marks(ORIGINAL, variant(interval=None)) == "++"


def test_unknown_memory_leaves_the_other_respects() -> None:
    assert marks(variant(peak_mib=None), variant(peak_mib=90.0, bytes=999)) == "-+"
    assert marks(variant(peak_mib=10.0, bytes=1001), variant(peak_mib=None)) == "-+"


def test_equal_is_not_transitive() -> None:
    steps = [variant(peak_mib=50.0 + 0.6 * NOISE_MIB * k) for k in range(3)]
    assert marks(*steps[:2]) == marks(*steps[1:]) == "++"
    assert marks(*steps) == "++-"


def test_what_is_better_may_go_in_circles() -> None:
    """Each is better than the next, the last one than the first: as the docstring of `efficient` says."""
    spans = [(1.7, 1.8), (1.5, 1.6), (1.3, 1.4), (1.1, 1.2), (1.0, 2.0)]
    extra = [2.5, 1.8, 0.9, 0.0, 1.2]
    # From the fourth to the wide one, and from that to the first, memory decides.
    circle = [variant(interval=span, peak_mib=50.0 + more * NOISE_MIB) for span, more in zip(spans, extra, strict=True)]
    for one, following in zip(circle, [*circle[1:], circle[0]], strict=True):
        assert marks(one, following) == "+-"
    assert marks(*circle) == "-----"


def test_the_same_variant_twice_in_a_list_is_no_rival_of_itself() -> None:
    assert marks(ORIGINAL, ORIGINAL) == "++"
