"""The channel components of a model for people and programs: `rewriter inspect --channels` and `inspect_channels`.

And which convolutions miss ONNX Runtime's fast path for their numbers of channels: those that padding could help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from rewriter.census import nchwc_block
from rewriter.channelflow import channel_components
from rewriter.channels import Band, Channels, Component, End, Link
from rewriter.errors import BadInput
from rewriter.following import element_type
from rewriter.graph import Graph
from rewriter.lifting import convs, weight_shape

_MULTIPLE: Final = 4
"""What the numbers of channels that the fast path takes are multiples of."""


@dataclass(frozen=True)
class SlowConv:
    """A convolution that misses the fast path for its number of channels; `site` is its output tensor."""

    site: str
    component: int | None
    """Number of the component whose channels it reads; None where these are not known."""
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelSurvey:
    """The channel components of a model, what stops them, and which convolutions want other numbers of channels."""

    channels: Channels
    names: Mapping[int, str]
    """Of each node its first output, which it is named by."""
    block: int
    """Channels that the fast path computes together; 0 where there is no fast path."""
    slow: tuple[SlowConv, ...]
    convolutions: int

    @property
    def components(self) -> tuple[Component, ...]:
        """In graph order."""
        return self.channels.components

    @property
    def free(self) -> tuple[Component, ...]:
        """The components whose channels may be padded and permuted."""
        return tuple(component for component in self.components if component.free)

    @cached_property
    def picks_of(self) -> Mapping[int, tuple[Link, ...]]:
        """By number of the component: nodes that pick channels of it, or that pick those it is made of."""
        found: dict[int, list[Link]] = {}
        for link in self.channels.picks:
            ends = {self.number_of(name) for name in (*link.entering, link.leaving)}
            for number in ends:
                if number is not None:
                    found.setdefault(number, []).append(link)
        return {number: tuple(links) for number, links in found.items()}

    def number_of(self, tensor: str) -> int | None:
        """The number of the tensor's component."""
        component = self.channels.component(tensor)
        return None if component is None else component.number

    def named(self, ends: tuple[End, ...]) -> list[str]:
        """The nodes at which channels are born or die, each once."""
        return list(dict.fromkeys(self.names[end.node] for end in ends))

    def group_width(self, link: Link) -> tuple[int, int]:
        """Channels per group that a grouped convolution reads and makes."""
        bands = (self.channels.band_of[name] for name in (link.entering[0], link.leaving))
        read, made = (band.channels // link.group for band in bands)
        return read, made

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, plain types: `block, convolutions, components[], picks[], slow[]`.

        A component has `number, free, bands[], links[], stops[]`; a band `number, channels, tensors, births, deaths`:
        channels are null where they are not known, births and deaths are nodes by their first output.  A link has
        `kind, node, from, to`, and `groups` with the channels per group that are `read` and `made`, or `order`: the
        entering channel of each leaving one.
        """
        return {
            "block": self.block,
            "convolutions": self.convolutions,
            "components": [self._component(component) for component in self.components],
            "picks": [self._link(link) for link in self.channels.picks],
            "slow": [{"site": conv.site, "component": conv.component, "reason": conv.reason} for conv in self.slow],
        }

    def _component(self, component: Component) -> dict[str, Any]:
        return {
            "number": component.number,
            "free": component.free,
            "bands": [self._band(band) for band in component.bands],
            "links": [self._link(link) for link in component.links],
            "stops": [{"tensor": stop.tensor, "reason": stop.reason} for stop in component.stops],
        }

    def _band(self, band: Band) -> dict[str, Any]:
        return {
            "number": band.number,
            "channels": band.channels or None,
            "tensors": list(band.tensors),
            "births": self.named(band.births),
            "deaths": self.named(band.deaths),
        }

    def _link(self, link: Link) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kind": link.kind,
            "node": self.names[link.node],
            "from": list(link.entering),
            "to": link.leaving,
        }
        if link.kind == "groups":
            read, made = self.group_width(link)
            found |= {"groups": link.group, "read": read, "made": made}
        if link.order is not None:
            found["order"] = [int(channel) for channel in link.order]
        return found


def survey_channels(graph: Graph, block: int | None = None) -> ChannelSurvey:
    """The channel components of a graph; `block` is that of the fast path, this machine's where none is given."""
    channels = channel_components(graph)
    size = nchwc_block() if block is None else block
    names = {at: next((name for name in node.output if name), "") for at, node in enumerate(graph.model.nodes)}
    slow = tuple(_slow(graph, channels, size)) if size else ()
    return ChannelSurvey(channels, names, size, slow, len(convs(graph.model)))


def _slow(graph: Graph, channels: Channels, block: int) -> Iterator[SlowConv]:
    """Of the 2-D float32 convolutions: no other has a fast path, whatever its channels."""
    for index in convs(graph.model):
        node = graph.model.nodes[index]
        try:
            shape = weight_shape(graph.model, index)
        except BadInput:
            continue
        if node.op_type != "Conv" or shape is None or len(shape) != 4 or element_type(graph, node.output[0]) != "float":
            continue
        group = next((int(entry.i) for entry in node.attribute if entry.name == "group"), 1)
        if group < 1:  # no model that runs
            continue
        if reason := why_slow(shape[1] * group, shape[0], group, block):
            component = channels.component(node.input[0]) or channels.component(node.output[0])
            yield SlowConv(node.output[0], None if component is None else component.number, reason)


def why_slow(c: int, m: int, group: int, block: int) -> str:
    """Why a Conv of C and M channels in that many groups misses the NCHWc fast path; empty where it takes it.

    Source: ONNX Runtime's NchwcTransformer, which looks at nothing else of a 2-D float32 Conv with constant weights.
    """
    if group == 1:
        return f"the {c} channels it reads are no multiple of {_MULTIPLE}" if c >= block and c % _MULTIPLE else ""
    if m % _MULTIPLE:
        return f"its {m} channels are no multiple of {_MULTIPLE}"
    read, made = c // group, m // group
    if read == 1:
        return "" if made == 1 else f"it makes {made} channels of each"
    if read % block or made % block:
        width = str(read) if read == made else f"{read} and {made}"
        return f"its groups have {width} channels, no multiple of {block}"
    return ""
