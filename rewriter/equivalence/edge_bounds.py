"""What rounding explains where numbers are so small that their type keeps fewer bits of them.

Below the smallest normal number a rounding errs by up to half the type's smallest number, whatever the size of the
result, and what a convolution errs by, the next one multiplies.  With one unit of such an error added behind every
operator, the region's evaluation on absolute values gives how many units reach an output: it is linear in them.
(Higham, Accuracy and Stability of Numerical Algorithms, section 2.1, the model of rounding with underflow.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.cut import Cut, Runner
from rewriter.equivalence.edge_feeds import is_floating, smallest_normal
from rewriter.equivalence.forms import Floats
from rewriter.equivalence.fused import expanded
from rewriter.equivalence.linear import LINEAR, MOVES
from rewriter.equivalence.numeric import observed_allowance, own_terms
from rewriter.equivalence.oracle import Oracle, OracleFailed
from rewriter.equivalence.precision import difference, smallest_number, unit_roundoff
from rewriter.equivalence.rounding import bound_in, convs_in, estimate, rounding_of, summed

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_FACTORS = frozenset({"Mul", "Div", "MatMul", "Gemm", "Conv", "FusedConv", "ConvTranspose"})
_GENTLE = frozenset(
    """Relu LeakyRelu PRelu Sigmoid HardSigmoid Tanh Clip HardSwish Elu Selu Celu Softplus Erf Gelu Mish Abs Max Min
    MaxPool AveragePool""".split()  # noqa: SIM905 - readable
)
_EXACT = MOVES | {"Relu", "Shape", "Size", "Constant", "Neg", "Dropout", "Cast"}
"""Operators that keep denormal numbers as they are."""
_FEW, _FAR = 2.0**10, 2.0**20
_CANCELS = 256.0  # as for whole models
_USELESS = 0.5
"""Of S: a bound from here on would let almost anything pass."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """What the outputs of two cuts may differ by on given feeds, by output."""

    allowed: Mapping[str, Floats]
    expected: Mapping[str, Floats]
    """From where on it is worth a flag, where that is less."""
    decides: bool = True
    """Whether more than is allowed refutes."""
    flushed: bool = False
    """Whether the runtime takes denormal numbers for zero, as the original shows."""
    relative: float = 0.0
    """What of `allowed` is the rewritten cut's rounding, as a fraction of `scale`; 0 where nothing is certified."""
    scale: Mapping[str, Floats] = field(default_factory=dict)
    """The original's S."""


def bounds_of(
    before: Runner, after: Runner, feeds: Mapping[str, Array], outputs: Mapping[str, Array], products: int
) -> Bounds | None:
    """The certified bound; None where there is none: operators that are not linear, or sums too long for the type.

    `outputs` are the original's on these feeds: where they are further from their exact values than denormal numbers
    explain, the runtime takes such numbers for zero, and what enters is off by up to the smallest normal number.
    """
    cuts = before.cut, after.cut
    if not all(map(is_bounded, cuts)):
        return None
    relative = [_relative(runner, products) for runner in (before, after)]
    if max(relative) >= _USELESS:
        return None
    try:
        scale = Oracle(cuts[0], absolute=True)(feeds, cuts[0].weights)
        units = [_units(cut, feeds, entering=0.0) for cut in cuts]
        exact = Oracle(cuts[0])(feeds, cuts[0].weights)
        own = {name: relative[0] * scale[name] + units[0][name] * _smallest(value) for name, value in outputs.items()}
        flushed = any((difference(exact[name], value) > own[name]).any() for name, value in outputs.items())
        if flushed:
            units = [_units(cut, feeds, entering=1.0) for cut in cuts]
    except OracleFailed:
        return None
    one = {name: smallest_normal(value) if flushed else _smallest(value) for name, value in outputs.items()}
    allowed = {name: sum(relative) * scale[name] + (units[0][name] + units[1][name]) * one[name] for name in outputs}
    return Bounds(allowed, allowed, flushed=flushed, relative=relative[1], scale=scale)


def own_explanation(after: Runner, feeds: Mapping[str, Array], name: str, error: Floats, bounds: Bounds) -> str:
    """A sentence where terms of its own, larger than the original's, would explain an error that is not allowed."""
    if not bounds.relative:
        return ""
    try:
        own = Oracle(after.cut, absolute=True)(feeds, after.cut.weights)[name]
    except OracleFailed:
        return ""
    scale = bounds.scale[name]
    return own_terms(error - (bounds.allowed[name] - bounds.relative * scale), bounds.relative, own, scale)


def observed_bounds(
    before: Runner,
    after: Runner,
    plain: Mapping[str, Array],
    deployed: Mapping[str, Array],
    products: int,
    *,
    small: bool,
    proven: bool = False,
) -> Bounds:
    """What is allowed where no bound is certified, from the original's own `plain` and `deployed` outputs.

    `small`: what entered was denormal.  Behind an operator that divides, a difference there may be as large as any, and
    decides nothing; elsewhere it refutes only where it is far from denormal itself.
    `proven`: L1 showed both to be the same up to rounding, of which one run's spread is no bound: a sum that cancels is
    off by much of itself.
    """
    unit = max(rounding_of(runner.cut, runner.runtime).unit for runner in (before, after))
    floors = {
        name: observed_allowance(value, [deployed[name]], unit, products or estimate(before.cut))
        for name, value in plain.items()
        if is_floating(value)
    }
    most = {name: (_CANCELS if proven else 1.0) * floor for name, floor in floors.items()}
    if not small:
        return Bounds(most, floors)
    expected = {name: floor + _FEW * _smallest(plain[name]) for name, floor in floors.items()}
    allowed = {name: floor + _FAR * smallest_normal(plain[name]) for name, floor in most.items()}
    wide = all(smallest_normal(plain[name]) < 1 / _FAR for name in floors)
    return Bounds(allowed, expected, decides=wide and is_gentle(before.cut) and is_gentle(after.cut))


def is_bounded(cut: Cut) -> bool:
    """Whether rounding in the cut has a bound: operators that are linear, products with constants, and Relu."""
    return cut.operators <= LINEAR | _PRODUCTS | {"Relu"} and not any(
        _multiplies_activations(cut, node) for node in cut.proto.graph.node
    )


def is_gentle(cut: Cut) -> bool:
    """Whether no operator turns a small difference into a large one where what enters is small."""
    divides = (node for node in cut.proto.graph.node if node.op_type == "Div")
    gentle = cut.operators <= LINEAR | _PRODUCTS | _GENTLE
    return gentle and not any(_multiplies_activations(cut, node) for node in divides)


def _multiplies_activations(cut: Cut, node: onnx.NodeProto) -> bool:
    """Whether it is a product or a quotient of two tensors that are not constants."""
    if node.op_type not in _FACTORS:
        return False
    operands = node.input[:2] if node.op_type == "Mul" else node.input[1:2]
    return cut.weights.keys().isdisjoint(operands) and cut.fixed.keys().isdisjoint(operands)


def _relative(runner: Runner, products: int) -> float:
    """The bound as a fraction of S, with sums kept in the stored type: some processors add 16 bits in 16 bits."""
    cut, rounding = runner.cut, rounding_of(runner.cut, runner.runtime)
    stages = max(products, 1) + 8 if products and convs_in(cut) <= 1 else estimate(cut)
    return bound_in(cut, replace(rounding, accumulated=rounding.stored), stages)


def _units(cut: Cut, feeds: Mapping[str, Array], *, entering: float) -> dict[str, Floats]:
    """How many units of error reach each output element, `entering` of them in every element that enters."""
    shifted, errors = _with_errors(cut)
    inputs = {n: np.full(v.shape, entering) if is_floating(v) else v for n, v in feeds.items()}
    zero = {n: np.zeros(v.shape) if is_floating(v) else v for n, v in feeds.items()}
    found = Oracle(shifted, absolute=True)(inputs, {**cut.weights, **errors})
    bare = Oracle(cut, absolute=True)(zero, cut.weights)  # what offsets make of nothing
    return {name: found[name] - bare[name] for name in bare}


def _with_errors(cut: Cut) -> tuple[Cut, dict[str, Array]]:
    """The cut with a constant added behind each operator that rounds: one half for each product of its sum, and one."""
    proto = expanded(cut.proto)
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.node[:]
    errors: dict[str, Array] = {}
    for number, node in enumerate(proto.graph.node):
        if node.op_type in _EXACT:
            made.graph.node.append(node)
            continue
        weight = cut.weights.get(node.input[1]) if len(node.input) > 1 else None
        name, before = f"edge error {number}", f"edge sum {number}"
        errors[name] = np.asarray((summed(node, weight) if weight is not None else 1) / 2 + 1)
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[0] = before
        made.graph.node.extend([inner, onnx.helper.make_node("Add", [before, name], [node.output[0]])])
    return replace(cut, proto=made, weights={**cut.weights, **errors}), errors


def _smallest(value: Array) -> float:
    return smallest_number(unit_roundoff(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)))
