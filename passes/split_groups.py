"""split-groups: compute a grouped convolution as one convolution per group, side by side.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes

    x_p = Split(x, axis 1)                    P parts of C/P channels
    y_p = Conv(x_p, W_p [M/P, C/G, *K], b_p, group=G/P)
    y   = Concat(y_1, ..., y_P)               axis 1

where W_p and b_p are the rows p*M/P to (p+1)*M/P - 1 of W and b.

Settings: `parts` P, a divisor of G; 0 is G, which leaves no grouped convolution.
Conditions: G > 1; constant weight and bias.  Any rank, stride, dilation, padding and float type.
What `optimize` measures: one convolution per group where there are at most 8 of at least 2 channels.
Safety: EXACT, weights only move.
Source: the form of AlexNet on two devices (Krizhevsky, Sutskever, Hinton 2012), and what TensorFlow users wrote before
it had grouped convolutions.
Use: for runtimes and devices that refuse grouped convolutions.  A few groups whose widths miss ONNX Runtime's fast path
on the CPU may be faster apart, since a dense convolution of any width is on it.
"""

from __future__ import annotations

from rewriter import (
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
    closure,
    lift,
    maybe,
    require,
)
from rewriter import conv as algebra

_MOST_MEASURED = 8


class SplitGroups(Pass):
    """Conv(group=G) -> Split + G Convs + Concat."""

    name = "split-groups"
    safety = Safety.EXACT
    defaults = {"parts": 0}  # noqa: RUF012 - never mutated
    gives = "split_concat"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One convolution per group, where these are few and wide."""
        site = _grouped(graph, found)
        where = "set split-groups.parts to split it anyway"
        require(site.i_per > 1, f"its groups have one input channel each, too few to be faster apart: {where}", site.y)
        few = site.group <= _MOST_MEASURED
        require(few, f"{site.group} convolutions of one group each are too many to be faster: {where}", site.y)
        return ({"parts": site.group},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = _grouped(graph, found)
        parts = int(settings["parts"]) or site.group
        require(parts > 1, "split-groups.parts of 1 changes nothing", site.y)
        fits = parts > 0 and site.group % parts == 0
        require(fits, f"its {site.group} groups are no multiple of split-groups.parts {parts}", site.y)
        build = Builder(graph.model, f"{site.y}/split_groups")
        inputs = build.split(site.x, [site.c // parts] * parts, 1, "inputs")
        outputs = []
        for x, (weight, bias) in zip(
            inputs, algebra.split_groups(site.weight, site.bias, site.group, parts), strict=True
        ):
            operands = build.constant(weight, "weight"), None if bias is None else build.constant(bias, "bias")
            outputs.append(build.conv(site.node, x, *operands, site.group // parts, None))
        build.node("Concat", outputs, "concat", site.y, axis=1)
        return Rewrite(
            self.name,
            site.y,
            Safety.EXACT,
            closure(graph.model, [found.node], build.reads),
            found.node,
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv group {site.group} -> {parts} Convs of group {site.group // parts}",
        )


def _grouped(graph: Graph, found: Match) -> ConvSite:
    """The convolution, if it is a grouped one."""
    site = lift(graph.model, found.node)
    require(site.group > 1, "it is dense (group 1): there are no groups to split", site.y, matched=0)
    return site
