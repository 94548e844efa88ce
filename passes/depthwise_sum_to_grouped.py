"""depthwise-sum-to-grouped: recognise a convolution whose channels are reshaped and summed, and make it a grouped one.

    wide = Conv(x, Wd, group=C)
    y    = bookkeeping(wide)          Reshape, Transpose, ReduceSum or ReduceMean, Squeeze, constant Add and Mul, ...

becomes   y = layout(Conv(shuffle(x), W [M, C/G, *K], b, group=G))

The bookkeeping is not matched but followed (`rewriter.track`): the longest chain of single readers whose effect is one
fixed mixing of channels, the same at every position and batch entry.  What the mixing connects decides the form: equal
blocks of channels give G groups, G = C a depthwise and G = 1 a dense convolution.  The classic wrong reshape ([C, m]
summed over m) is what it is: a depthwise convolution with summed filters.  Groups that are not contiguous need a
channel shuffle: folded into the weights of the convolution before (where it alone feeds this one), else a Gather or
Reshape-Transpose-Reshape.

Settings: `shuffle` = auto | producer | gather | reshape | none, how; none is to leave those that need one alone.
Conditions: the chain holds a reduction over channels; constant weights; every tensor inside has one reader (Shape
aside: a shape that others still need is computed from the new convolution).
What `optimize` measures: each way to bring the input's channels together that is possible there.
Safety: EXACT where weights only move; ROUNDING where they are combined (a scale, a mean, filters of one input summed).
Source: DESIGN section 5; the form is what TensorFlow users wrote for ResNeXt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter import (
    Builder,
    ChannelMix,
    ConvSite,
    Declined,
    Graph,
    Layout,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Step,
    Var,
    bending,
    check_way,
    closure,
    follow,
    interleave,
    lift,
    may_reduce,
    maybe,
    needs_layout,
    prove,
    reissue_shape,
    require,
    restore_layout,
    shape_readers,
    shuffle,
    shuffled_input,
)
from rewriter.conv import Grouped, NotGrouped, mix


class DepthwiseSumToGrouped(Pass):
    """Conv + Reshape + ReduceSum in any spelling -> Conv(group=G)."""

    name = "depthwise-sum-to-grouped"
    safety = Safety.ROUNDING
    defaults = {"shuffle": "auto"}  # noqa: RUF012 - never mutated
    takes = "depthwise_sum"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_way(settings["shuffle"], f"{self.name}.shuffle")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        chain = _recognise(graph, lift(graph.model, found.node))
        if chain.grouped.inputs is None:
            return ({},)
        regular = len(chain.grouped.inputs) == chain.channels and interleave(chain.grouped.inputs)
        ways = ["producer", "gather", *(["reshape"] if regular else [])]
        return tuple({"shuffle": way} for way in ways)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = lift(graph.model, found.node)
        return _emit(self.name, graph, site, _recognise(graph, site), str(settings["shuffle"]))


@dataclass(frozen=True)
class Found:
    """A proved chain: its steps, the layout of its last tensor, and the conv map it computes."""

    steps: tuple[Step, ...]
    layout: Layout
    grouped: Grouped
    channels: int
    """Input channels C of the convolution."""


def _recognise(graph: Graph, site: ConvSite) -> Found:
    """The longest chain behind the conv that is a channel mix of grouped form, proved at every binding."""
    ended = may_reduce(graph.model, site.y)
    require(not ended, f"no sum over channels follows: {ended}", site.y)
    chains = [_chain(graph, site, position) for position in range(len(graph.bindings))]
    steps, ended = chains[0]
    last = max((at for at, step in enumerate(steps) if step.state.reduced), default=None)
    if last is None:
        require(False, f"no sum over channels follows: {ended}", site.y, matched=1 + len(steps))
    reasons: list[str] = []
    for length in range(len(steps), 0, -1):
        if not steps[length - 1].state.reduced:
            break
        try:
            layout, mixing = _agree(graph, site, [chain[0] for chain in chains], length)
            needs_layout(layout)  # declines where no Transpose and Reshape make it
            grouped = mix(site.weight, site.bias, site.group, mixing)
        except Declined as no:
            reasons.append(no.reason)
            continue
        except NotGrouped as no:
            reasons.append(str(no))
            continue
        return Found(tuple(steps[:length]), layout, grouped, site.c)
    raise Declined(reasons[-1], site.y, steps[-1].tensor, matched=1 + len(steps))


def _chain(graph: Graph, site: ConvSite, position: int) -> tuple[list[Step], str]:
    bound = graph.bindings[position].bound
    shape = bound.shape(site.y)
    if shape is None or len(shape) != len(site.kernel) + 2:
        raise Declined("the shape of its output cannot be derived: give --input-shape", site.y)
    require(shape[1] == site.m, f"its input does not have {site.c} channels", site.y)
    return follow(graph.model, bound, site.y, shape)


def _agree(graph: Graph, site: ConvSite, chains: list[list[Step]], length: int) -> tuple[Layout, ChannelMix]:
    """The same layout and mixing at every binding; declines when they differ or one chain is shorter."""
    proofs = []
    model = graph.model
    for step in chains[0][:length]:
        node = model.nodes[step.node]
        bent = bending(model, graph.declared, node.input[1]) if node.op_type == "Reshape" else ""
        require(not bent, f"the shape of Reshape '{node.output[0]}' is decided by {bent}", site.y)
    for position, steps in enumerate(chains):
        require(len(steps) >= length, "its shapes work for one input size only", site.y)
        crops = [step.cropped for step in steps[:length]] == [step.cropped for step in chains[0][:length]]
        require(crops, "a Slice behind it crops an axis whose size depends on the input", site.y)
        shape = graph.bindings[position].bound.shape(site.y)
        assert shape is not None
        proofs.append(prove(steps[length - 1].state, shape, graph.sizes(site.y) or ()))
    layout, mixing = proofs[0]
    for other, also in proofs[1:]:
        require(
            other == layout and _same(also, mixing),
            "what it sums depends on the input size",
            site.y,
        )
    return layout, mixing


def _same(one: ChannelMix, other: ChannelMix) -> bool:
    pairs = ((one.index, other.index), (one.coef, other.coef), (one.offset, other.offset))
    return all(a is b if a is None or b is None else np.array_equal(a, b) for a, b in pairs)


def _emit(name: str, graph: Graph, site: ConvSite, found: Found, way: str) -> Rewrite:
    model, grouped = graph.model, found.grouped
    output = found.steps[-1].tensor
    chain = [site.index, *(step.node for step in found.steps)]
    removed = closure(model, chain, [site.x])
    build = Builder(model, f"{output}/grouped")
    sizes = graph.sizes(site.y) or (None,) * (len(site.kernel) + 2)
    x, gone, shuffled = _shuffled_input(build, graph, site, grouped, way, removed)
    weight = build.constant(grouped.weight, "weight")
    bias = None if grouped.bias is None else build.constant(grouped.bias, "bias")
    tail = needs_layout(found.layout)
    y = build.conv(site.node, x, weight, bias, grouped.group, None if tail or grouped.outputs is not None else output)
    conv_out = y
    if grouped.outputs is not None:
        require(way != "none", f"its outputs need a channel shuffle, and {name}.shuffle is none", output)
        y = shuffle(build, y, grouped.outputs, "gather", sizes, None if tail else output)
    if tail:
        restore_layout(build, y, found.layout, sizes, output)
    removed |= gone
    removed |= _reissue_shapes(build, graph, site, found, removed, conv_out)
    removed = closure(model, removed, build.reads)
    return Rewrite(
        name,
        output,
        Safety.ROUNDING if grouped.combined else Safety.EXACT,
        removed,
        site.index,
        tuple(build.nodes),
        tuple(build.initializers),
        f"Conv group {site.group} with {site.m} channels + {len(removed) - 1} nodes -> Conv group {grouped.group}"
        + (f" behind a channel shuffle ({shuffled})" if shuffled else ""),
    )


def _shuffled_input(
    build: Builder, graph: Graph, site: ConvSite, grouped: Grouped, way: str, region: frozenset[int]
) -> tuple[str, frozenset[int], str]:
    """The conv's input in the order its groups need, the nodes that took the shuffle in, and what does it."""
    if grouped.inputs is None:
        return site.x, frozenset(), ""
    return shuffled_input(build, graph, site.x, site.c, len(site.kernel) + 2, grouped.inputs, way, region)


def _reissue_shapes(
    build: Builder, graph: Graph, site: ConvSite, found: Found, removed: frozenset[int], y: str
) -> frozenset[int]:
    """Recompute the shapes of removed tensors that nodes outside still ask for; gives the Shape nodes replaced."""
    bound = graph.bindings[0].bound
    wide = bound.shape(site.y)
    assert wide is not None
    replaced: set[int] = set()
    inner = Layout(("n", "c", *range(len(wide) - 2)), (wide[1],))
    tensors = [(site.y, inner), *((step.tensor, None) for step in found.steps[:-1])]
    states = {step.tensor: step.state for step in found.steps}
    for tensor, layout in tensors:
        for index in shape_readers(graph.model, tensor, removed):
            node = graph.model.nodes[index]
            require(
                node.op_type == "Shape", f"the size of '{tensor}' inside the region is read by {node.op_type}", tensor
            )
            known = layout or prove(states[tensor], wide, graph.sizes(site.y) or ())[0]
            reissue_shape(build, node, known, y)
            replaced.add(index)
    return frozenset(replaced)
