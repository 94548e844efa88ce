"""One report before it has a format: what each format takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rewriter.equivalence.records import Audit
from rewriter.report.table import Block

Fate = Literal["passed", "failure", "error", "skipped"]
"""What became of a check, in the words of test reports; `error`: it says nothing, so that a build must not go on."""


@dataclass(frozen=True)
class Case:
    """One check as a test report lists it; `group` is the kind of thing that was checked, `found` a word on it."""

    group: str
    name: str
    fate: Fate
    message: str = ""
    body: str = ""
    found: str = ""


def fate_of(verdict: str, accepted: bool) -> Fate:
    """A verdict in the words of test reports."""
    return "passed" if accepted else "failure" if verdict == "different" else "error"


@dataclass(frozen=True)
class Section:
    """Part of a report under a title of its own ("": it needs none), with the audit that it tells of, if it is one."""

    title: str
    blocks: tuple[Block, ...]
    audit: Audit | None = None
    accepted: bool = False
    """Whether the audit ends as the command wants it: of `rewrite` also an approximation that was asked for."""


@dataclass(frozen=True)
class Content:
    """What a command found out."""

    command: str
    data: Mapping[str, Any]
    """Everything, in plain JSON types, without infinities or NaN."""
    blocks: tuple[Block, ...]
    """What the command prints, all but the last line."""
    last: str
    sections: tuple[Section, ...]
    """The same blocks in parts."""
    cases: tuple[Case, ...] = ()
    """Checks that are in no section's audit."""
