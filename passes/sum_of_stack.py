"""sum-of-stack: add the tensors of a stack, rather than stack them and sum over the stack.

    T = stack(x_0, …, x_(k-1))        x_i [N, C, *S], a new axis of size k
    s = ReduceSum(T, that axis)
    y = ReduceSum(T * a, that axis)      a broadcast over T, computed at run time or constant

becomes

    s = x_0 + … + x_(k-1)                          Add, from left to right
    y = x_0*a_0 + … + x_(k-1)*a_(k-1)              a_i = a at i of the axis, by Split and Squeeze

The stack is Concat of Unsqueezes, or Concat along an existing axis and a Reshape that splits it; or a Reshape alone
that splits the channels of one tensor (ResNeSt): the x_i are then its parts, by Split.  All its readers have to be such
sums, with or without keepdims; they are replaced together, so that the stack is gone.  A sum may depend on another one
(attention: a is computed from s): the nodes between them are kept as they are, and stand behind the first.

Conditions: a convolution makes one of the x_i or reads one of the sums (elementwise nodes may be between); the x_i are
of one shape, proven; the stack and the products have no other readers and are no graph outputs.
What `optimize` measures: all sums over one stack together, at the convolution nearest to them.
Safety: EXACT, data only moves.  Each product is the same; the k terms may be added in another order than ReduceSum's
(for k = 2 there is none), and a sum of nothing but -0.0 is -0.0 where ReduceSum may give 0.0.
Source: selective kernel networks (SKNet) and split attention (ResNeSt) as PyTorch exports them.  ONNX Runtime's blocked
layout has no stack, no broadcast product and no ReduceSum, but it has Add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter import (
    Builder,
    Declined,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Stack,
    Var,
    axes_of,
    closure,
    dependents,
    maybe,
    nearest_conv,
    reach,
    require,
    shapes_of,
    stack_at,
    stack_before,
)

_SUM = frozenset({"ReduceSum"})
_STACKING = frozenset({"Unsqueeze", "Concat", "Reshape"})
_AXES_AS_INPUT = 13
"""The first opset whose Unsqueeze has its axes as an input."""


class SumOfStack(Pass):
    """Unsqueeze + Concat (+ Mul) + ReduceSum -> (Mul +) Add."""

    name = "sum-of-stack"
    safety = Safety.EXACT

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The convolution that reads a sum, or else makes what is stacked; from it the stack is found."""
        return op.Conv(x, w, maybe(b))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has no settings
        model = graph.model
        stack, sums = _near(graph, found.node)
        outputs = [model.nodes[each.node].output[0] for each in sums]
        build = Builder(model, f"{outputs[-1]}/terms")
        last = sums[-1].node
        region = {*stack.nodes, *(index for each in sums for index in each.nodes)}
        kept = [index for index in dependents(model, outputs, last) if index not in region]
        at = {each.node: each for each in sums}
        parts = stack.split(build, graph)
        for index in sorted([*at, *kept]):
            if index in at:
                _emit(build, graph, stack, parts, at[index])
            else:
                build.nodes.append(model.nodes[index])
        return Rewrite(
            self.name,
            outputs[-1],
            Safety.EXACT,
            closure(model, [*region, *kept], build.reads),
            last,
            tuple(build.nodes),
            tuple(build.initializers),
            f"stack of {len(stack.parts)} + {len(sums)} ReduceSum -> {'Split + ' * bool(stack.whole)}{_named(sums)}",
        )


@dataclass(frozen=True)
class _Sum:
    """A ReduceSum of T, or of T times `factor`, with the nodes that make it from T."""

    node: int
    nodes: tuple[int, ...]
    factor: str | None
    keepdims: bool


def _named(sums: Sequence[_Sum]) -> str:
    return "Mul + Add" if any(each.factor for each in sums) else "Add"


def _near(graph: Graph, conv: int) -> tuple[Stack, list[_Sum]]:
    """The stack whose sums the convolution reads, or where none does, some part of which it makes; with all its sums.

    Each stack is found from one convolution only, the nearest.
    """
    model, node = graph.model, graph.model.nodes[conv]
    around = reach(model, node.input[:1], _SUM, up=True) + reach(model, node.output, _SUM, _STACKING, up=False)
    missed = Declined("no sum over a stack is near it", node.output[0])
    for index in around:
        try:
            stack = stack_at(graph, stack_before(graph, index))
            sums = _sums(graph, stack)
        except Declined as no:
            missed = no if no.matched > missed.matched else missed
            continue
        nearest = nearest_conv(model, stack.parts, [model.nodes[each.node].output[0] for each in sums])
        if nearest == conv:
            return stack, sums
        assert nearest is not None
        missed = Declined(f"the sum is found from '{model.nodes[nearest].output[0]}'", node.output[0])
    raise missed


def _sums(graph: Graph, stack: Stack) -> list[_Sum]:
    """What reads the stack: sums over its axis, all of them, in graph order."""
    model = graph.model
    found = []
    for index in _readers(graph, stack.tensor):
        node = model.nodes[index]
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            found.append(_sum(graph, stack, index, (), None))
            continue
        others = [name for name in node.input if name != stack.tensor]
        require(len(others) == 1, "the stack is multiplied by itself", node.output[0], matched=2)
        for reader in _readers(graph, node.output[0]):
            found.append(_sum(graph, stack, reader, (index,), others[0]))
    return sorted(found, key=lambda each: each.node)


def _readers(graph: Graph, tensor: str) -> tuple[int, ...]:
    escape = graph.model.wiring.escapes(tensor)
    require(not escape, f"{escape}, so the stack must stay", tensor, matched=2)
    return graph.model.wiring.readers(tensor)


def _sum(graph: Graph, stack: Stack, index: int, before: tuple[int, ...], factor: str | None) -> _Sum:
    node = graph.model.nodes[index]
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    require(kind == "ReduceSum", f"the stack is also read by {kind} at '{node.output[0]}'", stack.tensor, matched=2)
    axes = axes_of(graph, index, stack.rank)
    require(axes == [stack.axis], f"'{node.output[0]}' sums {axes}, not the stack's axis {stack.axis}", matched=2)
    if factor is not None:
        _slot(graph, stack, factor)
    keep = next((entry.i for entry in node.attribute if entry.name == "keepdims"), 1)
    return _Sum(index, (*before, index), factor, bool(keep))


def _slot(graph: Graph, stack: Stack, factor: str) -> tuple[int, int] | None:
    """The factor's axis that lies along the stack, and its size, 1 or k; None where it has too few axes for one."""
    rank = len(shapes_of(graph, factor)[0])
    require(rank <= stack.rank, f"the factor '{factor}' has more axes than the stack", stack.tensor, matched=3)
    axis = stack.axis - (stack.rank - rank)
    if axis < 0:
        return None
    sizes = graph.sizes(factor)
    size = sizes[axis] if sizes is not None else None
    known = size in (1, len(stack.parts))
    require(known, f"it is not known how '{factor}' lies along the stack for every input", factor, matched=3)
    assert size is not None
    return axis, size


def _emit(build: Builder, graph: Graph, stack: Stack, parts: Sequence[str], each: _Sum) -> None:
    """The terms and their sum, under the ReduceSum's name."""
    terms = list(parts)
    if each.factor is not None:
        factors = _factors(build, graph, stack, each.factor)
        terms = [build.node("Mul", pair, f"{each.node}/term") for pair in zip(terms, factors, strict=True)]
    output = graph.model.nodes[each.node].output[0]
    total = terms[0]
    for at, term in enumerate(terms[1:], 2):
        last = at == len(terms) and not each.keepdims
        total = build.node("Add", [total, term], "sum", output if last else None)
    if each.keepdims:
        by_input = graph.model.opset >= _AXES_AS_INPUT
        inputs = [total, build.shape_constant([stack.axis], "kept/axes")] if by_input else [total]
        build.node("Unsqueeze", inputs, "kept", output, **({} if by_input else {"axes": [stack.axis]}))


def _factors(build: Builder, graph: Graph, stack: Stack, factor: str) -> list[str]:
    """The factor of each part."""
    slot = _slot(graph, stack, factor)
    if slot is None:
        return [factor] * len(stack.parts)
    axis, size = slot
    if size == 1:
        return [build.squeeze(factor, [axis], "factor")] * len(stack.parts)
    pieces = build.split(factor, [1] * size, axis, "factors")
    return [build.squeeze(piece, [axis], "factor") for piece in pieces]
