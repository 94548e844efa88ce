"""Draws boxes and the arrows between them as SVG, in rows from top to bottom, wrapped into columns where asked.

Rows are given; within one, boxes are placed by the middle of what leads to them.  An arrow that passes rows goes
through a gap in each; one that passes from column to column goes below, between and above them.  Styles are the
caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from math import sqrt
from typing import TypeAlias

CHARACTER, LINE = 6.7, 15
"""Width and height of the text, in pixels, at 11 pixels in a fixed-width font."""
_GAP_X, _GAP_Y, _WAY = 18, 26, 14
_LANE, _BEND = 7, 10
"""Between arrows that pass to the next column, and from those to the boxes."""
_SHORTEST, _LONGEST = 0.7, 1.15
"""Heights of a column, as parts of the height that it should have."""

Key: TypeAlias = tuple[int, int]
"""A box and a row: the box itself, or the gap that its arrows go through."""


@dataclass(frozen=True)
class Box:
    """Lines of text in a rectangle: which boxes it reads, in which row it is, its style, what the mouse shows."""

    lines: tuple[str, ...]
    style: str
    reads: tuple[int, ...]
    row: int
    round: bool = False
    title: str = ""

    @property
    def width(self) -> float:
        return max(len(line) for line in self.lines) * CHARACTER + 20

    @property
    def height(self) -> int:
        return len(self.lines) * LINE + 10


@dataclass(frozen=True)
class Panel:
    """A drawn graph: its SVG elements and its size."""

    elements: tuple[str, ...]
    width: float
    height: float


@dataclass(frozen=True)
class _Places:
    """Where everything is: the middle of each key, top and bottom of each row, and how arrows change columns."""

    centres: Mapping[Key, float]
    tops: Sequence[float]
    bottoms: Sequence[float]
    bends: Mapping[Key, tuple[float, float, float]]
    """Of what leaves a column behind a row: how low, how far to the right, how high it goes."""


def panel(boxes: Sequence[Box], ratio: float | None = None) -> Panel:
    """The boxes drawn; with `ratio`, in as many columns as make the whole about that much wider than high."""
    rows = rows_of(boxes)
    widths = [sum(_width(boxes, key) for key in row) + _GAP_X * (len(row) - 1) for row in rows]
    heights = [max(boxes[key[0]].height if key[1] == boxes[key[0]].row else 0 for key in row) for row in rows]
    columns = [range(len(rows))] if ratio is None else _columns(boxes, widths, heights, ratio)
    crossing = [_crossing(boxes, column[-1]) for column in columns[:-1]]
    top = max((_BEND + _LANE * len(keys) for keys in crossing), default=0)
    centres: dict[Key, float] = {}
    tops, bottoms, lefts, rights = [], [], [], []
    x = deepest = 0.0
    for number, column in enumerate(columns):
        total = max(widths[row] for row in column)
        at = float(top)
        for row in column:
            tops.append(at)
            bottoms.append(at + heights[row])
            at += heights[row] + _GAP_Y
            left = x + (total - widths[row]) / 2
            for key in rows[row]:
                centres[key] = left + _width(boxes, key) / 2
                left += _width(boxes, key) + _GAP_X
        lefts.append(x)
        rights.append(x + total)
        deepest = max(deepest, at - _GAP_Y)
        x += total
        if number < len(crossing):
            x += 2 * _BEND + _LANE * (len(crossing[number]) + 1)
    bends = {
        (maker, column[-1]): bend
        for column, right, keys in zip(columns, rights, crossing, strict=False)
        for maker, bend in _bends(keys, column[-1], centres, bottoms, right, top).items()
    }
    deepest += top  # as much room below
    places = _Places(centres, tops, bottoms, bends)
    elements = [line for index in range(len(boxes)) for line in _arrows(boxes, index, places)]
    for index, box in enumerate(boxes):
        elements += _drawn(box, centres[index, box.row], tops[box.row])
    return Panel(tuple(elements), x, deepest)


def rows_of(boxes: Sequence[Box]) -> list[list[Key]]:
    """What is in each row, left to right: boxes, and the gaps that their arrows go through in between.

    Each is placed by the middle of what it comes from (barycentre heuristic, one sweep down).
    """
    last = _last_rows(boxes)
    rows: list[list[Key]] = []
    place: dict[Key, float] = {}
    for number in range(max(box.row for box in boxes) + 1):
        here = [(index, number) for index, box in enumerate(boxes) if box.row <= number <= last[index]]
        here = sorted(here, key=partial(_above, boxes, place))
        place.update({key: (at + 0.5) / len(here) for at, key in enumerate(here)})
        rows.append(here)
    return rows


def _last_rows(boxes: Sequence[Box]) -> list[int]:
    """The last row in which each box or its gap is: the one before its last reader."""
    last = [box.row for box in boxes]
    for box in boxes:
        for maker in box.reads:
            last[maker] = max(last[maker], box.row - 1)
    return last


def _above(boxes: Sequence[Box], place: Mapping[Key, float], key: Key) -> float:
    """The middle of what leads there from the row above."""
    index, row = key
    makers = boxes[index].reads if boxes[index].row == row else (index,)
    found = [place[maker, row - 1] for maker in makers if (maker, row - 1) in place]
    return sum(found) / len(found) if found else 0.5


def _width(boxes: Sequence[Box], key: Key) -> float:
    return boxes[key[0]].width if boxes[key[0]].row == key[1] else _WAY


def _columns(boxes: Sequence[Box], widths: Sequence[float], heights: Sequence[float], ratio: float) -> list[range]:
    """Rows of each column: ended where few arrows pass, near the height that they should have."""
    count = len(heights)
    left = sum(heights) + _GAP_Y * (count - 1)
    usual = sorted(widths)[int(0.9 * (count - 1))]
    wanted = max(1, round(sqrt(ratio * left / (usual + 2 * _BEND))))
    passing = [len(_crossing(boxes, row)) for row in range(count)]
    columns: list[range] = []
    start = 0
    while wanted > 1:
        target, at = left / wanted, 0.0
        ends: list[tuple[int, float, int, float]] = []
        for row in range(start, count - 1):
            at += heights[row] + _GAP_Y
            if _SHORTEST * target <= at <= _LONGEST * target:
                ends.append((passing[row], abs(at - target), row, at))
        if not ends:
            break
        _, _, row, at = min(ends)
        columns.append(range(start, row + 1))
        start, left, wanted = row + 1, left - at, wanted - 1
    return [*columns, range(start, count)]


def _crossing(boxes: Sequence[Box], row: int) -> list[int]:
    """Boxes of that row or above that are read below it."""
    return sorted({maker for box in boxes if box.row > row for maker in box.reads if boxes[maker].row <= row})


def _bends(
    makers: Sequence[int], row: int, centres: Mapping[Key, float], bottoms: Sequence[float], right: float, top: float
) -> dict[int, tuple[float, float, float]]:
    """How the arrows of a column's last row go to the next one, none across another: the right ones inside."""
    inside = sorted(makers, key=lambda maker: -centres[maker, row])
    low = bottoms[row] + _BEND
    return {
        maker: (low + _LANE * at, right + _BEND + _LANE * at, top - _BEND - _LANE * (len(inside) - 1 - at))
        for at, maker in enumerate(inside)
    }


def _arrows(boxes: Sequence[Box], index: int, places: _Places) -> list[str]:
    lines = []
    for maker in boxes[index].reads:
        row = boxes[maker].row
        x, y = places.centres[maker, row], places.tops[row] + boxes[maker].height
        path = f"M {x:.1f} {y:.1f}"
        while row < boxes[index].row:
            bend, bottom = places.bends.get((maker, row)), places.bottoms[row]
            row += 1
            arrived = row == boxes[index].row
            to_x = places.centres[index if arrived else maker, row]
            to_y = places.tops[row] - (5 if arrived else 0)
            if bend is None:
                middle = (bottom + to_y) / 2
                path += f" V {bottom:.1f} C {x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
            else:
                low, side, high = bend
                path += f" V {low:.1f} H {side:.1f} V {high:.1f} H {to_x:.1f} V {to_y:.1f}"
            x, y = to_x, to_y
        lines.append(f'<path class="edge" d="{path}"/>')
        lines.append(f'<path class="head" d="M {x - 4:.1f} {y - 1:.1f} h 8 l -4 6 z"/>')
    return lines


def _drawn(box: Box, centre: float, top: float) -> list[str]:
    left, radius = centre - box.width / 2, box.height / 2 if box.round else 4
    made = [
        f'<rect class="{box.style}" x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height}" rx="{radius:.0f}"/>'
    ]
    for at, line in enumerate(box.lines):
        style = "operator" if at == 0 else "quiet"
        y = top + 5 + (at + 1) * LINE - 4
        made.append(f'<text class="{style}" x="{centre:.1f}" y="{y:.1f}" text-anchor="middle">{escape(line)}</text>')
    return made if not box.title else [f"<g><title>{escape(box.title)}</title>", *made, "</g>"]
