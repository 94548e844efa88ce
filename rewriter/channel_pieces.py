"""Runs of nodes whose results have the same channels: what is one box in a picture of the channel components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewriter.channel_survey import ChannelSurvey
from rewriter.constants import is_constant
from rewriter.following import element_type
from rewriter.graph import Graph

_FLOATING = frozenset({"float", "float16", "bfloat16", "double", "unknown"})
"""Element types of what is drawn: what computes others is shape arithmetic."""


@dataclass
class Piece:
    """A run of nodes whose results have the channels of one band, or none; which runs it reads, and how far down."""

    band: int | None
    nodes: list[int] = field(default_factory=list)
    reads: set[int] = field(default_factory=set)
    row: int = 0


def pieces_of(graph: Graph, survey: ChannelSurvey) -> tuple[list[Piece], dict[int, int]]:
    """Runs of nodes in graph order, and which run each node is in.

    A node joins the run before it, where no other run is between the two: else they would read each other.
    """
    model = graph.model
    bands = _bands(graph, survey)
    pieces: list[Piece] = []
    piece_of: dict[int, int] = {}
    for index, band in bands.items():
        makers = [model.wiring.producer(name) for name in model.nodes[index].input if name]
        before = {piece_of[maker] for maker in makers if maker in piece_of}
        joins = [
            at
            for at in before
            if pieces[at].band == band and not any(_leads(pieces, at, other) for other in before - {at})
        ]
        if joins:
            own = max(joins, key=lambda at: (pieces[at].row, at))
        else:
            own = len(pieces)
            pieces.append(Piece(band))
        pieces[own].nodes.append(index)
        pieces[own].reads |= before - {own}
        piece_of[index] = own
        _lower(pieces, own)
    return pieces, piece_of


def _bands(graph: Graph, survey: ChannelSurvey) -> dict[int, int | None]:
    """The nodes to draw, in order, with the band of what they make; of what picks channels that of what it reads."""
    model, band_of = graph.model, survey.channels.band_of
    within = {node: link.leaving for component in survey.components for link in component.links for node in link.nodes}
    within |= {link.node: link.entering[0] for link in survey.channels.picks}
    inputs = {value.name for value in model.inputs}
    floating = set(inputs)
    found: dict[int, int | None] = {}
    for index, node in enumerate(model.nodes):
        made = [name for name in node.output if name]
        if not made or all(is_constant(model, name) for name in made):
            continue
        kept = any(element_type(graph, name) in _FLOATING for name in made)
        if not kept or not any(name in floating for name in node.input):
            continue
        floating |= set(made)
        tensor = within.get(index, made[0])
        band = band_of.get(tensor)
        found[index] = None if band is None else band.number
    return found


def _leads(pieces: Sequence[Piece], start: int, end: int) -> bool:
    """Whether run `end` reads run `start`, at once or through others."""
    todo, seen = [end], set[int]()
    while todo:
        at = todo.pop()
        if at == start:
            return True
        if at not in seen and pieces[at].row > pieces[start].row:
            seen.add(at)
            todo += pieces[at].reads
    return False


def _lower(pieces: Sequence[Piece], changed: int) -> None:
    """Put a run, and those that read it, below all they read."""
    todo = [changed]
    while todo:
        at = todo.pop()
        row = 1 + max((pieces[other].row for other in pieces[at].reads), default=-1)
        if row != pieces[at].row or at == changed:
            pieces[at].row = row
            todo += [other for other, piece in enumerate(pieces) if at in piece.reads and piece.row <= row]
