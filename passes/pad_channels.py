"""pad-channels: channels without content, so that the convolutions around them reach the runtime's fast path.

    y = Conv(f(Conv(x, W, b)), V)     becomes     y = Conv(f(Conv(x, W', b')), V')

with zero rows in W' `[C', ...]` and zero columns in V' `[M, C', ...]`, f whatever keeps channels apart: activations,
additions, BatchNormalization, pools, depthwise and grouped convolutions, Concat, squeeze-and-excitation branches.  All
tensors of a channel component are padded together; no operator is added.  Where the channels are picked from a wider
tensor, more of that are read instead.

    grouped     each of the G groups is filled up from w to w' channels, groups without content are added, and f groups
                are then merged to one: Conv [M', f*w', *K] of G'/f groups
    others      channels are filled up to a multiple of 4 where a depthwise convolution or the reader of them wants that

Settings: `width` = channels per group to fill up to, `groups` = groups to add up to, `merge` = groups to merge; 0 lets
the multiplications decide.  `multiple` = 4.  `block` = channels that the fast path computes together; 0 is this
machine's.
Conditions: 2-D, float32; constant weights; nothing else reads the channels (`rewriter inspect --channels` shows that).
What `optimize` measures: on the CPU, the combinations of width, groups and merge that take the fewest multiplications;
nothing on maps of one position.
Safety: FINITE.  What the new channels carry is finite where the activations are, and meets zeros.
Source: what is fast says ONNX Runtime's NCHWc transformer; components as in Fang et al., "DepGraph" (2023), which
prunes channels where this adds some.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

from rewriter import (
    BadInput,
    Band,
    Channels,
    Component,
    Graph,
    Link,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    channel_components,
    closure_of_reads,
    element_type,
    lift,
    maybe,
    nchwc_block,
    relabel,
    require,
)
from rewriter.conv import Ints, is_identity, joined, pad_groups

_MOST = 3
"""Combinations that are measured."""
_WASTE = 4.0
"""Multiplications of a combination, as a multiple of those without it, from which it is no use to try."""


class PadChannels(Pass):
    """Channels of several nodes together -> filled up to what the fast path takes."""

    name = "pad-channels"
    safety = Safety.FINITE
    defaults = {"width": 0, "groups": 0, "merge": 0, "multiple": 4, "block": 0}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution: the first of a component that misses the fast path stands for it."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        for key, value in settings.items():
            least = 1 if key == "multiple" else 0
            if int(value) < least:
                raise BadInput(f"{self.name}.{key} is {value}: it must be {least} or more.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        start = graph.model.nodes[found.node].output[0]
        require(graph.provider == "cpu", "only the CPU's kernels compute channels in blocks", start, matched=0)
        need = _needed(graph, found.node, dict(self.defaults))
        if need.grouped is None:
            sizes = [size for band in need.component.bands for size in (graph.sizes(band.tensors[0]) or (None,))[2:]]
            return () if all(size == 1 for size in sizes) else ({},)
        ways = _ways(need.grouped, need.block)
        return tuple({"width": way.width, "groups": way.groups, "merge": way.merge} for way in ways[:_MOST])

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        need = _needed(graph, found.node, settings)
        start = graph.model.nodes[found.node].output[0]
        way = None if need.grouped is None else _asked(need.grouped, need.block, settings, start)
        embeddings = _embeddings(need, way, int(settings["multiple"]), start)
        merge = {} if way is None else {link.node: way.groups // way.merge for link in need.links}
        made = relabel(graph, need.channels, embeddings, merge, f"{start}/padded")
        return Rewrite(
            self.name,
            made.site,
            Safety.FINITE,
            closure_of_reads(graph.model, made.removed, made.added),
            min(made.places),
            made.added,
            made.initializers,
            _summary(need, way, embeddings),
            places=made.places,
        )


@dataclass(frozen=True, eq=False)
class Need:
    """A component with convolutions that miss the fast path for their number of channels."""

    channels: Channels
    component: Component
    block: int
    narrow: frozenset[int]
    """Bands (numbers) whose number of channels is no multiple of what it must be."""
    links: tuple[Link, ...]
    """The grouped convolutions to widen."""
    grouped: Grouped | None


@dataclass(frozen=True)
class Grouped:
    """What the grouped convolutions of a component have in common."""

    group: int
    read: int
    """Channels per group that are read, and made."""
    made: int


@dataclass(frozen=True)
class Way:
    """Channels per group, groups, and how many of them are merged."""

    width: int
    groups: int
    merge: int


def _needed(graph: Graph, node: int, settings: Settings) -> Need:
    """Why the component of a convolution's input should be padded; declines for others than its first one in need."""
    channels = channel_components(graph)
    start = graph.model.nodes[node].output[0]
    site = lift(graph.model, node)
    require(len(site.kernel) == 2, "only 2-D convolutions have a fast path", start, matched=0)
    require(element_type(graph, site.y) == "float", "only float32 has a fast path", start, matched=0)
    component = channels.component(site.x)
    require(component is not None, f"the channels of '{site.x}' are not known", start)
    assert component is not None
    block = int(settings["block"]) or nchwc_block()
    require(block > 1, "this machine has no fast path for a block of channels", start, matched=0)
    slow = _slow(graph, component, block, int(settings["multiple"]))
    mine = [reason for at, reason, _ in slow if at == node]
    require(mine, "its number of channels does not keep it off the fast path", start, matched=0)
    first = graph.model.nodes[slow[0][0]].output[0]
    require(slow[0][0] == node, f"it is in one component with '{first}', and looked at there", start, matched=0)
    stop = next(iter(component.stops), None)
    require(component.free, f"{mine[0]}, but {'' if stop is None else stop.reason}", start)
    links = tuple(link for link in component.links if link.kind == "groups" and _group_width(link, channels)[0] > 1)
    widths = {(link.group, *_group_width(link, channels)) for link in links}
    in_need = {at for at, _, _ in slow}
    if any(link.node in in_need for link in links):
        require(len(widths) == 1, "its grouped convolutions differ in their groups", start)
        return Need(channels, component, block, frozenset(), links, Grouped(*widths.pop()))
    require(not links, "a grouped convolution in its component is wide enough, and would be taken apart", start)
    narrow = frozenset(number for _, _, number in slow)
    return Need(channels, component, block, narrow, (), None)


def _slow(graph: Graph, component: Component, block: int, multiple: int) -> list[tuple[int, str, int]]:
    """Convolutions that miss the fast path for the channels they read: node, why, and number of the band."""
    found = []
    for band in component.bands:
        ragged = band.channels % multiple != 0
        for keep in band.keeps:
            if ragged and graph.model.nodes[keep.node].op_type == "Conv":
                found.append((keep.node, f"{band.channels} channels are no multiple of {multiple}", band.number))
        for end in band.deaths:
            is_conv = graph.model.nodes[end.node].op_type == "Conv"
            if ragged and band.channels >= block and is_conv and graph.model.nodes[end.node].input[0] == end.tensor:
                found.append((end.node, f"{band.channels} channels are no multiple of {multiple}", band.number))
    for link in component.links:
        if link.kind != "groups":
            continue
        numbers = {name: band for band in component.bands for name in band.tensors}
        read, made = (numbers[name].channels // link.group for name in (link.entering[0], link.leaving))
        if read > 1 and (read % block or made % block):
            found.append((link.node, f"{read} channels per group are no multiple of {block}", -1))
    return sorted(found)


def _group_width(link: Link, channels: Channels) -> tuple[int, int]:
    """Channels per group that a grouped convolution reads and makes."""
    read, made = (channels.band_of[name].channels // link.group for name in (link.entering[0], link.leaving))
    return read, made


def _ways(grouped: Grouped, block: int) -> list[Way]:
    """Combinations that reach the fast path, the cheapest first; regrouping alone is another pass."""
    wide = max(grouped.read, grouped.made)
    found: dict[tuple[int, int], Way] = {}
    for width in range(-(-wide // 4) * 4, -(-wide // block) * block + 1, 4):
        merge = block // gcd(width, block)
        groups = -(-grouped.group // merge) * merge
        if width == wide and groups == grouped.group:
            continue
        found.setdefault((width, merge), Way(width, groups, merge))
    before = grouped.group * grouped.read * grouped.made
    costs = {way: way.groups * way.width * way.merge * way.width for way in found.values()}
    return sorted((way for way, cost in costs.items() if cost <= _WASTE * before), key=lambda way: costs[way])


def _asked(grouped: Grouped, block: int, settings: Settings, where: str) -> Way:
    """The combination that the settings ask for, the cheapest where they leave it open."""
    width, groups, merge = (int(settings[key]) for key in ("width", "groups", "merge"))
    if width or groups or merge:
        wide = max(grouped.read, grouped.made)
        way = Way(width or wide, groups or grouped.group, merge or 1)
        require(way.width >= wide, f"its groups have {wide} channels, more than pad-channels.width={way.width}", where)
        require(way.groups >= grouped.group, f"it has {grouped.group} groups, more than pad-channels.groups", where)
        require(way.groups % way.merge == 0, f"{way.groups} groups cannot be merged {way.merge} to one", where)
        return way
    ways = _ways(grouped, block)
    require(ways, "every way to fill its groups up takes more than four times the multiplications", where)
    return ways[0]


def _embeddings(need: Need, way: Way | None, multiple: int, where: str) -> dict[int, Ints]:
    """Where the channels of each band go."""
    found: dict[int, Ints] = {}
    if way is not None and need.grouped is not None:
        for link in need.links:
            for name in (link.entering[0], link.leaving):
                band = need.channels.band_of[name]
                found[band.number] = pad_groups(band.channels, need.grouped.group, way.width, way.groups)
    else:
        for band in need.component.bands:
            if band.number in need.narrow:
                found[band.number] = _filled_up(need.channels, band, multiple)
    return _through_concats(need, found, multiple, where)


def _filled_up(channels: Channels, band: Band, multiple: int) -> Ints:
    """All channels, then none up to a multiple; in front as far as that lets more of a wider tensor be read."""
    more = -band.channels % multiple
    front = 0
    for pick in channels.picks:
        if pick.leaving in band.tensors and pick.order is not None:
            beyond = int(pick.order[-1]) + 1 + more - channels.band_of[pick.entering[0]].channels
            front = max(front, min(more, beyond, int(pick.order[0])))
    return np.concatenate([np.full(front, -1), np.arange(band.channels), np.full(more - front, -1)])


def _through_concats(need: Need, found: dict[int, Ints], multiple: int, where: str) -> dict[int, Ints]:
    """The same with the bands of Concats and shuffles, whose channels are those of what they read."""
    bands = need.channels.band_of
    for link in sorted(need.component.links, key=lambda link: link.node):
        if link.kind == "groups":
            continue
        entering = [bands[name] for name in link.entering]
        if link.kind == "concat" and bands[link.leaving].number in need.narrow:
            for band in entering:  # what is too narrow together is filled up part by part
                if band.number not in found and band.channels % multiple:
                    found[band.number] = _filled_up(need.channels, band, multiple)
        parts = [(found.get(band.number, np.arange(band.channels)), band.channels) for band in entering]
        leaving = joined(parts)
        if link.kind == "shuffle":
            assert link.order is not None
            require(len(leaving) == bands[link.leaving].channels, "its channels go through a channel shuffle", where)
            leaving = np.arange(len(leaving))
        number = bands[link.leaving].number
        if len(leaving) == bands[link.leaving].channels and number not in need.narrow:
            continue
        agrees = number not in found or number in need.narrow or np.array_equal(found[number], leaving)
        require(agrees, f"the channels behind Concat '{link.leaving}' are grouped otherwise than those before", where)
        found[number] = leaving
    sizes = {band.number: band.channels for band in need.component.bands}
    changed = {number: e for number, e in found.items() if not is_identity(e, sizes[number])}
    require(changed, "there is nothing to fill up", where)
    return changed


def _summary(need: Need, way: Way | None, embeddings: dict[int, Ints]) -> str:
    names = {band.number: band for band in need.component.bands}
    if way is not None and need.grouped is not None:
        old = need.grouped
        width = f"{old.read} per group" if old.read == old.made else f"{old.read} and {old.made} per group"
        new = f"{way.merge} * {way.width}" if way.merge > 1 else f"{way.width}"
        return f"{len(need.links)} Conv group {old.group} of {width} -> group {way.groups // way.merge} of {new}"
    sizes = sorted({(names[number].channels, len(embedding)) for number, embedding in embeddings.items()})
    return ", ".join(f"{old} channels -> {new}" for old, new in sizes)
