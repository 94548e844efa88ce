"""regroup: compute a grouped convolution in fewer, wider groups, filled with zeros.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes   y = Conv(x, W' [M, f*C/G, *K], b, group=G/f)

where W' is block-diagonal: f old groups side by side in each new one, zeros between them.

Settings: `factor` f, or `groups` G/f, or neither: then f is the smallest divisor of G that makes f*C/G and f*M/G
multiples of `block`, the width ONNX Runtime's fast convolutions (NCHWc) want on this machine; `block` 0 finds it out.
Conditions: G > 1; constant weight and bias.  Without factor or groups, only 2-D float32 convolutions that are not on
the fast path already.
Safety: FINITE.  Zero times an infinite or NaN activation is NaN: a NaN or infinity spreads to the groups merged with.
Source: ORT's NchwcTransformer takes G > 1 only with depthwise multiplier 1 or block-aligned groups; elsewhere it falls
back to one matrix product per group.
"""

from __future__ import annotations

import numpy as np

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
    nchwc_block,
    require,
)
from rewriter import conv as algebra


class Regroup(Pass):
    """Conv(group=G) -> Conv(group=G/f), zero-filled."""

    name = "regroup"
    safety = Safety.FINITE
    defaults = {"factor": 0, "groups": 0, "block": 0}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The three smallest factors that reach the fast path (one where it would be mostly zeros)."""
        site = lift(graph.model, found.node)
        _factor(site, self.defaults)
        few = 1 if site.i_per == 1 else 3
        return tuple({"factor": factor} for factor in _factors(site, nchwc_block())[:few])

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = lift(graph.model, found.node)
        factor = _factor(site, settings)
        groups = site.group // factor
        build = Builder(graph.model, f"{site.y}/regroup")
        weight = build.constant(algebra.regroup(site.weight, site.group, groups), "weight")
        build.conv(site.node, site.x, weight, site.bias_name, groups, site.y)
        return Rewrite(
            self.name,
            site.y,
            Safety.FINITE,
            closure(graph.model, [found.node], build.reads),
            found.node,
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv group {site.group} -> group {groups}, {site.i_per} -> {site.i_per * factor} channels per group",
        )


def _factor(site: ConvSite, settings: Settings) -> int:
    require(site.group > 1, "it is dense (group 1): there are no groups to merge", site.y, matched=0)
    factor, groups = int(settings["factor"]), int(settings["groups"])
    require(not (factor and groups), "both regroup.factor and regroup.groups are set: set one", site.y)
    if groups:
        fits = groups > 0 and site.group % groups == 0
        require(fits, f"its {site.group} groups are no multiple of regroup.groups {groups}", site.y)
        require(groups < site.group, f"it has {site.group} groups already", site.y)
        return site.group // groups
    if factor:
        fits = factor > 0 and site.group % factor == 0
        require(fits, f"its {site.group} groups are no multiple of regroup.factor {factor}", site.y)
        require(factor > 1, "a regroup.factor of 1 changes nothing", site.y)
        return factor
    block = _block(settings)
    require(block > 0, "this machine has no blocked fast path to reach: set regroup.factor", site.y)
    plain = len(site.kernel) == 2 and site.weight.dtype == np.float32
    require(plain, "the fast path takes 2-D float32 convolutions only: set regroup.factor to regroup it anyway", site.y)
    require(not _is_fast(site, block), f"it is on the fast path already ({_width(site)}, block {block})", site.y)
    factors = _factors(site, block)
    require(
        factors,
        f"no divisor of its {site.group} groups makes {site.i_per} in, {site.o_per} out per group multiples of {block}",
        site.y,
    )
    return factors[0]


def _block(settings: Settings) -> int:
    return int(settings.get("block", 0)) or nchwc_block()


def _is_fast(site: ConvSite, block: int) -> bool:
    """Whether ONNX Runtime's NCHWc path takes the convolution as it is."""
    depthwise = site.i_per == 1 and site.o_per == 1
    aligned = site.i_per % block == 0 and site.o_per % block == 0
    return site.m % 4 == 0 and (depthwise or aligned)


def _width(site: ConvSite) -> str:
    if site.i_per == 1 and site.o_per == 1:
        return "depthwise"
    return f"{site.i_per} in and {site.o_per} out per group"


def _factors(site: ConvSite, block: int) -> list[int]:
    """Divisors of G, ascending, that make both widths multiples of the block."""
    if block <= 0:
        return []
    return [
        factor
        for factor in range(2, site.group + 1)
        if site.group % factor == 0 and factor * site.i_per % block == 0 and factor * site.o_per % block == 0
    ]
