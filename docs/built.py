"""A page of this folder that is built from something else: whether it is out of date, and reading the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Report: TypeAlias = Mapping[str, Any]


def read(results: Path) -> Report:
    """What a benchmark or a campaign wrote."""
    report: Report = json.loads(results.read_text(encoding="utf-8"))
    return report


def stale(page: Path, text: str, source: str) -> list[str]:
    """A line saying that the page is not the text that `source` gives, or none."""
    if page.exists() and page.read_text(encoding="utf-8") == text:
        return []
    return [f"docs/{page.name} is not what {source} gives: run python -m docs.build"]


def write(page: Path, text: str) -> None:
    """Bring the page up to date."""
    page.write_text(text, encoding="utf-8", newline="\n")
