"""Draws two small ONNX graphs side by side as SVG, with what differs marked: `before_and_after`.

Boxes are nodes: operator, group and kernel, shapes of the weights, shape of the output.  Rows are the longest way from
an input (`rewriter.drawing` places them).  Colours follow the reader's light or dark scheme; what
goes has a dashed border and what comes a thick one, so that nobody needs the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal, TypeAlias

import onnx
from onnx import helper

from rewriter.drawing import Box, Panel, panel

Mark: TypeAlias = Literal["removed", "added"]

_MARGIN, _LEGEND = 16, 34
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


def _placed(panel: Panel, heading: str, x: float, y: float) -> list[str]:
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


def _panel(model: onnx.ModelProto, others: set[bytes], mark: Mark) -> Panel:
    return panel(_boxes(model, others, mark))


def _boxes(model: onnx.ModelProto, others: set[bytes], mark: Mark) -> list[Box]:
    """Inputs, nodes and outputs, in that order; constants are lines of text in the nodes that read them."""
    shapes = _shapes(model)
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    boxes: list[Box] = []
    makers: dict[str, int] = {}
    for info in model.graph.input:
        if info.name not in constants:
            makers[info.name] = len(boxes)
            boxes.append(Box((info.name, _sizes(shapes[info.name])), "end", (), 0, round=True))
    for node in model.graph.node:
        reads = tuple(dict.fromkeys(makers[name] for name in node.input if name in makers))
        row = 1 + max((boxes[maker].row for maker in reads), default=-1)
        style = "box" if _identity(node) in others else mark
        boxes.append(Box(_lines(node, constants, shapes), style, reads, row))
        makers |= dict.fromkeys(node.output, len(boxes) - 1)
    last = max(box.row for box in boxes) + 1
    boxes += [Box((info.name,), "end", (makers[info.name],), last, round=True) for info in model.graph.output]
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
