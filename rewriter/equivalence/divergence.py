"""Where two runs of one graph part: the node whose output is off by far more than what enters it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import onnx

from rewriter.constants import Array
from rewriter.equivalence.cut import own
from rewriter.equivalence.numeric import mismatch, observed_allowance
from rewriter.equivalence.precision import largest_finite, significand_bits, worst
from rewriter.equivalence.regions import Side
from rewriter.equivalence.whole import open_model
from rewriter.session import Runtime, SessionFailed, run

_MOST_ELEMENTS: Final = 1 << 27
"""Elements of all activations together, beyond which they are not kept for the comparison."""


def divergence(side: Side, runtimes: tuple[Runtime, Runtime], feeds: Mapping[str, Array]) -> str:
    """A sentence naming the node after which the error grew most; empty where that cannot be told.

    Every floating-point tensor of the model is looked at in one unoptimized run on each of the runtimes.
    """
    found = _both(side, runtimes, feeds)
    if found is None:
        return ""
    old, new = found
    errors = {name: _relative(old[name], new[name]) for name in old}
    jumps = {}
    for index in sorted(side.runtime):
        node = side.model.nodes[index]
        entering = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            if name in errors:
                jumps[name] = (errors[name] / max(entering, 1e-7), entering, node.op_type)
    if not jumps:
        return ""
    name = max(jumps, key=lambda entry: jumps[entry][0])
    growth, entering, kind = jumps[name]
    if growth <= 1:
        return ""
    return (
        f"The error grows most at {kind} '{name}': from {entering:.1e} to {errors[name]:.1e} of its largest value, "
        "unoptimized."
    )


def disagreement(
    side: Side, runtimes: tuple[Runtime, Runtime], feeds: Mapping[str, Array], unit: float, products: int
) -> str | None:
    """A clause naming the first tensor that differs by more than an output may; None where they cannot be compared.

    For models whose outputs show nothing of what is inside: the same tensors in the same runs as `divergence`.
    """
    found = _both(side, runtimes, feeds)
    if found is None:
        return None
    for name, value in found[0].items():
        other = found[1][name]
        clause = mismatch(value, other, value)
        if clause:
            return f"'{name}' {clause}"
        error, allowed = worst(value, other)[0], float(observed_allowance(value, [], unit, products))
        if error > allowed:
            return f"'{name}' differs by {error:.3g}, where {allowed:.3g} may be rounding"
    return ""


def _both(
    side: Side, runtimes: tuple[Runtime, Runtime], feeds: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """All floating-point tensors, unoptimized, on each of the runtimes; None where they are too large or do not run."""
    names = _tensors(side)
    if not names or sum(math.prod(side.bound.shape(name) or ()) for name in names) > _MOST_ELEMENTS:
        return None
    outputs = {value.name for value in side.model.outputs}
    extra = [
        onnx.helper.make_tensor_value_info(name, side.bound.types[name].tensor_type.elem_type, None)
        for name in names
        if name not in outputs
    ]
    model = side.model.with_outputs(extra) if extra else side.model
    try:
        old, new = (own(run(open_model(model, on.at("disable")), feeds, names)) for on in runtimes)
    except SessionFailed:
        return None
    return old, new


def _tensors(side: Side) -> list[str]:
    """Floating-point tensors of known shape that run-time nodes make."""
    made = [name for index in sorted(side.runtime) for name in side.model.nodes[index].output if name]
    types = side.bound.types
    return [
        name
        for name in made
        if name in types and significand_bits(types[name].tensor_type.elem_type) and side.bound.shape(name) is not None
    ]


def _relative(old: Array, new: Array) -> float:
    if old.shape != new.shape:
        return math.inf
    error = worst(old, new)[0]
    largest = largest_finite(old)
    return error / largest if error and largest else math.inf if error else 0.0
