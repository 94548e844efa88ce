"""What an audit says: immutable records that turn into JSON (`Audit.to_dict`).  No timings in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from rewriter.options import RunOptions, Tolerance
from rewriter.session import Runtime
from rewriter.shapes import Shape

Verdict = Literal["equivalent", "approximate", "different", "not_verified"]
"""`approximate`: every run agreed within the original's own accuracy, but the agreement is not proven."""
Grade = Literal["bitwise", "exact", "finite", "rounding"]
"""bitwise: nothing differs; exact: weights only moved; finite: zeros were inserted; rounding: weights were combined."""
Level = Literal["L0", "L1", "L2", "L3", "L4", "L5"]
Outcome = Literal["pass", "fail", "not applicable", "not exact here"]
Precision = Literal["full", "tf32"]
"""tf32: float32 operands are rounded to 11 bits before they are multiplied."""
Figure = float | int | str | bool | None

GRADES: tuple[Grade, ...] = ("bitwise", "exact", "finite", "rounding")
"""From the strongest claim to the weakest."""


@dataclass(frozen=True)
class AuditOptions:
    """How to audit; the defaults are what `rewriter audit` uses."""

    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    samples: Sequence[Mapping[str, np.ndarray]] = ()
    """The user's own inputs, each a complete set of feeds."""
    approximated: Mapping[str, float] = field(default_factory=dict)
    """Tensors of the second model that need only approximate the first one's, with the relative error allowed.

    What makes them is not proven but measured, on `samples` alone; the verdict is then `approximate` at best.
    """
    draws: int = 12
    """Integer draws of L2, each with inputs and weights of its own seed."""
    perturbed_regions: int = 8
    """Regions whose effect on the outputs is measured one by one, at one run of the whole model each."""
    full: bool = False
    """Whether outputs are also compared with float64 (L4), and both models on the edges of the number range (L5)."""
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    """The error that the user would take, by output name ("": all others): reported, never decisive."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What inputs are drawn from, by input name ("": all others): from low to high."""


def audit_options(options: RunOptions, *, runtime: Runtime | None = None) -> AuditOptions:
    """What the options of a command say of its audits; on `runtime`, where that is another one."""
    return AuditOptions(
        runtime=runtime or options.runtime,
        seed=options.seed,
        input_shapes=options.input_shapes,
        samples=options.samples,
        full=options.full,
        tolerances=options.tolerances,
        ranges=options.ranges,
    )


class Record(BaseModel):
    """Base of the records: frozen, compared by value."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        use_attribute_docstrings=True,  # for the schema of certificates
    )


class LevelResult(Record):
    """What one level of the ladder found, in one sentence, with its figures."""

    level: Level
    outcome: Outcome
    detail: str
    figures: dict[str, Figure] = {}


class RegionAudit(Record):
    """One region in which the two models differ, and what each level says about it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    before: dict[str, int]
    after: dict[str, int]
    verdict: Verdict
    grade: Grade | None
    levels: tuple[LevelResult, ...]
    blind: bool | None
    """Whether the graph outputs compared do not respond to a perturbation of this region; None where not measured."""
    reason: str
    allowed_error: float | None = None
    """The relative error that was allowed, where it only had to approximate; None: it had to be equivalent."""
    flags: dict[str, str] = {}
    """What L5 found: `nonfinite`, `signed_zero` and `denormals`, each "same", "differs" or "not compared"."""

    @property
    def accepted(self) -> bool:
        """Whether it is what was asked for: equivalent, or an approximation within the error allowed."""
        return self.verdict == "equivalent" or (self.allowed_error is not None and self.verdict == "approximate")

    def level(self, name: Level) -> LevelResult | None:
        """The result of one level, or None when the level was not reached."""
        return next((entry for entry in self.levels if entry.level == name), None)


class OutputAudit(Record):
    """Worst figures of one graph output over all whole-model runs."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    max_abs: float
    max_rel: float
    """max|difference| / max|value|."""
    rms: float = 0.0
    """Root mean square of the differences over that of the values, in the worst run."""
    tolerance: float
    """The rtol = atol that numpy.allclose would have needed."""
    spread: float
    """The original's own error: its largest difference between optimization levels and thread counts."""
    ratio: float
    """Largest error as a fraction of what is allowed; above 1 the level fails."""
    bitwise: bool
    own_error: float | None = None
    """Largest error against float64 of the original, where a float64 reference was made; of the run judged worst."""
    new_error: float | None = None
    """That of the rewritten model in the same run."""
    compared: bool
    """False where nothing was learned: never finite, empty, or the same whatever the input."""
    within_tolerance: bool | None = None
    """Whether every difference is within the tolerance that the user gave; None where none was.  Decides nothing."""


class Witness(Record):
    """One set of inputs both models were run on."""

    recipe: str
    seed: int | None
    shapes: dict[str, tuple[int, ...]]
    chosen: tuple[str, ...]
    """Inputs with a dimension that nobody gave, so that the auditor chose it."""
    problem: str = ""
    """Why the original could not be run on it, if so."""


class Audit(Record):
    """The result of auditing `after` against `before`."""

    verdict: Verdict
    grade: Grade | None
    reason: str
    regions: tuple[RegionAudit, ...]
    levels: tuple[LevelResult, ...]
    """L0 and L4, which concern the whole model, and L5 at other sizes where dimensions are free."""
    outputs: tuple[OutputAudit, ...]
    witnesses: tuple[Witness, ...]
    notes: tuple[str, ...]
    before_sha256: str
    after_sha256: str
    provider: str
    threads: int
    level: str
    seed: int
    provider_options: dict[str, str] = {}
    """Those it ran with: full precision, whatever the user's are."""
    precision: Precision = "full"
    reference: str = ""
    """The provider that the *first* model ran on, where that was another one."""
    flags: dict[str, str] = {}
    """Those of the regions together, and `sizes`: at which other sizes of free dimensions both models were run."""
    deployed: Audit | None = None
    """The runs once more with the user's own options, where these compute in less than full precision."""

    @property
    def accepted(self) -> bool:
        """Whether the models are as was asked: equivalent, but for regions that only had to approximate, and do."""
        allowed = any(region.allowed_error is not None for region in self.regions)
        asked = allowed and all(region.accepted for region in self.regions)
        return self.verdict == "equivalent" or (self.verdict == "approximate" and asked and self._runs_agree)

    @property
    def _runs_agree(self) -> bool:
        return all(level.outcome != "fail" for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinities and NaN as strings."""
        return {key: _plain(value) for key, value in self.model_dump(mode="json").items()}


class CrossAudit(Record):
    """One or two models on several providers: the second model against the first on each, each model across them."""

    verdict: Verdict
    reason: str
    pairs: tuple[Audit, ...]
    """The second model against the first, one per provider; empty where there is one model only."""
    crossings: tuple[Audit, ...]
    """Each model on each further provider against itself on the first one."""

    @property
    def audits(self) -> tuple[Audit, ...]:
        """All of them."""
        return self.pairs + self.crossings

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinities and NaN as strings."""
        return {key: _plain(value) for key, value in self.model_dump(mode="json").items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value


def passed(level: Level, detail: str, **figures: Figure) -> LevelResult:
    """A level that looked and found nothing."""
    return LevelResult(level=level, outcome="pass", detail=detail, figures=figures)


def failed(level: Level, detail: str, **figures: Figure) -> LevelResult:
    """A level that refutes equivalence."""
    return LevelResult(level=level, outcome="fail", detail=detail, figures=figures)


def not_applicable(level: Level, detail: str, **figures: Figure) -> LevelResult:
    """A level that can say nothing here."""
    return LevelResult(level=level, outcome="not applicable", detail=detail, figures=figures)


def not_exact(level: Level, detail: str, **figures: Figure) -> LevelResult:
    """The integer level, where the original itself does not compute integers exactly."""
    return LevelResult(level=level, outcome="not exact here", detail=detail, figures=figures)
