"""Which channels to add so that every input of a Concat has a multiple of a block, and what picks from it follows.

The plan is an embedding for each band that changes (see `rewriter.channels`), for `relabel` to carry out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rewriter.channelflow import channel_components
from rewriter.channels import Band, Channels, Component, Link
from rewriter.conv import Ints, is_identity, joined
from rewriter.following import element_type
from rewriter.graph import Graph
from rewriter.rule import require

_GROWTH = 2
"""How many times its blocks a tensor may have."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the channels of each band (by number) go, and the Concats that are aligned."""

    embeddings: Mapping[int, Ints]
    sizes: tuple[tuple[int, int], ...]
    """Channels of the Concats' inputs before and after, each pair once."""
    concats: int


def aligned_concats(graph: Graph, node: int, block: int) -> Alignment:
    """The plan for the component of the Concats to align of which this convolution is the first; declines for others.

    Declines where something else depends on the number of channels, or the plan needs more than twice the blocks.
    """
    channels = channel_components(graph)
    start = graph.model.nodes[node].output[0]
    together = _together(channels, start)
    concats = [link for component in together for link in _concats(graph, component)]
    require(concats, "its channels go into no Concat", start, matched=0)
    ragged = [link for link in concats if _is_ragged(channels, link, block)]
    require(ragged, f"every Concat in its component has inputs of multiples of {block} channels", start, matched=0)
    first = min(at for component in together for at in _makers(graph, component))
    name = graph.model.nodes[first].output[0]
    require(node == first, f"it is in one component with '{name}', and looked at there", start, matched=0)
    plan = _Plan(graph, channels, block, {name for link in ragged for name in link.entering})
    plan.fill(together)
    inputs = {channels.band_of[name] for link in ragged for name in link.entering}
    sizes = {(band.channels, len(plan.embedding(band))) for band in inputs}
    changed = {number: found for number, found in plan.found.items() if not plan.stays(number)}
    return Alignment(changed, tuple(sorted(pair for pair in sizes if pair[0] != pair[1])), len(ragged))


def _together(channels: Channels, tensor: str) -> list[Component]:
    """The component of a tensor, and those connected with it by picks of everything."""
    own = channels.component(tensor)
    todo = [] if own is None else [own]
    found: dict[int, Component] = {}
    while todo:
        component = todo.pop()
        if component.number in found:
            continue
        found[component.number] = component
        for pick in channels.picks:
            ends = [channels.component_of[channels.band_of[name].number] for name in (pick.entering[0], pick.leaving)]
            if component in ends and _is_everything(channels, pick):
                todo += ends
    return [found[number] for number in sorted(found)]


def _is_everything(channels: Channels, pick: Link) -> bool:
    """Whether nothing is left out, as where `x[:, :C]` was exported for a tensor of C channels."""
    return pick.order is not None and is_identity(pick.order, channels.band_of[pick.entering[0]].channels)


def _concats(graph: Graph, component: Component) -> list[Link]:
    """The Concats of channels in float32 and 2-D: others have no fast layout."""
    links = [link for link in component.links if link.kind == "concat"]
    return [
        link
        for link in links
        if len(graph.sizes(link.leaving) or ()) == 4 and element_type(graph, link.leaving) == "float"
    ]


def _is_ragged(channels: Channels, link: Link, block: int) -> bool:
    return any(channels.band_of[name].channels % block for name in link.entering)


def _makers(graph: Graph, component: Component) -> list[int]:
    """The convolutions that make tensors of a component."""
    ends = [end.node for band in component.bands for end in band.births]
    ends += [keep.node for band in component.bands for keep in band.keeps]
    ends += [link.node for link in component.links]
    return [index for index in ends if graph.model.nodes[index].op_type == "Conv"]


@dataclass(eq=False)
class _Plan:
    graph: Graph
    channels: Channels
    block: int
    fill_up: set[str]
    """Tensors that need a multiple of the block."""
    found: dict[int, Ints] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)

    def fill(self, components: list[Component]) -> None:
        """Every band of the components, and of those that pick from what changes."""
        todo, seen = list(components), {component.number for component in components}
        while todo:
            here = todo.pop()
            for band in here.bands:
                self.embedding(band)
            for pick in self.channels.picks:
                band = self.channels.band_of[pick.leaving]
                beyond = self.channels.component_of[band.number]
                source = self.channels.band_of[pick.entering[0]]
                if beyond.number not in seen and source.number in self.found and not self.stays(source.number):
                    seen.add(beyond.number)
                    todo.append(beyond)
        self._check()

    def stays(self, number: int) -> bool:
        return is_identity(self.found[number], self.channels.bands[number].channels)

    def embedding(self, band: Band) -> Ints:
        """Where the band's channels go: as what it is made of says, filled up where a Concat needs that."""
        if band.number in self.found:
            return self.found[band.number]
        require(band.number not in self.pending, f"'{band.tensors[0]}' goes into a Concat it comes from", *band.tensors)
        self.pending.add(band.number)
        inside = set(band.tensors)
        made = []
        for link in self.channels.component_of[band.number].links:
            if link.kind == "concat" and link.leaving in inside:
                parts = [self.channels.band_of[name] for name in link.entering]
                made.append(joined([(self.embedding(part), part.channels) for part in parts]))
        for pick in self.channels.picks:
            source = self.channels.band_of[pick.entering[0]]
            known = source.number in self.found or _is_everything(self.channels, pick)
            if pick.leaving in inside and known and not band.stops and (part := self._part(pick, source)) is not None:
                made.append(part)
        for other in made[1:]:
            agree = np.array_equal(made[0], other)
            require(
                agree, f"what is put together in '{band.tensors[0]}' would be padded in other places", *band.tensors[:1]
            )
        self.found[band.number] = made[0] if made else self._filled(band)
        self.pending.discard(band.number)
        return self.found[band.number]

    def _part(self, pick: Link, source: Band) -> Ints | None:
        """The range of a padded tensor that a range of its channels takes, up to the next channel; None as before."""
        order, whole = pick.order, self.embedding(source)
        if order is None or is_identity(whole, source.channels) or not (np.diff(order) == 1).all():
            return None
        place = {int(old): at for at, old in enumerate(whole) if old >= 0}
        first, beyond = int(order[0]), int(order[-1]) + 1
        start = place[first] if first else 0
        part = whole[start : place[beyond] if beyond < source.channels else len(whole)]
        return np.where(part >= 0, part - first, -1)

    def _filled(self, band: Band) -> Ints:
        """All channels, then none up to a multiple; in front as far as that lets more of a wider tensor be read."""
        more = -band.channels % self.block if self.fill_up.intersection(band.tensors) else 0
        front = 0
        for pick in self.channels.picks:
            if more and pick.leaving in band.tensors and pick.order is not None and len(pick.order):
                over = int(pick.order[-1]) + 1 + more - self.channels.band_of[pick.entering[0]].channels
                front = max(front, min(more, over, int(pick.order[0])))
        return np.concatenate([np.full(front, -1), np.arange(band.channels), np.full(more - front, -1)])

    def _check(self) -> None:
        """Every band that changes is free to, and nothing grows beyond measure."""
        for number in self.found:
            band = self.channels.bands[number]
            if self.stays(number):
                continue
            stop = next(iter(band.stops), None)
            require(stop is None, "" if stop is None else stop.reason, band.tensors[0])
            before, after = (-(-width // self.block) for width in (band.channels, len(self.found[number])))
            grown = f"'{band.tensors[0]}' of {band.channels} channels would have {len(self.found[number])}"
            require(after <= _GROWTH * before, f"{grown}, more than {_GROWTH} times the blocks", band.tensors[0])
            for link in self.channels.component_of[number].links:
                touched = any(self.channels.band_of[name].number == number for name in (*link.entering, link.leaving))
                kind = "a channel shuffle" if link.kind == "shuffle" else "a grouped convolution"
                plain = not touched or link.kind == "concat"
                require(plain, f"{kind} '{link.leaving}' is in the component, and would be taken apart", link.leaving)
