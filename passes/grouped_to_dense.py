"""grouped-to-dense: compute a grouped convolution as a dense one, filled with zeros.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes   y = Conv(x, W' [M, C, *K], b)

where W' is block-diagonal: `W'[g*O + q, g*I + i] = W[g*O + q, i]` with I = C/G inputs and O = M/G outputs per group.

Conditions: G > 1; constant weight and bias.  Any rank, stride, dilation, padding and float type.
What `optimize` measures: at most 8 groups of at least 2 channels, on the CPU where `regroup` has not the same to offer.
Safety: FINITE.  Zero times an infinite or NaN activation is NaN: a NaN or infinity spreads to all outputs.
Source: plain block-diagonal matrices; the same as `regroup` with groups=1.
Use: for runtimes and devices that refuse grouped convolutions; it costs G times the multiplications.  A dense
convolution of any width is on ONNX Runtime's fast CPU path, groups of odd widths are not.
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
    in_place,
    lift,
    maybe,
    nchwc_block,
    require,
    require_few_zeros,
)
from rewriter.conv import regroup


class GroupedToDense(Pass):
    """Conv(group=G) -> Conv(group=1), zero-filled."""

    name = "grouped-to-dense"
    safety = Safety.FINITE

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """Itself, where the zeros are not too many and `regroup` does not offer the same."""
        site = _grouped(graph, found)
        require(not graph.widths, "regroup measures one dense convolution there already", site.y)
        require_few_zeros(site)
        block = nchwc_block()
        same = block > 0 and site.c % block == 0 and site.m % block == 0
        require(not same, "regroup measures wider groups there, up to dense", site.y)
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has none
        site = _grouped(graph, found)
        build = Builder(graph.model, f"{site.y}/dense")
        weight = build.constant(regroup(site.weight, site.group, 1), "weight")
        build.conv(site.node, site.x, weight, site.bias_name, 1, site.y)
        summary = f"Conv group {site.group} -> group 1, {site.group} times the multiplications"
        return in_place(self, site, build, summary)


def _grouped(graph: Graph, found: Match) -> ConvSite:
    """The convolution, if it is a grouped one."""
    site = lift(graph.model, found.node)
    require(site.group > 1, "it is dense (group 1) already", site.y, matched=0)
    return site
