"""reduce-mean-to-global-pool: the mean over all positions of a tensor as GlobalAveragePool.

    y = ReduceMean(x [N, C, *S], all axes of S, keepdims=1)   becomes   y = GlobalAveragePool(x)            [N, C, 1 …]
    y = ReduceMean(x [N, C, *S], all axes of S, keepdims=0)   becomes   y = Squeeze(GlobalAveragePool(x))   [N, C]

Conditions: the axes are known and are 2, 3, … to the last; a convolution makes x or reads y (elementwise nodes may be
between).  Any number of spatial axes from 1 on, any float type, sizes known or not.
What `optimize` measures: each mean, at the convolution nearest to it.
Safety: ROUNDING.  No weight takes part, and both are the mean of the same elements; but they may be added in another
order, and one kernel divides by their number where the other multiplies by its reciprocal.
Source: squeeze-and-excitation and classifier heads as PyTorch exports `x.mean((2, 3))`.  ONNX Runtime's blocked layout
has GlobalAveragePool, and no ReduceMean.
"""

from __future__ import annotations

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
    Settings,
    Var,
    axes_of,
    closure,
    maybe,
    nearest_conv,
    reach,
    require,
    shapes_of,
)

_MEAN = frozenset({"ReduceMean"})


class ReduceMeanToGlobalPool(Pass):
    """ReduceMean over all spatial axes -> GlobalAveragePool."""

    name = "reduce-mean-to-global-pool"
    safety = Safety.ROUNDING

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The convolution that reads the mean, or else makes what it is of; from it the mean is found."""
        return op.Conv(x, w, maybe(b))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has no settings
        conv = graph.model.nodes[found.node]
        means = reach(graph.model, conv.input[:1], _MEAN, up=True) + reach(graph.model, conv.output, _MEAN, up=False)
        missed = Declined("no mean over positions is near it", conv.output[0])
        for index in means:
            node = graph.model.nodes[index]
            if nearest_conv(graph.model, node.input[:1], node.output) != found.node:
                continue
            try:
                return self._at(graph, index)
            except Declined as no:
                missed = no
        raise missed

    def _at(self, graph: Graph, index: int) -> Rewrite:
        """The rewrite of one mean."""
        model, node = graph.model, graph.model.nodes[index]
        x, y = node.input[0], node.output[0]
        rank = len(shapes_of(graph, x)[0])
        axes = axes_of(graph, index, rank)
        spatial = list(range(2, rank))
        named = "no axes that are known" if axes is None else f"axes {axes}"
        require(rank > 2, f"its input has {rank} axes, none of them spatial", y)
        require(axes == spatial, f"it is the mean over {named}, not over all spatial axes {spatial}", y)
        build = Builder(model, f"{y}/pool")
        kept = next((entry.i for entry in node.attribute if entry.name == "keepdims"), 1)
        pooled = build.node("GlobalAveragePool", [x], "pool", y if kept else None)
        if not kept:
            build.squeeze(pooled, spatial, "squeezed", y)
        return Rewrite(
            self.name,
            y,
            Safety.ROUNDING,
            closure(model, [index], build.reads),
            index,
            tuple(build.nodes),
            tuple(build.initializers),
            "ReduceMean over positions -> GlobalAveragePool" + ("" if kept else " + Squeeze"),
        )
