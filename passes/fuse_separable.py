"""fuse-separable: convolutions in a row, with nothing between them, as one convolution.

    t = Conv(x, W1 [T, C/G1, *K1], b1, group=G1, strides=s1, dilations=d1, pads=p1)
    y = Conv(t, W2 [M, T/G2, *K2], b2, group=G2, strides=s2, dilations=d2, pads=p2)

becomes   y = Conv(x, W [M, C/G, *K], b, group=gcd(G1, G2), strides=s1*s2, pads=p1 + s1*p2)

    W[m, c] at tap k1*d1 + k2*d2*s1  =  sum over t, k1, k2 of  W2[m, t, k2] * W1[t, c, k1]
    b = b2 + sum over t, k2 of W2[m, t, k2] * b1[t]

so that per axis the kernel reaches over (k1 - 1)*d1 + 1 + (k2 - 1)*d2*s1 positions; taps that are evenly spaced become
a dilation.  Depthwise and pointwise in either order, 1xK and Kx1, and any other two; of a longer row as many as can be.

Setting: `border` = refuse | exact.  The zeros that the second convolution pads with are no output of the first.  So it
may be padded only on axes where the first is 1 wide, and only if the first has no bias.  With `exact`, the bias is let
through: what it makes at each position, a constant, is added behind the new convolution; the sizes of the padded axes
must be fixed.  A first convolution that is wider than 1 where the second is padded is always refused.
Conditions: constant weights and biases; the tensor between has no other reader.  Padding of the first is no obstacle.
What `optimize` measures: rows that it takes at most twice as many multiplications to compute at once.  `rewrite` fuses
whatever the cost, and says it.
Safety: ROUNDING.  Products of weights are summed in float64 and rounded once.
Source: DESIGN section 6; composition of linear maps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

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
    conv_map,
    full_window,
    lift,
    maybe,
    only_reader,
    require,
    spatial_sizes,
    strides_of,
    with_geometry,
)
from rewriter.conv import (
    Array,
    ConvMap,
    NotRepresentable,
    Window,
    bias_through,
    compose_windows,
    composed,
    multiplications,
    padded_axes,
    rounded,
    why_not_linear,
)

_WORTH_MEASURING = 2
"""A convolution of up to so many times the multiplications may be faster: it reads and writes no tensor between."""


class FuseSeparable(Pass):
    """Conv + Conv -> Conv."""

    name = "fuse-separable"
    safety = Safety.ROUNDING
    defaults = {"border": "refuse"}  # noqa: RUF012 - never mutated
    takes = "separable"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The last convolution; those before it are followed, not matched."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        border = settings["border"]
        if border not in ("refuse", "exact"):
            raise BadInput(f"the setting {self.name}.border is '{border}': it must be one of refuse, exact.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """The default where the one costs at most twice what the several do."""
        run = _run(graph, found.node, exact=False)
        before, after = _costs(run, _geometry(graph, run))
        require(
            after <= _WORTH_MEASURING * before,
            f"as one it would take {after} multiplications per output position instead of {before}",
            run[-1].y,
            matched=len(run),
        )
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        run = _run(graph, found.node, exact=settings["border"] == "exact")
        last = run[-1]
        try:
            one, constant = _compose(graph, run)
        except NotRepresentable as no:
            raise Declined(str(no), last.y, matched=len(run)) from None
        build = Builder(graph.model, f"{last.y}/fused")
        weight = build.constant(one.weight, "weight")
        bias = None if one.bias is None else build.constant(one.bias, "bias")
        node = with_geometry(last.node, one)
        made = build.conv(node, run[0].x, weight, bias, one.group, last.y if constant is None else None)
        if constant is not None:
            build.node("Add", [made, build.constant(constant, "border")], "add", last.y)
        before, after = _costs(run, one.window)
        kernels = " and ".join(_named(site) for site in run)
        return Rewrite(
            self.name,
            last.y,
            Safety.ROUNDING,
            closure(graph.model, [site.index for site in run], build.reads),
            found.node,
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv {kernels} -> {_kernel(one.window.kernel)} group {one.group}"
            f"{'' if constant is None else ' + a constant at the border'}: "
            f"{before} -> {after} multiplications per output position",
        )


def _run(graph: Graph, node: int, *, exact: bool) -> list[ConvSite]:
    """The convolutions that become one at this node, the first first; declines unless there are several, it the last.

    A row of convolutions is cut from its end: each run is as long as can be, so that runs do not overlap.
    """
    lift(graph.model, node)
    row = _row(graph, node)
    while True:
        run, reason = _last_run(graph, row, exact=exact)
        if run[0].index > node or node not in [site.index for site in run]:
            row = row[: len(row) - len(run)]
            continue
        last = run[-1]
        require(last.index == node, f"it goes into the run of convolutions that ends at '{last.y}'", last.y, matched=0)
        require(len(run) > 1, reason, last.y, matched=0 if not reason.startswith("it and") else 2)
        return run


def _row(graph: Graph, node: int) -> list[int]:
    """All convolutions in a row that the node is in, each the only reader of the one before."""
    row = [node]
    while (before := _before(graph, row[0])) is not None:
        row.insert(0, before)
    while (after := _after(graph, row[-1])) is not None:
        row.append(after)
    return row


def _before(graph: Graph, node: int) -> int | None:
    """The convolution before, where this one alone reads it."""
    maker = graph.model.wiring.producer(graph.model.nodes[node].input[0])
    return maker if maker is not None and _after(graph, maker) == node else None


def _after(graph: Graph, node: int) -> int | None:
    """The convolution behind, where that alone reads this one, as its data."""
    if not _is_conv(graph, node):
        return None
    tensor = graph.model.nodes[node].output[0]
    try:
        reader = only_reader(graph, tensor)
    except Declined:
        return None
    return reader if _is_conv(graph, reader) and graph.model.nodes[reader].input[0] == tensor else None


def _is_conv(graph: Graph, node: int) -> bool:
    proto = graph.model.nodes[node]
    return proto.op_type == "Conv" and proto.domain in ("", "ai.onnx") and len(proto.output) == 1


def _last_run(graph: Graph, row: list[int], *, exact: bool) -> tuple[list[ConvSite], str]:
    """The longest run at the end of the row, and why it is not longer."""
    try:
        run = [lift(graph.model, row[-1])]
        window = full_window(graph, run[0])
    except Declined as no:
        return [ConvSite(graph.model, row[-1], graph.model.nodes[row[-1]], (), 1)], no.reason
    for index in reversed(row[:-1]):
        try:
            first = lift(graph.model, index)
            reason = _why_apart(graph, first, run[0], window, exact=exact)
            window = window if reason else _composed(graph, first, window)
        except Declined as no:
            reason = f"of the convolution before, {no.reason}"
        if reason:
            return run, f"it and the convolution before are not one: {reason}"
        run.insert(0, first)
    return run, _why_no_more(graph, run[0])


def _why_no_more(graph: Graph, first: ConvSite) -> str:
    """Why no convolution can be taken in before this one."""
    maker = graph.model.wiring.producer(first.x)
    if maker is None or not _is_conv(graph, maker):
        return "no convolution comes right before it"
    try:
        only_reader(graph, first.x)
    except Declined as no:
        return f"it and the convolution before are not one: {no.reason}"
    return "it and the convolution before are not one: that is not its data"


def _why_apart(graph: Graph, first: ConvSite, second: ConvSite, window: Window, *, exact: bool) -> str:
    """Why a convolution cannot be taken in before a run that starts with `second` and has that window; or empty."""
    if first.m != second.c or len(first.kernel) != len(second.kernel):
        return f"it reads {second.c} channels of the {first.m} there are"
    wide = why_not_linear(first.kernel, window)
    padded = padded_axes(window)
    if wide or not padded or first.bias is None or not first.bias.any():
        return wide
    if not exact:
        return (
            "the first has a bias and the second is padded, so that the border would differ: "
            "set fuse-separable.border=exact to add what the bias makes there"
        )
    sizes = spatial_sizes(graph, first.y, len(first.kernel))
    free = [axis for axis in padded if sizes[axis] is None]
    return "the first has a bias and the second is padded on axes whose sizes are not fixed" if free else ""


def _composed(graph: Graph, first: ConvSite, window: Window) -> Window:
    return compose_windows(strides_of(first.node, len(first.kernel)), full_window(graph, first), window)


def _geometry(graph: Graph, run: list[ConvSite]) -> Window:
    window = full_window(graph, run[-1])
    for first in reversed(run[:-1]):
        window = _composed(graph, first, window)
    return window


def _compose(graph: Graph, run: list[ConvSite]) -> tuple[ConvMap, Array | None]:
    """The one convolution in the weights' type; and, where its bias is none, the constant `[1, M, *S]` to add to it."""
    axes, last = len(run[-1].kernel), run[-1]
    whole = replace(conv_map(graph, last), bias=None)
    constant = np.zeros((1, last.m, *[1] * axes))
    if last.bias is not None:
        constant = constant + last.bias.astype(np.float64).reshape(constant.shape)
    for first in reversed(run[:-1]):
        if first.bias is not None and first.bias.any():
            constant = constant + bias_through(first.bias, whole, spatial_sizes(graph, first.y, axes))
        whole = composed(replace(conv_map(graph, first), bias=None), whole)
    kind = last.weight.dtype
    whole = replace(whole, weight=rounded(whole.weight.astype(np.float64), kind))
    flat = rounded(constant.reshape(1, -1), kind).reshape(constant.shape)
    if constant.size > last.m:
        return whole, flat
    return replace(whole, bias=flat.reshape(-1) if constant.any() else None), None


def _costs(run: list[ConvSite], window: Window) -> tuple[int, int]:
    """Multiply-adds per output position before and after."""
    strides = [strides_of(site.node, len(site.kernel)) for site in run]
    before = multiplications([(site.weight_shape, each) for site, each in zip(run, strides, strict=True)])
    group = int(np.gcd.reduce([site.group for site in run]))
    return before, multiplications([((run[-1].m, run[0].c // group, *window.kernel), ())])


def _named(site: ConvSite) -> str:
    return f"{_kernel(site.kernel)} group {site.group}"


def _kernel(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel))
