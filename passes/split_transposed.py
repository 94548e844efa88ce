"""split-transposed: compute a grouped transposed convolution as one per group, side by side.

    y = ConvTranspose(x, W [C, M/G, *K], b, group=G)   becomes

    x_p = Split(x, axis 1)                    P parts of C/P channels
    y_p = ConvTranspose(x_p, W_p [C/P, M/G, *K], b_p, group=G/P)
    y   = Concat(y_1, ..., y_P)               axis 1

where W_p are the rows p*C/P to (p+1)*C/P - 1 of W, and b_p the elements p*M/P to (p+1)*M/P - 1 of b.

Settings: `parts` P, a divisor of G; 0 is G, which leaves no grouped transposed convolution.
Conditions: G > 1; constant weight and bias.  Any rank, stride, dilation, padding, output padding, output shape and
float type: they all stay as they are.
What `optimize` measures: one transposed convolution per group where there are at most 8 of at least 2 channels.
Safety: EXACT, weights only move.
Source: `split-groups` for the weight layout of ConvTranspose, whose groups are over the input channels.
Use: for runtimes and devices that refuse grouped transposed convolutions.
"""

from __future__ import annotations

from rewriter import (
    Builder,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    TransposedSite,
    Var,
    closure,
    lift_transposed,
    maybe,
    require,
)
from rewriter import conv as algebra

_MOST_MEASURED = 8


class SplitTransposed(Pass):
    """ConvTranspose(group=G) -> Split + G ConvTransposes + Concat."""

    name = "split-transposed"
    safety = Safety.EXACT
    defaults = {"parts": 0}  # noqa: RUF012 - never mutated
    gives = "split_concat_transposed"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A transposed convolution with or without bias."""
        return op.ConvTranspose(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One per group, where these are few and wide."""
        site = _grouped(graph, found)
        where = "set split-transposed.parts to split it anyway"
        require(site.i_per > 1, f"its groups have one input channel each, too few to be faster apart: {where}", site.y)
        few = site.group <= _MOST_MEASURED
        require(few, f"{site.group} transposed convolutions are too many to be faster: {where}", site.y)
        return ({"parts": site.group},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = _grouped(graph, found)
        parts = int(settings["parts"]) or site.group
        require(parts > 1, "a split-transposed.parts of 1 changes nothing", site.y)
        fits = parts > 0 and site.group % parts == 0
        require(fits, f"its {site.group} groups are no multiple of split-transposed.parts {parts}", site.y)
        build = Builder(graph.model, f"{site.y}/split_transposed")
        inputs = build.split(site.x, [site.c // parts] * parts, 1, "inputs")
        pieces = algebra.split_transposed(site.weight, site.bias, site.group, parts)
        outputs = []
        for x, (weight, bias) in zip(inputs, pieces, strict=True):
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
            f"ConvTranspose group {site.group} -> {parts} ConvTransposes of group {site.group // parts}",
        )


def _grouped(graph: Graph, found: Match) -> TransposedSite:
    """The transposed convolution, if it is a grouped one."""
    site = lift_transposed(graph.model, found.node)
    require(site.group > 1, "it is dense (group 1): there are no groups to split", site.y, matched=0)
    return site
