"""What reports are made of before they have a format: paragraphs and tables, and sizes in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Columns of text below their headings; the columns named in `right` hold numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()

    def without_empty(self, column: str) -> Table:
        """The table without that column, if no row has anything in it."""
        at = self.columns.index(column)
        if any(row[at] for row in self.rows):
            return self
        rows = tuple(row[:at] + row[at + 1 :] for row in self.rows)
        return Table(self.columns[:at] + self.columns[at + 1 :], rows, self.right)


Block = str | Table
"""What is printed: a paragraph, or a table.  An empty line goes between two blocks."""


def size_text(size: int) -> str:
    """Bytes in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
