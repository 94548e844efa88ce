"""dense-to-grouped: compute a convolution whose weight is block-diagonal, up to the order of channels, in groups.

    y = Conv(x, W [M, C/G, *K], b, group=G)

becomes   y = Conv(x[:, inputs], W' [M, C/G', *K], b', group=G')[:, outputs]

with G' > G: as many groups of one size as no output channel reads across.  What reads what are the taps that are not
zero; channels that they connect form a component, and components fill up the groups.  The zeros between go.

Settings: `shuffle` = auto | producer | gather | reshape | none, what brings channels of one group together that are not
contiguous: the weights of the convolution before (where it alone feeds this one), Gather, or
Reshape-Transpose-Reshape; `auto` is the first where possible, else Gather; `none` takes contiguous groups only.  An
order of the outputs is restored by Gather.
Conditions: constant weight and bias; some whole kernels are zero, in blocks.
What `optimize` measures: each way to bring the channels together, and the contiguous groups that need none.
Safety: FINITE.  Zeros are dropped, and zero times an infinite or NaN activation is not zero.
Source: connected components of a bipartite graph; what undoes `regroup` and `grouped-to-dense`, and finds groups in
pruned weights.
"""

from __future__ import annotations

from rewriter import (
    Builder,
    ConvSite,
    Declined,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    check_way,
    closure,
    interleave,
    lift,
    maybe,
    require,
    shuffle,
    shuffled_input,
)
from rewriter import conv as algebra


class DenseToGrouped(Pass):
    """Conv of block-diagonal weight -> Conv(group=G')."""

    name = "dense-to-grouped"
    safety = Safety.FINITE
    defaults = {"shuffle": "auto"}  # noqa: RUF012 - never mutated
    undoes = frozenset({"grouped-to-dense", "regroup"})

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_way(settings["shuffle"], f"{self.name}.shuffle")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The ways to shuffle where that is needed, and the groups that need none."""
        site = lift(graph.model, found.node)
        grouped = _groups(site, permute=True)
        if grouped.inputs is None and grouped.outputs is None:
            return ({},)
        regular = grouped.inputs is not None and interleave(grouped.inputs)
        ways = [*(["producer"] if grouped.inputs is not None else []), "gather", *(["reshape"] if regular else [])]
        try:
            _groups(site, permute=False)
        except Declined:
            return tuple({"shuffle": way} for way in ways)
        return tuple({"shuffle": way} for way in [*ways, "none"])

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site, way = lift(graph.model, found.node), str(settings["shuffle"])
        grouped = _groups(site, permute=way != "none")
        model, rank = graph.model, len(site.kernel) + 2
        build = Builder(model, f"{site.y}/groups")
        x, gone, how = site.x, frozenset[int](), ""
        region = closure(model, [site.index], [site.x])
        if grouped.inputs is not None:
            x, gone, how = shuffled_input(build, graph, site.x, site.c, rank, grouped.inputs, way, region)
        weight = build.constant(grouped.weight, "weight")
        bias = None if grouped.bias is None else build.constant(grouped.bias, "bias")
        y = build.conv(site.node, x, weight, bias, grouped.group, site.y if grouped.outputs is None else None)
        if grouped.outputs is not None:
            shuffle(build, y, grouped.outputs, "gather", (None,) * rank, site.y)
        return Rewrite(
            self.name,
            site.y,
            Safety.FINITE,
            closure(model, region | gone, build.reads),
            site.index,
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv group {site.group} -> group {grouped.group}"
            + (f" behind a channel shuffle ({how})" if how else "")
            + (" before a channel shuffle (Gather)" if grouped.outputs is not None else ""),
        )


def _groups(site: ConvSite, *, permute: bool) -> algebra.Grouped:
    """The conv in more groups than it has; declines where its zeros allow none."""
    require(site.i_per > 1, "each of its groups has one input channel already", site.y, matched=0)
    try:
        return algebra.dense_to_grouped(site.weight, site.bias, site.group, permute=permute)
    except algebra.NotGrouped as no:
        raise Declined(str(no), site.y, matched=0) from no
