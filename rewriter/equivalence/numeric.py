"""L3: both regions with their real weights on activations captured inside the original, against a certified bound.

Two evaluations of the same sum of products differ by at most the sum of their bounds (see `rounding`), whatever the
order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.cut import Cut
from rewriter.equivalence.exact import Exchange
from rewriter.equivalence.forms import Floats
from rewriter.equivalence.linear import LINEAR
from rewriter.equivalence.oracle import Oracle, OracleFailed
from rewriter.equivalence.precision import (
    all_finite,
    any_finite,
    difference,
    largest_finite,
    significand_bits,
    smallest_number,
    unit_roundoff,
    worst,
)
from rewriter.equivalence.records import LevelResult, failed, not_applicable, passed
from rewriter.equivalence.rounding import Rounding, bound_in, coarsest, convs_in, estimate, finest, rounding_of
from rewriter.session import SessionFailed

ELSEWHERE = "at other places"
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_NO_BOUND = 0.5  # of S: a bound from here on would let almost anything pass
_LARGER = 8.0  # times the original's S that a rewrite may have
_ALARM = 8.0  # units of u·S: above, the bound holds but the error is larger than sums usually make


def compare_on_activations(exchange: Exchange, captured: Sequence[Mapping[str, Array]], products: int) -> LevelResult:
    """Level L3.  `products` is the number of products L1 found in one output element, 0 where L1 does not know."""
    captured = [feeds for feeds in captured if all(map(all_finite, feeds.values()))][: 1 if exchange.large else None]
    if not captured:
        return not_applicable("L3", "Not applicable: no run of the original reached the region with finite values.")
    before, after = exchange.before, exchange.after
    roundings = [rounding_of(runner.cut, runner.runtime) for runner in (before, after)]
    if before.runtime == after.runtime:  # a rewrite that computes in a coarser type is not as accurate for that
        roundings[1] = finest(roundings)
    unit = coarsest(roundings).unit
    linear = all(map(_is_bounded, (before.cut, after.cut)))
    # L1 counts the products of effective weights; a convolution of a convolution has fewer roundings than those.
    stages = [
        max(products, 1) + 8 if products and convs_in(runner.cut) <= 1 else estimate(runner.cut)
        for runner in (before, after)
    ]
    try:
        old = [before.plain(feeds, before.cut.weights) for feeds in captured]
        spread = before.deployed(captured, before.cut.weights)
    except SessionFailed as problem:
        return not_applicable("L3", f"Not applicable: the original region does not run on its own ({problem}).")
    try:
        new = [after.plain(feeds, after.cut.weights) for feeds in captured]
        new_deployed = after.deployed(captured, after.cut.weights)
    except SessionFailed as problem:
        return failed("L3", f"The rewritten region does not run: {problem}")
    if exchange.large:
        before.release()
        after.release()
    texts = [name for name, value in old[0].items() if value.dtype.kind in "OSU"]
    if texts:
        pairs = zip([*old, *spread], [*new, *new_deployed], strict=True)
        if not all(np.array_equal(left[name], right[name]) for left, right in pairs for name in texts):
            return failed("L3", f"The strings in '{texts[0]}' differ.")
        old, spread, new, new_deployed = (
            [{name: value for name, value in values.items() if name not in texts} for values in runs]
            for runs in (old, spread, new, new_deployed)
        )
        if not old[0]:
            return passed("L3", "All strings are equal on captured activations.")
    scales, why = _scales(before.cut, captured) if linear else (None, "")
    sides = list(zip((before.cut, after.cut), roundings, stages, strict=True))
    bounds = [bound_in(*side) for side in sides]
    sixteen = roundings[0].stored > roundings[0].accumulated
    if scales is not None and sixteen and not _sums_finely(before.cut, captured, old, scales, bounds[0]):
        bounds = [bound_in(cut, replace(each, accumulated=each.stored), stage) for cut, each, stage in sides]
    if scales is not None and max(bounds) >= _NO_BOUND:
        scales, why = None, "its sums are too long for a bound in such a type"
    if not any(any_finite(value) or not value.size for values in old for value in values.values()):
        return not_applicable("L3", "Not applicable: nothing that leaves the original region is finite.")
    terms = None if scales is None else _scales(after.cut, captured)[0]
    mine = None if scales is None else _limited(terms or scales, scales)
    highest, units = 0.0, 0.0
    for run, reference in enumerate(old):
        for name, value in reference.items():
            allowed = (
                bounds[0] * scales[run][name] + bounds[1] * mine[run][name]
                if scales is not None and mine is not None
                else observed_allowance(value, [spread[run][name]], unit, stages[0])
            )
            for other in (new[run][name], new_deployed[run][name]):
                clause = mismatch(value, other, spread[run][name])
                if clause.endswith(ELSEWHERE) and not finite_weights(before.cut):
                    why = "weights are infinite or NaN, and where outputs are depends on the kernel that is run"
                    return not_applicable("L3", f"Not applicable: {why}.")
                if clause:
                    return failed("L3", f"On captured activations, '{name}' {clause}.")
                if value.dtype.kind in "biu":
                    wrong, own = (int((value != one).sum()) for one in (other, spread[run][name]))
                    if wrong > 2 * own:
                        count = f"{wrong} of {value.size} elements"
                        return failed("L3", f"On captured activations, '{name}' differs in {count}.")
                    continue
                error = difference(value, other)
                tiny = max(_underflow(cut, each, stage, value) for cut, each, stage in sides)
                ratio = _largest_ratio(error, allowed + tiny)
                if not ratio <= 1:
                    text = (
                        f"On captured activations, '{name}' differs by {error.max():.3g}, "
                        f"{ratio:.3g} times what rounding explains."
                    )
                    if scales is not None and terms is not None:
                        rest = error - bounds[0] * scales[run][name] - tiny
                        text += own_terms(rest, bounds[1], terms[run][name], scales[run][name])
                    return failed("L3", text, worst=ratio)
                highest = max(highest, ratio)
                if scales is not None:
                    units = max(units, _largest_ratio(error, unit * scales[run][name] + tiny))
    figures = {
        "runs": len(old),
        "worst": highest,
        "stages": sum(stages),
        "certified": scales is not None,
        "units": units,
    }
    if scales is not None:
        alarm = f" (but more than {_ALARM:g} units of u·S)" if units > _ALARM else ""
        return passed("L3", f"All errors on captured activations lie within the certified bound{alarm}.", **figures)
    note = f" (no bound: {why})" if why else ""
    return passed("L3", f"All errors on captured activations are as small as the original's own{note}.", **figures)


def _scales(cut: Cut, captured: Iterable[Mapping[str, Array]]) -> tuple[list[dict[str, Floats]] | None, str]:
    """S of each output on each of the captured inputs; or None and a clause saying why it cannot be computed."""
    try:
        absolute = Oracle(cut, absolute=True)
        return [dict(absolute(feeds, cut.weights)) for feeds in captured], ""
    except OracleFailed as failure:
        return None, str(failure)


def own_terms(rest: Floats, bound: float, own: Floats, original: Floats) -> str:
    """A sentence where `bound` · `own`, which was not allowed, would explain what the original leaves: it is no excuse.

    `own` and `original` are S of the rewritten and of the original region.  Empty where it would not explain it.
    """
    if rest.shape != own.shape or original.shape != own.shape or not (rest <= bound * own).all():
        return ""
    at = int(np.argmax(rest - bound * _LARGER * original))
    most, least = (float(value.reshape(-1)[at]) for value in (own, original))
    size = f"{most / least:.3g} times as large as" if least else "larger than"
    return f" Its own terms are {size} the original's there, and would explain it: a sum that cancels is less accurate."


def _limited(found: Sequence[Mapping[str, Floats]], scales: Sequence[Mapping[str, Floats]]) -> list[dict[str, Floats]]:
    """S of the rewritten region, which sums other terms: but no more than so many times the original's.

    What makes large terms that cancel is less accurate than the original, and must not be excused by its own size.
    """
    sides = zip(found, scales, strict=True)

    def limited(new: Floats, old: Floats) -> Floats:
        return (
            np.minimum(new, _LARGER * old) if new.shape == old.shape else old
        )  # another shape is no error of rounding

    return [{name: limited(new[name], old[name]) for name in old} for new, old in sides]


def _is_bounded(cut: Cut) -> bool:
    """Whether S bounds the cut's rounding: linear operators, products with constants, and Relu, which adds none."""
    products = [node for node in cut.proto.graph.node if node.op_type in _PRODUCTS]
    return cut.operators <= LINEAR | _PRODUCTS | {"Relu"} and all(node.input[1] in cut.weights for node in products)


def _sums_finely(
    cut: Cut,
    captured: Sequence[Mapping[str, Array]],
    outputs: Sequence[Mapping[str, Array]],
    scales: Sequence[Mapping[str, Floats]],
    bound: float,
) -> bool:
    """Whether the original's own error is what a float32 accumulator leaves: some processors sum 16 bits in 16 bits."""
    exact = Oracle(cut)
    for feeds, found, scale in zip(captured, outputs, scales, strict=True):
        reference = exact(feeds, cut.weights)
        for name, value in found.items():
            error = difference(reference[name], value)
            tiny = smallest_number(unit_roundoff(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)))
            if _largest_ratio(error, bound * scale[name] + tiny) > 1:
                return False
    return True


def _largest_ratio(error: Floats, allowed: Floats) -> float:
    """The largest error as a fraction of what is allowed; no error is within any allowance, NaN included."""
    with np.errstate(all="ignore"):
        ratio = np.divide(error, allowed)
    if not np.isfinite(ratio).all():
        ratio = np.where(error == 0, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    return float(ratio.max(initial=0))


def observed_allowance(value: Array, others: Iterable[Array], unit: float, products: int) -> Floats:
    """What is allowed where no bound is certified: twice the original's own spread (three times in 16 bits) + a floor.

    The floor is 8u·max|y|, more for long sums, whose rounding errors grow with the root of their length.
    """
    spread = max((worst(value, other)[0] for other in others), default=0.0)
    floor = 8 * unit * max(1.0, math.sqrt(products) / 4) * largest_finite(value)
    factor = 2 if unit < 2**-12 else 3
    return np.asarray(factor * spread + floor)


def mismatch(old: Array, new: Array, control: Array) -> str:
    """A clause where type, shape or the places of NaN and infinity differ; `control` is another run of the original.

    Where they differ in the original's own runs, twice as many places may differ.
    """
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"is {new.dtype} {list(new.shape)} instead of {old.dtype} {list(old.shape)}"
    if old.dtype.kind in "biuSO":
        return ""
    if all_finite(old) and all_finite(new):
        return ""
    x, y, z = (value.astype(np.float64) for value in (old, new, control))
    for kind, places in (("NaN", np.isnan), ("infinity", np.isposinf), ("minus infinity", np.isneginf)):
        own = int((places(x) != places(z)).sum())
        if int((places(x) != places(y)).sum()) > 2 * own:
            return f"is {kind} {ELSEWHERE}"
    return ""


def finite_weights(cut: Cut) -> bool:
    """Whether no constant of the cut is infinite or NaN."""
    return all(map(all_finite, cut.weights.values()))


def _underflow(cut: Cut, rounding: Rounding, stages: int, value: Array) -> float:
    """What is lost below the normal numbers of an output's type: half its smallest number per stored rounding.

    A single operator with a finer accumulator rounds to that type once, when it stores.
    """
    code = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    once = rounding.stored > rounding.accumulated and len(cut.proto.graph.node) == 1
    return (1 if once else stages) * smallest_number(unit_roundoff(code)) if significand_bits(code) else 0.0
