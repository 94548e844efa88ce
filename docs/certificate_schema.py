"""docs/certificate.schema.json: the JSON Schema of certificates, from the records in rewriter/certificate."""

from __future__ import annotations

import json
from pathlib import Path

from docs import built
from rewriter.certificate import schema

PAGE = Path(__file__).with_name("certificate.schema.json")


def stale() -> list[str]:
    """A line saying that the schema is out of date, or none."""
    return built.stale(PAGE, page(), "rewriter/certificate")


def write() -> None:
    """Bring it up to date."""
    built.write(PAGE, page())


def page() -> str:
    """The text of the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
