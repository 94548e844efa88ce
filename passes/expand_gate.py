"""expand-gate: a gate of one value per channel spread over all positions before it is multiplied.

    y = Mul(x [N, C, H, W], s [N, C, 1, 1])

becomes

    t = Resize(s, scales 1 1 H W, nearest)          [N, C, H, W], every value H * W times
    y = Mul(x, t)

and the channels inside of what makes the gate, between its two convolutions, are filled up to a multiple with zero rows
and columns where they are none, since the gate is computed in plain layout else.

Conditions: two run-time operands of one rank and number of channels, the gate of size 1 along every spatial axis, the
other's sizes known and above 1; a convolution is near; float32 or float16, from operator set 10 on (Resize).
What `optimize` measures: each product on the CPU, when other passes have had their turn; not on CUDA, which broadcasts
for nothing.
Settings: `multiple` of channels to fill up to; 0 leaves them as they are.
Safety: EXACT, the same products of the same numbers; FINITE where channels are filled up.
Source: squeeze-and-excitation.  ONNX Runtime's blocked layout multiplies tensors of one shape only: at a gate that is
broadcast it changes to plain layout and back.  Resize by whole factors keeps to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rewriter import (
    Builder,
    Declined,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Relabelled,
    Rewrite,
    Safety,
    Settings,
    Var,
    channel_components,
    closure_of_reads,
    element_type,
    is_constant,
    maybe,
    nearest_conv,
    reach,
    relabel,
    require,
)

_CONV = frozenset({"Conv"})
_MUL = frozenset({"Mul"})
_RESIZE = 10
_TYPES = frozenset({"float", "float16"})


class ExpandGate(Pass):
    """Mul by one value per channel -> Resize of the gate + Mul."""

    name = "expand-gate"
    safety = Safety.FINITE
    defaults = {"multiple": 4}  # noqa: RUF012 - never mutated
    finishes = True

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The convolution that reads the product, or else makes what is multiplied; from it the product is found."""
        return op.Conv(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One on the CPU; a GPU's kernels broadcast while they multiply."""
        _product_near(graph, found.node)
        return ({},) if graph.provider == "cpu" else ()

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        product = _product_near(graph, found.node)
        node = graph.model.nodes[product.index]
        y = node.output[0]
        build = Builder(graph.model, f"{y}/gate")
        spread = build.repeat(node.input[product.gate], (1, 1, *product.sizes), "spread")
        operands = [spread if place == product.gate else name for place, name in enumerate(node.input)]
        build.replay(node, operands, keep=True)
        new = tuple(build.nodes)
        filled = _filled(graph, node.input[product.gate], int(settings["multiple"]), f"{y}/gate/channels")
        text = f"Mul by a gate -> Resize of the gate to {' x '.join(map(str, product.sizes))} + Mul"
        if filled is None:
            initializers = tuple(build.initializers)
            gone = frozenset([product.index])
            return Rewrite(self.name, y, Safety.EXACT, gone, product.index, new, initializers, text)
        inside, before, after = filled
        added = (*inside.added, *new)
        return Rewrite(
            self.name,
            y,
            Safety.FINITE,
            closure_of_reads(graph.model, inside.removed | {product.index}, added),
            min(inside.places),
            added,
            (*inside.initializers, *build.initializers),
            f"{text}, {before} channels inside -> {after}",
            places=(*inside.places, *(product.index for _ in new)),
        )


def _filled(graph: Graph, gate: str, multiple: int, prefix: str) -> tuple[Relabelled, int, int] | None:
    """What makes the gate with more channels inside, and how many they were and are; None where it is as it should be.

    None as well where these channels are not free, or grouped: the gate can be spread all the same.
    """
    makers = reach(graph.model, [gate], _CONV, up=True)
    if not multiple or not makers:
        return None
    channels = channel_components(graph)
    inside = graph.model.nodes[makers[0]].input[0]
    component = channels.component(inside)
    if component is None or not component.free or component.links:
        return None
    band = channels.band_of[inside]
    more = -band.channels % multiple
    if not more:
        return None
    embedding = np.concatenate([np.arange(band.channels), np.full(more, -1)])
    try:
        return relabel(graph, channels, {band.number: embedding}, {}, prefix), band.channels, len(embedding)
    except Declined:
        return None


@dataclass(frozen=True)
class _Product:
    """A Mul at position `index` whose operand number `gate` has one value per channel, the other one `sizes`."""

    index: int
    gate: int
    sizes: tuple[int, ...]


def _product_near(graph: Graph, conv: int) -> _Product:
    """The first gated product whose nearest convolution this is; declines where there is none."""
    model, node = graph.model, graph.model.nodes[conv]
    products = reach(model, node.input[:1], _MUL, up=True) + reach(model, node.output, _MUL, up=False)
    missed = Declined("no product with a gate of one value per channel is near it", node.output[0])
    for index in products:
        product = model.nodes[index]
        if nearest_conv(model, product.input, product.output) != conv:
            continue
        try:
            return _product_at(graph, index)
        except Declined as no:
            missed = no if no.matched >= missed.matched else missed
    raise missed


def _product_at(graph: Graph, index: int) -> _Product:
    model, node = graph.model, graph.model.nodes[index]
    y = node.output[0]
    fixed = [name for name in node.input if is_constant(model, name)]
    require(not fixed, "its product has a constant operand, which fold-affine takes", y)
    shapes = [graph.sizes(name) for name in node.input]
    known = all(shape is not None and len(shape) > 2 for shape in shapes)
    require(known, "the operands of its product are not known to have spatial axes", y)
    one, two = shapes
    assert one is not None
    assert two is not None
    gate = 0 if math.prod(size or 2 for size in one[2:]) == 1 else 1
    narrow, wide = (one, two) if gate == 0 else (two, one)
    spread = len(narrow) == len(wide) and all(size == 1 for size in narrow[2:])
    require(spread, "neither operand of its product is of size 1 along every spatial axis", y)
    same = narrow[1] == wide[1] and narrow[1] is not None
    require(same, "the operands of its product differ in channels, or they are not known", y, matched=1)
    sizes = tuple(size for size in wide[2:] if size is not None)
    require(len(sizes) == len(wide) - 2, f"the sizes of '{node.input[1 - gate]}' are free", y, matched=2)
    require(math.prod(sizes) > 1, "both operands of its product have one position", y, matched=2)
    kind = element_type(graph, node.input[gate])
    require(kind in _TYPES, "ONNX Runtime resizes only float32 and float16", y, matched=2)
    require(model.opset >= _RESIZE, f"there is no Resize before operator set {_RESIZE}", y, matched=2)
    return _Product(index, gate, sizes)
