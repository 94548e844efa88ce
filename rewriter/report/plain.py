"""Blocks of a report as lines of plain text, as wide as they need: for files, and where no terminal is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from rewriter.visible import visible, visible_lines

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from rewriter.report.table import Block, Table

UNBROKEN: Final = 100_000
"""Columns when nobody looks: no line is ever broken or cut."""
GAP: Final = 2
"""Blanks between two columns of a table."""


def plain_text(blocks: Sequence[Block], last: str) -> str:
    """The blocks with an empty line after each, then the last line."""
    lines: list[str] = []
    for block in blocks:
        lines += [*plain_lines(block), ""]
    return "\n".join([*lines, visible(last)]) + "\n"


def plain_lines(block: Block) -> list[str]:
    """One block without any styling; names in it show what they hold."""
    if isinstance(block, str):
        return visible_lines(block)
    from rich.console import Console

    # Rich writes to its file even where it captures.
    console = Console(file=io.StringIO(), width=UNBROKEN, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(rich_table(block))
    return [line.rstrip() for line in captured.get().splitlines()]


def rich_table(table: Table) -> RichTable:
    """A table as rich draws it; its last column alone is wrapped, since it takes the sentences."""
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in table.columns:
        wrap = name == table.columns[-1]
        justify: Literal["left", "right"] = "right" if name in table.right else "left"
        made.add_column(Text(visible(name)), justify=justify, overflow="fold", no_wrap=not wrap)
    for row in table.rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made
