"""split-separable: a convolution whose weights have low rank as two or more smaller ones, exactly, to save products.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes, per form,

    depthwise   Conv(x, V [C*r, 1, *K], group=C)        then  Conv(., U [M, C/G*r, 1...], b, group=G)
    pointwise   Conv(x, U [M*r, C/G, 1...], group=G)    then  Conv(., V [M, r, *K], b, group=M)
    spatial     Conv(x, U [G*r, C/G, *KA], group=G)     then  Conv(., V [M, r, *KB], b, group=G)

KA is K on some axes and 1 on the others, KB the rest: Kx1 and 1xK, 1xKxK and Kx1x1.  r is the rank of the slices
W[:, c] as [M/G, K] (depthwise), W[m] as [C/G, K] (pointwise), or of W per group as [C/G*KA, M/G*KB] (spatial).  Stride,
dilation and padding go with the axes.  What results is split again where that saves more.

Setting: `form` = auto | depthwise | pointwise | spatial; auto takes the cheapest.
Conditions: constant weights; fewer multiplications, as depthwise r*(K + M/G) < K*M/G.  Every convolution splits for r
large enough: where none saves, the reason gives the ranks, the multiplications and the leading singular values.
Rank: singular values from the (r+1)th on are 0 if their root sum of squares is at most the weights' epsilon (2^-23 for
float32) times the norm of the matrix: no more than rounding the weights to their type may have put there.
What `optimize` measures: each form that saves multiplications.
Safety: ROUNDING.  The factors are computed in float64 and rounded once; a split whose rounded factors do not give the
weights back to the precision of their type is refused.
Source: DESIGN section 6; singular value decomposition, truncated nowhere above that precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
    closure,
    lift,
    maybe,
    on_axes,
    require,
    strides_of,
)
from rewriter.conv import ConvMap, NotRepresentable, Split, Window, cost, factorize, multiplications, splits

_FORMS = ("depthwise", "pointwise", "spatial")


class SplitSeparable(Pass):
    """Conv -> Conv + Conv of fewer products."""

    name = "split-separable"
    safety = Safety.ROUNDING
    defaults = {"form": "auto"}  # noqa: RUF012 - never mutated
    gives = "separable"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        if settings["form"] not in ("auto", *_FORMS):
            raise BadInput(f"{self.name}.form '{settings['form']}' is none of auto, {', '.join(_FORMS)}.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """Each form that saves multiplications, the cheapest first."""
        site = lift(graph.model, found.node)
        saving = [split.form for split in _look(_part(site), "auto", site.y) if split.saves]
        return tuple({"form": form} for form in dict.fromkeys(saving))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = lift(graph.model, found.node)
        whole = _part(site)
        form = str(settings["form"])
        _look(whole, form, site.y)
        try:
            parts = _divide(whole, form)
        except NotRepresentable as no:
            raise Declined(str(no), site.y) from None
        build = Builder(graph.model, f"{site.y}/split")
        tensor = site.x
        for position, part in enumerate(parts):
            is_last = position == len(parts) - 1
            weight = build.constant(part.conv.weight, f"weight{position}")
            node = on_axes(site.node, part.conv.kernel, part.axes)
            bias = site.bias_name if is_last else None
            tensor = build.conv(node, tensor, weight, bias, part.conv.group, site.y if is_last else None)
        after = multiplications([(part.conv.weight.shape, part.conv.strides) for part in parts])
        return Rewrite(
            self.name,
            site.y,
            Safety.ROUNDING,
            closure(graph.model, [found.node], build.reads),
            found.node,
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv {_named(whole.conv)} -> {' and '.join(_named(part.conv) for part in parts)}: "
            f"{cost(whole.conv)} -> {after} multiplications per output position",
        )


@dataclass(frozen=True)
class _Part:
    """One of the convolutions, without bias and pads, and the spatial axes that it takes."""

    conv: ConvMap
    axes: tuple[int, ...]


def _part(site: ConvSite) -> _Part:
    """The convolution as a whole.  Its pads stay with its axes whatever they are, so they are not read."""
    rank = len(site.kernel)
    ones, zeros = (1,) * rank, (0,) * rank
    window = Window(site.kernel, ones, zeros, zeros)
    return _Part(ConvMap(site.weight, None, site.group, strides_of(site.node, rank), window), tuple(range(rank)))


def _look(part: _Part, form: str, where: str) -> list[Split]:
    """Every way to split it into that form; declines where none saves anything."""
    try:
        every = splits(part.conv)
    except NotRepresentable as no:
        raise Declined(str(no), where) from None
    require(every, "there is nothing to separate in its kernel", where, matched=0)
    ways = [split for split in every if form in ("auto", split.form)]
    require(ways, f"it has no {form} split", where)
    now = cost(part.conv)
    cheapest = {split.form: split for split in reversed(ways)}
    reasons = "; ".join(_why_not(part.conv, cheapest[each]) for each in _FORMS if each in cheapest)
    require(
        any(split.saves for split in ways),
        f"no split saves any of its {now} multiplications per output position: {reasons}",
        where,
    )
    return ways


def _divide(part: _Part, form: str) -> list[_Part]:
    """The convolutions it becomes: split as long as that saves."""
    saving = [split for split in splits(part.conv) if split.saves and form in ("auto", split.form)]
    if not saving:
        return [part]
    best = saving[0]
    first, second = factorize(part.conv, best)
    near = tuple(axis for axis in part.axes if axis in best.axes)
    far = tuple(axis for axis in part.axes if axis not in best.axes)
    return [*_divide(_Part(first, near), form), *_divide(_Part(second, far), form)]


def _why_not(conv: ConvMap, split: Split) -> str:
    """What a way to split takes."""
    values = ", ".join(f"{value:.3g}" for value in split.singular)
    shown = f", singular values {values}" if values else ""
    least = "" if values else "at least "
    allowed = f"up to {split.most} would save" if split.most else "none would save"
    return f"as {_form(conv, split)} its rank is {least}{split.rank} ({split.cost} multiplications; {allowed}{shown})"


def _form(conv: ConvMap, split: Split) -> str:
    one = _kernel(size if axis in split.axes else 1 for axis, size in enumerate(conv.kernel))
    other = _kernel(1 if axis in split.axes else size for axis, size in enumerate(conv.kernel))
    if split.form == "depthwise":
        return f"depthwise {one} and {other}"
    return f"{one} and depthwise {other}" if split.form == "pointwise" else f"{one} and {other}"


def _named(conv: ConvMap) -> str:
    return f"{_kernel(conv.kernel)} group {conv.group}"


def _kernel(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
