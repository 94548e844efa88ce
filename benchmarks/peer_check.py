"""Whether a contender computes what the original does: its outputs for two inputs beside the original's, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

TOLERANCE: Final = 1e-4
"""Of the largest number of the output: what other orders of summing may make of float32, and a margin."""
_CLEAR: Final = 10
"""How much more than a contender's error another input has to change the output, or nothing was seen."""

RIGHT: Final = ("agrees", "blind")
"""The verdicts with which a contender is timed."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """The comparison over all outputs and inputs."""

    verdict: Literal["agrees", "differs", "blind", "fails"]
    """Blind: within the tolerance, but another input hardly changes the outputs, so little is shown.

    Fails: it cannot be run.
    """
    error: float | None
    """The largest difference, as a part of the largest number of the output."""
    response: float | None
    """In the same unit, how much the other input changes the original's output that it changes least."""
    reason: str = ""


def agreement(original: Sequence[Outputs], other: Sequence[Outputs]) -> Agreement:
    """Compare outputs for the same inputs in the same order, two or more; names that only `other` has do not count."""
    errors = []
    for before, after in zip(original, other, strict=True):
        for name, wanted in before.items():
            if name not in after:
                return Agreement("differs", None, None, f"no output {name}")
            found = after[name]
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                kinds = f"{found.dtype} {list(found.shape)}, not {wanted.dtype} {list(wanted.shape)}"
                return Agreement("differs", None, None, f"{name} is {kinds}")
            errors.append(_distance(wanted, found))
    if not errors:
        return Agreement("differs", None, None, "there is no output to compare")
    error, response = float(np.max(errors)), _response(original)  # unlike max, keeps a NaN
    if not error <= TOLERANCE:  # a NaN is not
        reason = f"off by {error:.1e} of the largest output" if np.isfinite(error) else "not finite"
        return Agreement("differs", error if np.isfinite(error) else None, response, reason)
    return Agreement("agrees" if response > _CLEAR * error else "blind", error, response)


def _response(original: Sequence[Outputs]) -> float:
    first, *others = original
    return min(max((_distance(first[name], other[name]) for other in others), default=0.0) for name in first)


def _distance(wanted: np.ndarray, found: np.ndarray) -> float:
    """The largest difference as a part of the largest number; NaN where either is not finite."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    most = float(np.abs(a).max(initial=0.0))
    gap = float(np.abs(a - b).max(initial=0.0))
    return gap / most if most else (0.0 if gap == 0.0 else float("inf"))
