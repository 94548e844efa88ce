"""Draws two small ONNX graphs side by side as SVG, with what differs marked: `before_and_after`.

Boxes are nodes: operator, group and kernel, shapes of the weights, shape of the output.  Rows are the longest way from
an input; an edge that passes rows goes through a gap in each.  Colours follow the reader's light or dark scheme; what
goes has a dashed border and what comes a thick one, so that nobody needs the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Literal, TypeAlias

import onnx
from onnx import helper

Mark: TypeAlias = Literal["kept", "removed", "added", "end"]

_CHARACTER, _LINE = 6.7, 15
"""Width and height of the text, in pixels, at 11 pixels in a fixed-width font."""
_GAP_X, _GAP_Y, _MARGIN, _WAY, _LEGEND = 18, 26, 16, 14, 34
_STYLE = """
    text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; }
    .heading, .operator { font-weight: bold; }
    .heading { font-size: 13px; }
    .quiet { fill: #59636e; }
    .page { fill: #ffffff; stroke: #d1d9e0; }
    .box { fill: #f6f8fa; stroke: #818b98; }
    .removed { fill: #ffebe9; stroke: #cf222e; stroke-dasharray: 5 3; }
    .added { fill: #dafbe1; stroke: #1a7f37; stroke-width: 2.5; }
    .end { fill: none; stroke: #818b98; }
    .edge { fill: none; stroke: #59636e; }
    .head { fill: #59636e; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .quiet { fill: #9198a1; }
      .page { fill: #0d1117; stroke: #3d444d; }
      .box { fill: #212830; stroke: #9198a1; }
      .removed { fill: #3c1618; stroke: #f85149; }
      .added { fill: #12301d; stroke: #3fb950; }
      .end { stroke: #9198a1; }
      .edge { stroke: #9198a1; }
      .head { fill: #9198a1; }
    }
"""


@dataclass(frozen=True)
class _Box:
    """A node, an input or an output: its lines of text, what it reads, in which row it is."""

    lines: tuple[str, ...]
    mark: Mark
    reads: tuple[int, ...]
    row: int

    @property
    def width(self) -> float:
        return max(len(line) for line in self.lines) * _CHARACTER + 20

    @property
    def height(self) -> int:
        return len(self.lines) * _LINE + 10


@dataclass(frozen=True)
class _Panel:
    """A drawn graph: its SVG elements and its size."""

    elements: tuple[str, ...]
    width: float
    height: float


def before_and_after(before: onnx.ModelProto, after: onnx.ModelProto, title: str) -> str:
    """The picture as the text of an SVG file.  A node is kept if both graphs have it, to the last attribute."""
    first, second = ({_identity(node) for node in model.graph.node} for model in (before, after))
    left, right = _panel(before, second, "removed"), _panel(after, first, "added")
    beside = left.width + right.width + 3 * _MARGIN
    across = beside <= 1000
    heights = (left.height, right.height)
    width = max(beside if across else max(left.width, right.width) + 2 * _MARGIN, 380)
    top = _MARGIN + 20
    height = top + (max(heights) if across else sum(heights) + top) + _LEGEND
    x, y = (left.width + 2 * _MARGIN, top) if across else (_MARGIN, 2 * top + left.height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">',
        f"  <title>{escape(title)}</title>",
        f"  <style>{_STYLE}  </style>",
        f'  <rect class="page" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="6"/>',
        *_placed(left, "before", _MARGIN, top),
        *_placed(right, "after", x, y),
        *_legend(height),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _identity(node: onnx.NodeProto) -> bytes:
    return node.SerializeToString(deterministic=True)


def _placed(panel: _Panel, heading: str, x: float, y: float) -> list[str]:
    inner = [f"    {element}" for element in panel.elements]
    head = f'  <text class="heading" x="{x:.1f}" y="{y - 8:.1f}">{heading}</text>'
    return [head, f'  <g transform="translate({x:.1f} {y:.1f})">', *inner, "  </g>"]


def _legend(height: float) -> list[str]:
    y = height - _LEGEND / 2
    entries = (("removed", "goes", _MARGIN), ("added", "comes", _MARGIN + 80), ("box", "stays", _MARGIN + 166))
    made = []
    for kind, text, x in entries:
        made.append(f'  <rect class="{kind}" x="{x}" y="{y - 9:.1f}" width="22" height="14" rx="3"/>')
        made.append(f'  <text class="quiet" x="{x + 29}" y="{y + 2:.1f}">{text}</text>')
    return made


def _panel(model: onnx.ModelProto, others: set[bytes], mark: Mark) -> _Panel:
    boxes = _boxes(model, others, mark)
    rows = _rows(boxes)
    widths = [sum(_width(boxes, key) for key in row) + _GAP_X * (len(row) - 1) for row in rows]
    total = max(widths)
    tops, at = [], 0.0
    for row in rows:
        tops.append(at)
        at += max(boxes[key[0]].height if key[1] == boxes[key[0]].row else 0 for key in row) + _GAP_Y
    centres: dict[tuple[int, int], float] = {}
    for row, width in zip(rows, widths, strict=True):
        x = (total - width) / 2
        for key in row:
            centres[key] = x + _width(boxes, key) / 2
            x += _width(boxes, key) + _GAP_X
    elements = [line for index in range(len(boxes)) for line in _edges(boxes, index, centres, tops)]
    for index, box in enumerate(boxes):
        elements += _drawn(box, centres[index, box.row], tops[box.row])
    return _Panel(tuple(elements), total, at - _GAP_Y)


def _boxes(model: onnx.ModelProto, others: set[bytes], mark: Mark) -> list[_Box]:
    """Inputs, nodes and outputs, in that order; constants are lines of text in the nodes that read them."""
    shapes = _shapes(model)
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    boxes: list[_Box] = []
    makers: dict[str, int] = {}
    for info in model.graph.input:
        if info.name not in constants:
            makers[info.name] = len(boxes)
            boxes.append(_Box((info.name, _sizes(shapes[info.name])), "end", (), 0))
    for node in model.graph.node:
        reads = tuple(dict.fromkeys(makers[name] for name in node.input if name in makers))
        row = 1 + max((boxes[maker].row for maker in reads), default=-1)
        kind: Mark = "kept" if _identity(node) in others else mark
        boxes.append(_Box(_lines(node, constants, shapes), kind, reads, row))
        makers |= dict.fromkeys(node.output, len(boxes) - 1)
    last = max(box.row for box in boxes) + 1
    boxes += [_Box((info.name,), "end", (makers[info.name],), last) for info in model.graph.output]
    return boxes


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def _lines(
    node: onnx.NodeProto, constants: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int | str]]
) -> tuple[str, ...]:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    weights = [list(constants[name]) for name in node.input if name in constants]
    lines = [node.op_type]
    if node.op_type in ("Conv", "ConvTranspose", "FusedConv") and weights:
        kernel = "×".join(map(str, weights[0][2:]))
        lines.append(f"group {attributes.get('group', 1)}, kernel {kernel}")
        lines += [f"{kind} {_sizes(shape)}" for kind, shape in zip("Wb", weights[:2], strict=False)]
    elif node.op_type in ("Mul", "Add", "Sub", "Div"):
        lines += [f"constant {_sizes(shape)}" for shape in weights]
    for name, text in (("perm", "order"), ("axis", "axis"), ("axes", "axes"), ("activation", "activation")):
        if name in attributes:
            value = attributes[name]
            lines.append(f"{text} {value.decode() if isinstance(value, bytes) else value}")
    made = [shapes[name] for name in node.output if name in shapes]
    if len(made) > 1 and all(shape == made[0] for shape in made):
        lines.append(f"→ {len(made)} × {_sizes(made[0])}")
    else:
        lines += [f"→ {_sizes(shape)}" for shape in made]
    return tuple(lines)


def _sizes(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _rows(boxes: Sequence[_Box]) -> list[list[tuple[int, int]]]:
    """What is in each row, left to right, as (box, row): boxes, and the gaps that their edges go through in between.

    Each is placed by the middle of what it comes from (barycentre heuristic, one sweep down).
    """
    last = {index: box.row for index, box in enumerate(boxes)}
    for box in boxes:
        for maker in box.reads:
            last[maker] = max(last[maker], box.row - 1)
    rows: list[list[tuple[int, int]]] = []
    place: dict[tuple[int, int], float] = {}
    for number in range(max(box.row for box in boxes) + 1):
        here = [(index, number) for index, box in enumerate(boxes) if box.row <= number <= last[index]]
        here = sorted(here, key=partial(_above, boxes, place))
        place.update({key: (at + 0.5) / len(here) for at, key in enumerate(here)})
        rows.append(here)
    return rows


def _above(boxes: Sequence[_Box], place: Mapping[tuple[int, int], float], key: tuple[int, int]) -> float:
    """The middle of what leads there from the row above."""
    index, row = key
    makers = boxes[index].reads if boxes[index].row == row else (index,)
    found = [place[maker, row - 1] for maker in makers if (maker, row - 1) in place]
    return sum(found) / len(found) if found else 0.5


def _width(boxes: Sequence[_Box], key: tuple[int, int]) -> float:
    return boxes[key[0]].width if boxes[key[0]].row == key[1] else _WAY


def _edges(
    boxes: Sequence[_Box], index: int, centres: Mapping[tuple[int, int], float], tops: Sequence[float]
) -> list[str]:
    lines = []
    for maker in boxes[index].reads:
        row, x, y = boxes[maker].row, centres[maker, boxes[maker].row], 0.0
        y = tops[row] + boxes[maker].height
        path = f"M {x:.1f} {y:.1f}"
        while row < boxes[index].row:
            row += 1
            arrived = row == boxes[index].row
            to_x = centres[index if arrived else maker, row]
            to_y = tops[row] - (5 if arrived else 0)
            middle = (tops[row] - _GAP_Y + to_y) / 2
            path += f" V {tops[row] - _GAP_Y:.1f} C {x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
            x, y = to_x, to_y
        lines.append(f'<path class="edge" d="{path}"/>')
        lines.append(f'<path class="head" d="M {x - 4:.1f} {y - 1:.1f} h 8 l -4 6 z"/>')
    return lines


def _drawn(box: _Box, centre: float, top: float) -> list[str]:
    kind = {"kept": "box", "end": "end"}.get(box.mark, box.mark)
    left, radius = centre - box.width / 2, box.height / 2 if box.mark == "end" else 4
    made = [
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height}" rx="{radius:.0f}"/>'
    ]
    for at, line in enumerate(box.lines):
        style = "operator" if at == 0 else "quiet"
        y = top + 5 + (at + 1) * _LINE - 4
        made.append(f'<text class="{style}" x="{centre:.1f}" y="{y:.1f}" text-anchor="middle">{escape(line)}</text>')
    return made
