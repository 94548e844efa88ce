"""What `optimize` was asked: the model, the passes, the objective, and what all steps share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from rewriter.base import Pass
from rewriter.certificate.digests import file_digest
from rewriter.choose import Looking
from rewriter.model import Model
from rewriter.objective import Objective
from rewriter.options import RunOptions
from rewriter.patience import Patience
from rewriter.rule import Settings
from rewriter.timing import Timing
from rewriter.tuning import asked_digest

_TIMING_SHARE, _MOST_TIMING = 0.15, 20.0  # of the budget; seconds
_NO_SLOWER, _MOST_NOISE = (
    0.02,
    0.05,
)  # how much slower a model may be by its interval, besides the noise, where speed is not the objective


@dataclass(frozen=True)
class Task:
    """What `optimize` was asked."""

    model: Model
    rules: Mapping[str, Pass]
    settings: Mapping[str, Settings]
    looking: Looking
    objective: Objective

    @property
    def options(self) -> RunOptions:
        return self.looking.options

    @property
    def patience(self) -> Patience:
        return self.looking.patience

    @property
    def identity(self) -> tuple[str, str]:
        """Digests of the model with its data, and of what was asked: what a recorded plan is of."""
        asked = asked_digest(
            self.rules, self.settings, self.options, self.looking.inputs.shapes, objective=self.objective
        )
        return sha256(file_digest(self.model).model_dump_json().encode()).hexdigest(), asked

    @property
    def timing_seconds(self) -> float:
        """For the last timing of the whole model, unless the pairs for an interval take longer."""
        return min(_MOST_TIMING, _TIMING_SHARE * self.patience.budget)

    @property
    def about_speed(self) -> bool:
        """Whether the objective is speed, of one kind or another."""
        return self.objective in ("latency", "throughput")

    def holds(self, timing: Timing) -> bool:
        """Whether a model timed so may be written: faster, or as fast where speed is not the objective."""
        if self.about_speed:
            return timing.verdict == "FASTER"
        if timing.interval is None or timing.smallest_effect is None:
            return False
        low, high = timing.interval
        noise = min(_MOST_NOISE, max(_NO_SLOWER, timing.smallest_effect))
        return low * (1 + noise) >= 1 and high >= 1
