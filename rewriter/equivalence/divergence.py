"""Where two runs of one graph part: the node whose output is off by far more than what enters it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import onnx

from rewriter.constants import Array
from rewriter.equivalence.cut import own
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
    names = _tensors(side)
    if not names or sum(math.prod(side.bound.shape(name) or ()) for name in names) > _MOST_ELEMENTS:
        return ""
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
        return ""
    errors = {name: _relative(old[name], new[name]) for name in names}
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
    return error / largest_finite(old) if error else 0.0
