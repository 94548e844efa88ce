"""regroup-transposed: compute a grouped transposed convolution in fewer, wider groups, filled with zeros.

    y = ConvTranspose(x, W [C, M/G, *K], b, group=G)   becomes   y = ConvTranspose(x, W' [C, f*M/G, *K], b, group=G/f)

where W' is block-diagonal: f old groups side by side in each new one, zeros between them.

Settings: `groups` G/f, or `factor` f; neither is one group, a dense transposed convolution.
Conditions: G > 1; constant weight and bias.  Any rank, stride, dilation, padding, output padding, output shape and
float type: they all stay as they are.
What `optimize` measures: a dense one, of at most 8 groups of at least 2 channels.
Safety: FINITE.  Zero times an infinite or NaN activation is NaN: a NaN or infinity spreads to the groups merged with.
Source: `regroup` for the weight layout of ConvTranspose, whose groups are over the input channels.
Use: for runtimes and devices that refuse grouped transposed convolutions.  ONNX Runtime computes a transposed
convolution with one matrix product per group on the CPU: a few narrow groups may be faster as one.
"""

from __future__ import annotations

from rewriter import (
    BadInput,
    Builder,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    asked_factor,
    grouped,
    in_place,
    lift_transposed,
    maybe,
    require_few_zeros,
)
from rewriter.conv import regroup_transposed


class RegroupTransposed(Pass):
    """ConvTranspose(group=G) -> ConvTranspose(group=G/f), zero-filled."""

    name = "regroup-transposed"
    safety = Safety.FINITE
    defaults = {"factor": 0, "groups": 0}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A transposed convolution with or without bias."""
        return op.ConvTranspose(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        if settings["factor"] and settings["groups"]:
            raise BadInput(f"both {self.name}.factor and {self.name}.groups are set: set one.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """A dense one, where the zeros are not too many."""
        require_few_zeros(grouped(lift_transposed(graph.model, found.node), "merge"))
        return ({"groups": 1},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = grouped(lift_transposed(graph.model, found.node), "merge")
        groups = site.group // (asked_factor(self, site, settings) or site.group)
        build = Builder(graph.model, f"{site.y}/regroup_transposed")
        weight = build.constant(regroup_transposed(site.weight, site.group, groups), "weight")
        build.conv(site.node, site.x, weight, site.bias_name, groups, site.y)
        widths = f"{site.i_per} -> {site.c // groups} channels per group"
        return in_place(self, site, build, f"ConvTranspose group {site.group} -> {groups}, {widths}")
