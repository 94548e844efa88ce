"""What L4 keeps of one output while it compares run after run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.constants import Array
from rewriter.equivalence.precision import any_finite, largest_finite, relative_error, worst
from rewriter.equivalence.records import OutputAudit
from rewriter.equivalence.tolerances import is_within


@dataclass
class Figures:
    """The worst figures of one output so far."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    rms: float = 0.0
    tolerance: float = 0.0
    spread: float = 0.0
    ratio: float = 0.0
    bitwise: bool = True
    finite: bool = False
    first: Array | None = None
    runs: int = 0
    constant: bool = True
    """Whether the original's output never changed although its inputs did."""
    problem: str = ""
    own_error: float | None = None
    """The original's error against float64, in the run where the rewritten model's is most of what is allowed."""
    new_error: float | None = None
    """The rewritten model's, in that run."""
    _share: float = -1.0
    """That part."""
    given: tuple[float, float] | None = None
    """The rtol and atol that the user would take."""
    within: bool | None = None

    def see(self, old: Array, new: Array, control: Array, *, measure: bool = True) -> None:
        """Take in one comparison for the figures; without `measure` only of what kind and how large the output is."""
        self.shape, self.dtype = tuple(old.shape), str(old.dtype)
        if self.given is not None and measure:
            self.within = self.within is not False and is_within(old, new, *self.given)
        same = old.dtype == new.dtype and old.shape == new.shape
        self.bitwise = self.bitwise and same and old.tobytes() == new.tobytes()
        if old.dtype.kind in "SO" or old.shape != new.shape or not old.size:
            return
        self.finite |= any_finite(old)
        if not measure:
            return
        error, needed = worst(old, new)
        if not np.isnan(off := relative_error([(old, new)])):
            self.rms = max(self.rms, off)
        self.max_abs = max(self.max_abs, error)
        self.max_rel = max(self.max_rel, error / max(largest_finite(old), 1e-300) if error else 0.0)
        self.tolerance = max(self.tolerance, needed)
        if control.shape == old.shape:
            self.spread = max(self.spread, worst(old, control)[0])

    def follow(self, output: Array) -> None:
        """Take in the original's output, to see whether it ever changes."""
        self.runs += 1
        if self.first is None:
            self.first = output
        elif self.constant:
            self.constant = output.shape == self.first.shape and output.tobytes() == self.first.tobytes()

    def judge(self, error: float, allowed: float) -> None:
        """Take in one error as a fraction of what is allowed."""
        self.ratio = max(self.ratio, 0.0 if error == 0 else float("inf") if allowed == 0 else error / allowed)

    def hold(self, own: float, new: float, allowed: float) -> None:
        """Take in the errors of both models against float64 in one run."""
        share = 0.0 if new == 0 else float("inf") if allowed == 0 else new / allowed
        if share > self._share:
            self._share, self.own_error, self.new_error = share, own, new
        self.judge(new, allowed)

    def record(self) -> OutputAudit:
        return OutputAudit(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            rms=self.rms,
            tolerance=self.tolerance,
            spread=self.spread,
            ratio=self.ratio,
            bitwise=self.bitwise,
            own_error=self.own_error,
            new_error=self.new_error,
            compared=self.finite and not (self.runs > 1 and self.constant),
            within_tolerance=self.within,
        )
