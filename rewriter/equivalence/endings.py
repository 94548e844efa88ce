"""Activations at the end of a region: taken off both sides, so that the linear function beneath can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from rewriter.constants import attributes
from rewriter.equivalence.forms import Form, Unsupported
from rewriter.equivalence.fused import Activation, ending, is_default, is_fused_conv
from rewriter.equivalence.linear import Evaluation, Value
from rewriter.equivalence.regions import Side

_RELU = Activation("Relu")
_PICKING = frozenset({"Split", "Slice", "Gather", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Without Pad, whose zeros an activation need not keep."""


@dataclass(frozen=True)
class Joined:
    """Pieces along an axis that end in different activations: the size of each, and its activations."""

    axis: int
    pieces: tuple[tuple[int, Ends], ...]

    def __str__(self) -> str:
        return " beside ".join(f"{_listed(ends)} ({size})" for size, ends in self.pieces)


Ends = tuple[Activation | Joined, ...]


def beneath(run: Evaluation, name: str) -> tuple[Ends, Value]:
    """The activations that a leaving tensor's making ends in, the last one first, and what they are taken of.

    The Relu of a Relu is one Relu; the Concat of tensors that end in the same is one that ends so, and so does what is
    picked from such a tensor: an activation does the same to each element, wherever it goes.  Raises as
    `Evaluation.value`.
    """
    side = run.side
    ends: list[Activation | Joined] = []
    known = run.entering.keys() | run.given
    while (maker := side.maker(name)) in run.nodes and name not in known and side.bound.value(name) is None:
        assert maker is not None
        node = side.model.nodes[maker]
        activation = ending(side, node)
        if activation is None and is_default(node, side.functions) and node.op_type == "Concat":
            found, value = _joined(run, node)
            return _on(ends, found), value
        if activation is None and picks(side, node):
            found, value = beneath(run, node.input[0])
            if not found or not isinstance(value, Form):
                break
            if any(isinstance(end, Joined) for end in found):  # its pieces are not those of what is picked
                break
            others = [run.value(other) if other else None for other in node.input[1:]]
            return _on(ends, found), run.made(node, [value, *others])[
                [each for each in node.output if each].index(name)
            ]
        if activation is None:
            break
        if not (ends and activation == ends[-1] == _RELU):
            ends.append(activation)
        if is_fused_conv(node, side.functions):
            return tuple(ends), run.sum_in(node)
        name = node.input[0]
    return tuple(ends), run.value(name)


def _on(ends: Sequence[Activation | Joined], found: Ends) -> Ends:
    """Activations of what ends in others."""
    return tuple(ends[:-1] if ends and ends[-1:] == list(found[:1]) == [_RELU] else ends) + found


def picks(side: Side, node: onnx.NodeProto) -> bool:
    """Whether a node only copies elements of its first input, to places that constants say.

    Not of what is joined: its pieces may end in different activations.
    """
    if not is_default(node, side.functions) or node.op_type not in _PICKING:
        return False
    if any(name and not side.constant(name) and side.bound.value(name) is None for name in node.input[1:]):
        return False
    maker = side.maker(node.input[0])
    before = None if maker is None else side.model.nodes[maker]
    return before is None or (before.op_type != "Concat" and (before.op_type not in _PICKING or picks(side, before)))


def _joined(run: Evaluation, node: onnx.NodeProto) -> tuple[Ends, Value]:
    """The same of a Concat: neighbours that end alike are one piece, however many tensors it is joined from."""
    parts = [beneath(run, name) for name in node.input]
    if not any(ends for ends, _ in parts):
        return (), run.value(node.output[0])
    rank = len(run.shape(node.output[0]))
    axis = int(attributes(node)["axis"]) % rank  # type: ignore[call-overload]  # ONNX says it is a number
    pieces: list[tuple[int, Ends]] = []
    for (ends, _), name in zip(parts, node.input, strict=True):
        size = run.shape(name)[axis]
        if pieces and pieces[-1][1] == ends:
            pieces[-1] = (pieces[-1][0] + size, ends)
        else:
            pieces.append((size, ends))
    (value,) = run.made(node, [value for _, value in parts])
    return (pieces[0][1] if len(pieces) == 1 else (Joined(axis, tuple(pieces)),)), value


def require_same(name: str, old: Ends, new: Ends) -> None:
    """Raise Unsupported unless the activations are the same.

    Others may still do the same to the values that reach them (a Relu of what is never negative): runs decide that.
    """
    if old != new:
        raise Unsupported(f"'{name}' ends in {_listed(old)} before the rewrite and in {_listed(new)} after it")


def shows(ends: Ends, *runs: Evaluation) -> bool:
    """Whether a difference beneath an activation shows behind it, for some of what may enter the region.

    Between its bounds (for Relu, above 0) an activation takes values that it takes nowhere else, and an affine function
    that is not constant reaches them: two that give the same there are the same.  Two constants may both become 0.
    """
    convs = [conv for run in runs for conv in run.convs]
    varying = all(conv.weight.reshape(len(conv.weight), -1).any(axis=1).all() for conv in convs)
    return len(ends) == 1 and isinstance(ends[0], Activation) and bool(convs) and varying


def _listed(ends: Ends) -> str:
    return " of ".join(map(str, ends)) or "no activation"
