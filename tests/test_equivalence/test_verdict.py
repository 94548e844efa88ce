"""From outcomes to verdicts, as a table."""

from __future__ import annotations

import pytest

from rewriter.equivalence.approximation import approximation_reason
from rewriter.equivalence.records import (
    Grade,
    Level,
    LevelResult,
    Outcome,
    RegionAudit,
    Verdict,
    failed,
    not_applicable,
    passed,
)
from rewriter.equivalence.verdict import audit_verdict, region_verdict

NA: Outcome = "not applicable"
INEXACT: Outcome = "not exact here"
OK, BAD = passed("L4", "Fine."), failed("L4", "The output 'y' is off.", worst=100.0)
NOTHING = not_applicable("L4", "Nothing to compare.")
SOUND = passed("L0", "Sound.")


@pytest.mark.parametrize(
    ("one", "two", "three", "blind", "whole", "verdict"),
    [
        ("pass", "pass", "pass", False, "pass", "equivalent"),
        ("pass", "pass", "pass", True, "pass", "equivalent"),
        ("pass", "pass", NA, True, "pass", "equivalent"),
        ("pass", NA, "pass", None, "pass", "equivalent"),
        ("pass", INEXACT, "pass", None, "pass", "equivalent"),
        ("pass", NA, NA, False, "pass", "not_verified"),
        ("pass", INEXACT, NA, False, "pass", "not_verified"),
        (NA, "pass", "pass", None, "pass", "equivalent"),
        (NA, "pass", NA, False, "pass", "approximate"),
        (NA, "pass", NA, True, "pass", "not_verified"),
        (NA, NA, "pass", None, "pass", "approximate"),
        (NA, NA, NA, False, "pass", "approximate"),
        (NA, NA, NA, None, "pass", "not_verified"),
        (NA, NA, NA, True, "pass", "not_verified"),
        (NA, NA, NA, False, NA, "not_verified"),
        ("fail", None, None, None, "pass", "different"),
        ("pass", "fail", None, None, "pass", "different"),
        ("pass", "pass", "fail", False, "pass", "different"),
        (NA, NA, "fail", None, "pass", "different"),
    ],
)
def test_region(
    one: Outcome, two: Outcome | None, three: Outcome | None, blind: bool | None, whole: Outcome, verdict: Verdict
) -> None:
    levels: dict[Level, Outcome | None] = {"L1": one, "L2": two, "L3": three}
    found, reason = region_verdict({name: value for name, value in levels.items() if value is not None}, blind, whole)
    assert found == verdict
    assert reason.endswith(".")


_Region = tuple[Verdict, Grade | None, Outcome | None]
EXACT: _Region = ("equivalent", "exact", "pass")
ROUNDED: _Region = ("equivalent", "rounding", "pass")
UNBOUNDED: _Region = ("equivalent", "exact", NA)
WRONG: _Region = ("different", None, None)
WEAK: _Region = ("approximate", None, "pass")
OPEN: _Region = ("not_verified", None, NA)


@pytest.mark.parametrize(
    ("regions", "whole", "verdict", "grade"),
    [
        ([], OK, "equivalent", "bitwise"),
        ([], BAD, "different", None),
        ([], NOTHING, "not_verified", None),
        ([EXACT], OK, "equivalent", "exact"),
        ([EXACT, ROUNDED], OK, "equivalent", "rounding"),
        ([EXACT, ("equivalent", "finite", "pass")], OK, "equivalent", "finite"),
        ([EXACT], BAD, "different", None),
        ([EXACT], failed("L4", "The output 'y' is off.", worst=3.0), "approximate", None),
        ([UNBOUNDED], failed("L4", "The output 'y' is off.", worst=3.0), "different", None),
        ([WEAK], failed("L4", "The output 'y' is off.", worst=3.0), "different", None),
        ([EXACT], NOTHING, "equivalent", "exact"),
        ([UNBOUNDED], NOTHING, "not_verified", None),
        ([EXACT, WRONG], OK, "different", None),
        ([EXACT, WEAK], OK, "approximate", None),
        ([WEAK, OPEN], OK, "not_verified", None),
        ([OPEN, WRONG], OK, "different", None),
    ],
)
def test_whole(regions: list[_Region], whole: LevelResult, verdict: Verdict, grade: Grade | None) -> None:
    found, mark, reason = audit_verdict(SOUND, regions, whole, identical=False, ran=True)
    assert (found, mark) == (verdict, grade)
    assert reason[0].isupper() or reason[0].isdigit()


def test_another_interface_is_different_whatever_the_rest() -> None:
    interface = failed("L0", "The outputs differ.")
    assert audit_verdict(interface, [], OK, identical=False, ran=True)[0] == "different"


def test_an_original_that_never_ran_is_not_verified() -> None:
    assert audit_verdict(SOUND, [EXACT], NOTHING, identical=False, ran=False)[0] == "not_verified"
    assert audit_verdict(SOUND, [WRONG], NOTHING, identical=False, ran=False)[0] == "different"


def test_identical_bytes_need_no_run() -> None:
    assert audit_verdict(SOUND, [], NOTHING, identical=True, ran=False)[:2] == ("equivalent", "bitwise")


@pytest.mark.parametrize(
    ("off", "total", "said"),
    [
        (1, 1, "The region that differs is an approximation, off by"),
        (1, 3, "1 region is an approximation, off by up to 0 on the inputs given, and 2 equivalent."),
        (2, 3, "2 regions are approximations, off by"),
        (11, 12, "11 regions are approximations, off by"),
        (21, 21, "All 21 regions are approximations, off by up to 0 on the inputs given."),
    ],
)
def test_how_many_approximate(off: int, total: int, said: str) -> None:
    facts: dict[str, object] = {
        "before": {},
        "after": {},
        "verdict": "approximate",
        "grade": None,
        "levels": (),
        "blind": None,
    }
    region = RegionAudit.model_validate({"inputs": (), "outputs": ("y",), "reason": "", **facts})
    assert approximation_reason([region] * off, total, passed("L4", "")).startswith(said)
