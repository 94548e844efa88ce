"""Records that contradict themselves: each part of what can be wrong; and what audits really say is never one."""

from __future__ import annotations

from typing import Any

import pytest

from certificates import PAIRS, certificate
from rewriter.equivalence import Audit, CrossAudit
from rewriter.equivalence.consistency import contradiction


def made(name: str, **changes: Any) -> Audit:
    found = certificate(name).audit
    assert isinstance(found, Audit)
    return found.model_copy(update=changes)


def crossed(verdict: Any, *audits: Audit) -> CrossAudit:
    return CrossAudit(verdict=verdict, reason="", pairs=audits, crossings=())


@pytest.mark.parametrize("name", PAIRS)
def test_what_audits_say_is_none(name: str) -> None:
    found = made(name)
    assert contradiction(found) == ""
    assert contradiction(found.model_copy(update={"deployed": found})) == ""
    assert contradiction(crossed(found.verdict, found, found)) == ""


def test_nothing_differs_and_it_says_different() -> None:
    found = made("equivalent", verdict="different", grade=None)
    assert contradiction(found) == "it says 'different', although nothing is"


@pytest.mark.parametrize("verdict", ["approximate", "not_verified"])
def test_a_region_is_different_and_it_says_less(verdict: str) -> None:
    found = made("different", verdict=verdict)
    assert contradiction(found) == f"it says '{verdict}', although a region is different"


@pytest.mark.parametrize(("verdict", "grade"), [("equivalent", None), ("approximate", "exact")])
def test_a_grade_goes_with_equivalent(verdict: str, grade: str | None) -> None:
    found = made("equivalent", verdict=verdict, grade=grade)
    assert contradiction(found) == f"the verdict '{verdict}' does not go with the grade '{grade}'"


def test_what_is_deployed_cannot_be_worse() -> None:
    found = made("equivalent", deployed=made("not_verified"))
    assert contradiction(found) == "it says 'equivalent', and of what is deployed 'not_verified'"
    wrong = made("equivalent", deployed=made("equivalent", verdict="different", grade=None))
    assert contradiction(wrong) == "it says 'different', although nothing is"


def test_a_comparison_of_providers_is_as_weak_as_its_weakest() -> None:
    good, bad = made("equivalent"), made("different")
    assert contradiction(crossed("different", good, bad)) == ""
    assert contradiction(crossed("equivalent", good, bad)) == "it says 'equivalent', and one of its audits 'different'"
    assert contradiction(crossed("equivalent")) == "it compares nothing"
    assert contradiction(crossed("equivalent", made("equivalent", grade=None))).startswith("the verdict 'equivalent' ")
