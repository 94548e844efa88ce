"""Wiring: Concats, channel shuffles and selections, which only bring channels from who makes them to who reads them.

What a wiring does is known: of every channel of a *sink*, which channel of which *root* it is.  So all of it can be
made again in another way, from the roots at once; `rewiring_plan` says how.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.channels import Channels, Groups, Link
from rewriter.conv import Ints
from rewriter.delimit import closure
from rewriter.graph import Graph


@dataclass(frozen=True, eq=False)
class Sink:
    """A tensor that wiring makes and others read: of each channel the root (by number) and the channel of that."""

    tensor: str
    node: int
    """The node that makes it."""
    root: Ints
    channel: Ints


@dataclass(frozen=True, eq=False)
class Wiring:
    """Links that are connected with each other, and what they do."""

    roots: tuple[str, ...]
    sinks: tuple[Sink, ...]
    """In graph order."""
    nodes: frozenset[int]
    """The links' nodes, and all that computes bounds and shapes for them alone."""
    links: tuple[Link, ...]

    def copied(self, channels: Channels) -> int:
        """Channels that the links copy."""
        return sum(channels.band_of[link.leaving].channels for link in self.links)

    def lost(self, graph: Graph) -> tuple[str, ...]:
        """Roots that no sink needs, though the links read them, nor anybody else."""
        used = {self.roots[number] for sink in self.sinks for number in set(sink.root.tolist())}
        wiring = graph.model.wiring
        return tuple(
            root
            for root in self.roots
            if root not in used and not wiring.escapes(root) and set(wiring.readers(root)) <= self.nodes
        )

    def fixed(self, channels: Channels) -> frozenset[int]:
        """Bands (numbers) whose channels must stay in their places: something besides the wiring depends on them."""
        found = {band.number for band in channels.bands if any(not stop.size for stop in band.stops)}
        firm = [link for component in channels.components for link in component.links]
        for link in (*firm, *channels.picks):
            if link not in self.links:
                found |= {channels.band_of[name].number for name in (*link.entering, link.leaving)}
        return frozenset(found)


def wirings(channels: Channels) -> list[tuple[Link, ...]]:
    """The links of each wiring that brings channels into another order, in graph order: connected through bands."""
    every = [link for component in channels.components for link in component.links if link.kind != "groups"]
    every += channels.picks
    groups = Groups()
    for link in every:
        groups.join(str(channels.band_of[name].number) for name in (*link.entering, link.leaving))
    found: dict[str, list[Link]] = {}
    for link in sorted(every, key=lambda link: link.node):
        found.setdefault(groups.find(str(channels.band_of[link.leaving].number)), []).append(link)
    return [tuple(links) for links in found.values() if any(_moves(link) for link in links)]


def wiring_of(graph: Graph, channels: Channels, links: tuple[Link, ...], concats: bool) -> Wiring:
    """What some links do together; without `concats` what a Concat makes is a root, and what it reads a sink."""
    model = graph.model
    inside = [link for link in links if concats or link.kind != "concat"]
    made = {link.leaving for link in inside}
    roots = tuple(dict.fromkeys(name for link in inside for name in link.entering if name not in made))
    nodes = closure(model, {index for link in inside for index in link.nodes}, roots)
    known: dict[str, tuple[Ints, Ints]] = {}
    for number, name in enumerate(roots):
        width = channels.band_of[name].channels
        known[name] = np.full(width, number), np.arange(width)
    sinks = []
    for link in inside:  # in graph order, so what enters is known
        root, channel = (np.concatenate([known[name][side] for name in link.entering]) for side in (0, 1))
        if link.order is not None:
            root, channel = root[link.order], channel[link.order]
        known[link.leaving] = root, channel
        if model.wiring.escapes(link.leaving) or set(model.wiring.readers(link.leaving)) - nodes:
            sinks.append(Sink(link.leaving, link.node, root, channel))
    return Wiring(roots, tuple(sinks), nodes, tuple(inside))


def _moves(link: Link) -> bool:
    """Whether the channels that leave are in another order than those that entered, or not next to each other."""
    return link.kind == "shuffle" or (link.order is not None and bool((np.diff(link.order) != 1).any()))
