"""split-separable: a convolution whose weights have low rank as two or more smaller ones, exactly, to save products.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes, per form,

    depthwise   Conv(x, V [C*r, 1, *K], group=C)        then  Conv(., U [M, C/G*r, 1...], b, group=G)
    pointwise   Conv(x, U [M*r, C/G, 1...], group=G)    then  Conv(., V [M, r, *K], b, group=M)
    spatial     Conv(x, U [G*r, C/G, *KA], group=G)     then  Conv(., V [M, r, *KB], b, group=G)
    channels    the same with KA = K and KB = 1, or KA = 1 and KB = K

KA is K on some axes and 1 on the others, KB the rest: Kx1 and 1xK, 1xKxK and Kx1x1.  r is the rank of the slices
W[:, c] as [M/G, K] (depthwise), W[m] as [C/G, K] (pointwise), or of W per group as [C/G*KA, M/G*KB] (the others).
Stride, dilation and padding go with the axes.  What results is split again where that saves more.

Settings: `form` = auto | depthwise | pointwise | spatial | channels; auto takes the cheapest of the first three.
`max-error` = 0.05, with `--allow approximate`: where no exact split saves, the cheapest of all four whose output is off
by at most that much: root mean square of the error over that of the output, bias included, on your inputs (`--inputs`;
without, on generated ones).  The factors fit the convolution's own inputs, not the weights: those of one half of them,
and the error has to hold on the other half, too.
Conditions: constant weights; fewer multiplications, as depthwise r*(K + M/G) < K*M/G.  Every convolution splits for r
large enough: where none saves, the reason gives the ranks, the multiplications and the leading singular values.
Rank: singular values from the (r+1)th on are 0 if their root sum of squares is at most the weights' epsilon (2^-23 for
float32) times the norm of the matrix: no more than rounding the weights to their type may have put there.
What `optimize` measures: each form that saves multiplications.
Safety: ROUNDING.  The factors are computed in float64 and rounded once; a split whose rounded factors do not give the
weights back to the precision of their type is refused.  APPROXIMATE with `max-error`: the audit measures that error
again, and its verdict is never `equivalent`.
Source: DESIGN section 6; singular value decomposition, truncated nowhere above that precision.  With `max-error`, one
weighted by the inputs' second moments, then least squares: Zhang et al., "Accelerating very deep convolutional networks
for classification and detection" (2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter import (
    BadInput,
    Builder,
    ConvSite,
    Declined,
    Deviation,
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
    window_of,
)
from rewriter.conv import (
    ConvMap,
    NotRepresentable,
    Split,
    Way,
    Window,
    approximate,
    cost,
    energy,
    factorize,
    moments,
    multiplications,
    splits,
)

_FORMS = ("depthwise", "pointwise", "spatial", "channels")


class SplitSeparable(Pass):
    """Conv -> Conv + Conv of fewer products."""

    name = "split-separable"
    safety = Safety.ROUNDING
    defaults = {"form": "auto", "max-error": 0.0}  # noqa: RUF012 - never mutated
    gives = "separable"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        if settings["form"] not in ("auto", *_FORMS):
            raise BadInput(f"{self.name}.form '{settings['form']}' is none of auto, {', '.join(_FORMS)}.")
        most = float(settings["max-error"])
        if not 0 <= most < 1:
            raise BadInput(f"{self.name}.max-error is {most:g}: it is a part of the output, 0 or more and below 1.")

    def needed(self, settings: Settings) -> frozenset[str]:
        return self.needs | (frozenset({"approximate"}) if settings["max-error"] else frozenset())

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """Each form that saves multiplications, the cheapest first."""
        site = lift(graph.model, found.node)
        saving = [split.form for split in _look(_part(site), "auto", site.y) if split.saves]
        return tuple({"form": form} for form in dict.fromkeys(saving))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = lift(graph.model, found.node)
        form, most = str(settings["form"]), float(settings["max-error"])
        try:
            parts, deviation = _exactly(_part(site), form, site.y), None
        except Declined:
            if not most:
                raise
            parts, deviation = _within(graph, site, form, most)
        return _emit(self.name, graph, site, parts, deviation)


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


def _exactly(whole: _Part, form: str, where: str) -> list[_Part]:
    """The convolutions that it is, to the precision of its weights."""
    _look(whole, form, where)
    try:
        return _divide(whole, form)
    except NotRepresentable as no:
        raise Declined(str(no), where) from None


def _within(graph: Graph, site: ConvSite, form: str, most: float) -> tuple[list[_Part], Deviation]:
    """The two convolutions that it is up to an error, on the inputs that it is given."""
    require(graph.activations is not None, "what it reads on your inputs is not known here", site.y)
    assert graph.activations is not None
    inputs = graph.activations.at(site.x)
    require(inputs, f"nothing is known of its input '{site.x}'", site.y)
    numbers = all(np.isfinite(x.astype(np.float64)).all() for x in inputs)
    require(numbers, f"its input '{site.x}' is not finite on the inputs given", site.y)
    bias = site.bias
    strides = strides_of(site.node, len(site.kernel))
    windows = {window_of(site.node, site.kernel, x.shape[2:]) for x in inputs}
    require(len(windows) == 1, "its pads differ between the inputs given", site.y)
    conv = ConvMap(site.weight, bias, site.group, strides, windows.pop())
    seen = moments(inputs, conv.window, strides, site.group)
    enough = energy(conv.weight, bias, seen.fitted) and energy(conv.weight, bias, seen.held)
    require(enough, "its output is zero on the inputs given, or they are too few to fit and to judge", site.y)
    forms = _FORMS if form == "auto" else (form,)
    best, beyond = approximate(conv, seen, most, forms, cost(conv))
    nearest = min((miss for miss in beyond if miss.rank), key=lambda miss: miss.error, default=None)
    how = (
        "" if nearest is None else f": {_shape(conv, nearest.way)} of rank {nearest.rank} is off by {nearest.error:.2g}"
    )
    require(best is not None, f"no split saves any of its {cost(conv)} multiplications within {most:g}{how}", site.y)
    assert best is not None
    first, second = best.parts
    errors = best.weight_error, best.error, best.held_error
    deviation = Deviation(cost(conv), best.cost, best.rank, best.full_rank, *errors, most)
    axes = tuple(range(len(site.kernel)))
    others = tuple(axis for axis in axes if axis not in best.way.axes)
    return [_Part(first, best.way.axes), _Part(second, others)], deviation


def _emit(name: str, graph: Graph, site: ConvSite, parts: Sequence[_Part], deviation: Deviation | None) -> Rewrite:
    build = Builder(graph.model, f"{site.y}/split")
    tensor = site.x
    for position, part in enumerate(parts):
        is_last = position == len(parts) - 1
        weight = build.constant(part.conv.weight, f"weight{position}")
        node = on_axes(site.node, part.conv.kernel, part.axes)
        bias = site.bias_name if is_last else None
        tensor = build.conv(node, tensor, weight, bias, part.conv.group, site.y if is_last else None)
    whole = _part(site).conv
    after = multiplications([(part.conv.weight.shape, part.conv.strides) for part in parts])
    off = "" if deviation is None else f", off by {deviation.error:.2g}"
    return Rewrite(
        name,
        site.y,
        Safety.ROUNDING if deviation is None else Safety.APPROXIMATE,
        closure(graph.model, [site.index], build.reads),
        site.index,
        tuple(build.nodes),
        tuple(build.initializers),
        f"Conv {_named(whole)} -> {' and '.join(_named(part.conv) for part in parts)}: "
        f"{cost(whole)} -> {after} multiplications per output position{off}",
        deviation=deviation,
    )


def _look(part: _Part, form: str, where: str) -> list[Split]:
    """Every way to split it into that form; declines where none saves anything."""
    try:
        every = splits(part.conv, narrow=form == "channels")
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
    every = splits(part.conv, narrow=form == "channels")
    saving = [split for split in every if split.saves and form in ("auto", split.form)]
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
    return f"as {_shape(conv, split)} its rank is {least}{split.rank} ({split.cost} multiplications; {allowed}{shown})"


def _shape(conv: ConvMap, way: Way) -> str:
    one = _kernel(size if axis in way.axes else 1 for axis, size in enumerate(conv.kernel))
    other = _kernel(1 if axis in way.axes else size for axis, size in enumerate(conv.kernel))
    if way.form == "depthwise":
        return f"depthwise {one} and {other}"
    return f"{one} and depthwise {other}" if way.form == "pointwise" else f"{one} and {other}"


def _named(conv: ConvMap) -> str:
    return f"{_kernel(conv.kernel)} group {conv.group}"


def _kernel(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
