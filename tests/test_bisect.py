"""The search for culprits: minimal groups for any monotone predicate, few probes, and an honest end without them."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.bisect import Fails, Group, Subset, find_culprits

UNBOUNDED = 1 << 30


def fails_with(*causes: Collection[int]) -> Fails:
    """Fails for whatever has all of one cause."""
    return lambda subset: any(subset.issuperset(cause) for cause in causes)


@st.composite
def predicates(draw: st.DrawFn) -> tuple[int, list[frozenset[int]]]:
    """A size, and the causes of a monotone predicate for which the whole set fails and the empty one does not."""
    count = draw(st.integers(1, 12))
    cause = st.frozensets(st.integers(0, count - 1), min_size=1, max_size=4)
    return count, draw(st.lists(cause, min_size=1, max_size=5))


@given(predicates())
def test_every_group_fails_and_is_minimal_and_the_rest_passes(case: tuple[int, list[frozenset[int]]]) -> None:
    count, causes = case
    fails = fails_with(*causes)
    found = find_culprits(count, fails, UNBOUNDED)
    assert found.settled
    assert not fails(frozenset(found.rest))
    for group in found.groups:
        assert group.minimal
        assert fails(frozenset(group.members))
        for member in group.members:
            assert not fails(frozenset(group.members) - {member})
    everyone = [member for group in found.groups for member in group.members] + list(found.rest)
    assert sorted(everyone) == list(range(count))


@given(predicates(), st.integers(0, 30))
def test_a_bound_on_the_probes_holds_and_what_is_named_was_seen_to_fail(
    case: tuple[int, list[frozenset[int]]], most: int
) -> None:
    count, causes = case
    asked: list[Subset] = []

    def fails(subset: Subset) -> bool:
        asked.append(subset)
        return fails_with(*causes)(subset)

    found = find_culprits(count, fails, most)
    assert len(asked) == len(set(asked)) == found.probes <= most
    assert found.groups
    for group in found.groups:
        assert fails_with(*causes)(frozenset(group.members))
    if found.settled:
        assert not fails_with(*causes)(frozenset(found.rest))


@given(st.integers(1, 10), st.data())
def test_where_failing_is_not_monotone_what_is_named_was_still_seen_to_fail(count: int, data: st.DataObject) -> None:
    everyone = frozenset(range(count))
    seen = {everyone: True}

    def fails(subset: Subset) -> bool:
        assert subset
        seen.setdefault(subset, data.draw(st.booleans()))
        return seen[subset]

    found = find_culprits(count, fails, UNBOUNDED)
    assert found.settled
    assert all(seen[frozenset(group.members)] for group in found.groups)
    assert not found.rest or not seen[frozenset(found.rest)]


def test_two_that_only_fail_together_are_one_group() -> None:
    found = find_culprits(20, fails_with({3, 17}), UNBOUNDED)
    assert found.groups == (Group((3, 17), minimal=True),)
    assert set(found.rest) == set(range(20)) - {3, 17}


def test_two_that_fail_alone_are_two_groups() -> None:
    assert {group.members for group in find_culprits(20, fails_with({3}, {17}), UNBOUNDED).groups} == {(3,), (17,)}


@pytest.mark.parametrize("culprit", [0, 1, 511, 512, 1023])
def test_one_culprit_costs_the_logarithm_of_the_size(culprit: int) -> None:
    found = find_culprits(1024, fails_with({culprit}), UNBOUNDED)
    assert found.groups == (Group((culprit,), minimal=True),)
    assert found.probes <= math.log2(1024) + 2  # the halvings, it alone, and the rest


def test_one_member_needs_no_probe() -> None:
    found = find_culprits(1, lambda _: pytest.fail("it is known to fail"), 0)
    assert found.groups == (Group((0,), minimal=True),)
    assert found.settled
    assert not found.rest


def test_nothing_to_search() -> None:
    found = find_culprits(0, lambda _: pytest.fail("there is nothing to probe"), 5)
    assert (found.groups, found.rest, found.settled) == ((), (), True)


def test_without_probes_everyone_stays_under_suspicion() -> None:
    found = find_culprits(8, fails_with({5}), 0)
    assert found.groups == (Group(tuple(range(8)), minimal=False),)
    found = find_culprits(8, fails_with({5}), 1)  # the first four pass: those behind are not right for it
    assert found.groups == (Group(tuple(range(8)), minimal=False),)
    found = find_culprits(8, fails_with({1}), 1)
    assert found.groups == (Group((0, 1, 2, 3), minimal=False),)
    assert not found.settled
