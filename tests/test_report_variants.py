"""The models that were considered, in every format: what each costs, and what the marks say."""

from __future__ import annotations

import io
import json
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import fields
from typing import Any

import pytest

from report_files import HOSTILE, page
from rewriter.cli_reports import rewrite_report
from rewriter.cli_show import Voice, left_text
from rewriter.pareto import Variant
from rewriter.report.formats import render
from rewriter.report.record import Report, VariantRecord, variant_records
from rewriter.report.table import Table
from rewriter.report.text import report_blocks
from rewriter.report.text_variants import variant_blocks, variant_line, variant_table
from test_report import report

FAST = Variant("fast", 18, 12.9, 2.42, (2.38, 2.44), 113_500_000, 239.1, chosen=True)
SMALL = Variant("small", 2, 31.0, 1.01, (0.99, 1.03), 90_000_000, 210.0)
WORSE = Variant("worse", 16, 20.0, 1.55, (1.5, 1.6), 120_000_000, 250.0)
ORIGINAL = Variant("original", 0, 31.2, None, None, 100_000_000, 216.3)
ALL = (ORIGINAL, FAST, SMALL, WORSE)


def made(*variants: Variant, **more: Any) -> Report:
    return report(variants=variant_records(variants), **more)


def unmeasured(one: Variant) -> Variant:
    return Variant(**{field.name: getattr(one, field.name) for field in fields(one)} | {"peak_mib": None})


def table(of: Report, verbose: bool = False) -> Table:
    (found,) = [block for block in variant_blocks(of, verbose) if isinstance(block, Table)]
    return found


def test_records_hold_what_the_variants_do_and_who_is_efficient() -> None:
    records = variant_records(ALL[1:])
    assert [one.efficient for one in records] == [True, True, False]
    for record, one in zip(records, ALL[1:], strict=True):
        assert all(getattr(record, field.name) == getattr(one, field.name) for field in fields(Variant))
    assert set(VariantRecord.model_fields) == {field.name for field in fields(Variant)} | {"efficient"}


def test_the_table_marks_the_chosen_and_the_efficient() -> None:
    found = table(made(*ALL))
    assert found.columns == ("model", "rewrites", "latency", "speed-up", "size", "peak memory", "")
    assert found.rows == (
        ("original", "0", "31.20 ms", "", "100.0 MB", "216.3 MiB", ""),
        ("fast", "18", "12.90 ms", "2.42x (2.38 to 2.44)", "113.5 MB", "239.1 MiB", "* chosen"),
        ("small", "2", "31.00 ms", "1.01x (0.99 to 1.03)", "90.0 MB", "210.0 MiB", "*"),
        ("worse", "16", "20.00 ms", "1.55x (1.50 to 1.60)", "120.0 MB", "250.0 MiB", ""),
    )
    assert found.right == {"rewrites", "latency", "per second", "size", "peak memory"}


@pytest.mark.parametrize(
    ("variants", "objective", "verbose", "shown"),
    [
        ((), "memory", True, False),
        ((ORIGINAL, FAST), "latency", False, False),
        ((ORIGINAL, FAST), "latency", True, True),
        ((ORIGINAL, FAST), "size", False, True),
        ((ORIGINAL, FAST, SMALL), "latency", False, True),
    ],
)
def test_it_is_shown_where_there_is_a_choice(
    variants: tuple[Variant, ...], objective: str, verbose: bool, shown: bool
) -> None:
    blocks = report_blocks(made(*variants, objective=objective), verbose)
    assert any(isinstance(block, Table) and block.columns[0] == "model" for block in blocks) == shown
    assert any(isinstance(block, str) and block.startswith("* ") for block in blocks) == shown
    assert (f"Objective: {objective}." in blocks) == (shown and objective != "latency")


def test_memory_has_a_column_only_where_it_was_measured() -> None:
    none, some = (unmeasured(one) for one in ALL[:3]), (ORIGINAL, FAST, unmeasured(SMALL))
    blind, half = made(*none), made(*some)
    assert "peak memory" not in table(blind).columns
    assert [row[5] for row in table(half).rows] == ["216.3 MiB", "239.1 MiB", ""]
    said = [str(variant_blocks(one, False)[-1]) for one in (blind, half, made(*ALL))]
    assert ["memory" in one for one in said] == [False, True, True]
    assert ["left out" in one for one in said] == [False, True, False]


def test_throughput_counts_items() -> None:
    found = made(ORIGINAL, FAST, objective="throughput", items_per_run=8)
    shown = table(found)
    assert [row[shown.columns.index("per second")] for row in shown.rows] == ["256.4", "620.2"]
    assert variant_blocks(found, False)[0] == (
        "Objective: throughput. One run takes a batch of 8; counted are its items."
    )
    assert "batch" not in str(variant_blocks(made(ORIGINAL, FAST, objective="throughput"), False)[0])
    assert "per second" not in table(made(ORIGINAL, FAST, objective="memory", items_per_run=8)).columns


def test_too_few_pairs_are_told() -> None:
    (row,) = variant_table(variant_records([Variant("a", 1, 2.0, 1.5, None, 999, None)])).rows
    assert row == ("a", "1", "2.00 ms", "1.50x (too few pairs)", "999 B", "*")


def test_text_and_markdown_hold_the_table() -> None:
    content = rewrite_report(made(*ALL), "FATE")
    lines = render(".txt", content).decode().splitlines()
    rows = [line for line in lines if line.startswith(("original ", "fast ", "small ", "worse "))]
    assert [line.split()[-1] for line in rows] == ["MiB", "chosen", "*", "MiB"]
    shape, texts = page(render(".md", content).decode())
    assert "Models" in texts
    assert "* chosen" in texts
    assert any(text.startswith("* no other model here is better") for text in texts)
    assert shape.count("ul") == 0  # the mark makes no list


def test_data_hold_all_of_it_also_where_no_table_is_shown() -> None:
    content = rewrite_report(made(ORIGINAL, FAST), "FATE")
    data = json.loads(render(".json", content))
    assert (data["objective"], data["items_per_run"]) == ("latency", 1)
    assert [VariantRecord.model_validate(one) for one in data["variants"]] == list(variant_records([ORIGINAL, FAST]))


def test_xml_has_them_as_properties() -> None:
    root = ET.fromstring(render(".xml", rewrite_report(made(*ALL, objective="size"), "FATE")))
    told = {entry.get("name"): entry.get("value") for entry in root.iter("property")}
    assert told["objective"] == "size"
    assert told["variant 0: original"] == "31.20 ms, 100.0 MB, 216.3 MiB"
    assert told["variant 1: fast"] == "12.90 ms, 2.42x (2.38 to 2.44), 113.5 MB, 239.1 MiB, chosen, efficient"
    assert variant_line(variant_records([unmeasured(ORIGINAL)])[0]) == "31.20 ms, 100.0 MB, efficient"


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_shown_in_every_format(name: str) -> None:
    odd = Variant(name, 1, 2.0, 1.5, (1.4, 1.6), 10, None)
    content = rewrite_report(made(ORIGINAL, FAST, odd), "FATE")
    plain = rewrite_report(made(ORIGINAL, FAST, SMALL), "FATE")
    assert len(render(".txt", content).splitlines()) == len(render(".txt", plain).splitlines())
    assert page(render(".md", content).decode())[0] == page(render(".md", plain).decode())[0]
    assert json.loads(render(".json", content))["variants"][2]["name"] == name
    ET.fromstring(render(".xml", content))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (41.0, "at most 41 s left"),
        (40.2, "at most 41 s left"),
        (0.01, "at most 1 s left"),
        (119.0, "at most 119 s left"),
        (119.5, "at most 2 min left"),
        (121.0, "at most 3 min left"),
        (0.0, "finishing"),
        (-5.0, "finishing"),
    ],
)
def test_what_is_left_of_a_budget(seconds: float, said: str) -> None:
    assert left_text(seconds) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal; called by the test itself, since pytest sets its own before a test begins."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_the_bar_counts_down_and_then_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with Voice().progress("searching", 0.2) as progress:
        progress("measuring", 1, 3)
        time.sleep(0.3)
    shown = stream.getvalue()
    assert "searching" in shown
    assert "0:00:00" not in shown
    assert 0 < shown.index("at most 1 s left") < shown.index("finishing")


def test_without_a_budget_the_bar_tells_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with Voice().progress("reading") as progress:
        progress("measuring", 1, 3)
    shown = stream.getvalue()
    assert "0:00:00" in shown
    assert "left" not in shown
    assert "finishing" not in shown


def test_where_there_is_no_terminal_a_budget_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Voice(verbose=True).progress("reading", 3.0) as progress:
        progress("measuring", 1, 3)
    assert capsys.readouterr().err == "reading ...\nmeasuring ...\n"
