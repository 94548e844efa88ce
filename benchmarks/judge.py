"""Which of the candidates that were tried are worth timing: not the wrong ones, and none twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from benchmarks.trial import Trial

_SLACK: Final = 8.0
"""Times the original's own error, as timed, that a candidate's may be."""
_UNITS: Final = 16.0
"""The least error of its own that a deep network is granted, in units of roundoff."""


def judged(trials: Sequence[Trial], unit: float) -> list[Trial]:
    """The trials of one model, the original's first; `unit` is the unit roundoff it is timed with.

    Those that are the same model with the same options as an earlier one are marked so; those whose outputs as timed
    are far off are refuted, whatever the audit in full precision said: the options they are timed with may be wrong.
    """
    found: list[Trial] = []
    known: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
    for trial in trials:
        if trial.status != "ready":
            found.append(trial)
            continue
        first = known.setdefault((trial.sha256, trial.candidate.options), trial.candidate.name)
        if first != trial.candidate.name:
            found.append(replace(trial, status="same model", reason=f"It makes the same model as {first}."))
            continue
        found.append(_near(trial, trials[0].error, unit))
    return found


def _near(trial: Trial, own: float | None, unit: float) -> Trial:
    """The trial, refuted where its outputs as timed are much farther from the CPU's than the original's are."""
    if trial.error is None or own is None:
        return trial
    allowed = _SLACK * max(own, _UNITS * unit)
    if trial.error <= allowed:
        return trial
    reason = f"As timed, its outputs are off by {trial.error:.1e}; the original's are by {own:.1e}."
    return replace(trial, status="different", verdict="different", grade=None, reason=reason)
