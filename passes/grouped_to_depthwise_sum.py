"""grouped-to-depthwise-sum: compute a grouped convolution as depthwise convolution + Reshape + ReduceSum.

    y = Conv(x, W [M, C/G, *K], b, group=G)

becomes, with I = C/G inputs and O = M/G outputs per group,

    wide  = Conv(x, Wd [C*O, 1, *K], group=C)       Wd[c*O + q, 0] = W[g*O + q, i],  c = g*I + i
    split = Reshape(wide, [N, G, I, O, *S])
    y     = Reshape(ReduceSum(split, axis I), [N, M, *S]) + b

Settings: `reduce` = middle | first | last, where axis I lies when it is summed.  `middle` sums it where it is; `first`
and `last` have a Transpose bring it there: [I, N, G, O, *S] or [N, G, O, *S, I].
Conditions: 1 < G < C; constant weight and bias.  Any rank, stride, dilation, padding and float type.  Sizes that are
not known before the model runs are read from the depthwise output with Shape.
What `optimize` measures: on the CPU `middle`, where the tensor between is at most 4 times the output; on CUDA all.
Safety: EXACT, weights only move; the sums are taken in another order.
Source: the form TensorFlow users wrote before it had grouped convolutions; the equation is plain regrouping of the sum
over a group's inputs.  Which axes CUDA sums fast: ORT's get_applicable_matrix_reduction.
Use: for runtimes and devices that refuse grouped convolutions but take depthwise ones.  It is slow on ONNX Runtime's
CPU provider.  Its CUDA provider has fast kernels only for sums over the first or the last axes (those of size 1 do not
count).
"""

from __future__ import annotations

import numpy as np

from rewriter import (
    BadInput,
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
from rewriter.conv import grouped_to_depthwise

_INPUTS = 2
"""Axis I of [N, G, I, O, *S]."""
_BROUGHT = {"middle": "", "first": " in front", "last": " at the end"}
_WIDEST = 4
"""Channels per group, and times the output that the tensor between is, up to which a CPU could gain by it."""


class GroupedToDepthwiseSum(Pass):
    """Conv(group=G) -> depthwise Conv + Reshape + ReduceSum (+ bias)."""

    name = "grouped-to-depthwise-sum"
    safety = Safety.EXACT
    defaults = {"reduce": "middle"}  # noqa: RUF012 - never mutated
    gives = "depthwise_sum"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        where = settings["reduce"]
        if where not in _BROUGHT:
            raise BadInput(f"the setting {self.name}.reduce is '{where}': it must be one of {', '.join(_BROUGHT)}.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The default on the CPU, unless it moves much more than it saves; elsewhere every place of the summed axis."""
        site = _grouped(graph, found)
        if graph.provider == "cpu":
            return ({},) if site.i_per <= _WIDEST else ()
        return tuple({"reduce": where} for where in _BROUGHT)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = _grouped(graph, found)
        where = str(settings["reduce"])
        build = Builder(graph.model, f"{site.y}/depthwise_sum")
        weight = build.constant(grouped_to_depthwise(site.weight, site.group), "weight")
        wide = build.conv(site.node, site.x, weight, None, site.c, None)
        rank = len(site.kernel)
        known = graph.sizes(site.y) or (None,) * (rank + 2)
        space = [
            size if size is not None else build.sizes_of(wide, [axis + 2], "size")[0]
            for axis, size in enumerate(known[2:])
        ]
        split = build.reshape(wide, [0, site.group, site.i_per, site.o_per, *space], "groups")
        total = _sum(build, split, rank + 4, where)
        if site.bias is None:
            build.reshape(total, [0, site.m, *space], "merged", site.y)
        else:
            merged = build.reshape(total, [0, site.m, *space], "merged")
            bias = build.constant(np.asarray(site.bias).reshape(1, -1, *[1] * rank), "bias")
            build.node("Add", [merged, bias], "biased", site.y)
        return Rewrite(
            self.name,
            site.y,
            Safety.EXACT,
            closure(graph.model, [found.node], build.reads),
            found.node,
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv group {site.group} -> depthwise Conv of {site.c * site.o_per} channels, summed over {site.i_per}"
            f"{_BROUGHT[where]}",
        )


def _grouped(graph: Graph, found: Match) -> ConvSite:
    """The convolution, if it is a grouped one."""
    site = lift(graph.model, found.node)
    require(site.group > 1, "it is dense (group 1), not grouped", site.y, matched=0)
    require(site.i_per > 1, "it is depthwise already: each group has one input channel", site.y)
    return site


def _sum(build: Builder, split: str, rank: int, where: str) -> str:
    """`[N, G, I, O, *S]`, of that rank, summed over I where it is or brought to the front or end: `[N, G, O, *S]`."""
    if where == "middle":
        return build.reduce_sum(split, _INPUTS, "sum")
    kept = [axis for axis in range(rank) if axis != _INPUTS]
    perm = [_INPUTS, *kept] if where == "first" else [*kept, _INPUTS]
    moved = build.transpose(split, perm, f"inputs_{where}")
    return build.reduce_sum(moved, perm.index(_INPUTS), "sum")
