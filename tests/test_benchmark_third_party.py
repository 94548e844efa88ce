"""benchmarks/third_party.py: its page is current, and says what is in its results."""

from __future__ import annotations

from typing import Any

from benchmarks import third_party, third_party_page
from benchmarks.third_party_tools import CONVERTERS


def row(tool: str = "onnxsim", **found: Any) -> third_party.Row:
    plain = {"model": "a_b", "tool": tool, "outcome": "audited", "verdict": "equivalent", "grade": "exact"}
    return {**plain, "regions": 3, "seconds": 1.2, "reason": "All is well.", "version": "tool 1", **found}


def test_the_page_holds_the_results() -> None:
    assert third_party_page.PAGE.read_text(encoding="utf-8") == third_party_page.current()


def test_a_cell_is_the_grade_or_what_else_came_of_it() -> None:
    wrong = row("onnxslim", verdict="different", grade=None, reason="a_b is off.")
    late = {"model": "a_b", "tool": "ort-basic", "outcome": "timeout", "reason": "Not done.", "seconds": 9.0}
    text = third_party_page.page([row(), wrong, late], ["a_b", "c"])
    assert "| a_b | exact, 3, 1 s | **different**, 3, 1 s | · | timeout | · |" in text
    assert f"| c |{' · |' * len(CONVERTERS)}" in text
    assert "- a_b, onnxslim: different. a\\_b is off." in text
    assert "- a_b, ort-basic: timeout. Not done." in text
    assert f"3 of {2 * len(CONVERTERS)} pairs audited: 1 equivalent, 1 different, 1 timeout." in text


def test_a_damage_that_is_not_found_shows() -> None:
    found = row(damage="pads moved", what="the pads", verdict="different", named=True)
    text = third_party_page.page([found, {**found, "verdict": "equivalent", "named": False}], [])
    assert "1 of 2 found different; the report names what was damaged in 1." in text
    assert "| a_b | onnxsim | the pads | equivalent | no |" in text


def test_every_damage_of_so_many_files_is_tried_once() -> None:
    rows = {f"m {tool} ": {**row(tool), "model": "m"} for tool in CONVERTERS}
    todo = list(third_party._to_damage(rows, 2))
    assert [(found["tool"], seed) for found, _, seed in todo[::3]] == [("onnxsim", 0), ("onnxslim", 1)]
    rows["m onnxsim pads moved"] = {**row(damage="pads moved"), "model": "m"}
    assert len(list(third_party._to_damage(rows, 2))) == len(todo) - 1
