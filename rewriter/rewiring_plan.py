"""Plan a wiring again: in which order makers give channels and readers take them, and what then remains to be copied.

Where the weights around a wiring can take another order, the channels of a root that go the same ways lie next to each
other, and a sink holds what it needs of each root in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from rewriter.channels import Channels
from rewriter.conv import Ints, is_identity
from rewriter.rewiring import Sink, Wiring

_MOST_PIECES = 8
"""Pieces that are put together; beyond, channels are gathered, unless there are as many roots."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Channels of a root, in its new order."""

    root: str
    picks: Ints
    whole: bool

    @property
    def key(self) -> tuple[str, bytes]:
        return self.root, self.picks.tobytes()

    @property
    def row(self) -> tuple[int, int] | None:
        """(start, stop) where the channels are in a row."""
        regular = bool((np.diff(self.picks) == 1).all())
        return (int(self.picks[0]), int(self.picks[-1]) + 1) if regular else None


@dataclass(frozen=True, eq=False)
class Made:
    """How a sink is made: pieces one after another, and `order` picked from them, if any."""

    sink: Sink
    pieces: tuple[Piece, ...]
    order: Ints | None = None

    @property
    def alias(self) -> str | None:
        """The root that it is."""
        return self.pieces[0].root if len(self.pieces) == 1 and self.pieces[0].whole and self.order is None else None


@dataclass(frozen=True, eq=False)
class Plan:
    """New orders by band, and how each sink is made."""

    embeddings: dict[int, Ints]
    made: tuple[Made, ...]
    widths: dict[str, int]
    """Channels of each root."""

    def splits(self) -> dict[str, list[tuple[int, int]]]:
        """Roots that fall apart into pieces, each a row of channels (start, stop), without any left."""
        rows: dict[str, set[tuple[int, int] | None]] = {}
        for piece in (piece for made in self.made for piece in made.pieces):
            rows.setdefault(piece.root, set()).add(piece.row)
        found = {}
        for root, pieces in rows.items():
            ordered = sorted(row for row in pieces if row is not None)
            starts, stops = [start for start, _ in ordered], [stop for _, stop in ordered]
            if len(ordered) == len(pieces) > 1 and [*starts, self.widths[root]] == [0, *stops]:
                found[root] = ordered
        return found

    @property
    def copied(self) -> int:
        """Channels that are copied: those of pieces, of what is put together, and of what is picked from that."""
        found: dict[object, int] = {}
        for entry in self.made:
            for piece in entry.pieces:
                found[piece.key] = 0 if piece.whole else len(piece.picks)
            keys = tuple(piece.key for piece in entry.pieces)
            if len(keys) > 1:
                found[keys] = sum(len(piece.picks) for piece in entry.pieces)
            if entry.order is not None:
                found[keys, entry.order.tobytes()] = len(entry.order)
        return sum(found.values())


def plan_wiring(channels: Channels, wiring: Wiring) -> Plan:
    """Orders for all that is free around a wiring."""
    work = _Planning(channels, wiring, wiring.fixed(channels))
    work.sort_sources()
    work.sort_sinks()
    work.sort_sources()
    made = tuple(work.make(sink) for sink in wiring.sinks)
    embeddings = {
        number: order
        for number, order in work.orders.items()
        if not is_identity(order, channels.bands[number].channels)
    }
    for entry in made:  # readers of what is a root itself are made again to read that
        band = channels.band_of[entry.sink.tensor]
        if entry.alias and all(stop.size for stop in band.stops):
            embeddings.setdefault(band.number, work.order(entry.sink.tensor))
    return Plan(embeddings, made, {root: channels.band_of[root].channels for root in wiring.roots})


@dataclass(eq=False)
class _Planning:
    channels: Channels
    wiring: Wiring
    fixed: frozenset[int]
    orders: dict[int, Ints] = field(default_factory=dict)
    """Of each band whose channels may move: the old channel of each new one."""
    places: dict[int, Ints] = field(default_factory=dict)
    """The new place of each old channel of such a band."""

    def order(self, tensor: str) -> Ints:
        band = self.channels.band_of[tensor]
        return self.orders.get(band.number, np.arange(band.channels))

    def sort_sources(self) -> None:
        """Channels that go to the same sinks next to each other, in the order in which the first of them has them."""
        for number, roots in self._sources():
            width = self.channels.bands[number].channels
            ways: list[list[int]] = [[] for _ in range(width)]
            spots = np.arange(width)
            for at, sink in enumerate(self.wiring.sinks):
                place = self._place(sink.tensor)
                for held in np.flatnonzero(np.isin(sink.root, roots)):
                    channel = int(sink.channel[held])
                    spots[channel] = spots[channel] if ways[channel] else place[held]
                    ways[channel].append(at)
            unused = [len(self.wiring.sinks)]
            order = sorted(range(width), key=lambda channel: (ways[channel] or unused, spots[channel]))
            self._put(number, np.array(order, np.int64))

    def sort_sinks(self) -> None:
        """What a sink has of each root in one piece."""
        for sink in self.wiring.sinks:
            band = self.channels.band_of[sink.tensor]
            if band.number in self.fixed or band.number in self.orders:
                continue
            places = self._places_of(sink, np.arange(len(sink.root)))
            self._put(band.number, np.lexsort((places, sink.root)))

    def make(self, sink: Sink) -> Made:
        """How a sink is made, where all orders are known."""
        order = self.order(sink.tensor)
        root, places = sink.root[order], self._places_of(sink, order)
        cuts = np.flatnonzero(np.diff(root) != 0) + 1
        runs = np.split(np.arange(len(root)), cuts)
        numbers = sorted(set(root.tolist()))
        if len(runs) <= max(_MOST_PIECES, len(numbers)):
            return Made(sink, tuple(self._piece(int(root[run[0]]), places[run]) for run in runs))
        widths = [self._width(number) for number in numbers]
        first = dict(zip(numbers, np.cumsum([0, *widths]).tolist(), strict=False))
        wholes = tuple(self._piece(number, np.arange(width)) for number, width in zip(numbers, widths, strict=True))
        return Made(sink, wholes, places + np.array([first[number] for number in root.tolist()]))

    def _sources(self) -> Iterator[tuple[int, list[int]]]:
        """Free bands that have only roots, each with the numbers of these."""
        ends = {self.channels.band_of[sink.tensor].number for sink in self.wiring.sinks}
        found: dict[int, list[int]] = {}
        for at, root in enumerate(self.wiring.roots):
            found.setdefault(self.channels.band_of[root].number, []).append(at)
        yield from ((number, roots) for number, roots in found.items() if number not in ends | self.fixed)

    def _put(self, number: int, order: Ints) -> None:
        self.orders[number] = order
        self.places[number] = np.argsort(order)

    def _place(self, tensor: str) -> Ints:
        band = self.channels.band_of[tensor]
        return self.places.get(band.number, np.arange(band.channels))

    def _places_of(self, sink: Sink, order: Ints) -> Ints:
        """Where channels of a sink are in their roots."""
        found = np.zeros(len(order), np.int64)
        for number in set(sink.root.tolist()):
            mine = sink.root[order] == number
            found[mine] = self._place(self.wiring.roots[number])[sink.channel[order][mine]]
        return found

    def _width(self, number: int) -> int:
        return self.channels.band_of[self.wiring.roots[number]].channels

    def _piece(self, number: int, picks: Ints) -> Piece:
        return Piece(self.wiring.roots[number], picks, is_identity(picks, self._width(number)))
