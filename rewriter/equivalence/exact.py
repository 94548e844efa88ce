"""L2: both regions on small integers, in ONNX Runtime, compared bit for bit.

Weights are replaced by a seeded hash of their value, the same in both models: weights that only moved still agree, and
anything else (another order, sign, size, one unit in the last place) does not.  All sums stay below the integers that
the type holds exactly, so the order of summation does not matter and equality is demanded bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from rewriter.constants import Array
from rewriter.equivalence.cut import Cut, Runner
from rewriter.equivalence.fused import standing_for
from rewriter.equivalence.inexact import is_rounding
from rewriter.equivalence.linear import LINEAR
from rewriter.equivalence.oracle import Oracle, OracleFailed, cut_of
from rewriter.equivalence.precision import significand_bits, wide
from rewriter.equivalence.records import LevelResult, failed, not_applicable, not_exact, passed
from rewriter.equivalence.rounding import operand_limit
from rewriter.session import Runtime, SessionFailed, open_session, run
from rewriter.shapes import Shape

Rerun = Callable[[onnx.ModelProto], onnx.ModelProto]

EXACT = (LINEAR - {"BatchNormalization"}) | {"Relu", "Max", "Min", "MaxPool", "MatMul", "Gemm"}
"""Operators that turn integers into integers without rounding while they fit."""
_CONVS = frozenset({"Conv", "ConvTranspose"})
_BENDS = frozenset({"Relu", "Max", "Min", "MaxPool"})
_LARGEST_INPUT = 15
_LARGEST_WEIGHTS = (32, 8, 2, 1)
_FEW_DRAWS = ((4, 1 << 15), (6, 1 << 10))
"""Draws and largest weight for large regions: as unlikely to miss a changed weight as 12 draws of weights to 32."""
_FEWEST_DRAWS = 4
LARGE = 1 << 22
"""Elements of a region's largest tensor from which on it is run on fewer draws."""
_ORACLE_DRAWS = 2
_DEPLOYED_DRAWS = 3
_COMBINED = "Not applicable: re-weighted by value the regions differ, as combined weights do."
_ENOUGH = 0.3
"""Share of outputs that must not be zero."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """The two sides of a region, how to run them, and the shapes of what enters, per binding."""

    before: Runner
    after: Runner
    types: Mapping[str, onnx.TypeProto]
    shapes: Sequence[Mapping[str, Shape]]
    known: Sequence[Mapping[str, Array]]
    """Entering tensors of known value (shape arithmetic), per binding."""
    runtime: Runtime
    seed: int
    draws: int
    ignored: frozenset[str] = frozenset()
    """Constants set to zero on either side: offsets, where these were combined although the weights only moved."""
    elements: tuple[int, ...] = (0,)
    """Elements of the largest tensor in the region, per binding."""

    @property
    def large(self) -> bool:
        """Whether runs cost so much that few must do."""
        return self.elements[0] > LARGE


@dataclass(frozen=True, eq=False)
class _Draw:
    feeds: Callable[[], Mapping[str, Array]]
    """Made when needed, the same each time: those of a large region would fill the memory."""
    largest_weight: int
    seed: int


class _NotExact(Exception):
    """The integers cannot be kept exact, or the original does not compute them exactly."""


def compare_exactly(
    exchange: Exchange, *, moved: bool, offsets_moved: bool = True, rerun: Rerun | None = None
) -> LevelResult:
    """Level L2.

    `moved` says that L1 showed every weight to be only moved, so that a mismatch refutes; where that is not true of the
    offsets (`offsets_moved`), they are set to zero and only the weights are compared.
    """
    if moved and not offsets_moved:
        names = frozenset(name for runner in (exchange.before, exchange.after) for name in runner.cut.offsets)
        exchange = replace(exchange, ignored=names)
    unknown = (exchange.before.cut.operators | exchange.after.cut.operators) - EXACT
    if unknown:
        return not_applicable("L2", f"Not applicable: {', '.join(sorted(unknown))} does not keep integers exact.")
    if not moved and _bends(exchange.before.cut) != _bends(exchange.after.cut):
        # Min(y, C), or y + Relu(y − C): whatever stands for C, these integers may never reach it.
        return not_applicable("L2", "Not applicable: the rewrite has other operators that are not linear.")
    types = [significand_bits(kind.tensor_type.elem_type) for kind in exchange.types.values()]
    if not any(types):
        return not_applicable("L2", "Not applicable: no floating-point tensor enters the region.")
    bits = min(filter(None, types))
    try:
        if not moved and rerun is not None:
            return _compare_rerun(exchange, bits, rerun)
        return _compare_hashed(exchange, bits, moved)
    except (_NotExact, OracleFailed) as reason:
        return not_exact("L2", f"Not exact here: {reason}.")


def _bends(cut: Cut) -> list[str]:
    """The operators that are not linear."""
    kinds = [kind for node in cut.proto.graph.node for kind in standing_for(node, ())]
    return sorted(kind for kind in kinds if kind in _BENDS)


def hashed(value: Array, seed: int, largest: int) -> Array:
    """Each element by a seeded hash of its value: 1 … largest with the sign it had, 0 for ±0; same shape and type.

    The sign is kept so that a constant that is subtracted and its negative that is added stay the same.
    """
    wide = np.ascontiguousarray(value, np.float64).reshape(-1)
    step = (0x9E3779B97F4A7C15 * (2 * seed + 1)) % 2**64
    mixed = _mix(np.abs(wide).view(np.uint64) + np.uint64(step))
    size = (mixed % np.uint64(largest) + np.uint64(1)).astype(np.float64)
    result: Array = (size * np.nan_to_num(np.sign(wide))).reshape(value.shape).astype(value.dtype)
    return result


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _compare_hashed(exchange: Exchange, bits: int, moved: bool) -> LevelResult:
    draws = _draws(exchange, bits)
    oracle = Oracle(exchange.before.cut)
    nonzero, fed = 0.0, []
    for number, draw in enumerate(draws):
        feeds = draw.feeds()
        weights = [_weights(exchange, runner.cut, draw) for runner in (exchange.before, exchange.after)]
        try:
            old = exchange.before.plain(feeds, weights[0])
        except SessionFailed as error:
            raise _NotExact(f"the original region does not run on its own ({error})") from error
        if number < (1 if exchange.large else _ORACLE_DRAWS):
            _require_exact(old, oracle(feeds, weights[0]), "at ORT_DISABLE_ALL")
        try:
            new = exchange.after.plain(feeds, weights[1])
        except SessionFailed as error:
            return failed("L2", f"The rewritten region does not run: {error}", draws=number)
        problem = _difference(old, new)
        if problem and not moved:
            return not_applicable("L2", _COMBINED)
        if problem:
            _require_exact(old, oracle(feeds, weights[0]), "at ORT_DISABLE_ALL")
            if _kernels_round(exchange, (old, new), feeds, weights):
                raise _NotExact(f"the rewritten region's kernels round ({problem}, unoptimized)")
            return failed("L2", f"With integer weights and inputs, {problem} (unoptimized).", draws=number)
        nonzero += min(float(np.mean(value != 0)) if value.size else 0.0 for value in old.values()) / len(draws)
        if number in _deployed_draws(exchange, len(draws)):
            fed.append((feeds, weights, old))
    if nonzero < _ENOUGH:
        raise _NotExact(f"only {nonzero:.0%} of the outputs are not zero")
    note = ""
    for feeds, weights, old in fed:
        problem, inexact = _deployed(exchange, feeds, weights, old)
        if problem:
            return failed("L2", f"With integer weights and inputs, {problem}.", draws=len(draws))
        note = note or inexact
    figures = {"draws": len(draws), "largest_weight": draws[0].largest_weight, "nonzero": round(nonzero, 3)}
    where = f"unoptimized and at level '{exchange.runtime.level}'" if not note else f"unoptimized ({note})"
    what = "integer weights and inputs, biases left out" if exchange.ignored else "integer weights and inputs"
    few = (
        f" No more than {len(draws)} draws, with weights up to {draws[0].largest_weight}, because a tensor in it has "
        f"{exchange.elements[0]} elements; {len(fed)} of them at level '{exchange.runtime.level}'."
        if exchange.large
        else ""
    )
    return passed("L2", f"Equal bit for bit on {len(draws)} draws of {what}, {where}.{few}", **figures)


def _deployed_draws(exchange: Exchange, count: int) -> set[int]:
    """Which draws are run at the deployed level, too: the first ones, and the last, which is at the last binding."""
    return {0} if exchange.large else {*range(_DEPLOYED_DRAWS - 1), count - 1}


def _deployed(
    exchange: Exchange,
    feeds: Mapping[str, Array],
    weights: Sequence[Mapping[str, Array]],
    old: Mapping[str, Array],
) -> tuple[str, str]:
    """What refutes equality at the deployed level, and why nothing can be said there; both empty when all is equal."""
    level = f"at level '{exchange.runtime.level}'"
    try:
        (first,) = exchange.before.deployed([feeds], weights[0])
    except SessionFailed as error:
        return "", f"the original region does not load {level}: {error}"
    if _difference(old, first):
        return "", f"the original is not exact {level}"
    try:
        (second,) = exchange.after.deployed([feeds], weights[1])
    except SessionFailed as error:
        return f"the rewritten region does not run {level}: {error}", ""
    problem = _difference(old, second)
    if problem and _kernels_round(exchange, (old, second), feeds, weights):
        return "", f"the rewritten region's kernels round {level}"
    return f"{problem} {level}" if problem else "", ""


def _kernels_round(
    exchange: Exchange,
    outputs: tuple[Mapping[str, Array], Mapping[str, Array]],
    feeds: Mapping[str, Array],
    weights: Sequence[Mapping[str, Array]],
) -> bool:
    """Whether the graphs agree on these integers, and what they gave by no more than what kernels round.

    Then nothing is refuted, and the bound on real data (L3) decides.  A larger difference is a wrong kernel: real data
    need not show it, because weights may be dead there and inputs have one sign only.
    """
    sides = list(zip((exchange.before, exchange.after), weights, strict=True))
    cuts = [(replace(runner.cut, weights=given), runner.runtime) for runner, given in sides]
    return is_rounding(cuts, outputs, feeds)


def _compare_rerun(exchange: Exchange, bits: int, rerun: Rerun) -> LevelResult:
    """Weights are combined: apply the same rewrite to the region with integer weights, and compare its result."""
    cut = exchange.before.cut
    draws = _draws(exchange, bits)
    oracle = Oracle(cut)
    seeds = sorted({draw.seed for draw in draws})[:_DEPLOYED_DRAWS]
    for seed in seeds:
        weights = _weights(exchange, cut, replace(draws[0], seed=seed))
        old_model = cut.with_weights(weights)
        try:
            new_model = rerun(old_model)
        except Exception as error:  # noqa: BLE001 - the rewriter is not ours; whatever stops it stops this check only
            return not_applicable("L2", f"Not applicable: the rewrite does not apply to integer weights ({error}).")
        if [node.op_type for node in new_model.graph.node] == [node.op_type for node in old_model.graph.node]:
            return not_applicable("L2", "Not applicable: the rewrite leaves the re-weighted region as it is.")
        made = cut_of(new_model).weights.values()
        if any(value.size and (value != np.rint(value)).any() for value in made):
            return not_exact("L2", "Not exact here: of integer weights the rewrite makes some that are none.")
        chosen = draws[: max(2, len(draws) // len(seeds))]
        problem = _rerun_differs(exchange, (old_model, new_model), chosen, oracle(chosen[0].feeds(), weights))
        if problem:
            return failed("L2", f"Applied to integer weights, the rewrite differs: {problem}.")
    return passed("L2", f"The rewrite, applied to the region with {len(seeds)} sets of integer weights, is exact.")


def _rerun_differs(
    exchange: Exchange,
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    draws: Sequence[_Draw],
    expected: Mapping[str, Array],
) -> str:
    """What shows that the second model is not the first; `expected` are the first's outputs on the first draw."""
    names = [value.name for value in models[0].graph.output]
    # Which operators run shows on one draw at the deployed level; the others are for the unoptimized ones.
    for runtime, some in ((exchange.runtime.at("disable"), draws), (exchange.runtime, draws[:1])):
        try:
            first = open_session(models[0], runtime)
        except SessionFailed as error:
            raise _NotExact(f"the original region does not load on its own ({error})") from error
        try:
            second = open_session(models[1], runtime)
        except SessionFailed as error:
            return f"the rewritten region does not load ({error})"
        for draw in some:
            feeds = draw.feeds()
            try:
                old = run(first, {value.name: feeds[value.name] for value in models[0].graph.input}, names)
            except SessionFailed as error:
                raise _NotExact(f"the original region does not run on its own ({error})") from error
            if draw is draws[0]:
                _require_exact(old, expected, f"at level '{runtime.level}'")
            try:
                new = run(second, {value.name: feeds[value.name] for value in models[1].graph.input}, names)
            except SessionFailed as error:
                return f"the rewritten region does not run ({error})"
            problem = _difference(old, new)
            if problem:
                cuts = [cut_of(model) for model in models]
                _require_exact(old, Oracle(cuts[0])(feeds, cuts[0].weights), f"at level '{runtime.level}'")
                if is_rounding([(cut, runtime) for cut in cuts], (old, new), feeds):
                    raise _NotExact(f"the rewritten region's kernels round ({problem}, at level '{runtime.level}')")
                return problem
    return ""


def _draws(exchange: Exchange, bits: int) -> list[_Draw]:
    """Weight and input sizes that keep all sums exact; raises _NotExact where there are none."""
    limit = float(2**bits)
    absolute = Oracle(exchange.before.cut, absolute=True)
    count = min(exchange.draws, _FEWEST_DRAWS) if exchange.large else exchange.draws
    plans = [(count, largest) for largest in _LARGEST_WEIGHTS]
    if exchange.large:
        operands = min(operand_limit(bits, runner.runtime) for runner in (exchange.before, exchange.after))
        plans[:0] = [
            (number, largest) for number, largest in _FEW_DRAWS if number <= exchange.draws and largest <= operands
        ]
    ones = _feeds(exchange, 0, np.ones)
    for count, largest in plans:  # noqa: B007 - used below
        # Every weight at the largest that a hash can be: what holds for it holds for all seeds.
        weights = _highest_weights(exchange, largest)
        alone = _top(absolute(_feeds(exchange, 0, np.zeros), weights)) if _has_offsets(exchange.before.cut) else 0.0
        gain = _top(absolute(ones, weights))
        highest = int((limit - alone) // gain) if gain else _LARGEST_INPUT
        if highest >= min(3, _LARGEST_INPUT):
            break
    keep = 1.0 if highest >= 3 else max(0.0, (limit - alone) / gain / 3)
    if keep * 3 < 0.05:
        raise _NotExact("its sums are too long for the exact integers of the type")
    top = int(np.clip(highest, 3, _LARGEST_INPUT))

    def feeds(number: int, binding: int) -> dict[str, Array]:
        rng = np.random.default_rng([exchange.seed, 2, number])

        def integers(shape: Shape) -> Array:
            drawn = rng.integers(-top, top + 1, shape, np.int8)
            return drawn if keep == 1 else drawn * (rng.random(shape) < keep)

        return _feeds(exchange, binding, integers)

    last = len(exchange.shapes) - 1
    if exchange.elements[-1] > LARGE and exchange.elements[-1] > exchange.elements[0]:
        last = 0
    found = []
    for number, binding in enumerate([0] * (count - 1) + [last]):
        draw = _Draw(functools.partial(feeds, number, binding), largest, exchange.seed * 1000 + number)
        if keep < 1 and _top(absolute(draw.feeds(), _weights(exchange, exchange.before.cut, draw))) > limit:
            raise _NotExact("its sums leave the exact integers of the type")
        found.append(draw)
    return found


def _has_offsets(cut: Cut) -> bool:
    """Whether anything but kernels of convolutions could make the outputs of zeros other than zero."""
    kernels = {name for node in cut.proto.graph.node if node.op_type in _CONVS for name in node.input[1:2]}
    return bool(cut.offsets) or not kernels >= cut.weights.keys()


def _highest_weights(exchange: Exchange, largest: int) -> dict[str, Array]:
    return {
        name: np.where((value == value) & (value != 0) & (name not in exchange.ignored), largest, 0).astype(value.dtype)
        for name, value in exchange.before.cut.weights.items()
    }


def _feeds(exchange: Exchange, binding: int, draw: Callable[[Shape], Array]) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    shapes, known = exchange.shapes[binding], exchange.known[binding]
    for name, kind in exchange.types.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
        if significand_bits(kind.tensor_type.elem_type):
            feeds[name] = draw(shapes[name]).astype(dtype)
            continue
        if name not in known:
            raise _NotExact(f"the entering tensor '{name}' has no known value")
        feeds[name] = known[name]
    return feeds


def _weights(exchange: Exchange, cut: Cut, draw: _Draw) -> dict[str, Array]:
    return {
        name: np.zeros_like(value) if name in exchange.ignored else hashed(value, draw.seed, draw.largest_weight)
        for name, value in cut.weights.items()
    }


def _top(values: Mapping[str, Array]) -> float:
    return max((float(np.abs(value).max(initial=0)) for value in values.values()), default=0.0)


def _require_exact(values: Mapping[str, Array], expected: Mapping[str, Array], where: str) -> None:
    for name, value in values.items():
        if not np.array_equal(wide(value), expected[name]):
            raise _NotExact(f"the original itself does not compute '{name}' exactly {where}")


def _difference(old: Mapping[str, Array], new: Mapping[str, Array]) -> str:
    """A clause saying where the outputs differ; ±0 are equal.  Empty when they are the same."""
    for name, value in old.items():
        other = new[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            return f"'{name}' is {other.dtype} {list(other.shape)} instead of {value.dtype} {list(value.shape)}"
        wrong = value != other
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            return f"'{name}' differs in {int(wrong.sum())} of {wrong.size} elements, first at {list(at)}"
    return ""
