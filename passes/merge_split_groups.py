"""merge-split-groups: compute convolutions side by side, whose outputs are concatenated, as one convolution.

    y = Concat(Conv(x_1, W_1, b_1), ..., Conv(x_P, W_P, b_P))   axis 1, each x_p some channels of one x,

becomes   y = Conv(x, W, b, group=G)   with W put together from the W_p.

Each x_p may be an output of Split, a Slice or Gather on the channel axis, several of these, or x itself; each Conv may
have groups of its own.  Their groups become those of the new convolution, as many as there are:

    x_p disjoint, groups of one size        W [M, C/G, *K] is the W_p one after the other
    the same x_p                            one wide convolution: W [M, C, *K], likewise
    kernels of different sizes              the smaller are padded with zeros where strides are the same, dilations
                                            have a common divisor, and all outputs are of one size (MixNet)
    groups of different sizes               wider groups with zeros between; at worst a dense convolution

The same elementwise operators may be behind each Conv: Concat(Relu(Conv), Relu(Conv)) becomes Relu(Conv).  Of a Concat
that reads other tensors as well, those of the branches that are next to each other and alike are merged; it stays.

Branches in another order than their inputs need a channel shuffle, unless they end up in one group.

Settings: `fill` = none | kernels | groups, which zeros may be inserted: none, those of kernels, or also those between
groups.  `shuffle` = auto | producer | gather | reshape | none, how channels change their order: in the weights of the
convolution before (where it alone feeds the branches), Gather, or Reshape-Transpose-Reshape; `auto` is the first that
is possible.  `parallel` = true also merges convolutions of the same input, kernel, stride, dilation, padding and group
count that nothing concatenates: into one convolution and a Split.
Conditions: constant weights and biases; every branch is read by the Concat alone, and what takes the x_p from x by the
branches; what is behind a Conv has constant parameters, the same in each.
What `optimize` measures: the fewest zeros that make it possible, with every way to shuffle.
Safety: EXACT where weights only move; FINITE where zeros are inserted.
Source: `split-groups` read backwards; windows of different sizes as in MixNet (Tan, Le 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter import (
    BadInput,
    Builder,
    ConvSite,
    Declined,
    Graph,
    Match,
    Neighbours,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Selection,
    Settings,
    Var,
    check_way,
    closure,
    common_source,
    interleave,
    lift,
    maybe,
    neighbours_from,
    require,
    same_attributes,
    shuffle,
    shuffled_input,
    window_of,
    with_window,
)
from rewriter.conv import Branch, Grouped, NotGrouped, Window, common_window, merge_branches, widen

_FILLS = ("none", "kernels", "groups")
_MORE = "; with merge-split-groups.fill=groups they are merged with zeros between"


class MergeSplitGroups(Pass):
    """Split + Convs + Concat -> one Conv."""

    name = "merge-split-groups"
    safety = Safety.FINITE
    defaults = {"fill": "kernels", "shuffle": "auto", "parallel": False}  # noqa: RUF012 - never mutated
    takes = "split_concat"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The first of the convolutions, with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_way(settings["shuffle"], f"{self.name}.shuffle")
        if settings["fill"] not in _FILLS:
            raise BadInput(
                f"the setting {self.name}.fill is '{settings['fill']}': it must be one of {', '.join(_FILLS)}."
            )

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        site = lift(graph.model, found.node)
        for fill in _FILLS:
            try:
                merged = _concatenated(graph, site, fill)[2]
            except Declined:
                if fill == _FILLS[-1]:
                    raise
                continue
            break
        inputs, outputs = merged.grouped.inputs, merged.grouped.outputs
        regular = any(order is not None and interleave(order) for order in (inputs, outputs))
        ways = [*(["producer"] if inputs is not None else []), "gather", *(["reshape"] if regular else [])]
        return tuple({"fill": fill, "shuffle": way} for way in (["auto"] if inputs is outputs is None else ways))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site, fill = lift(graph.model, found.node), str(settings["fill"])
        try:
            sites, group, merged = _concatenated(graph, site, fill)
        except Declined:
            if not settings["parallel"]:
                raise
            sites, group = _parallel(graph, site), None
            merged = _merge(graph, sites, common_source(graph, sites), fill)
        return _emit(self.name, graph, sites, group, merged, str(settings["shuffle"]))


def _concatenated(graph: Graph, site: ConvSite, fill: str) -> tuple[list[ConvSite], Neighbours, Merged]:
    """The neighbouring branches of the Concat that the first of them feeds, as one convolution."""
    group = neighbours_from(graph, site, None if fill == "groups" else _MORE)
    return list(group.sites), group, _merge(graph, group.sites, group.sources, fill)


def _parallel(graph: Graph, site: ConvSite) -> list[ConvSite]:
    """The convolutions with the same input and attributes, the first of them being `site`."""
    model = graph.model
    found = [site]
    for index in model.wiring.readers(site.x):
        node = model.nodes[index]
        if index == site.index or node.op_type != "Conv" or node.input[0] != site.x or site.x in node.input[1:]:
            continue
        try:
            other = lift(model, index)
        except Declined:
            continue
        if other.kernel == site.kernel and same_attributes(other.node, site.node) and other.group == site.group:
            found.append(other)
    require(len(found) > 1, f"no other Conv of its kernel, stride, padding and groups reads '{site.x}'", site.y)
    require(min(found, key=lambda one: one.index) is site, "it is merged with the first Conv of its input", site.y)
    return sorted(found, key=lambda one: one.index)


@dataclass(frozen=True)
class Merged:
    """The one convolution: the tensor it reads, of how many channels, and its map."""

    x: str
    width: int
    grouped: Grouped
    window: Window | None
    """None where it is that of all the convolutions."""
    zeros: int
    """How many weights were inserted."""
    picks: frozenset[int]
    """The nodes that made what the convolutions read of x."""


def _merge(graph: Graph, sites: Sequence[ConvSite], sources: Sequence[Selection], fill: str) -> Merged:
    """The convolutions as one; declines where more zeros are needed than `fill` allows."""
    first = sites[0]
    windows, window = _windows(graph, sites, fill)
    parts = [
        Branch(
            site.weight if window is None else widen(site.weight, each, window), site.bias, site.group, read.channels
        )
        for site, each, read in zip(sites, windows, sources, strict=True)
    ]
    try:
        grouped = merge_branches(parts, sources[0].width, fill=fill == "groups")
    except NotGrouped as no:
        more = "" if fill == "groups" else _MORE
        raise Declined(f"{no}{more}", first.y, matched=len(sites)) from no
    zeros = grouped.weight.size - sum(site.weight.size for site in sites)
    picks = frozenset(index for read in sources for index in read.nodes)
    return Merged(sources[0].tensor, sources[0].width, grouped, window, zeros, picks)


def _windows(graph: Graph, sites: Sequence[ConvSite], fill: str) -> tuple[list[Window], Window | None]:
    """What each convolution looks at, and what the one does: None where all have the same attributes."""
    first = sites[0]
    if all(site.kernel == first.kernel and same_attributes(site.node, first.node) for site in sites):
        return [Window(first.kernel, (), (), ())] * len(sites), None  # whatever auto_pad makes of it
    windows = [window_of(site.node, site.kernel, (graph.sizes(site.x) or ())[2:]) for site in sites]
    try:
        window = common_window(windows)
    except NotGrouped as no:
        raise Declined(str(no), first.y, matched=len(sites)) from no
    padded = any(each != window for each in windows)
    asked = "its branches have kernels of different sizes, and merge-split-groups.fill is none"
    require(not padded or fill != "none", asked, first.y, matched=len(sites))
    return windows, window


def _emit(
    name: str, graph: Graph, sites: Sequence[ConvSite], group: Neighbours | None, merged: Merged, way: str
) -> Rewrite:
    model, grouped = graph.model, merged.grouped
    rank = len(sites[0].kernel) + 2
    output = sites[0].y if group is None else model.nodes[group.join].output[0]
    nodes, others = ([site.index for site in sites], ()) if group is None else (group.nodes, group.others)
    region = closure(model, nodes, [merged.x, *others])
    for index in sorted(merged.picks - region):
        pieces = f"{model.nodes[index].op_type} '{model.nodes[index].output[0]}' takes pieces of '{merged.x}'"
        require(False, f"{pieces} that others read, too", output, matched=len(sites))
    build = Builder(model, f"{output}/merged")
    x, gone, how = merged.x, frozenset[int](), ""
    if grouped.inputs is not None:
        x, gone, how = shuffled_input(build, graph, x, merged.width, rank, grouped.inputs, way, region)
    weight = build.constant(grouped.weight, "weight")
    bias = None if grouped.bias is None else build.constant(grouped.bias, "bias")
    node = sites[0].node if merged.window is None else with_window(sites[0].node, merged.window)
    y = build.conv(node, x, weight, bias, grouped.group, None)
    if grouped.outputs is not None:
        require(way != "none", "its outputs need a channel shuffle, and merge-split-groups.shuffle is none", output)
        after = "reshape" if way == "reshape" and interleave(grouped.outputs) is not None else "gather"
        sizes = graph.sizes(output) or (None,) * rank
        y = shuffle(build, y, grouped.outputs, after, (sizes[0], grouped.weight.shape[0], *sizes[2:]))
        how = " and ".join(filter(None, [how, "Gather" if after == "gather" else "Reshape-Transpose-Reshape"]))
    if group is None:
        build.split(y, [site.m for site in sites], 1, "outputs", [site.y for site in sites])
    else:
        _rejoin(build, graph, group, y)
    beside = "side by side" if group is None or others else "+ Concat"
    parts = [f"{len(sites)} Convs {beside} -> Conv group {grouped.group}"]
    parts += [f"{merged.zeros / grouped.weight.size:.0%} of it zeros"] if merged.zeros else []
    parts += [f"with a channel shuffle ({how})"] if how else []
    return Rewrite(
        name,
        output,
        Safety.FINITE if merged.zeros else Safety.EXACT,
        closure(model, region | gone, build.reads),
        min(site.index for site in sites) if group is None else group.join,
        tuple(build.nodes),
        tuple(build.initializers),
        ", ".join(parts),
    )


def _rejoin(build: Builder, graph: Graph, group: Neighbours, y: str) -> None:
    """What is behind the branches, once, and the Concat with the branches that are left, under its name."""
    for index in group.behind[0]:
        node = graph.model.nodes[index]
        (y,) = build.replay(node, [y, *node.input[1:]])
    join = graph.model.nodes[group.join]
    names = [*join.input[: group.at], y, *join.input[group.at + len(group.sites) :]]
    if len(names) > 1:
        build.replay(join, names)
    build.nodes[-1].output[0] = join.output[0]
