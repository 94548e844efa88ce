"""split-multiplier: compute a depthwise convolution with multiplier m as m convolutions with multiplier 1.

    y = Conv(x, W [m*C, 1, *K], b, group=C)

becomes, with `W_j[c] = W[c*m + j]` and `b_j[c] = b[c*m + j]` for j = 0 … m-1,

    t = Concat(Conv(x, W_0 [C, 1, *K], b_0, group=C), …, Conv(x, W_(m-1), b_(m-1), group=C))      [N, m*C, *S]
    y = t[:, order]          order[c*m + j] = j*C + c

The parts side by side are in the order [m, C], y is in the order [C, m].  The convolution behind y takes the new order
in where it alone reads y: its input channels are permuted, and so are constants of one value per channel on the way to
it (through elementwise operators, pools, BatchNormalization, Add or Mul of a constant, depthwise convolutions).
Elsewhere a Gather on the channel axis restores the order.

Settings: `order` = auto | absorb | shuffle.  `auto` absorbs where that can be done, else shuffles.
Conditions: group = C > 1, m > 1, constant weight and bias.  To absorb: everything from y to the convolution behind has
one reader, and is no graph output; a grouped convolution there only if no channel comes to another group.  Any rank,
stride, dilation, padding and float type.
What `optimize` measures: on the CPU 2-D float32 only, because no other gets onto the fast path; elsewhere all.
Safety: EXACT, weights only move.  Where the order is absorbed, the convolution behind adds the same products in another
order.
Source: ONNX Runtime's NchwcTransformer takes depthwise convolutions of multiplier 1 only; TensorFlow's
depthwise_conv2d gives the order [C, m].
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
    require,
    shuffle,
)
from rewriter.conv import multiplier_order, split_multiplier


class SplitMultiplier(Pass):
    """Conv(group=C, m*C channels) -> m times Conv(group=C) + Concat."""

    name = "split-multiplier"
    safety = Safety.EXACT
    defaults = {"order": "auto"}  # noqa: RUF012 - never mutated
    gives = "depthwise_split"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_one_of(settings["order"], f"{self.name}.order", ORDERS)

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The default, where a faster kernel is to be expected."""
        site = _multiplied(graph, found)
        fast = len(site.kernel) == 2 and site.weight.dtype == np.float32
        require(
            graph.provider != "cpu" or fast,
            "on the CPU only 2-D float32 depthwise convolutions get onto the fast path",
            site.y,
        )
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = _multiplied(graph, found)
        order, rank = multiplier_order(site.c, site.o_per), len(site.kernel) + 2
        consumer = absorbing(graph.model, site.y, order, rank, str(settings["order"]))
        build = Builder(graph.model, f"{site.y}/multiplier")
        nodes = [site.index] if consumer is None else [site.index, *consumer.nodes]
        if consumer is None:
            joined = _parts(build, site)
            output = shuffle(build, joined, np.argsort(order), "gather", graph.sizes(site.y) or (), site.y)
        else:
            output = emit_consumer(build, graph.model, consumer, _parts(build, site))
        return Rewrite(
            self.name,
            output,
            Safety.EXACT,
            closure(graph.model, nodes, build.reads),
            nodes[-1],
            tuple(build.nodes),
            tuple(build.initializers),
            f"depthwise Conv of multiplier {site.o_per} -> {site.o_per} of multiplier 1, "
            + ("their order restored" if consumer is None else "their order in the weights behind"),
        )


def _multiplied(graph: Graph, found: Match) -> ConvSite:
    """The convolution, if it is a depthwise one with a multiplier."""
    site = lift(graph.model, found.node)
    require(site.group > 1, "it is dense (group 1), not depthwise", site.y, matched=0)
    require(site.i_per == 1, f"it is not depthwise: {site.i_per} channels per group", site.y, matched=0)
    require(site.o_per > 1, "its depthwise multiplier is 1 already", site.y)
    return site


def _parts(build: Builder, site: ConvSite) -> str:
    """The convolutions of multiplier 1, side by side."""
    weights = split_multiplier(site.weight, site.o_per)
    biases = [None] * site.o_per if site.bias is None else split_multiplier(site.bias, site.o_per)
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        kernel = build.constant(weight, "weight")
        added = None if bias is None else build.constant(bias, "bias")
        parts.append(build.conv(site.node, site.x, kernel, added, site.c, None))
    return build.node("Concat", parts, "parts", axis=1)
