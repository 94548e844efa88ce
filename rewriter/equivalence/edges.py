"""L5 of one region: both sides at the edges of the number range.

NaN and infinity at single places of captured activations, zeros of both signs, and denormal numbers.  Finite feeds are
held to the certified bound: what is further off refutes.  Where NaN, infinity and the signs of zeros come out is a
flag of the contract, for a rewrite may say that it holds for finite activations only; where weights only moved, every
output is a sum of the same products, and NaN or infinity elsewhere refutes that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewriter.constants import Array
from rewriter.equivalence.cut import Runner
from rewriter.equivalence.edge_bounds import Bounds, bounds_of, observed_bounds, own_explanation
from rewriter.equivalence.edge_feeds import denormals, is_floating, with_special, zeros
from rewriter.equivalence.exact import Exchange
from rewriter.equivalence.numeric import finite_weights
from rewriter.equivalence.oracle import Oracle, OracleFailed
from rewriter.equivalence.precision import all_finite, difference, wide
from rewriter.equivalence.records import AuditOptions, Grade, LevelResult, failed, not_applicable, passed
from rewriter.equivalence.static import StaticResult
from rewriter.session import SessionFailed

NONFINITE: Final = "nonfinite"
SIGNED_ZERO: Final = "signed_zero"
DENORMALS: Final = "denormals"
SAME: Final = "same"
DIFFERS: Final = "differs"
ROUNDED: Final = "differs within rounding"
OPEN: Final = "not compared"
_NAMES: Final = (NONFINITE, SIGNED_ZERO, DENORMALS)
_ORDER: Final = (SAME, ROUNDED, OPEN, DIFFERS)
_KINDS: Final = {"NaN": (np.nan,), "infinity": (np.inf,), "minus infinity": (-np.inf,)}
_MIXED: Final = {"NaN or infinity": (np.nan, np.inf, -np.inf)}
_MOVED: Final[tuple[Grade, ...]] = ("bitwise", "exact")
_MANY: Final = 1 << 20
"""Elements of a region's largest tensor from which on NaN and infinity are placed in one run."""
_ZEROS, _DENORMALS = "zeros", "denormal numbers"

_Values = Mapping[str, Array]


@dataclass(frozen=True)
class Edges:
    """What L5 found in a region: its result, and what of it belongs in the contract."""

    result: LevelResult
    flags: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Seen:
    """The outputs for one feed: of the original and of the rewritten region, each unoptimized and as deployed."""

    what: str
    feeds: _Values
    old: tuple[_Values, _Values]
    new: tuple[_Values, _Values]


def region_edges(
    options: AuditOptions,
    exchange: Exchange | None,
    levels: Sequence[LevelResult],
    captured: Sequence[_Values],
    static: StaticResult,
) -> Edges | None:
    """L5 of a region that passed what comes before; None where it is not asked for, or cannot be run.

    TF32 decides nothing here: what it rounds off is more than most edges.
    """
    asked = options.full and not options.runtime.tf32
    if not asked or exchange is None or levels[-1].level != "L3" or levels[-1].outcome == "fail":
        return None
    return compare_on_edges(exchange, captured, static.products, static.grade)


def summed_flags(regions: Sequence[Mapping[str, str]], sizes: tuple[LevelResult, str] | None) -> dict[str, str]:
    """The flags of the whole: of each kind the one that claims least, and the sizes that were run."""
    found: dict[str, str] = {}
    for name in _NAMES:
        values = [flags.get(name, OPEN) for flags in regions if flags]
        if values:
            found[name] = max(values, key=_ORDER.index)
    return {**found, **({"sizes": sizes[1]} if sizes else {})}


class _Refuted(Exception):
    """The rewritten region is another function; the message is a sentence."""


def compare_on_edges(exchange: Exchange, captured: Sequence[_Values], products: int, grade: Grade | None) -> Edges:
    """Level L5.  `products` is the number of products in one output element where L1 knows it, else 0.

    `grade` is the one that L1 supports: with "bitwise" and "exact", NaN and infinity have to come out the same.
    """
    finite = [feeds for feeds in captured if all(map(all_finite, feeds.values()))]
    if not finite or not any(map(is_floating, finite[0].values())):
        why = "no run of the original reached the region with finite values"
        return Edges(not_applicable("L5", f"Not applicable: {why}."), {})
    try:
        seen = _run(exchange, _feeds(exchange, finite[0]))
        _require_same_types(seen)
    except SessionFailed as problem:
        why = f"the original region does not run at the edges on its own ({problem})"
        return Edges(not_applicable("L5", f"Not applicable: {why}."), {})
    except _Refuted as refuted:
        return Edges(failed("L5", str(refuted)), {})
    finally:
        if exchange.large:
            exchange.before.release()
            exchange.after.release()
    flags: dict[str, str] = {}
    try:
        flags[DENORMALS], small = _finite(
            exchange, [one for one in seen if one.what in (_ZEROS, _DENORMALS)], products, grade
        )
        flags[SIGNED_ZERO], signs = _signs([one for one in seen if one.what == _ZEROS])
        flags[NONFINITE], special = _special(exchange, [one for one in seen if one.what in _KINDS | _MIXED], grade)
    except _Refuted as refuted:
        missing = next(name for name in (DENORMALS, SIGNED_ZERO, NONFINITE) if name not in flags)
        return Edges(failed("L5", str(refuted)), {**flags, missing: DIFFERS})
    flags = {name: flags[name] for name in _NAMES}
    clauses = "; ".join((special, signs, small))
    return Edges(passed("L5", f"{clauses[0].upper()}{clauses[1:]}.", runs=len(seen)), flags)


def _feeds(exchange: Exchange, base: _Values) -> dict[str, dict[str, Array]]:
    kinds = _MIXED if exchange.elements[0] > _MANY else _KINDS
    seed = exchange.seed
    found = {what: with_special(base, values, seed + at) for at, (what, values) in enumerate(kinds.items())}
    return {**found, _ZEROS: zeros(base, seed), _DENORMALS: denormals(base, seed)}


def _run(exchange: Exchange, feeds: Mapping[str, dict[str, Array]]) -> list[_Seen]:
    old = _outputs(exchange.before, list(feeds.values()))
    try:
        new = _outputs(exchange.after, list(feeds.values()))
    except SessionFailed as problem:
        raise _Refuted(f"The rewritten region does not run at the edges: {problem}") from problem
    return [_Seen(what, entry, a, b) for (what, entry), a, b in zip(feeds.items(), old, new, strict=True)]


def _outputs(runner: Runner, feeds: Sequence[_Values]) -> list[tuple[_Values, _Values]]:
    plain = [runner.plain(entry, runner.cut.weights) for entry in feeds]
    return list(zip(plain, runner.deployed(feeds, runner.cut.weights), strict=True))


def _require_same_types(seen: Sequence[_Seen]) -> None:
    for one in seen:
        for name, value in one.old[0].items():
            for other in (run[name] for run in one.new):
                if other.dtype != value.dtype or other.shape != value.shape:
                    now, was = (f"{entry.dtype} {list(entry.shape)}" for entry in (other, value))
                    raise _Refuted(f"Fed {one.what}, '{name}' is {now} instead of {was}.")


def _floats(one: _Seen) -> list[str]:
    return [name for name, value in one.old[0].items() if is_floating(value)]


def _finite(exchange: Exchange, seen: Sequence[_Seen], products: int, grade: Grade | None) -> tuple[str, str]:
    """The flag on denormal numbers and a clause; raises _Refuted where finite feeds give what rounding does not."""
    if not finite_weights(exchange.before.cut):
        return OPEN, "denormal numbers were not compared (weights are infinite or NaN)"
    flag, clause = SAME, "denormal numbers give the same"
    for one in seen:
        if all(map(np.array_equal, _flat(one.old[:1] * 2), _flat(one.new))):
            continue
        certified = (  # which takes several evaluations in float64
            None if exchange.large else bounds_of(exchange.before, exchange.after, one.feeds, one.old[0], products)
        )
        small = one.what == _DENORMALS
        bounds = certified or observed_bounds(
            exchange.before, exchange.after, *one.old, products, small=small, proven=grade is not None
        )
        if _require_within(one, bounds, exchange.after) and not certified:
            flag, clause = DIFFERS, f"{one.what} give something else (there is no certified bound on it)"
        elif flag == SAME:
            flag, clause = ROUNDED, "denormal numbers give the same within rounding"
            clause += " (the runtime takes them for zero)" if bounds.flushed else ""
    return flag, clause


def _require_within(one: _Seen, bounds: Bounds, after: Runner) -> bool:
    """Whether an error is more than is expected; raises _Refuted where it is more than is allowed, or not finite."""
    beyond = False
    for name in _floats(one):
        for old, new in zip(one.old, one.new, strict=True):
            if all_finite(old[name]) and not all_finite(new[name]) and bounds.decides:
                raise _Refuted(f"Fed {one.what}, '{name}' is no longer finite.")
            error = difference(one.old[0][name], new[name])
            allowed = bounds.allowed[name]
            beyond = beyond or bool((error > bounds.expected[name]).any())
            if bounds.decides and not (error <= allowed).all():
                at = int(np.argmax(error - allowed))
                off, most = (np.broadcast_to(value, error.shape).reshape(-1)[at] for value in (error, allowed))
                text = f"Fed {one.what}, '{name}' differs by {off:.3g}, where rounding explains {most:.3g}."
                raise _Refuted(text + own_explanation(after, one.feeds, name, error, bounds))
    return beyond


def _flat(runs: Sequence[_Values]) -> list[Array]:
    return [value for run in runs for value in run.values()]


def _signs(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The flag on signs of zeros and a clause."""
    zero = wrong = 0
    for one in seen:
        for name in _floats(one):
            olds, news = ([wide(run[name]) for run in runs] for runs in (one.old, one.new))
            signs = [np.signbit(value) for value in olds]
            for new in news:
                both = (olds[0] == 0) & (new == 0)
                zero += int(both.sum())
                wrong += int((both & (np.signbit(new) != signs[0]) & (np.signbit(new) != signs[1])).sum())
    if not zero:
        return OPEN, "no output is zero where all inputs are"
    if wrong:
        return DIFFERS, "some zeros have another sign"
    return SAME, "zeros have the same signs"


def _special(exchange: Exchange, seen: Sequence[_Seen], grade: Grade | None) -> tuple[str, str]:
    """The flag on NaN and infinity and a clause; raises _Refuted where a rewrite that only moves weights moves them."""
    if not finite_weights(exchange.before.cut):
        return OPEN, "NaN and infinity were not placed (weights are infinite or NaN)"
    wrong = [(one, name, count) for one in seen for name in _floats(one) if (count := _astray(one, name))]
    if not wrong:
        if not any(_kinds(value).any() for one in seen for value in _flat(one.old)):
            return OPEN, "NaN and infinity reach no output"
        return SAME, "NaN and infinity come out the same"
    one, name, count = wrong[0]
    total = one.old[0][name].size
    clause = f"{one.what} comes out elsewhere ('{name}', {count} of {total} elements)"
    if grade not in _MOVED:
        return DIFFERS, clause
    why = _by_definition(exchange, wrong)
    return DIFFERS, f"{clause}, {why}"


def _astray(one: _Seen, name: str) -> int:
    """Elements that are NaN or infinite in another way than in any of the original's own runs."""
    olds = [_kinds(run[name]) for run in one.old]
    return max(int(((kinds != olds[0]) & (kinds != olds[1])).sum()) for kinds in (_kinds(run[name]) for run in one.new))


def _kinds(value: Array) -> Array:
    """Per element: 0 finite, 1 NaN, 2 infinity, 3 minus infinity."""
    if not is_floating(value):
        return np.zeros(value.shape, np.int8)
    x: NDArray[Any] = wide(value)
    kinds = np.zeros(x.shape, np.int8)
    for number, places in enumerate((np.isnan(x), np.isposinf(x), np.isneginf(x)), 1):
        kinds[places] = number
    return kinds


def _by_definition(exchange: Exchange, wrong: Sequence[tuple[_Seen, str, int]]) -> str:
    """Why it may be so although weights only moved; raises _Refuted where the operators' definitions say it, too.

    Kernels may differ in what they make of NaN: one that works on whole tiles (Winograd, FFT) spreads it, another does
    not.  What the operators are defined to give is the same for two sums of the same products.
    """
    try:
        sides = [Oracle(runner.cut) for runner in (exchange.before, exchange.after)]
        for one, name, _ in wrong:
            old, new = (side(one.feeds, side.cut.weights)[name] for side in sides)
            apart = int((_kinds(old) != _kinds(new)).sum())
            if apart:
                raise _Refuted(
                    f"Weights only moved, but fed {one.what}, '{name}' is NaN or infinite at other places: by the "
                    f"operators' definitions in {apart} of {old.size} elements."
                )
    except OracleFailed as problem:
        return f"and it is open whether kernels or the rewrite do that ({problem})"
    return "as the kernels that run have it: by the operators' definitions both are the same"
