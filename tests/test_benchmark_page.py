"""The command that puts results into a page of docs/: it writes, or checks and changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import campaign_page, third_party_page
from benchmarks.page import page_command


def called(monkeypatch: pytest.MonkeyPatch, page: Path, *arguments: str) -> int:
    monkeypatch.setattr("benchmarks.page._ROOT", page.parent)
    monkeypatch.setattr(sys, "argv", ["page", *arguments])
    return page_command("What it does.", page, lambda: "The text, with a ×.\n", page.parent / "results.json")


def test_a_page_is_checked_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    assert called(monkeypatch, page, "--check") == 1
    assert not page.exists()
    assert called(monkeypatch, page) == 0
    assert capsys.readouterr().out == "page.md holds the results of results.json.\n"
    assert page.read_bytes() == "The text, with a ×.\n".encode()
    assert called(monkeypatch, page, "--check") == 0
    page.write_text("edited by hand")
    assert called(monkeypatch, page, "--check") == 1
    assert page.read_text() == "edited by hand"


@pytest.mark.parametrize("module", [campaign_page, third_party_page])
def test_each_page_is_checked_against_its_own_results(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["page", "--check"])
    assert module.main() == 0
    monkeypatch.setattr(module, "current", lambda: "of other results")
    assert module.main() == 1
