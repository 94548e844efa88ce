"""Channel components: which tensors' channels must be padded or permuted together, and what stops that.

Channels are axis 1.  A *band* is a set of tensors whose channels are the same ones in the same places: elementwise
operators, additions, pools, normalization and depthwise convolutions lead from one tensor of a band to the next.
Bands are related by *links*: a concatenation, a grouped convolution, a channel shuffle, a selection of channels.
Channels are born in the rows of a dense convolution's weight and die in the columns of the next one's; what reads them
in any other way *stops* the band, with the reason.  A *component* is a set of bands that cannot change one without the
other.

What is claimed holds for every input of the model: sizes that are not known for all of them stop a band.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from rewriter.conv import Ints
from rewriter.graph import Graph

Relation = Literal["concat", "groups", "shuffle", "pick"]


@dataclass(frozen=True)
class Stop:
    """Why the channels of a band must stay as they are: one clause, and the tensor it is about."""

    tensor: str
    reason: str
    size: bool = False
    """Only how many channels there are is read: they may change places."""


@dataclass(frozen=True, eq=False)
class Link:
    """A node that leads from bands to another one: each as (tensor, channels)."""

    kind: Relation
    node: int
    """The last node of it."""
    entering: tuple[str, ...]
    leaving: str
    group: int = 1
    """Groups of a convolution."""
    order: Ints | None = None
    """Of a shuffle or a pick: the entering channel of each leaving one."""
    nodes: tuple[int, ...] = ()
    """All of its nodes, in order."""


@dataclass(frozen=True)
class Keep:
    """A node that leads from tensors of a band to others of it, with constants of one value per channel.

    `constants` are (operand, axis, what to fill up with): operands that hold a value for each channel.
    """

    node: int
    tensors: tuple[str, ...]
    constants: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True)
class End:
    """A node at which channels are born (`rows` of its weight) or die (columns)."""

    node: int
    tensor: str


@dataclass(frozen=True, eq=False)
class Band:
    """Tensors with the same channels in the same places."""

    number: int
    channels: int
    tensors: tuple[str, ...]
    """In graph order."""
    births: tuple[End, ...]
    deaths: tuple[End, ...]
    stops: tuple[Stop, ...]
    keeps: tuple[Keep, ...]

    @property
    def free(self) -> bool:
        """Whether its channels may be padded or permuted, as far as this band is concerned."""
        return not self.stops


@dataclass(frozen=True, eq=False)
class Component:
    """Bands that change together, and the links between them; `picks` lead in from or out to other components."""

    number: int
    bands: tuple[Band, ...]
    links: tuple[Link, ...]

    @property
    def stops(self) -> tuple[Stop, ...]:
        return tuple(stop for band in self.bands for stop in band.stops)

    @property
    def free(self) -> bool:
        return not self.stops


@dataclass(frozen=True, eq=False)
class Channels:
    """The channel components of a model, and which band each tensor belongs to."""

    bands: tuple[Band, ...]
    components: tuple[Component, ...]
    picks: tuple[Link, ...]
    band_of: Mapping[str, Band]

    @cached_property
    def component_of(self) -> Mapping[int, Component]:
        """By number of the band."""
        return {band.number: component for component in self.components for band in component.bands}

    def component(self, tensor: str) -> Component | None:
        band = self.band_of.get(tensor)
        return None if band is None else self.component_of[band.number]


class Groups:
    """Disjoint sets of keys that grow together."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, key: str) -> str:
        root = key
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while (parent := self._parent[key]) != root:
            self._parent[key], key = root, parent
        return root

    def join(self, keys: Iterable[str]) -> None:
        roots = [self.find(key) for key in keys]
        for root in roots[1:]:
            self._parent[self.find(root)] = self.find(roots[0])

    def sets(self) -> Iterator[list[str]]:
        found: dict[str, list[str]] = {}
        for key in self._parent:
            found.setdefault(self.find(key), []).append(key)
        yield from found.values()


@dataclass
class Survey:
    """What was found so far about the nodes of a graph, to be put together by `analyse`."""

    graph: Graph
    keeps: list[Keep] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    births: list[End] = field(default_factory=list)
    deaths: list[End] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    """Nodes that are part of a link of several nodes."""

    def channels(self, tensor: str) -> int | None:
        """How many channels the tensor has for every input: None where that is not known, or it has no axis 1."""
        sizes = self.graph.sizes(tensor)
        return sizes[1] if sizes is not None and len(sizes) >= 2 else None

    def rank(self, tensor: str) -> int:
        sizes = self.graph.sizes(tensor)
        return 0 if sizes is None else len(sizes)

    def tensors(self) -> set[str]:
        """All tensors of which something is known."""
        found = {name for keep in self.keeps for name in keep.tensors}
        found |= {name for link in self.links for name in (*link.entering, link.leaving)}
        return found | {end.tensor for end in (*self.births, *self.deaths)}

    def stop(self, tensor: str, reason: str, size: bool = False) -> None:
        self.stops.append(Stop(tensor, reason, size))


def put_together(survey: Survey) -> Channels:
    """Bands, components and picks from what was found about the nodes."""
    position = {name: index for index, node in enumerate(survey.graph.model.nodes) for name in node.output}
    groups = Groups()
    for name in sorted(survey.tensors(), key=lambda name: (position.get(name, -1), name)):
        groups.find(name)
    for keep in survey.keeps:
        groups.join(keep.tensors)
    bands: list[Band] = []
    band_of: dict[str, Band] = {}
    for number, names in enumerate(groups.sets()):
        inside = set(names)
        widths = {survey.channels(name) for name in names}
        stops = [stop for stop in survey.stops if stop.tensor in inside]
        if len(widths) > 1 or None in widths:
            known = ", ".join(str(width) for width in sorted(width for width in widths if width is not None))
            why = "known" if None in widths else f"the same throughout: {known}"
            stops.append(Stop(names[0], f"its number of channels is not {why}"))
        band = Band(
            number,
            next((width for width in widths if width is not None), 0),
            tuple(names),
            tuple(end for end in survey.births if end.tensor in inside),
            tuple(end for end in survey.deaths if end.tensor in inside),
            tuple(stops),
            tuple(keep for keep in survey.keeps if keep.tensors[0] in inside),
        )
        bands.append(band)
        band_of |= dict.fromkeys(names, band)
    picks = tuple(link for link in survey.links if link.kind == "pick")
    firm = [link for link in survey.links if link.kind != "pick"]
    together = Groups()
    for band in bands:
        together.find(str(band.number))
    for link in firm:
        together.join(str(band_of[name].number) for name in (*link.entering, link.leaving))
    components = []
    for number, keys in enumerate(together.sets()):
        numbers = {int(key) for key in keys}
        links = tuple(link for link in firm if band_of[link.leaving].number in numbers)
        components.append(Component(number, tuple(bands[key] for key in sorted(numbers)), links))
    return Channels(tuple(bands), tuple(components), picks, band_of)
