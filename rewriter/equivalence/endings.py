"""Activations at the end of a region: taken off both sides, so that the linear function beneath can be compared."""

from __future__ import annotations

from rewriter.equivalence.forms import Unsupported
from rewriter.equivalence.fused import Activation, ending, is_fused_conv
from rewriter.equivalence.linear import Evaluation, Value

_RELU = Activation("Relu")


def beneath(run: Evaluation, name: str) -> tuple[tuple[Activation, ...], Value]:
    """The activations that a leaving tensor's making ends in, the last one first, and what they are taken of.

    The Relu of a Relu is one Relu.  Raises as `Evaluation.value`.
    """
    side = run.side
    ends: list[Activation] = []
    known = run.entering.keys() | run.given
    while (maker := side.maker(name)) in run.nodes and name not in known and side.bound.value(name) is None:
        assert maker is not None
        node = side.model.nodes[maker]
        activation = ending(side, node)
        if activation is None:
            break
        if not (ends and activation == ends[-1] == _RELU):
            ends.append(activation)
        if is_fused_conv(node, side.functions):
            return tuple(ends), run.sum_in(node)
        name = node.input[0]
    return tuple(ends), run.value(name)


def require_same(name: str, old: tuple[Activation, ...], new: tuple[Activation, ...]) -> None:
    """Raise Unsupported unless the activations are the same.

    Others may still do the same to the values that reach them (a Relu of what is never negative): runs decide that.
    """
    if old != new:
        raise Unsupported(f"'{name}' ends in {_listed(old)} before the rewrite and in {_listed(new)} after it")


def shows(ends: tuple[Activation, ...], *runs: Evaluation) -> bool:
    """Whether a difference beneath an activation shows behind it, for some of what may enter the region.

    Between its bounds (for Relu, above 0) an activation takes values that it takes nowhere else, and an affine function
    that is not constant reaches them: two that give the same there are the same.  Two constants may both become 0.
    """
    convs = [conv for run in runs for conv in run.convs]
    varying = all(conv.weight.reshape(len(conv.weight), -1).any(axis=1).all() for conv in convs)
    return len(ends) == 1 and bool(convs) and varying


def _listed(ends: tuple[Activation, ...]) -> str:
    return " of ".join(map(str, ends)) or "no activation"
