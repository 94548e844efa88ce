r"""A report as GitHub-flavoured Markdown: tables, and what is long folded away.

Names and sentences come from models, so every value that the template puts in is escaped: it shows as it is, and no
`|` in it breaks a table, no `<` opens a tag, no `$` starts a formula, no `@name` calls a person.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, Template

from rewriter.report.content import Content, Section
from rewriter.report.table import Block, Table, size_text
from rewriter.report.text_audit import region_details
from rewriter.visible import visible

_TEMPLATE: Final = "report.md.j2"
_HEADINGS: Final = {
    "level": "Levels",
    "region": "Regions",
    "output": "Outputs",
    "operator": "Operators",
    "rewrites": "Models",
}
"""What a table is called, by the column that tells what it is about."""

_ACTIVE: Final = re.compile(
    r"""
    (?P<entity>[&<])
    | (?P<link>(?<=:)//|(?<=www)\.)                        # GitHub makes links of bare addresses
    | (?P<apart>[@\#](?=\w)|\$|:(?=[\w+-]+:))              # and calls people, cites issues, sets formulas and emoji
    | (?P<sign>[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])       # an underscore inside a word does nothing,
        | \#(?=\#*$))                                      # and number signs at the end of a heading are not shown
    """,
    re.VERBOSE,
)
_AT_THE_START: Final = re.compile(r"^(\d*)([#>]|[+-](?=\s|$)|(?:-+|=+)\s*$|(?<=\d)[.)](?=\s|$))")
"""What makes a line a heading, a quotation or a list, or underlines the one before; some need a number before them."""


@dataclass(frozen=True)
class _Block:
    """Lines of a paragraph, or a table; the other one is empty."""

    heading: str
    lines: tuple[str, ...]
    table: Table | None


@dataclass(frozen=True)
class _Part:
    """What the template goes through; `regions` are the first line and the others about each."""

    title: str
    blocks: tuple[_Block, ...]
    regions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    folded: bool = False


def markdown(content: Content) -> str:
    """The report as one Markdown document, which ends in a line break."""
    told = [part for section in content.sections for part in _section_parts(section)]
    parts = [_files(content.data), *told, _environment(content.data)]
    return _template().render(command=content.command, last=content.last, parts=parts).rstrip() + "\n"


def escaped(value: object) -> str:
    """A value as one line of Markdown text that shows what it holds and does nothing."""
    text = _ACTIVE.sub(_inactive, visible(str(value)).strip())
    return _AT_THE_START.sub(r"\1\\\2", text)


def _inactive(found: re.Match[str]) -> str:
    if found["entity"]:
        return {"&": "&amp;", "<": "&lt;"}[found[0]]
    if found["apart"]:
        return f"<span>{found[0]}</span>"  # GitHub looks for these in the text it has made, where no escape is left
    return f"\\{found[0]}"


@cache
def _template() -> Template:
    source = resources.files("rewriter.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    # `finalize` sees every value that is put in; what the template itself says is left alone.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=escaped
    )
    return environment.from_string(source)


def _section_parts(section: Section) -> list[_Part]:
    """A section; and where it is an audit, what every level says about every region, folded."""
    parts = [_Part(section.title, tuple(map(_block, section.blocks)))]
    found, title = section.audit, "Every region, level by level"
    while found:
        told = [region_details(number, region).split("\n") for number, region in enumerate(found.regions, 1)]
        regions = tuple((first, tuple(others)) for first, *others in told)
        parts += [_Part(title, (), regions, folded=True)] if regions else []
        found, title = found.deployed, "The same in TF32, as deployed"
    return parts


def _block(block: Block) -> _Block:
    if isinstance(block, str):
        return _Block("", tuple(line for line in block.split("\n") if visible(line).strip()), None)
    heading = next((_HEADINGS[column] for column in block.columns if column in _HEADINGS), "")
    return _Block(heading, (), block)


def _files(data: Mapping[str, Any]) -> _Part:
    named = [("before", data["before"]), ("after", data["after"])] if data["after"] else [("model", data["before"])]
    rows = tuple(
        (name, file["path"] or "not written", size_text(file["bytes"]), str(file["nodes"]), file["sha256"])
        for name, file in named
    )
    table = Table(("", "file", "size", "operators", "SHA-256"), rows, frozenset({"size", "operators"}))
    return _Part("", (_Block("", (), table),))


def _environment(data: Mapping[str, Any]) -> _Part:
    table = Table(("what", "here"), tuple(fact for fact in data["environment"].items() if fact[1]))
    return _Part("Environment", (_Block("", (), table),), folded=True)
