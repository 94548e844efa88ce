"""Draws a model as its channel components, in SVG: `channel_picture`.

A box is a run of nodes whose results have the same channels, coloured by the component they belong to; where these must
stay as they are its border is dashed and its colour grey, with the reasons below the picture.  Shape arithmetic is left
out.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterator
from html import escape

import onnx

from rewriter.channel_pieces import Piece, pieces_of
from rewriter.channel_survey import ChannelSurvey
from rewriter.drawing import Box, Panel, panel
from rewriter.graph import Graph
from rewriter.lifting import weight_shape
from rewriter.report.text import alike, counted
from rewriter.visible import visible

_COLOURS, _BLUE = 24, 12
_TURN = 137.508
"""Degrees between the hues of one component and the next: those near each other differ."""
_RATIO = 1.5
_MARGIN, _LINE = 16, 17
_WIDE, _LINES = 26, 3
"""Characters of a line and lines of operators in a box."""
_REASONS, _REASON = 12, 150
"""Reasons below the picture, and characters of one."""
_LONG = 24
_STYLE = """
    text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; }
    .heading, .operator { font-weight: bold; }
    .heading { font-size: 13px; }
    .quiet { fill: #474f58; }
    .page { fill: #ffffff; stroke: #d1d9e0; }
    .edge { fill: none; stroke: #818b98; }
    .head { fill: #818b98; }
    rect { stroke-width: 1.2; }
%s    .stopped { fill: #eff1f3; stroke: #6e7781; stroke-dasharray: 5 3; }
    .loose { fill: none; stroke: #b6bfc8; }
    .slow { stroke: #cf222e; stroke-width: 3; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .quiet { fill: #c3cad2; }
      .page { fill: #0d1117; stroke: #3d444d; }
%s      .stopped { fill: #212830; stroke: #9198a1; }
      .loose { stroke: #59636e; }
      .slow { stroke: #f85149; }
    }
"""


def channel_picture(graph: Graph, survey: ChannelSurvey, name: str) -> str:
    """The picture as the text of an SVG file; `name` is the model's, for the heading."""
    boxes = _boxes(graph, survey)
    drawn = panel(boxes, _RATIO) if boxes else Panel((), 0.0, 0.0)
    heading = (
        f"{visible(name)}: {len(survey.components)} channel components, {len(survey.free)} of them free, "
        f"in {len(survey.channels.bands)} bands"
    )
    foot = _reasons(survey)
    wide = max(max(len(line) for line in (*foot, heading)) * 8, drawn.width, 560) + 2 * _MARGIN
    top = _MARGIN + 22
    below = top + drawn.height + 2 * _MARGIN
    high = below + _LINE * (2 + len(foot)) + _MARGIN
    shift = (wide - drawn.width) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'width="{wide:.0f}" height="{high:.0f}" role="img">',
        f"  <title>{escape(heading)}</title>",
        f"  <style>{_STYLE % (_colours('    ', 0.88, 0.42), _colours('      ', 0.2, 0.6))}  </style>",
        f'  <rect class="page" x="0.5" y="0.5" width="{wide - 1:.0f}" height="{high - 1:.0f}" rx="6"/>',
        f'  <text class="heading" x="{_MARGIN}" y="{_MARGIN + 6}">{escape(heading)}</text>',
        f'  <g transform="translate({shift:.1f} {top})">',
        *(f"    {element}" for element in drawn.elements),
        "  </g>",
        *_legend(survey, below),
        *(
            f'  <text class="quiet" x="{_MARGIN}" y="{below + _LINE * (2 + at):.1f}">{escape(line)}</text>'
            for at, line in enumerate(foot)
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _boxes(graph: Graph, survey: ChannelSurvey) -> list[Box]:
    """Inputs, runs of nodes, outputs; what a box reads is before it."""
    model = graph.model
    pieces, piece_of = pieces_of(graph, survey)
    order = sorted(range(len(pieces)), key=lambda at: (pieces[at].row, at))
    slow = {conv.site for conv in survey.slow}
    boxes: list[Box] = []
    place: dict[int, int] = {}
    given: dict[str, int] = {}
    for value in model.inputs:
        read = [at for at, piece in enumerate(pieces) if any(value.name in model.nodes[n].input for n in piece.nodes)]
        if read:
            given[value.name] = len(boxes)
            band = survey.channels.band_of.get(value.name)
            number = None if band is None else band.number
            lines = (_short(value.name), *_head(survey, number))
            boxes.append(Box(lines, _style(survey, number, False), (), 0, round=True, title=visible(value.name)))
    for at in order:
        piece = pieces[at]
        entering = {name for node in piece.nodes for name in model.nodes[node].input}
        reads = sorted({*(place[other] for other in piece.reads), *(given[name] for name in entering & given.keys())})
        missed = any(model.nodes[node].output[0] in slow for node in piece.nodes)
        place[at] = len(boxes)
        words = _words(graph, piece, slow)
        lines = (*_head(survey, piece.band), *words) if piece.band is not None else words
        boxes.append(
            Box(lines, _style(survey, piece.band, missed), tuple(reads), piece.row + 1, title=_title(graph, piece))
        )
    last = max((box.row for box in boxes), default=0) + 1
    for value in model.outputs:
        maker = model.wiring.producer(value.name)
        if maker is not None and maker in piece_of:
            lines = (_short(value.name),)
            reads = [place[piece_of[maker]]]
            boxes.append(Box(lines, "loose", tuple(reads), last, round=True, title=visible(value.name)))
    return boxes


def _head(survey: ChannelSurvey, band: int | None) -> tuple[str, ...]:
    """`#3: 48 channels`: the component's number, and how many channels."""
    if band is None:
        return ()
    component = survey.channels.component_of[band]
    channels = survey.channels.bands[band].channels
    return (f"#{component.number}: {counted(channels, 'channel') if channels else '? channels'}",)


def _style(survey: ChannelSurvey, band: int | None, slow: bool) -> str:
    if band is None:
        return "loose slow" if slow else "loose"
    component = survey.channels.component_of[band]
    style = f"h{component.number % _COLOURS}" if component.free else "stopped"
    return f"{style} slow" if slow else style


def _words(graph: Graph, piece: Piece, slow: set[str]) -> tuple[str, ...]:
    """The operators of a run, in lines."""
    words = [_word(graph, node, slow) for node in piece.nodes]
    runs: list[tuple[str, int]] = []
    for word in words:
        if runs and runs[-1][0] == word:
            runs[-1] = word, runs[-1][1] + 1
        else:
            runs.append((word, 1))
    parts = [word if count == 1 else f"{count}\u00a0\u00d7\u00a0{word}" for word, count in runs]
    lines = textwrap.wrap(", ".join(parts), _WIDE, break_long_words=False, break_on_hyphens=False)
    if len(lines) > _LINES:
        shown = sum(line.count(",") for line in lines[: _LINES - 1])
        lines = [*lines[: _LINES - 1], f"and {len(parts) - shown} more"]
    return tuple(line.replace("\u00a0", " ") for line in lines)


def _word(graph: Graph, index: int, slow: set[str]) -> str:
    node = graph.model.nodes[index]
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return visible(node.op_type)
    shape = _weight(graph, index)
    group = next((int(entry.i) for entry in node.attribute if entry.name == "group"), 1)
    word = "Conv" if shape is None else "Conv\u00a0" + "\u00d7".join(map(str, shape[2:]))
    if group > 1:
        word += "\u00a0depthwise" if shape is not None and shape[1] == 1 else f"\u00a0in\u00a0{group}"
    return word + ("\u00a0!" if node.output[0] in slow else "")


def _weight(graph: Graph, index: int) -> tuple[int, ...] | None:
    return weight_shape(graph.model, index) or graph.bindings[0].bound.shape(graph.model.nodes[index].input[1])


def _title(graph: Graph, piece: Piece) -> str:
    """What the mouse shows: every node by its first output."""
    nodes: list[onnx.NodeProto] = [graph.model.nodes[index] for index in piece.nodes]
    return "\n".join(visible(f"{node.op_type} {node.output[0]}") for node in nodes)


def _short(text: str, length: int = _LONG) -> str:
    text = visible(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _colours(indent: str, light: float, line: float) -> str:
    """A rule for each hue: what it is filled with, and its border."""
    return "".join(
        f"{indent}.h{at} {{ fill: {_colour(at, light)}; stroke: {_colour(at, line)}; }}\n" for at in range(_COLOURS)
    )


def _colour(number: int, light: float) -> str:
    red, green, blue = colorsys.hls_to_rgb(number * _TURN / 360 % 1, light, 0.55)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _legend(survey: ChannelSurvey, y: float) -> Iterator[str]:
    entries = [
        (f"h{_BLUE}", "free: channels may be padded or permuted (#: component)"),
        ("stopped", "stopped"),
        ("loose", "no channels that are known"),
    ]
    if survey.slow:
        entries.append((f"h{_BLUE} slow", "! misses the fast path for its channels"))
    x = float(_MARGIN)
    for style, text in entries:
        yield f'  <rect class="{style}" x="{x:.1f}" y="{y - 10:.1f}" width="22" height="14" rx="3"/>'
        yield f'  <text class="quiet" x="{x + 29:.1f}" y="{y + 1:.1f}">{text}</text>'
        x += 29 + 6.7 * len(text) + 24


def _reasons(survey: ChannelSurvey) -> list[str]:
    """A line for each reason that stops components, with their numbers."""
    found: dict[str, tuple[str, list[str]]] = {}
    for component in survey.components:
        for stop in component.stops[:1]:
            found.setdefault(alike(stop.reason), (stop.reason, []))[1].append(f"#{component.number}")
    lines = []
    for reason, numbers in found.values():
        shown = ", ".join(numbers[:6]) + (f" and {len(numbers) - 6} more" if len(numbers) > 6 else "")
        lines.append(_short(f"{shown}: {reason}", _REASON))
    rest = len(lines) - _REASONS
    return lines if rest <= 1 else [*lines[:_REASONS], f"and for {rest} more reasons"]
