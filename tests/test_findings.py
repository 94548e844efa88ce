"""What a search learns from its measurements: where to look next, and what was seen to lose."""

from __future__ import annotations

import pytest

from rewriter.findings import Findings, Promise, is_losing
from timings import timing


def test_a_pass_that_saved_much_elsewhere_promises_more_for_the_same_work() -> None:
    promise = Promise()
    assert promise.of(["regroup"], 10**8) == promise.of(["split-groups"], 10**8)
    assert promise.is_new(["regroup"])
    promise.learn([("regroup", timing(1.5, "FASTER"))], 10**8)
    promise.learn([("split-groups", timing(0.5, "SLOWER"))], 10**8)
    assert not promise.is_new(["regroup"])
    assert promise.is_new(["regroup", "grouped-to-dense"])
    assert promise.of(["regroup"], 10**8) > promise.of(["split-groups"], 10**8) > 0
    assert promise.of(["regroup"], 10**6) < promise.of(["split-groups"], 10**8)


def test_of_several_candidates_of_a_pass_the_best_counts_and_their_work_once() -> None:
    one, two = Promise(), Promise()
    one.learn([("regroup", timing(1.5, "FASTER"))], 10**8)
    two.learn([("regroup", timing(0.5, "SLOWER")), ("regroup", timing(1.5, "FASTER"))], 10**8)
    assert one.of(["regroup"], 10**7) == two.of(["regroup"], 10**7)


def test_the_last_timing_of_a_variant_is_the_one_that_is_known() -> None:
    findings = Findings()
    findings.note("y", "regroup", {"factor": 2}, timing(1.5, "FASTER"))
    findings.note("y", "regroup", {"factor": 4}, timing(0.5, "SLOWER"))
    findings.note("y", "regroup", {"factor": 2}, timing(1.2, "NOISE"))
    found = findings.of("y", "regroup", {"factor": 2})
    assert found is not None
    assert found.speedup == 1.2
    assert findings.of("z", "regroup", {"factor": 2}) is None
    assert findings.of("y", "regroup", {}) is None


def test_what_a_pass_usually_saves_is_that_of_its_best_variant_at_each_place() -> None:
    findings = Findings()
    findings.note("y", "regroup", {"factor": 2}, timing(1.5, "FASTER"))
    findings.note("y", "regroup", {"factor": 4}, timing(0.5, "SLOWER"))
    findings.note("z", "regroup", {"factor": 2}, timing(1.1, "NOISE"))
    assert findings.usual() == {"regroup": pytest.approx(0.3)}  # made-up timings take 1 ms after, their speed-up before


@pytest.mark.parametrize(("speedup", "losing"), [(0.9, True), (0.98, False), (1.1, False)])
def test_what_is_slower_by_its_whole_interval_is_losing(speedup: float, losing: bool) -> None:
    assert is_losing(timing(speedup, "NOISE")) == losing
