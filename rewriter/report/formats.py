"""The formats that a report can be written in, by the suffix of its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from rewriter.errors import BadInput

if TYPE_CHECKING:
    from rewriter.report.content import Content


def render(suffix: str, content: Content) -> bytes:
    """The report in the format of that suffix, as `.json` or `.JSON`.  Raises BadInput for one that there is not."""
    check_suffix(suffix, f"a report's suffix '{suffix}'")
    return FORMATS[suffix.lower()](content)


def check_suffix(suffix: str, whose: str) -> None:
    """Raise BadInput unless there is a format for it; `whose` is the subject of the sentence."""
    if suffix.lower() in FORMATS:
        return
    *most, last = FORMATS
    raise BadInput(f"{whose} names no format of reports: there are {', '.join(most)} and {last}.")


def _as_text(content: Content) -> bytes:
    from rewriter.report.plain import plain_text

    return plain_text(content.blocks, content.last).encode()


def _as_json(content: Content) -> bytes:
    return (json.dumps(content.data, indent=2, allow_nan=False) + "\n").encode()


def _as_markdown(content: Content) -> bytes:
    from rewriter.report.markdown import markdown

    return markdown(content).encode()


def _as_junit(content: Content) -> bytes:
    from rewriter.report.junit import junit

    return junit(content)


FORMATS: Final[Mapping[str, Callable[[Content], bytes]]] = {
    ".txt": _as_text,
    ".json": _as_json,
    ".md": _as_markdown,
    ".xml": _as_junit,
}
"""Each suffix with its writer: what the command prints, all the data, Markdown as GitHub shows it, JUnit XML for CI."""
