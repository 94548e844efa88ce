"""The tolerances that the user gives (--rtol, --atol): compared and reported for each output, never decisive.

What decides is the original's own error: a fixed tolerance is too wide for one network and too narrow for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from rewriter.constants import Array
from rewriter.equivalence.records import AuditOptions
from rewriter.options import UNSAID, Tolerance

_PART: Final = 1 << 16


def tolerance_of(tolerances: Mapping[str, Tolerance], name: str) -> tuple[float, float] | None:
    """(rtol, atol) of an output: its own, else those for all outputs (""), else UNSAID; None where none is given."""
    own, common = tolerances.get(name), tolerances.get("")
    if own is None and common is None:
        return None
    found = [tolerance for tolerance in (own, common) if tolerance is not None]
    rtol = next((tolerance.rtol for tolerance in found if tolerance.rtol is not None), UNSAID)
    atol = next((tolerance.atol for tolerance in found if tolerance.atol is not None), UNSAID)
    return rtol, atol


def is_within(old: Array, new: Array, rtol: float, atol: float) -> bool:
    """Whether |new − old| ≤ atol + rtol · |old| in every element, NaN where NaN is, and the same infinities.

    Whole numbers and booleans are compared as float64; strings have to be equal.
    """
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if old.dtype.kind in "SO":
        return bool((old == new).all())
    x, y = old.reshape(-1), new.reshape(-1)
    return all(
        _close(x[start : start + _PART], y[start : start + _PART], rtol, atol) for start in range(0, x.size, _PART)
    )


def _close(old: Array, new: Array, rtol: float, atol: float) -> bool:
    x, y = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(all="ignore"):
        close = np.isfinite(x) & (np.abs(y - x) <= atol + rtol * np.abs(x))
    return bool((close | (x == y) | (np.isnan(x) & np.isnan(y))).all())


def data_notes(options: AuditOptions) -> tuple[str, ...]:
    """What a reader has to know of ranges and tolerances that were given."""
    notes = []
    if options.ranges:
        rest = "every other input" if len(options.ranges) > 1 else "every input"
        listed = ", ".join(
            (f"'{name}'" if name else rest) + f" from {low:g} to {high:g}"
            for name, (low, high) in sorted(options.ranges.items(), key=lambda entry: (not entry[0], entry[0]))
        )
        notes.append(f"Inputs were drawn only where you said: {listed}; L3 and L4 say nothing of others.")
    if options.tolerances:
        notes.append("Your tolerances (--rtol, --atol) are compared and reported for each output; they decide nothing.")
    return tuple(notes)
