"""Neighbouring branches of a Concat that one convolution could compute: convolutions of one tensor, alike behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import onnx

from rewriter.constants import attribute, constant, is_constant
from rewriter.following import only_reader
from rewriter.graph import Graph
from rewriter.joined import common_source
from rewriter.lifting import ConvSite, lift
from rewriter.model import Model
from rewriter.per_channel import ELEMENTWISE, is_plain
from rewriter.rule import Declined, require
from rewriter.selection import Selection
from rewriter.windows import same_attributes, strides_of


@dataclass(frozen=True)
class Neighbours:
    """Inputs `at`, `at + 1`, ... of the Concat `join`: what each convolves, and the nodes between it and the Concat."""

    join: int
    at: int
    sites: tuple[ConvSite, ...]
    behind: tuple[tuple[int, ...], ...]
    """Elementwise operators, the same for each, in order."""
    sources: tuple[Selection, ...]
    """What each convolution reads of the one tensor."""

    @property
    def others(self) -> tuple[str, ...]:
        """The Concat's other branches."""
        inputs = self.sites[0].model.nodes[self.join].input
        return (*inputs[: self.at], *inputs[self.at + len(self.sites) :])

    @property
    def nodes(self) -> tuple[int, ...]:
        """All that they replace: also the Concat."""
        return (*(site.index for site in self.sites), *(index for nodes in self.behind for index in nodes), self.join)


def neighbours_from(graph: Graph, site: ConvSite, overlap: str | None) -> Neighbours:
    """The branches that are alike around the convolution, which has to be the first of them; declines otherwise.

    They read the same channels or others: where that is not needed `overlap` is None, else it is added to the reason.
    """
    join, name = _join(graph, site)
    node = graph.model.nodes[join]
    where = node.output[0]
    entry = attribute(node, "axis")
    axis = 1 if entry is None else entry.i
    require(axis % (len(site.kernel) + 2) == 1, f"Concat '{where}' is along axis {axis}, not channels", site.y)
    require(len(node.input) > 1, f"Concat '{where}' has no other branch", site.y)
    require(list(node.input).count(name) == 1, f"Concat '{where}' reads a branch twice", site.y)
    found, reasons = _groups(graph, join, overlap)
    at = list(node.input).index(name)
    group = next((one for one in found if one.at <= at < one.at + len(one.sites)), None)
    if group is None:
        raise reasons[at]
    first = group.sites[0]
    begins = first.index == site.index
    require(begins, f"it is a branch of Concat '{where}', looked at with '{first.y}'", site.y, matched=0)
    if len(group.sites) == 1:
        raise next(reasons[one] for one in (at + 1, at, at - 1) if one in reasons)
    return group


def _join(graph: Graph, site: ConvSite) -> tuple[int, str]:
    """The Concat that alone reads the convolution, through elementwise operators, and the branch that it reads."""
    model = graph.model
    index, name = only_reader(graph, site.y, matched=0), site.y
    reader = model.nodes[index]
    other = Declined(f"its output goes into {reader.op_type} '{reader.output[0]}', no Concat", site.y)
    while _is_elementwise(model, model.nodes[index]):
        name = model.nodes[index].output[0]
        try:
            index = only_reader(graph, name)
        except Declined:
            raise other from None
    node = model.nodes[index]
    if node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
        raise other
    return index, name


@dataclass(frozen=True)
class _Branch:
    name: str
    site: ConvSite
    behind: tuple[int, ...]


_Found = tuple[list[Neighbours], dict[int, Declined]]
"""Groups of one branch and more, and by the place of a branch why it is not in the group of the one before."""
_KNOWN: WeakKeyDictionary[Graph, dict[tuple[int, str | None], _Found]] = WeakKeyDictionary()


def _groups(graph: Graph, join: int, overlap: str | None) -> _Found:
    """Found once for each Concat, since every branch asks."""
    known = _KNOWN.setdefault(graph, {})
    if (join, overlap) not in known:
        known[join, overlap] = _find(graph, join, overlap)
    return known[join, overlap]


def _find(graph: Graph, join: int, overlap: str | None) -> _Found:
    groups: list[Neighbours] = []
    reasons: dict[int, Declined] = {}
    group: list[_Branch] = []
    for at in range(len(graph.model.nodes[join].input)):
        try:
            branch = _branch(graph, join, at)
            sources = _with(graph, group, branch, overlap)
        except Declined as no:
            reasons[at] = no
            try:
                group = [_branch(graph, join, at)]
            except Declined:
                group = []
                continue
            sources = common_source(graph, [group[0].site])
            groups.append(_neighbours(join, at, group, sources))
            continue
        if group:
            groups.pop()
        group = [*group, branch]
        groups.append(_neighbours(join, at + 1 - len(group), group, sources))
    return groups, reasons


def _neighbours(join: int, at: int, group: Sequence[_Branch], sources: Sequence[Selection]) -> Neighbours:
    sites, behind = tuple(one.site for one in group), tuple(one.behind for one in group)
    return Neighbours(join, at, sites, behind, tuple(sources))


def _branch(graph: Graph, join: int, at: int) -> _Branch:
    """The convolution that makes a branch, alone, through elementwise operators; declines where there is none."""
    model = graph.model
    name = model.nodes[join].input[at]
    where = model.nodes[join].output[0]
    maker = model.wiring.producer(name)
    made = "no node" if maker is None else model.nodes[maker].op_type
    behind: list[int] = []
    while maker is not None and _is_elementwise(model, model.nodes[maker]):
        behind.insert(0, maker)
        maker = model.wiring.producer(model.nodes[maker].input[0])
    is_conv = maker is not None and model.nodes[maker].op_type == "Conv"
    require(is_conv, f"branch {at} of Concat '{where}' is made by {made}, no Conv", name, matched=1 + at)
    assert maker is not None
    for index in (maker, *behind):
        only_reader(graph, model.nodes[index].output[0], matched=1 + at)
    twice = list(model.nodes[join].input).count(name) > 1
    require(not twice, f"Concat '{where}' reads a branch twice", name)
    return _Branch(name, lift(model, maker), tuple(behind))


def _with(graph: Graph, group: Sequence[_Branch], branch: _Branch, overlap: str | None) -> list[Selection]:
    """What the convolutions of the group and of one more branch read of one tensor; declines where they are unlike."""
    sites = [*(one.site for one in group), branch.site]
    if group:
        _require_alike(graph.model, group[0], branch, len(sites))
    sources = common_source(graph, sites)
    if overlap is not None:
        last = np.unique(sources[-1].channels)
        parts = [np.unique(one.channels) for one in sources[:-1]]
        fit = all(np.array_equal(part, last) or not np.intersect1d(part, last).size for part in parts)
        read = f"its branches read overlapping but different input channels{overlap}"
        require(fit, read, sites[0].y, branch.site.y, matched=len(sites))
    return sources


def _require_alike(model: Model, first: _Branch, other: _Branch, matched: int) -> None:
    one, two = first.site, other.site
    pair = f"'{one.y}' and '{two.y}'"
    alike = len(two.kernel) == len(one.kernel)
    require(alike, f"{pair} have different numbers of spatial axes", two.y)
    alike = strides_of(two.node, len(two.kernel)) == strides_of(one.node, len(one.kernel))
    require(alike, f"the strides of {pair} differ", one.y, two.y, matched=matched)
    require(two.weight.dtype == one.weight.dtype, f"the weights of {pair} are of different types", two.y)
    nodes = [[model.nodes[index] for index in branch.behind] for branch in (first, other)]
    alike = len(nodes[0]) == len(nodes[1])
    alike = alike and all(_does_the_same(model, *both) for both in zip(*nodes, strict=True))
    shown = " and ".join("+".join(node.op_type for node in chain) or "nothing" for chain in nodes)
    require(alike, f"what is behind {pair} differs ({shown})", one.y, two.y, matched=matched)


def _is_elementwise(model: Model, node: onnx.NodeProto) -> bool:
    plain = node.op_type in ELEMENTWISE and is_plain(node)
    return plain and all(is_constant(model, name) for name in node.input[1:] if name)


def _does_the_same(model: Model, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Whether two elementwise operators have the same parameters."""
    if one.op_type != other.op_type or len(one.input) != len(other.input):
        return False
    pairs = zip(one.input[1:], other.input[1:], strict=True)
    return same_attributes(one, other) and all(a == b or _same_constant(model, a, b) for a, b in pairs)


def _same_constant(model: Model, one: str, other: str) -> bool:
    values = [constant(model, name) if name else None for name in (one, other)]
    first, second = values
    if first is None or second is None:
        return False
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
