"""merge-multiplier: compute depthwise convolutions of one tensor, side by side, as one with a multiplier.

    t = Concat(Conv(x, W_0 [C, 1, *K], b_0, group=C), …, Conv(x, W_(m-1), b_(m-1), group=C))      [N, m*C, *S]

becomes, with `W[c*m + j] = W_j[c]` and `b[c*m + j] = b_j[c]`,

    y = Conv(x, W [m*C, 1, *K], b, group=C)
    t = y[:, order]          order[j*C + c] = c*m + j

The order of the channels goes where that of split-multiplier goes: into the weights of the convolution behind, or into
a Gather.  A Gather that follows the Concat and is just the opposite goes away instead.

Settings: `order` = auto | absorb | shuffle.  `auto` drops an opposite Gather, else absorbs, else shuffles.
Conditions: at least two convolutions with group = C > 1 and C output channels, the same x, attributes and kernel size,
all with a bias or none; their outputs are read by the Concat alone, which joins the channels of nothing else.
What `optimize` measures: nothing on the CPU, where depthwise convolutions with a multiplier miss the fast path.
Safety: EXACT, weights only move; as for split-multiplier.
Source: the opposite of split-multiplier.
"""

from __future__ import annotations

import numpy as np

from rewriter import (
    ORDERS,
    Builder,
    ConvSite,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    absorbing,
    check_one_of,
    closure,
    emit_consumer,
    lift,
    maybe,
    only_reader,
    require,
    same_attributes,
    shuffle,
)
from rewriter.conv import Ints, merge_multiplier, multiplier_order


class MergeMultiplier(Pass):
    """m times Conv(group=C) + Concat -> Conv(group=C, m*C channels)."""

    name = "merge-multiplier"
    safety = Safety.EXACT
    defaults = {"order": "auto"}  # noqa: RUF012 - never mutated
    takes = "depthwise_split"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The first of the convolutions; the others are found from it."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_one_of(settings["order"], f"{self.name}.order", ORDERS)

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The default, but on the CPU nothing."""
        sites, _ = _side_by_side(graph, found)
        slow = "depthwise convolutions with a multiplier miss the CPU's fast path: ask for merge-multiplier by name"
        require(graph.provider != "cpu", slow, sites[0].y)
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        sites, concat = _side_by_side(graph, found)
        joined, way = graph.model.nodes[concat].output[0], str(settings["order"])
        first, multiplier = sites[0], len(sites)
        order = multiplier_order(first.c, multiplier)
        build = Builder(graph.model, f"{joined}/multiplier")
        gather = _opposite(graph, joined, order) if way == "auto" else None
        # The convolution behind reads y in place of y[:, order]: channel order[k] of y is what was channel k.
        back, rank = np.argsort(order), len(first.kernel) + 2
        consumer = None if gather is not None else absorbing(graph.model, joined, back, rank, way)
        nodes = [*(site.index for site in sites), concat]
        if gather is not None:
            nodes.append(gather)
            output = _whole(build, sites, graph.model.nodes[gather].output[0])
            how = "whose order is the wanted one"
        elif consumer is not None:
            nodes += consumer.nodes
            output = emit_consumer(build, graph.model, consumer, _whole(build, sites, None))
            how = "its order in the weights behind"
        else:
            y = _whole(build, sites, None)
            output = shuffle(build, y, order, "gather", graph.sizes(joined) or (), joined)
            how = "its order restored"
        return Rewrite(
            self.name,
            output,
            Safety.EXACT,
            closure(graph.model, nodes, build.reads),
            nodes[-1],
            tuple(build.nodes),
            tuple(build.initializers),
            f"{multiplier} depthwise Convs of one tensor -> one of multiplier {multiplier}, {how}",
        )


def _side_by_side(graph: Graph, found: Match) -> tuple[list[ConvSite], int]:
    """The convolutions in the Concat's order, of which the one found is the first, and the Concat."""
    model = graph.model
    first = lift(model, found.node)
    depthwise = first.group > 1 and first.i_per == 1 and first.o_per == 1
    require(depthwise, "it is no depthwise convolution of multiplier 1", first.y, matched=0)
    concat = only_reader(graph, first.y, matched=0)
    node = model.nodes[concat]
    joins = node.op_type == "Concat" and node.domain in ("", "ai.onnx")
    require(joins, f"it goes into {node.op_type}, not Concat", first.y, matched=0)
    axis = next(entry.i for entry in node.attribute if entry.name == "axis")
    require(axis in (1, -1 - len(first.kernel)), "the Concat behind it does not join channels", first.y)
    names = list(node.input)
    require(len(names) > 1, "the Concat behind it joins nothing else", first.y)
    require(names[0] == first.y, f"it is no first input of its Concat: '{names[0]}' is", first.y)
    return [_alike(graph, first, name) for name in names], concat


def _alike(graph: Graph, first: ConvSite, name: str) -> ConvSite:
    """The convolution that makes an input of the Concat; declines where it is not like the first one."""
    model = graph.model
    maker = model.wiring.producer(name)
    conv = maker is not None and model.nodes[maker].op_type == "Conv"
    require(conv, f"its Concat also joins '{name}', which is no convolution's output", first.y)
    assert maker is not None
    site = lift(model, maker)
    if site.index != first.index:
        only_reader(graph, name)
    same = (site.x, site.weight_shape, site.group) == (first.x, first.weight_shape, first.group)
    require(same, f"'{name}' comes from another tensor or a convolution of another shape", first.y, name, matched=2)
    alike = same_attributes(site.node, first.node)
    require(alike, f"the convolution of '{name}' has other attributes", name, matched=2)
    both = (site.bias is None) == (first.bias is None) and site.weight.dtype == first.weight.dtype
    require(both, f"one of '{first.y}' and '{name}' has a bias and the other has none", name, matched=2)
    return site


def _opposite(graph: Graph, joined: str, order: Ints) -> int | None:
    """The Gather that alone reads the Concat and brings its channels into the order of the merged convolution."""
    wiring = graph.model.wiring
    readers = wiring.readers(joined)
    if wiring.escapes(joined) or len(readers) != 1:
        return None
    node = graph.model.nodes[readers[0]]
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.input[0] != joined:
        return None
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
    picks = graph.declared.value(node.input[1])
    if axis != 1 or picks is None or picks.ndim != 1 or len(picks) != len(order):
        return None
    return readers[0] if np.array_equal(picks % len(order), np.argsort(order)) else None


def _whole(build: Builder, sites: list[ConvSite], output: str | None) -> str:
    """The convolution with the multiplier."""
    weight = build.constant(merge_multiplier([site.weight for site in sites]), "weight")
    biases = [site.bias for site in sites if site.bias is not None]
    bias = build.constant(merge_multiplier(biases), "bias") if biases else None
    return build.conv(sites[0].node, sites[0].x, weight, bias, sites[0].group, output)
