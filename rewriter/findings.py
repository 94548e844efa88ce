"""What a search has measured so far: variants of passes at convolutions, and what a pass may save elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rewriter.rule import Settings
from rewriter.timing import Timing

_GUESS, _GUESSED = 2e-9, 4e7  # milliseconds saved for each multiplication, and how many of them that guess is worth
_LOSING, _FAR_SLOWER = 0.97, 0.9  # speed-ups below which a first look is enough, with and without an interval


class Promise:
    """What a place may save: what its passes have saved at the places measured so far, for as much work.

    It decides what is measured first, and how long; never what is chosen.
    """

    def __init__(self) -> None:
        self._work: dict[str, int] = {}
        self._saved: dict[str, float] = {}

    def of(self, passes: Iterable[str], work: int) -> float:
        """Milliseconds, of the pass that promises most."""
        return (1 + work) * max(map(self._rate, passes))

    def is_new(self, passes: Iterable[str]) -> bool:
        """Whether there is a pass among them that was not measured anywhere yet."""
        return any(name not in self._work for name in passes)

    def learn(self, measured: Iterable[tuple[str, Timing]], work: int) -> None:
        """Take in what was measured at a place, the best of each pass; a loss saves nothing."""
        saved: dict[str, float] = {}
        for name, timing in measured:
            saved[name] = max(saved.get(name, 0.0), timing.before_ms - timing.after_ms)
        for name, milliseconds in saved.items():
            self._work[name] = self._work.get(name, 0) + 1 + work
            self._saved[name] = self._saved.get(name, 0.0) + milliseconds

    def _rate(self, name: str) -> float:
        work, saved = self._work.get(name, 0), self._saved.get(name, 0.0)
        return (_GUESS * _GUESSED + saved) / (_GUESSED + work)


class Findings:
    """The timing of each variant of a pass at a convolution, in context: the last one where there are several."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[tuple[Settings, Timing]]] = {}
        self._failed: set[str] = set()

    def note(self, start: str, name: str, settings: Settings, timing: Timing) -> None:
        """Take in the timing of a pass with settings at the convolution that makes `start`."""
        others = [entry for entry in self._seen.get((name, start), []) if dict(entry[0]) != dict(settings)]
        self._seen[name, start] = [*others, (settings, timing)]

    def fail(self, start: str) -> None:
        """Take in that what is made of the convolution that makes `start` could not be run."""
        self._failed.add(start)

    def failed(self, start: str) -> bool:
        """Whether that could not be run."""
        return start in self._failed

    def of(self, start: str, name: str, settings: Settings) -> Timing | None:
        """What was measured there; None: nothing."""
        seen = self._seen.get((name, start), [])
        return next((timing for known, timing in seen if dict(known) == dict(settings)), None)

    def knows(self, start: str) -> bool:
        """Whether anything was measured at the convolution that makes `start`."""
        return any(known == start for _, known in self._seen)

    def usual(self) -> Mapping[str, float]:
        """Milliseconds that a pass saved at a convolution, on average over those that it was measured at."""
        saved: dict[str, list[float]] = {}
        for (name, _), entries in self._seen.items():
            saved.setdefault(name, []).append(max(timing.before_ms - timing.after_ms for _, timing in entries))
        return {name: _mean(values) for name, values in saved.items()}


def is_losing(timing: Timing) -> bool:
    """Whether a first look is enough: far slower, or slower by its whole interval."""
    if timing.interval is None:
        return timing.speedup < _FAR_SLOWER
    return timing.speedup < _LOSING and timing.interval[1] < 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
