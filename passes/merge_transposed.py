"""merge-transposed: compute transposed convolutions side by side, whose outputs are concatenated, as one.

    y = Concat(ConvTranspose(x_1, W_1, b_1), ..., ConvTranspose(x_P, W_P, b_P))   axis 1, each x_p channels of one x,

becomes   y = ConvTranspose(x, W, b, group=G)   with W put together from the W_p.

Each x_p may be an output of Split, a Slice or Gather on the channel axis, several of these, or x itself; each
ConvTranspose may have groups of its own.  Their groups become those of the new one, as many as there are:

    x_p disjoint, groups of one size        W [C, M/G, *K] is the W_p one after the other
    the same x_p                            one wide transposed convolution: W [C, M, *K], side by side

Conditions: constant weights and biases; kernels and all attributes but the groups are the same; every branch is read
by the Concat alone; the branches read all channels of x, in the order of the Concat; groups of one size.
What `optimize` measures: the one convolution, wherever it is possible.
Safety: EXACT, weights only move.
Source: `split-transposed` read backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewriter import (
    Builder,
    Declined,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Selection,
    Settings,
    TransposedSite,
    Var,
    closure,
    common_source,
    joined_with,
    lift_transposed,
    maybe,
    require,
    same_attributes,
)
from rewriter.conv import Branch, Grouped, NotGrouped, merge_transposed


class MergeTransposed(Pass):
    """Split + ConvTransposes + Concat -> one ConvTranspose."""

    name = "merge-transposed"
    safety = Safety.EXACT
    takes = "split_concat_transposed"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The first of the transposed convolutions, with or without bias."""
        return op.ConvTranspose(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """Itself, where it is possible."""
        sites, _ = _branches(graph, lift_transposed(graph.model, found.node))
        _merged(sites, common_source(graph, sites))
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has none
        sites, join = _branches(graph, lift_transposed(graph.model, found.node))
        sources = common_source(graph, sites)
        merged = _merged(sites, sources)
        output = graph.model.nodes[join].output[0]
        build = Builder(graph.model, f"{output}/merged")
        weight = build.constant(merged.weight, "weight")
        bias = None if merged.bias is None else build.constant(merged.bias, "bias")
        build.conv(sites[0].node, sources[0].tensor, weight, bias, merged.group, output)
        return Rewrite(
            self.name,
            output,
            Safety.EXACT,
            closure(graph.model, [*(site.index for site in sites), join], build.reads),
            min(site.index for site in sites),
            tuple(build.nodes),
            tuple(build.initializers),
            f"{len(sites)} ConvTransposes side by side + Concat -> ConvTranspose group {merged.group}",
        )


def _branches(graph: Graph, first: TransposedSite) -> tuple[list[TransposedSite], int]:
    """The branches of the Concat behind the first, alike in all but their groups and weights, and the Concat."""
    sites, join = joined_with(graph, first, lift_transposed)
    for at, site in enumerate(sites):
        pair = f"'{first.y}' and '{site.y}'"
        alike = site.kernel == first.kernel
        require(alike, f"the kernels of {pair} differ", first.y, site.y, matched=1 + at)
        alike = same_attributes(site.node, first.node)
        require(alike, f"strides, pads or other attributes of {pair} differ", first.y, site.y, matched=1 + at)
        alike = site.weight.dtype == first.weight.dtype
        require(alike, f"the weights of {pair} are of different types", first.y, site.y, matched=1 + at)
    return sites, join


def _merged(sites: Sequence[TransposedSite], sources: Sequence[Selection]) -> Grouped:
    """The one transposed convolution."""
    parts = [
        Branch(site.weight, site.bias, site.group, read.channels) for site, read in zip(sites, sources, strict=True)
    ]
    try:
        return merge_transposed(parts, sources[0].width)
    except NotGrouped as no:
        raise Declined(str(no), sites[0].y, matched=len(sites)) from no
