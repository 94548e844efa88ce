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
    TransposedSite,
    Var,
    closure,
    lift_transposed,
    maybe,
    require,
)
from rewriter import conv as algebra

_MOST_MEASURED = 8


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
        site = _grouped(graph, found)
        zeros = f"{site.group} times the multiplications are too many to be faster"
        require(site.group <= _MOST_MEASURED and site.i_per > 1, zeros, site.y)
        return ({"groups": 1},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = _grouped(graph, found)
        groups = _groups(site, settings)
        build = Builder(graph.model, f"{site.y}/regroup_transposed")
        weight = build.constant(algebra.regroup_transposed(site.weight, site.group, groups), "weight")
        build.conv(site.node, site.x, weight, site.bias_name, groups, site.y)
        return Rewrite(
            self.name,
            site.y,
            Safety.FINITE,
            closure(graph.model, [found.node], build.reads),
            found.node,
            tuple(build.nodes),
            tuple(build.initializers),
            f"ConvTranspose group {site.group} -> {groups}, {site.i_per} -> {site.c // groups} channels per group",
        )


def _grouped(graph: Graph, found: Match) -> TransposedSite:
    """The transposed convolution, if it is a grouped one."""
    site = lift_transposed(graph.model, found.node)
    require(site.group > 1, "it is dense (group 1): there are no groups to merge", site.y, matched=0)
    return site


def _groups(site: TransposedSite, settings: Settings) -> int:
    """The new number of groups that the settings ask for."""
    factor, groups = int(settings["factor"]), int(settings["groups"])
    if not factor:
        groups = groups or 1
        fits = groups > 0 and site.group % groups == 0
        require(fits, f"its {site.group} groups are no multiple of regroup-transposed.groups {groups}", site.y)
        require(groups < site.group, f"it has {site.group} groups already", site.y)
        return groups
    fits = factor > 0 and site.group % factor == 0
    require(fits, f"its {site.group} groups are no multiple of regroup-transposed.factor {factor}", site.y)
    require(factor > 1, "a regroup-transposed.factor of 1 changes nothing", site.y)
    return site.group // factor
