"""What passes that give a grouped convolution, transposed or not, other groups have in common.

Which groups their settings ask for, which of them `optimize` should measure, and how the rewrite is put down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rewriter.base import Pass
from rewriter.build import Builder
from rewriter.constants import Array
from rewriter.delimit import closure
from rewriter.lifting import S, Site
from rewriter.rule import Rewrite, Settings, require

Cut = Callable[[Array, Array | None, int, int], Sequence[tuple[Array, Array | None]]]
"""From weight, bias, G and P, which divides G, the weight and bias of each of P parts of G/P groups."""

_MOST_MEASURED = 8
"""More groups are not measured apart, nor as one: too many nodes, too many zeros."""


def grouped(site: S, verb: str) -> S:
    """The site, if it has groups to `verb` (split, merge); declines where it is dense."""
    require(site.group > 1, f"it is dense (group 1): there are no groups to {verb}", site.y, matched=0)
    return site


def asked_factor(rule: Pass, site: Site, settings: Settings) -> int:
    """How many old groups the settings `factor` or `groups` want in a new one; 0 where neither is set.

    Declines where G does not divide that way, or would stay as it is.
    """
    factor, groups = int(settings["factor"]), int(settings["groups"])
    if groups:
        fits = groups > 0 and site.group % groups == 0
        require(fits, f"its {site.group} groups are no multiple of {rule.name}.groups {groups}", site.y)
        require(groups < site.group, f"it has {site.group} groups already", site.y)
        return site.group // groups
    if not factor:
        return 0
    fits = factor > 0 and site.group % factor == 0
    require(fits, f"its {site.group} groups are no multiple of {rule.name}.factor {factor}", site.y)
    require(factor > 1, f"a {rule.name}.factor of 1 changes nothing", site.y)
    return factor


def require_few_zeros(site: Site) -> None:
    """Decline to measure a grouped convolution as a dense one where it would be mostly zeros."""
    few = site.group <= _MOST_MEASURED and site.i_per > 1
    require(few, f"{site.group} times the multiplications are too many to be faster", site.y)


def parts_to_measure(rule: Pass, site: Site) -> tuple[Settings, ...]:
    """One part per group, where these are few and wide; declines elsewhere."""
    where = f"set {rule.name}.parts to split it anyway"
    require(site.i_per > 1, f"its groups have one input channel each, too few to be faster apart: {where}", site.y)
    few = site.group <= _MOST_MEASURED
    require(few, f"{site.group} convolutions of one group each are too many to be faster: {where}", site.y)
    return ({"parts": site.group},)


def in_parts(rule: Pass, site: Site, parts: int, cut: Cut) -> Rewrite:
    """The rewrite to Split + one convolution per part + Concat; `parts` 0 is one per group.

    Declines where that is one part, or G is no multiple of it.
    """
    parts = parts or site.group
    require(parts > 1, f"a {rule.name}.parts of 1 changes nothing", site.y)
    fits = site.group % parts == 0
    require(fits, f"its {site.group} groups are no multiple of {rule.name}.parts {parts}", site.y)
    groups, op_type = site.group // parts, site.op_type
    build = Builder(site.model, f"{site.y}/{rule.name.replace('-', '_')}")
    inputs = build.split(site.x, [site.c // parts] * parts, 1, "inputs")
    outputs = []
    for x, (weight, bias) in zip(inputs, cut(site.weight, site.bias, site.group, parts), strict=True):
        operands = build.constant(weight, "weight"), None if bias is None else build.constant(bias, "bias")
        outputs.append(build.conv(site.node, x, *operands, groups, None))
    build.node("Concat", outputs, "concat", site.y, axis=1)
    return in_place(rule, site, build, f"{op_type} group {site.group} -> {parts} {op_type}s of group {groups}")


def in_place(rule: Pass, site: Site, build: Builder, summary: str) -> Rewrite:
    """The rewrite that puts what was built in place of the one node, with the safety that the pass declares."""
    return Rewrite(
        rule.name,
        site.y,
        rule.safety,
        closure(site.model, [site.index], build.reads),
        site.index,
        tuple(build.nodes),
        tuple(build.initializers),
        summary,
    )
