"""Blind outputs: do the outputs that L4 compares respond to a region at all?

The tensors that leave the regions are multiplied inside the original by factors fed at run time (1, or 1.5 for half of
the elements, chosen at random: a common factor would be invisible behind a normalization).  One run perturbs all
regions; if even that moves no output beyond what L4 allows, every region is blind.  Then a few are perturbed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.numeric import observed_allowance
from rewriter.equivalence.precision import difference, significand_bits, unit_roundoff
from rewriter.equivalence.regions import Region
from rewriter.equivalence.whole import Run
from rewriter.model import Model
from rewriter.session import Runtime, SessionFailed, open_session, run
from rewriter.shapes import Bound, Shape


def measure_blindness(
    model: Model, bound: Bound, regions: Sequence[Region], first: Run, chosen: Sequence[int], runtime: Runtime
) -> list[bool | None]:
    """For each region whether no graph output responds to it; None where that was not measured."""
    factors = {index: _factors(bound, region) for index, region in enumerate(regions)}
    names = {name: shape for found in factors.values() for name, shape in found.items()}
    unknown: list[bool | None] = [None] * len(regions)
    if not names or first.binding != 0:
        return unknown
    try:
        proto = _instrumented(model, bound, names)
        session = open_session(proto, runtime, external_folder=model.folder)
        outputs = [value.name for value in model.outputs]
        ones = {_factor(n): np.ones(shape, _dtype(bound, n)) for n, shape in names.items()}
        plain = run(session, {**first.feeds, **ones}, outputs)

        def responds(indices: Sequence[int]) -> bool:
            moved = {_factor(n): _noise(bound, n, s) for i in indices for n, s in factors[i].items()}
            return _noticed(plain, run(session, {**first.feeds, **ones, **moved}, outputs))

        if not responds(range(len(regions))):
            return [True if factors[index] else None for index in range(len(regions))]
        return [not responds([i]) if i in chosen and factors[i] else None for i in range(len(regions))]
    except SessionFailed:
        return unknown


def _factors(bound: Bound, region: Region) -> dict[str, Shape]:
    found = {}
    for name in region.outputs:
        kind, shape = bound.types.get(name), bound.shape(name)
        if kind is not None and shape is not None and significand_bits(kind.tensor_type.elem_type):
            found[name] = shape
    return found


def _instrumented(model: Model, bound: Bound, names: Mapping[str, Shape]) -> onnx.ModelProto:
    proto = model.to_proto()
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        nodes.append(node)
        for at, name in enumerate(node.output):
            if name in names:
                node.output[at] = _inner(name)
                nodes.append(onnx.helper.make_node("Mul", [_inner(name), _factor(name)], [name]))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    made = {name for node in kept for name in node.output}
    for name, shape in names.items():
        if name in made:
            code = bound.types[name].tensor_type.elem_type
            proto.graph.input.append(onnx.helper.make_tensor_value_info(_factor(name), code, shape))
    return proto


def _noticed(plain: Mapping[str, Array], moved: Mapping[str, Array]) -> bool:
    for name, value in plain.items():
        other = moved[name]
        if value.dtype.kind in "biuSO":
            if not np.array_equal(value, other):
                return True
            continue
        unit = unit_roundoff(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        allowed = float(observed_allowance(value, [], unit, 4096))
        if value.size and float(difference(value, other).max()) > allowed:
            return True
    return False


def _noise(bound: Bound, name: str, shape: Shape) -> Array:
    rng = np.random.default_rng(len(name))
    return np.where(rng.random(shape) < 0.5, 1.5, 1.0).astype(_dtype(bound, name))


def _dtype(bound: Bound, name: str) -> np.dtype[np.generic]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(bound.types[name].tensor_type.elem_type))


def _inner(name: str) -> str:
    return f"{name} before perturbation"


def _factor(name: str) -> str:
    return f"{name} perturbation"
