"""Runs: convolutions of one kind, and the nodes around them that work alike on tensors of another rank.

A run is computed as a whole in another layout, so that one change of layout before it and one behind it serve all of
its convolutions.  `find_runs` shares a model's nodes out among runs, each as large as it can be while its new nodes
still have one place in the graph: behind all that they read, before all that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from weakref import WeakKeyDictionary

from rewriter.alike import Alike, data_operands, is_conv
from rewriter.graph import Graph
from rewriter.lifting import ConvSite, convs, lift
from rewriter.rule import Declined, require
from rewriter.wiring import subgraphs, used_names

Kinds = Callable[[ConvSite], tuple[str, ...]]
"""The layouts in which a convolution could be computed, the best first; empty where there is none."""
Samples = Callable[[ConvSite], bool]
"""Whether a convolution could be only on a part of its input that is taken out before the layout changes."""
_FOUND: WeakKeyDictionary[Graph, dict[tuple[int, Kinds, Samples, bool], dict[int, Run]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Run:
    """Nodes that are computed together: `entering` and `leaving` are the tensors that cross its border."""

    nodes: tuple[int, ...]
    convs: tuple[int, ...]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    anchor: int
    """Position before which its new nodes can stand."""
    layout: str
    sampled: tuple[int, ...] = ()
    """Convolutions of the run that read a part of what no other node of it makes; `entering` has what the rest read."""

    def described(self, kind: str) -> str:
        """`2 Conv1D and 5 nodes around them`."""
        others = len(self.nodes) - len(self.convs)
        return f"{len(self.convs)} {kind}" + (f" and {others} more node{'s' * (others > 1)}" if others else "")


def never(_: ConvSite) -> bool:
    """No convolution reads a part of its input."""
    return False


def run_from(
    graph: Graph, site: ConvSite, rank: int, kinds: Kinds, *, any_shape: bool, samples: Samples = never
) -> Run:
    """The run whose first convolution is at `site`; declines where there is none or it begins elsewhere."""
    run = find_runs(graph, rank, kinds, any_shape=any_shape, samples=samples).get(site.index)
    require(run is not None, "it has no form in the other layout", site.y)
    assert run is not None
    require(run.leaving, "nothing reads what it computes", site.y)
    first = graph.model.nodes[run.convs[0]].output[0]
    begins = run.convs[0] == site.index
    require(begins, f"it is part of the run that begins at '{first}', and is rewritten with it", site.y)
    return run


def find_runs(graph: Graph, rank: int, kinds: Kinds, *, any_shape: bool, samples: Samples = never) -> dict[int, Run]:
    """The run of each Conv that is in one, by its position; the tensors inside have `rank` axes.

    `any_shape` as for `Alike`.  Found once for each graph, since every convolution asks.
    """
    known = _FOUND.setdefault(graph, {})
    key = (rank, kinds, samples, any_shape)
    if key not in known:
        search = _Search(graph, kinds, samples, Alike(graph, rank, any_shape))
        found: dict[int, Run] = {}
        for index in convs(graph.model):
            if index not in search.taken and search.layouts(index):
                run = search.grow(index)
                found |= dict.fromkeys(run.convs, run)
        known[key] = found
    return known[key]


@dataclass
class _Border:
    """What crosses the border of the nodes in `inside`, kept up to date as they become more."""

    inside: set[int]
    entering: set[str]
    leaving: dict[str, int]
    """With the first position at which somebody outside reads it."""

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted(self.inside))


_NOBODY = 1 << 60
"""Behind every node: the first reader of a graph output that no node reads."""
_Unit = tuple[int, bool, str]
"""A place to grow: position of a node to try, whether it lies upstream, the tensor that leads to it."""


@dataclass
class _Search:
    graph: Graph
    kinds: Kinds
    samples: Samples
    alike: Alike
    taken: set[int] = field(default_factory=set)
    _fits: dict[int, bool] = field(default_factory=dict)
    _layouts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _sampled: dict[int, bool] = field(default_factory=dict)

    def layouts(self, index: int) -> tuple[str, ...]:
        """The layouts in which the Conv at a position could be computed."""
        if index not in self._layouts:
            try:
                self._layouts[index] = self.kinds(lift(self.graph.model, index))
            except Declined:
                self._layouts[index] = ()
        return self._layouts[index]

    def grow(self, seed: int) -> Run:
        """The run that a Conv starts: ever more nodes behind and before it, in order, while it has one place."""
        layouts = self.layouts(seed)
        border = self._with(_Border(set(), set(), {}), {seed})
        heap = self._neighbours({seed})
        heapify(heap)
        later: list[_Unit] = []
        grown = False
        while heap or (grown and later):
            if not heap:  # what had no place may have one now
                heap, later, grown = later, [], False
                heapify(heap)
            one = heappop(heap)
            unit = self._unit(one) - border.inside
            common = self._common(layouts, unit)
            if not unit or not common:
                continue
            wider = self._with(border, unit)
            if self._place(wider) is None:
                later.append(one)
                continue
            border, layouts, grown = wider, common, True
            for other in self._neighbours(unit):
                heappush(heap, other)
        self.taken |= border.inside
        return self._run(border, layouts[0])

    def _run(self, border: _Border, layout: str) -> Run:
        place = self._place(border)
        assert place is not None
        nodes = [self.graph.model.nodes[index] for index in border.nodes]
        made = [name for node in nodes for name in node.output]
        among = tuple(index for index in border.nodes if is_conv(self.graph.model.nodes[index]))
        sampled = tuple(index for index in among if self._is_sampled(index))
        whole = (self.graph.model.nodes[index] for index in border.nodes if index not in sampled)
        read = dict.fromkeys(name for node in whole for name in data_operands(self.graph, node))
        entering = tuple(name for name in read if name in border.entering)
        leaving = tuple(name for name in made if name in border.leaving)
        return Run(border.nodes, among, entering, leaving, place, layout, sampled)

    def _common(self, layouts: tuple[str, ...], unit: set[int]) -> tuple[str, ...]:
        """Those layouts that all convolutions of a unit have, too."""
        others = [self.layouts(index) for index in unit if is_conv(self.graph.model.nodes[index])]
        return tuple(layout for layout in layouts if all(layout in other for other in others))

    def _neighbours(self, unit: set[int]) -> list[_Unit]:
        """Where to grow from nodes that have just joined: what reads them, and what makes what they read."""
        wiring = self.graph.model.wiring
        found: list[_Unit] = []
        for member in unit:
            node = self.graph.model.nodes[member]
            for name in node.output:
                found += [(index, False, name) for index in wiring.readers(name)]
            for name in [] if self._is_sampled(member) else data_operands(self.graph, node):
                maker = wiring.producer(name)
                found += [] if maker is None else [(maker, True, name)]
        return found

    def _unit(self, one: _Unit) -> set[int]:
        """The nodes to add there: a reader by itself; what lies between a member and the next Conv before it."""
        index, upstream, tensor = one
        if upstream:
            return self._upstream(tensor)
        if not self._is_free(index) or self._is_sampled(index):
            return set()
        return {index} if tensor in data_operands(self.graph, self.graph.model.nodes[index]) else set()

    def _upstream(self, tensor: str) -> set[int]:
        """The free nodes that a tensor is made by, back to the nearest convolutions; empty where there is none."""
        found: set[int] = set()
        todo = [tensor]
        while todo:
            maker = self.graph.model.wiring.producer(todo.pop())
            if maker is None or maker in found or not self._is_free(maker):
                continue
            found.add(maker)
            if not is_conv(self.graph.model.nodes[maker]):
                todo += data_operands(self.graph, self.graph.model.nodes[maker])
        return found if any(is_conv(self.graph.model.nodes[index]) for index in found) else set()

    def _with(self, border: _Border, unit: set[int]) -> _Border:
        """The border once a unit is inside as well."""
        model = self.graph.model
        inside = border.inside | unit
        entering, leaving = set(border.entering), dict(border.leaving)
        names: set[str] = set()
        for index in unit:
            node = model.nodes[index]
            names |= {*data_operands(self.graph, node), *(name for name in node.output if name)}
        for name in names:
            entering.discard(name)
            leaving.pop(name, None)
            if model.wiring.producer(name) not in inside:
                entering.add(name)
                continue
            outside = [index for index in model.wiring.readers(name) if index not in inside]
            if outside or model.wiring.escapes(name):
                leaving[name] = min([*outside, self._captures.get(name, _NOBODY)])
        return _Border(inside, entering, leaving)

    @cached_property
    def _captures(self) -> dict[str, int]:
        """The first node that reads a tensor inside a subgraph, by tensor."""
        first: dict[str, int] = {}
        for index, node in enumerate(self.graph.model.nodes):
            if any(True for _ in subgraphs(node)):
                for name in used_names([node]):
                    first.setdefault(name, index)
        return first

    def _place(self, border: _Border) -> int | None:
        """The earliest position behind all that enters, if nothing outside reads before it what leaves; else None.

        What is sampled has to enter: None as well where the nodes make it themselves.
        """
        sampled = [self.graph.model.nodes[index].input[0] for index in border.inside if self._is_sampled(index)]
        if not border.entering.issuperset(sampled):
            return None
        makers = [self.graph.model.wiring.producer(name) for name in border.entering]
        place = max([min(border.inside), *(maker + 1 for maker in makers if maker is not None)])
        return place if all(place <= index for index in border.leaving.values()) else None

    def _is_sampled(self, index: int) -> bool:
        """Whether it is a Conv on a part of its input."""
        if index not in self._sampled:
            conv = is_conv(self.graph.model.nodes[index]) and bool(self.layouts(index))
            self._sampled[index] = conv and self.samples(lift(self.graph.model, index))
        return self._sampled[index]

    def _is_free(self, index: int) -> bool:
        """Whether a node can be part of a run and is in none yet."""
        if index in self.taken:
            return False
        if index not in self._fits:
            conv = is_conv(self.graph.model.nodes[index])
            self._fits[index] = bool(self.layouts(index)) if conv else self.alike.works_alike(index)
        return self._fits[index]
