"""Choose among candidate rewrites by measuring each in its neighbourhood: real weights, captured activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from rewriter.activations import capture
from rewriter.context import neighbourhood, signature
from rewriter.feeds import Inputs
from rewriter.findings import Findings, Promise, is_losing
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.patience import Patience
from rewriter.propose import Applied, label, merge, overlap
from rewriter.region import boundary, extract
from rewriter.rule import Attempt, Outcome
from rewriter.session import SessionFailed
from rewriter.shapes import Bound
from rewriter.timing import Contender, Timing, compare
from rewriter.tuning import Memory

_BLOCK_SECONDS = 0.01
_WARMUP_SECONDS = 0.05
_MOST_SECONDS, _LEAST_SECONDS = 4.0, 0.4
_FINE_SECONDS = 0.8  # of a place that has time for a third look
_BRIEF_SHARE = 0.3  # of a place's time, for a first look at all candidates
_FINALISTS = 2  # candidates that share what is left of it, when the others have been sorted out by halves
_DOUBTFUL, _FINE = 1.02, 0.01  # speed-up in the noise that earns a third look, and the half-width asked of it
_LIKELY = 1.02  # expected speed-up in the noise that is worth a trial in the whole model
_SPREAD, _UNSURE = 0.03, 0.02  # standard deviations of log speed-ups: of a pass among places, of a brief look
_MOVING = 32  # multiplications of a convolution in the time that one element is read and written
BUDGET_SPENT = (
    "No time was left to measure it, besides what the timing of the whole model and the audit may take: raise --budget."
)
STOPPED = "It was not measured before the search was interrupted."

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Place:
    """One convolution, its candidates, and the model cut out around it."""

    start: str
    candidates: tuple[Applied, ...]
    nodes: frozenset[int]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    part: onnx.ModelProto
    key: str
    work: int
    """What it costs, in multiplications: where most time may be, so that it is measured first."""

    @property
    def passes(self) -> list[str]:
        """The name of each candidate's pass."""
        return [one.step.rule.name for one in self.candidates]


@dataclass(frozen=True)
class Choice:
    """The fastest candidate of a place and its measurement, which may be noise where it seems clearly faster."""

    applied: Applied
    timing: Timing
    measured_at: str


def places(
    graph: Graph, candidates: Mapping[str, Sequence[Applied]], feeds: Feeds
) -> tuple[list[Place], list[Attempt]]:
    """The candidates with what they have to be timed in, at the shapes of `feeds`; and those that cannot be cut out."""
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    bound = graph.bound_at(shapes)
    found: list[Place] = []
    left_out: list[Attempt] = []
    for start, options in candidates.items():
        region = frozenset().union(*(option.rewrite.removed for option in options))
        nodes = neighbourhood(graph.model, region)
        entering, leaving = boundary(graph.model, nodes)
        unknown = [name for name in entering if name not in bound.types]
        if unknown or not leaving:
            what = f"the type of '{unknown[0]}' is not known" if unknown else "nothing reads it"
            left_out += unmeasured(options, f"It could not be measured among its neighbours: {what}.")
            continue
        part = extract(graph.model, nodes, {name: bound.types[name] for name in entering}, leaving)
        key = f"{signature(part)} {[_what(option, sorted(nodes)) for option in options]}"
        found.append(
            Place(start, tuple(options), nodes, entering, leaving, part, key, _work(graph.model, bound, nodes))
        )
    return found, left_out


def _what(option: Applied, nodes: Sequence[int]) -> tuple[object, ...]:
    """What a candidate does to which of the nodes that it is timed with."""
    steps = [(one.step.rule.name, sorted(one.step.settings.items())) for one in option.parts or (option,)]
    return *steps, [nodes.index(index) for index in sorted(option.rewrite.removed)]


def _work(model: Model, bound: Bound, nodes: Iterable[int]) -> int:
    """Multiplications of the convolutions among the nodes, and what moving all that they make costs in these."""
    total = 0
    for index in nodes:
        node = model.nodes[index]
        shape = bound.shape(node.output[0])
        if shape is None:
            continue
        total += _MOVING * math.prod(shape)
        weight = bound.shape(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None:
            total += shape[0] * math.prod(shape[2:]) * math.prod(weight)
    return total


@dataclass(frozen=True)
class Looking:
    """What all rounds of a search share: how to run and for how long, and what came of it so far."""

    options: RunOptions
    inputs: Inputs
    patience: Patience
    progress: Progress
    memory: Memory | None = None
    promise: Promise = field(default_factory=Promise)
    findings: Findings = field(default_factory=Findings)

    @property
    def unmeasured(self) -> str:
        """Why there are candidates that were not measured."""
        return STOPPED if self.patience.stopped else BUDGET_SPENT


def choose(
    graph: Graph, found: Sequence[Place], looking: Looking, deadline: float
) -> tuple[list[Choice], list[Attempt], list[Place]]:
    """Measure each distinct place once; gives the winners, one per place at most, and what became of the others.

    Each pass is measured somewhere first, then what promises most.  What the memory knows is not measured again.
    `deadline` is a time of `time.perf_counter`; the places that it leaves no time for come last, they are not guessed.
    """
    memory, promise, progress = looking.memory, looking.promise, looking.progress
    distinct: dict[str, Place] = {}
    for place in found:
        distinct.setdefault(place.key, place)
    measured: dict[str, list[Timing] | str | None] = {}
    if memory is not None:
        known = {key: memory.recall(key, place.candidates) for key, place in distinct.items()}
        measured |= {key: timings for key, timings in known.items() if timings is not None}
    entering = {name for key, place in distinct.items() if key not in measured for name in place.entering}
    captured: Feeds = {}
    if entering:
        feeds = looking.inputs.feeds
        (captured,) = capture(graph.model, entering - feeds.keys(), [feeds], looking.options.runtime)
    counts = Counter(place.key for place in found)
    waiting = {key: place for key, place in distinct.items() if key not in measured}
    total = len(waiting)
    while waiting:
        progress("measuring candidates", total - len(waiting), total)
        left = looking.patience.until(deadline)
        scores = {key: counts[key] * promise.of(place.passes, place.work) for key, place in waiting.items()}
        key = max(scores, key=lambda each: (promise.is_new(waiting[each].passes), scores[each]))
        place = waiting.pop(key)
        if left < _LEAST_SECONDS:
            measured[key] = None
            continue
        seconds = min(_MOST_SECONDS, max(_LEAST_SECONDS, left * scores[key] / sum(scores.values())))
        try:
            timings = _measure(graph.model, place, captured, looking, seconds)
        except SessionFailed as error:
            measured[key] = f"It could not be measured: {error}"
            continue
        if looking.patience.stopped:  # while it was measured: its figures may rest on next to nothing
            measured[key] = None
            continue
        measured[key] = timings
        promise.learn(zip(place.passes, timings, strict=True), place.work)
        if memory is not None:
            memory.note(key, place.candidates, timings)
    progress("measuring candidates", total, total)
    choices: list[Choice] = []
    attempts: list[Attempt] = []
    late: list[Place] = []
    usual = _usual((distinct[key], found) for key, found in measured.items() if isinstance(found, list))
    for place in found:
        result = measured[place.key]
        if result is None:
            late.append(place)
            continue
        if isinstance(result, str):
            attempts += unmeasured(place.candidates, result)
            looking.findings.fail(place.start)
            continue
        for one, timing in zip(place.candidates, result, strict=True):
            if one.parts:  # what it says is not about the first of them alone
                continue
            looking.findings.note(place.start, one.step.rule.name, one.step.settings, timing)
        choice, others = _decide(place, result, distinct[place.key].start, usual)
        attempts += others
        choices += [choice] if choice else []
        if memory is not None:
            if not any(one.parts for one in place.candidates):  # their parts are known by themselves
                memory.same(place.key, place.candidates)
            if choice:
                memory.took(place.key)
    return choices, attempts, late


def unmeasured(options: Sequence[Applied], reason: str) -> list[Attempt]:
    """Attempts for candidates that were not measured."""
    return [_attempt(option, "unmeasured", reason) for option in options]


def compatible(choices: Sequence[Choice]) -> tuple[list[Choice], list[Choice]]:
    """The choices that can be applied together, those that save most time first, and the rest.

    Not those of the largest ratio: each is of its own neighbourhood, which is larger around several convolutions.
    """
    kept: list[Choice] = []
    rest: list[Choice] = []
    for choice in sorted(choices, key=lambda entry: entry.timing.after_ms - entry.timing.before_ms):
        clash = any(overlap(choice.applied.rewrite, other.applied.rewrite) for other in kept)
        (rest if clash else kept).append(choice)
    return kept, rest


def _usual(measured: Iterable[tuple[Place, Sequence[Timing]]]) -> dict[str, float]:
    """The speed-up of a pass at all places measured, on geometric average over the best of each place."""
    logs: dict[str, list[float]] = {}
    for place, timings in measured:
        best: dict[str, float] = {}
        for one, timing in zip(place.candidates, timings, strict=True):
            name = label(one.step)
            best[name] = max(best.get(name, 0.0), timing.speedup)
        for name, speedup in best.items():
            logs.setdefault(name, []).append(math.log(speedup))
    return {name: math.exp(sum(values) / len(values)) for name, values in logs.items()}


def _expected(option: Applied, timing: Timing, usual: Mapping[str, float]) -> float:
    """The speed-up measured; in the noise also what the pass usually gives, the more the wider the interval is.

    The mean of two normal distributions of log speed-ups by their precisions (empirical Bayes): the measurement, and
    places as they differ.
    """
    if timing.verdict == "FASTER":
        return timing.speedup
    low, high = timing.interval or (math.exp(-2 * _UNSURE), math.exp(2 * _UNSURE))
    own = 1 / max(1e-6, (math.log(high / low) / 4) ** 2)  # 95 % are two standard deviations to either side
    others = 1 / _SPREAD**2
    mean = own * math.log(timing.speedup) + others * math.log(usual.get(label(option.step), timing.speedup))
    return math.exp(mean / (own + others))


def _decide(
    place: Place, timings: Sequence[Timing], measured_at: str, usual: Mapping[str, float] | None = None
) -> tuple[Choice | None, list[Attempt]]:
    """The winner of a place and what becomes of the others; `usual` are speed-ups of passes at all places."""
    expected = {
        id(one): _expected(one, timing, usual or {}) for one, timing in zip(place.candidates, timings, strict=True)
    }
    ranked = sorted(zip(place.candidates, timings, strict=True), key=lambda pair: -expected[id(pair[0])])
    attempts = []
    winner: Choice | None = None
    for option, timing in ranked:
        likely = timing.verdict != "SLOWER" and expected[id(option)] > _LIKELY
        if winner is None and (timing.verdict == "FASTER" or likely):
            winner = Choice(option, timing, measured_at)
        elif timing.speedup > 1 and winner is not None:
            better = f"{winner.applied.step.rule.name} ({winner.applied.rewrite.summary})"
            reason = f"{describe(timing)}, but {better} was faster: {describe(winner.timing)}."
            attempts.append(_attempt(option, "not_worth_it", reason, timing))
        elif timing.verdict == "SLOWER" or is_losing(timing):
            attempts.append(_attempt(option, "slower", f"{describe(timing)}.", timing))
        else:
            attempts.append(_attempt(option, "not_worth_it", f"{describe(timing)}: {_noise(timing)}.", timing))
    return winner, attempts


def _noise(timing: Timing) -> str:
    """What hides the effect: the smallest one that the original against itself would have let through."""
    if timing.smallest_effect is None:
        return "too few pairs for an interval, so no effect beyond the noise is known"
    return f"within the noise of {100 * timing.smallest_effect:.2g} % seen in the control"


def describe(timing: Timing) -> str:
    """`1.44x (1.41 to 1.47) in context`."""
    if timing.interval is None:
        return f"{timing.speedup:.2f}x in context at a first look"
    return f"{timing.speedup:.2f}x ({timing.interval[0]:.2f} to {timing.interval[1]:.2f}) in context"


def _attempt(option: Applied, outcome: Outcome, reason: str, timing: Timing | None = None) -> Attempt:
    details = {} if timing is None else {"speedup": timing.speedup, "interval": timing.interval}
    made = option.rewrite
    return Attempt(option.step.rule.name, made.site, outcome, reason, summary=made.summary, details=details)


def _measure(model: Model, place: Place, captured: Feeds, looking: Looking, seconds: float) -> list[Timing]:
    """Time every candidate briefly, then by halves those that are not losing, longer and longer, until two are left.

    Where none is faster beyond the noise but one seems to be, that one gets a third look, on fresh data and finer.
    """
    inside = {name for index in place.nodes for name in model.nodes[index].output if name}
    types = {value.name: value.type for value in place.part.graph.input}
    contenders = []
    for option in place.candidates:
        after = model.splice(merge([option.rewrite]))
        made = inside | {name for node in option.rewrite.added for name in node.output}
        nodes = [index for index, node in enumerate(after.nodes) if made & set(node.output)]
        part = extract(after, nodes, types, place.leaving)
        contenders.append(Contender(f"{option.step.rule.name} at '{option.rewrite.site}'", part, model.folder))
    feeds: dict[str, np.ndarray] = {name: captured[name] for name in place.entering}
    original = Contender("original", place.part, model.folder)

    found: list[Timing] = []

    def look(numbers: Sequence[int], budget: float, half_width: float = 0.03) -> None:
        timings = compare(
            original,
            [contenders[number] for number in numbers],
            feeds,
            looking.options.runtime,
            budget_seconds=budget,
            block_seconds=_BLOCK_SECONDS,
            warmup_seconds=_WARMUP_SECONDS,
            half_width=half_width,
            seed=looking.options.seed,
            stop=lambda: looking.patience.stopped,
        )
        found[:] = found or timings
        for number, timing in zip(numbers, timings, strict=True):
            found[number] = timing

    several = len(contenders) > 1
    look(range(len(contenders)), seconds * _BRIEF_SHARE if several else seconds)
    alive, left = better_half(found, range(len(contenders))), seconds * (1 - _BRIEF_SHARE)
    while several and alive:
        last = len(alive) <= _FINALISTS
        look(alive, left if last else left / 2)
        alive, left = [] if last else better_half(found, alive), left / 2
    best = max(range(len(found)), key=lambda number: found[number].speedup)
    doubtful = found[best].speedup > _DOUBTFUL and all(timing.verdict != "FASTER" for timing in found)
    if doubtful and seconds >= _FINE_SECONDS:
        look([best], seconds, half_width=_FINE)
    return found


def better_half(timings: Sequence[Timing], numbers: Sequence[int]) -> list[int]:
    """The faster half of those timings, two at least, without any that is losing clearly."""
    alive = sorted((number for number in numbers if not is_losing(timings[number])), key=lambda n: -timings[n].speedup)
    return alive[: max(_FINALISTS, (len(numbers) + 1) // 2)]
