"""docs/certificate.schema.json: the JSON Schema of certificates, from the records in rewriter/certificate."""

from __future__ import annotations

import json
from pathlib import Path

from rewriter.certificate import schema

PAGE = Path(__file__).with_name("certificate.schema.json")


def stale() -> list[str]:
    """A line saying that the schema is out of date, or none."""
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if there == page():
        return []
    return ["docs/certificate.schema.json is not what rewriter/certificate gives: run python -m docs.build"]


def write() -> None:
    """Bring it up to date."""
    PAGE.write_text(page(), encoding="utf-8", newline="\n")


def page() -> str:
    """The text of the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
