"""absorb-shuffle: channel shuffles go into the weights before and behind them; what is left is copied once.

    y = Conv(f(shuffle(g(Conv(x, W, b)))), V)     becomes     y = Conv(f(g(Conv(x, W, b))), V')

with the columns of V' `[M, C, *K]` in the order that the shuffle brought to those of V; or with the rows of W and b in
the shuffled order where V must stay.  A shuffle is Reshape - Transpose - Reshape, or a Gather of channels; f and g are
whatever keeps channels apart: activations, additions, BatchNormalization, pools, depthwise convolutions.  Shuffles that
undo each other go.  Concat, Split, Slice and Gather of channels that shuffles are connected with are made again
together, where that copies less:

    parts     ShuffleNet v2: X = Concat(P, B); P', Q = Split(shuffle(X)).  Where each channel comes from and who reads
              it is known for the whole stage; the rows of what made it are sorted by that, so that each reader's input
              is a Concat of a few Slices.  Nothing is passed on from unit to unit any more
    gather    the Concats stay; shuffle and Split become a Gather each
    late      ShuffleNet v1: behind a depthwise convolution or a pool of fewer positions, whose rows are shuffled

Settings: `way` = auto | parts | gather | late.  `auto` is parts or gather, what copies less, and
late where neither does.
Conditions: constant weights around what is to take the order in (others keep theirs); channels known for every input.
What `optimize` measures: each way that copies fewer channels than there are copied now.
Safety: EXACT, weights only move.
Source: Zhang et al., "ShuffleNet" (2018); Ma et al., "ShuffleNet V2" (2018); channel components as in Fang et al.,
"DepGraph" (2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from rewriter import (
    Builder,
    Channels,
    Emit,
    Graph,
    Link,
    Match,
    Names,
    NodePattern,
    Op,
    Pass,
    Plan,
    Rewrite,
    Safety,
    Settings,
    Var,
    Wiring,
    channel_components,
    check_one_of,
    closure_of_reads,
    emit_wiring,
    interleave,
    lift,
    maybe,
    plan_wiring,
    relabel,
    require,
    shuffle,
    wiring_of,
    wirings,
)
from rewriter.conv import Ints

_WAYS = ("auto", "parts", "gather", "late")
_POOLS = frozenset({"MaxPool", "AveragePool"})


class AbsorbShuffle(Pass):
    """Channel shuffles -> weights in another order."""

    name = "absorb-shuffle"
    safety = Safety.EXACT
    defaults = {"way": "auto"}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution: the first one at a wiring stands for it."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_one_of(settings["way"], f"{self.name}.way", _WAYS)

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The ways that copy less, none that makes what another one makes."""
        near = _near(graph, found.node)
        ways = [way for way in ("parts", "gather") if _planned(graph, near, way).saved > 0]
        ways += ["late"] if _shrinking(graph, near) else []
        require(ways, "no other way to bring these channels together copies less", *_leaving(near))
        return tuple({"way": way} for way in ways)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        near, way = _near(graph, found.node), str(settings["way"])
        start = f"{graph.model.nodes[found.node].output[0]}/unshuffled"
        if way == "auto":
            way = _best(graph, near)
        if way == "late":
            return self._late(graph, near, start)
        planned = _planned(graph, near, way)
        wiring, copied = planned.wiring, planned.plan.copied
        reason = f"its way {way} copies {copied} channels, and {planned.now} are copied now"
        require(planned.saved > 0, reason + _kept(graph, wiring), *_leaving(near))
        lost = wiring.lost(graph)
        require(not lost, f"nobody would need '{next(iter(lost), '')}' any more", *lost)
        instead = emit_wiring(graph, wiring, planned.plan)
        summary = f"{_described(wiring.links)}, {planned.now} channels copied -> {way}, {copied} copied"
        return self._made(graph, planned.plan.embeddings, start, instead, summary)

    def _late(self, graph: Graph, near: list[tuple[Link, ...]], start: str) -> Rewrite:
        behind = _shrinking(graph, near)
        reason = "no depthwise convolution or pool behind one of its shuffles has fewer positions"
        require(behind, reason, *_leaving(near))
        instead: dict[int, Emit | None] = {}
        for link, node in behind.items():
            instead |= dict.fromkeys(wiring_of(graph, channel_components(graph), (link,), concats=True).nodes)
            instead[node] = partial(_shuffled_behind, graph, link, node)
        summary = f"{len(behind)} channel shuffle{'s' * (len(behind) > 1)} -> behind what has fewer positions"
        return self._made(graph, {}, start, instead, summary)

    def _made(
        self, graph: Graph, orders: Mapping[int, Ints], prefix: str, instead: Mapping[int, Emit | None], summary: str
    ) -> Rewrite:
        channels = channel_components(graph)
        groups = {link.node: link.group for part in channels.components for link in part.links if link.kind == "groups"}
        made = relabel(graph, channels, orders, groups, prefix, instead)
        return Rewrite(
            self.name,
            made.site,
            Safety.EXACT,
            closure_of_reads(graph.model, made.removed, made.added),
            min(made.places),
            made.added,
            made.initializers,
            summary,
            places=made.places,
        )


def _near(graph: Graph, node: int) -> list[tuple[Link, ...]]:
    """The links of each wiring that this convolution is the first one at: before it, behind it, or both."""
    channels = channel_components(graph)
    site = lift(graph.model, node)
    bands = {channels.band_of[name].number for name in (site.x, site.y) if name in channels.band_of}
    near = [
        (links, first)
        for links in wirings(channels)
        if bands & _bands(channels, links) and (first := _first(graph, channels, links)) is not None
    ]
    require(near, "there is no channel shuffle before or behind it", site.y, matched=0)
    mine = [links for links, first in near if first == node]
    there = graph.model.nodes[near[0][1]].output[0]
    require(mine, f"its channel shuffles are connected with those at '{there}', and looked at there", site.y, matched=0)
    return mine


def _bands(channels: Channels, links: tuple[Link, ...]) -> set[int]:
    return {channels.band_of[name].number for link in links for name in (*link.entering, link.leaving)}


def _first(graph: Graph, channels: Channels, links: tuple[Link, ...]) -> int | None:
    """The first convolution at the bands of a wiring."""
    numbers = _bands(channels, links)
    bands = [channels.bands[number] for number in numbers]
    nodes = [end.node for band in bands for end in (*band.births, *band.deaths)]
    nodes += [keep.node for band in bands for keep in band.keeps]
    for component in channels.components:
        for link in component.links:
            if link.kind == "groups" and numbers & _bands(channels, (link,)):
                nodes.append(link.node)
    return min((node for node in nodes if graph.model.nodes[node].op_type == "Conv"), default=None)


@dataclass(frozen=True, eq=False)
class _Planned:
    """A wiring, the plan of one way for it, and how many channels are copied now."""

    way: str
    wiring: Wiring
    plan: Plan
    now: int

    @property
    def saved(self) -> int:
        return self.now - self.plan.copied


def _planned(graph: Graph, near: list[tuple[Link, ...]], way: str) -> _Planned:
    """The plan for those of the wirings that it saves copies of; for all where there are none."""
    alone = [_planned_for(graph, links, way) for links in near]
    good = [links for links, made in zip(near, alone, strict=True) if made.saved > 0 and not made.wiring.lost(graph)]
    return _planned_for(graph, _together(good or near), way)


def _planned_for(graph: Graph, links: tuple[Link, ...], way: str) -> _Planned:
    channels = channel_components(graph)
    wiring = wiring_of(graph, channels, links, concats=way == "parts")
    return _Planned(way, wiring, plan_wiring(channels, wiring), wiring.copied(channels))


def _together(near: list[tuple[Link, ...]]) -> tuple[Link, ...]:
    return tuple(sorted((link for links in near for link in links), key=lambda link: link.node))


def _best(graph: Graph, near: list[tuple[Link, ...]]) -> str:
    """The way that saves most; the shuffle goes behind something only where no other way saves anything."""
    best = max((_planned(graph, near, way) for way in ("parts", "gather")), key=lambda made: made.saved)
    return best.way if best.saved > 0 or not _shrinking(graph, near) else "late"


def _leaving(near: list[tuple[Link, ...]]) -> tuple[str, ...]:
    return tuple(link.leaving for link in _together(near) if link.kind != "concat")


def _kept(graph: Graph, wiring: Wiring) -> str:
    """What must keep its order at the ends of a wiring: the first of it, as the end of a sentence."""
    channels = channel_components(graph)
    for name in (*(sink.tensor for sink in wiring.sinks), *wiring.roots):
        band = channels.band_of[name]
        reasons = [stop.reason for stop in band.stops if not stop.size]
        for link in channels.component_of[band.number].links:
            if link.kind == "groups" and band.number in _bands(channels, (link,)):
                reasons.append(f"Conv '{link.leaving}' has {link.group} groups")
        if reasons:
            return f": '{name}' keeps its order, because {reasons[0]}"
    return ""


def _described(links: tuple[Link, ...]) -> str:
    kinds = {"shuffle": "shuffle", "concat": "Concat", "pick": "selection"}
    counts = {text: sum(link.kind == kind for link in links) for kind, text in kinds.items()}
    return ", ".join(f"{count} {text}{'s' * (count > 1)}" for text, count in counts.items() if count)


def _shrinking(graph: Graph, near: list[tuple[Link, ...]]) -> dict[Link, int]:
    """Shuffles that only a depthwise convolution or a pool reads, which gives fewer positions; with that."""
    channels, model = channel_components(graph), graph.model
    found = {}
    for link in _together(near):
        readers = model.wiring.readers(link.leaving)
        if not _permutes(channels, link) or model.wiring.escapes(link.leaving) or len(readers) != 1:
            continue
        node = model.nodes[readers[0]]
        keeps = any(keep.node == readers[0] for keep in channels.band_of[link.leaving].keeps)
        before, after = _positions(graph, link.leaving), _positions(graph, node.output[0])
        alone = node.op_type == "Conv" or (node.op_type in _POOLS and len(node.output) == 1)
        if keeps and alone and before is not None and after is not None and after < before:
            found[link] = readers[0]
    return found


def _permutes(channels: Channels, link: Link) -> bool:
    """Whether a link only brings channels into another order."""
    every = list(range(channels.band_of[link.entering[0]].channels))
    return link.order is not None and sorted(link.order.tolist()) == every != link.order.tolist()


def _positions(graph: Graph, tensor: str) -> int | None:
    """Positions of a tensor `[N, C, *S]`, where they are the same for every input."""
    sizes = [size for size in (graph.sizes(tensor) or (None,))[2:] if size is not None]
    return prod(sizes) if sizes and len(sizes) == len(graph.sizes(tensor) or ()) - 2 else None


def _shuffled_behind(
    graph: Graph, link: Link, index: int, build: Builder, name: Names, output: Names
) -> Mapping[str, str]:
    """The node on what entered the shuffle, its weight in that order, and the shuffle behind it."""
    node, x = graph.model.nodes[index], name(link.entering[0])
    assert link.order is not None
    sizes = graph.sizes(node.output[0])
    assert sizes is not None
    if node.op_type == "Conv":
        back = np.argsort(link.order)
        site = lift(graph.model, index)
        weight = build.constant(site.weight[back], "weight")
        bias = None if site.bias is None else build.constant(site.bias[back], "bias")
        y = build.conv(node, x, weight, bias, site.group, None)
    else:
        y = build.copy(node, x)
    how = "gather" if interleave(link.order) is None else "reshape"
    shuffle(build, y, link.order, how, sizes, output(node.output[0]))
    return {}
