"""What a search remembers: places measured before on such a machine, and at its end those of this run worth keeping.

Kept are places where nothing was faster, and those whose winner went into a model that passed its audit; a candidate
that no audit has seen is never recalled as the one to take.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rewriter.errors import BadInput
from rewriter.options import RunOptions
from rewriter.propose import Applied
from rewriter.rule import Settings
from rewriter.timing import Timing
from rewriter.tuning.entries import Environment, Measured, PlaceEntry, PlanEntry, PlanStep
from rewriter.tuning.store import Store


@dataclass(eq=False)
class Memory:
    """The records of one environment, and what one search adds to them."""

    store: Store
    environment: Environment
    recalled: int = 0
    """Distinct places that were not measured again."""
    _fresh: dict[str, tuple[str, tuple[Measured, ...]]] = field(default_factory=dict)
    """Measured in this search: key to site and candidates."""
    _candidates: dict[tuple[str, str, str], tuple[str, int]] = field(default_factory=dict)
    """Pass, settings and site of a rewrite to the key of its place and its number there."""
    _won: set[str] = field(default_factory=set)
    """Keys of places where a candidate was taken, whatever became of it."""

    def recall(self, key: str, candidates: Sequence[Applied]) -> list[Timing] | None:
        """The timings of a place's candidates, in order, where they were measured before."""
        try:
            entry = self.store.place(self.environment, _digest(key))
        except BadInput:  # records that cannot be read are none
            return None
        asked = [(one.step.rule.name, dict(one.step.settings)) for one in candidates]
        if entry is None or [(one.pass_name, one.settings) for one in entry.measured] != asked:
            return None
        self.recalled += 1
        return [_timing(one, self.environment, entry) for one in entry.measured]

    def note(self, key: str, candidates: Sequence[Applied], timings: Sequence[Timing]) -> None:
        """Take in what was measured at a place."""
        measured = tuple(_measured(*pair) for pair in zip(candidates, timings, strict=True))
        self._fresh[_digest(key)] = (candidates[0].rewrite.site, measured)

    def same(self, key: str, candidates: Sequence[Applied]) -> None:
        """Take in that these rewrites are candidates of a place with this key."""
        for number, one in enumerate(candidates):
            self._candidates[_identity(one)] = (_digest(key), number)

    def took(self, key: str) -> None:
        """Take in that a candidate of the place was taken."""
        self._won.add(_digest(key))

    def keep(self, accepted: Sequence[Applied], plan: PlanEntry | None = None) -> int:
        """Store what is worth it, `accepted` being the rewrites of a model that passed its audit; gives how many."""
        chosen = dict(self._candidates[_identity(one)] for one in accepted if _identity(one) in self._candidates)
        now = datetime.now(UTC)
        places = [
            PlaceEntry(
                environment=self.environment,
                key=key,
                site=site,
                measured=measured,
                chosen=chosen.get(key),
                created=now,
            )
            for key, (site, measured) in self._fresh.items()
            if key in chosen or key not in self._won
        ]
        self.store.add(places, [plan] if plan else [])
        return len(places)

    def plan(self, model: str, asked: str, budget: float) -> PlanEntry | None:
        """The rewrites chosen for this model before, unless the budget now allows to look further."""
        found = self.store.plan(self.environment, model, asked)
        return found if found is not None and (found.complete or found.budget >= budget) else None

    def planned(
        self, model: str, asked: str, applied: Sequence[Applied], speedup: float, budget: float, *, complete: bool
    ) -> PlanEntry:
        """The record of a model's rewrites."""
        steps = tuple(
            PlanStep(
                pass_name=one.step.rule.name,
                settings=dict(one.step.settings),
                site=one.rewrite.site,
                why=one.why,
                sure=one.sure,
            )
            for one in applied
        )
        return PlanEntry(
            environment=self.environment,
            model=model,
            asked=asked,
            steps=steps,
            speedup=speedup,
            budget=budget,
            complete=complete,
            created=datetime.now(UTC),
        )


def asked_digest(
    passes: Collection[str],
    settings: Mapping[str, Settings],
    options: RunOptions,
    shapes: Mapping[str, Sequence[int]],
    *,
    objective: str = "latency",
) -> str:
    """SHA-256 of all that decides which candidates there are, besides the model."""
    plain = {
        "passes": sorted(passes),
        "settings": {name: dict(sorted(given.items())) for name, given in sorted(settings.items()) if given},
        "allow": sorted(options.allow),
        "shapes": {name: list(shape) for name, shape in sorted(shapes.items())},
        "objective": objective,
        "given": {name: list(shape) for name, shape in sorted(options.input_shapes.items())},
    }
    return _digest(json.dumps(plain, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(one: Applied) -> tuple[str, str, str]:
    return one.step.rule.name, json.dumps(dict(one.step.settings), sort_keys=True), one.rewrite.site


def _measured(one: Applied, timing: Timing) -> Measured:
    return Measured(
        pass_name=one.step.rule.name,
        settings=dict(one.step.settings),
        verdict=timing.verdict,
        speedup=timing.speedup,
        interval=timing.interval,
        control_interval=timing.control_interval,
        smallest_effect=timing.smallest_effect,
        before_ms=timing.before_ms,
        after_ms=timing.after_ms,
        pairs=timing.pairs,
    )


def _timing(one: Measured, environment: Environment, entry: PlaceEntry) -> Timing:
    when = f"{entry.created:%Y-%m-%d}"
    return Timing(
        before="original",
        after=f"{one.pass_name} at '{entry.site}'",
        verdict=one.verdict,
        reason=f"{one.verdict.capitalize()}, as recorded on {when} on this machine.",
        before_ms=one.before_ms,
        after_ms=one.after_ms,
        speedup=one.speedup,
        interval=one.interval,
        control_interval=one.control_interval,
        smallest_effect=one.smallest_effect,
        pairs=one.pairs,
        runs_per_block=(0, 0),
        threads=environment.threads,
        provider="cuda" if environment.provider == "cuda" else "cpu",
        seconds=0.0,
        before_sha256={},
        after_sha256={},
        device=environment.device,
    )
