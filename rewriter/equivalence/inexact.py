"""Integers that come out different: a wrong graph, a wrong kernel, or a right one that rounds (Winograd, FFT)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.cut import Cut
from rewriter.equivalence.oracle import Oracle, OracleFailed
from rewriter.equivalence.precision import all_finite, difference, significand_bits, unit_roundoff
from rewriter.equivalence.rounding import bound_in, estimate, rounding_of
from rewriter.equivalence.static import StaticResult
from rewriter.session import Runtime


def is_rounding(
    cuts: Sequence[tuple[Cut, Runtime]],
    outputs: tuple[Mapping[str, Array], Mapping[str, Array]],
    feeds: Mapping[str, Array],
) -> bool:
    """Whether two cuts with weights of their own agree in exact arithmetic, and their outputs up to rounding.

    Outputs may be apart by what the bound on rounding allows on these feeds (see `rounding`), and must be finite.
    """
    old, new = outputs
    if any(old[name].shape != new[name].shape or not all_finite(new[name]) for name in old):
        return False
    try:
        expected, found = (Oracle(cut)(feeds, cut.weights) for cut, _ in cuts)
        if not all(np.array_equal(found[name], value) for name, value in expected.items()):
            return False
        scale = Oracle(cuts[0][0], absolute=True)(feeds, cuts[0][0].weights)
    except OracleFailed:
        return False
    bound = sum(bound_in(cut, rounding_of(cut, runtime), estimate(cut)) for cut, runtime in cuts)
    return all(bool((difference(old[name], new[name]) <= bound * scale[name]).all()) for name in old)


def unconvincing(static: StaticResult, before: Cut, after: Cut) -> str:
    """Why equal integers would prove nothing, as a clause; empty where they do.  `static` is what L1 found."""
    if static.sizes:
        return "equal integers at some sizes show nothing of others"
    if static.altered:
        return "no operator changed, but the values of constants did"
    if _coarsest_type(after) > _coarsest_type(before):
        return "the rewrite computes in a coarser type, which integers do not show"
    return ""


def _coarsest_type(cut: Cut) -> float:
    """The unit roundoff of the coarsest floating-point type among inputs, constants and what is cast to."""
    codes = [value.type.tensor_type.elem_type for value in cut.proto.graph.input]
    codes += [onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for value in cut.weights.values()]
    codes += [entry.i for node in cut.proto.graph.node for entry in node.attribute if entry.name == "to"]
    return max((unit_roundoff(code) for code in codes if significand_bits(code)), default=0.0)
