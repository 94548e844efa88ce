"""regroup: compute a grouped convolution in fewer, wider groups, filled with zeros.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes   y = Conv(x, W' [M, f*C/G, *K], b, group=G/f)

where W' is block-diagonal: f old groups side by side in each new one, zeros between them.

Settings: `factor` f, or `groups` G/f, or neither: then f is the smallest divisor of G that makes f*C/G and f*M/G
multiples of `block`, the width that ONNX Runtime's fast CPU convolutions (NCHWc) want on this machine; `block` 0 finds
it out.
Conditions: G > 1; constant weight and bias.  Without factor or groups, only 2-D float32 convolutions that are not on
the CPU's fast path already.
What `optimize` measures: on the CPU the smallest factors that reach the fast path, in float16 too, which ONNX Runtime
casts to float32 there; on CUDA the smallest ones that make both widths multiples of 4, of 8, of 16 and of 32, and one
dense convolution (f = G), of any rank, in float32, float16 and bfloat16.
Safety: FINITE.  Zero times an infinite or NaN activation is NaN: a NaN or infinity spreads to the groups merged with.
Source: ORT's NchwcTransformer takes G > 1 only with depthwise multiplier 1 or block-aligned groups; elsewhere it falls
back to one matrix product per group.  The widths for CUDA are in `rewriter.providers`.
"""

from __future__ import annotations

from rewriter import (
    BadInput,
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
    asked_factor,
    grouped,
    in_place,
    lift,
    maybe,
    nchwc_block,
    require,
)
from rewriter.conv import regroup

_MEASURED = ("float32", "float16", "bfloat16")
"""Types that the matrix units of devices with widths multiply, float32 rounded to TF32."""
_FAST = ("float32", "float16")
"""Types whose convolutions may run on the CPU's fast path; float16 by casts, so that only a measurement decides."""


class Regroup(Pass):
    """Conv(group=G) -> Conv(group=G/f), zero-filled."""

    name = "regroup"
    safety = Safety.FINITE
    defaults = {"factor": 0, "groups": 0, "block": 0}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        if settings["factor"] and settings["groups"]:
            raise BadInput(f"both {self.name}.factor and {self.name}.groups are set: set one.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The factors that reach the provider's widths and dense, or on the CPU the fast path; few if mostly zeros."""
        site = grouped(lift(graph.model, found.node), "merge")
        factors = _for_widths(site, graph.widths) if graph.widths else _for_fast_path(site)
        return tuple({"factor": factor} for factor in factors)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = grouped(lift(graph.model, found.node), "merge")
        factor = asked_factor(self, site, settings) or _unasked(graph, site, int(settings["block"]))
        groups = site.group // factor
        build = Builder(graph.model, f"{site.y}/regroup")
        weight = build.constant(regroup(site.weight, site.group, groups), "weight")
        build.conv(site.node, site.x, weight, site.bias_name, groups, site.y)
        widths = f"{site.i_per} -> {site.i_per * factor} channels per group"
        return in_place(self, site, build, f"Conv group {site.group} -> group {groups}, {widths}")


def _for_fast_path(site: ConvSite) -> list[int]:
    """The three smallest factors that reach this machine's fast path, or one where it would be mostly zeros."""
    block = nchwc_block()
    _default(site, block, _FAST)
    return _factors(site, block)[: 1 if site.i_per == 1 else 3]


def _for_widths(site: ConvSite, widths: tuple[int, ...]) -> list[int]:
    """The smallest factor for each width that it does not have yet, and G; two where it would be mostly zeros."""
    kind = site.weight.dtype.name
    require(
        kind in _MEASURED,
        f"wider groups are measured in {', '.join(_MEASURED)} only, and it is in {kind}: set regroup.factor to regroup "
        "it anyway",
        site.y,
    )
    reached = {next(iter(_factors(site, width, least=1)), 1) for width in widths} - {1}
    factors = sorted(reached | {site.group})
    return factors[:2] if _is_depthwise(site) else factors


def _unasked(graph: Graph, site: ConvSite, block: int) -> int:
    """The factor where the settings ask for none; `block` 0 is this machine's."""
    try:
        return _default(site, block or nchwc_block())
    except Declined:
        # What the default is for says nothing about a device that has widths of its own.
        require(not graph.widths, "neither regroup.factor nor regroup.groups is set: set one", site.y)
        raise


def _default(site: ConvSite, block: int, types: tuple[str, ...] = _FAST[:1]) -> int:
    """The smallest factor that reaches the CPU's fast path, for convolutions in one of `types`."""
    require(block > 0, "this machine has no blocked fast path to reach: set regroup.factor", site.y)
    plain = len(site.kernel) == 2 and site.weight.dtype.name in types
    taken = f"2-D {' and '.join(types)} convolutions"
    require(plain, f"the fast path takes {taken} only: set regroup.factor to regroup it anyway", site.y)
    require(not _is_fast(site, block), f"it is on the fast path already ({_width(site)}, block {block})", site.y)
    factors = _factors(site, block)
    require(
        factors,
        f"no divisor of its {site.group} groups makes {site.i_per} in, {site.o_per} out per group multiples of {block}",
        site.y,
    )
    return factors[0]


def _is_depthwise(site: ConvSite) -> bool:
    return site.i_per == 1 and site.o_per == 1


def _is_fast(site: ConvSite, block: int) -> bool:
    """Whether ONNX Runtime's NCHWc path takes the convolution as it is."""
    aligned = site.i_per % block == 0 and site.o_per % block == 0
    return site.m % 4 == 0 and (_is_depthwise(site) or aligned)


def _width(site: ConvSite) -> str:
    return "depthwise" if _is_depthwise(site) else f"{site.i_per} in and {site.o_per} out per group"


def _factors(site: ConvSite, width: int, least: int = 2) -> list[int]:
    """Divisors of G from `least` on, ascending, that make both widths multiples of `width`."""
    return [
        factor
        for factor in range(least, site.group + 1)
        if site.group % factor == 0 and factor * site.i_per % width == 0 and factor * site.o_per % width == 0
    ]
