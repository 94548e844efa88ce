"""What a record says: candidates measured at a place, or the rewrites chosen for a model, and on what machine."""

from __future__ import annotations

import hashlib
import math
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from rewriter.exactness import setting_of
from rewriter.session import Runtime

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratios = tuple[Positive, Positive]
Value = bool | int | float | str


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(_Entry):
    """Everything outside the model that a measurement depends on."""

    tool: str
    """Version of this tool: another one may make other candidates."""
    provider: str
    options: dict[str, str]
    device: str
    instructions: str | None
    driver: str | None
    libraries: tuple[str, ...]
    onnxruntime: str
    build: str
    level: str
    threads: int = Field(ge=0)

    @property
    def key(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Measured(_Entry):
    """One candidate against the original, in context."""

    pass_name: str
    settings: dict[str, Value]
    verdict: Literal["FASTER", "SLOWER", "NOISE"]
    speedup: Positive
    interval: Ratios | None
    control_interval: Ratios | None
    smallest_effect: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    before_ms: Positive
    after_ms: Positive
    pairs: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for low, high in filter(None, (self.interval, self.control_interval)):
            if low > high:
                raise ValueError(f"the interval {low:g} to {high:g} is upside down")
        if self.verdict != "NOISE" and self.interval is None:
            raise ValueError(f"the verdict {self.verdict} has no interval")
        if self.interval is not None:
            low, high = self.interval
            if (self.verdict == "FASTER" and low <= 1) or (self.verdict == "SLOWER" and high >= 1):
                raise ValueError(f"the interval {low:g} to {high:g} is not {self.verdict}")
        return self


class PlaceEntry(_Entry):
    """All candidates of a place: a convolution among its neighbours, known by what they compute, not by names."""

    environment: Environment
    key: Digest
    site: str
    """Where it was met first; for people."""
    measured: tuple[Measured, ...] = Field(min_length=1)
    chosen: int | None
    """Which of them went into a model that passed its audit; None where the original was kept."""
    created: AwareDatetime

    @model_validator(mode="after")
    def _chosen_exists(self) -> Self:
        if self.chosen is not None and not 0 <= self.chosen < len(self.measured):
            raise ValueError(f"candidate {self.chosen} was chosen of {len(self.measured)}")
        return self


class PlanStep(_Entry):
    """One rewrite of a model."""

    pass_name: str
    settings: dict[str, Value]
    site: str
    why: str
    sure: bool


class PlanEntry(_Entry):
    """The rewrites that were measured fastest in a whole model, audited and written."""

    environment: Environment
    model: Digest
    """SHA-256 of the original with its external data."""
    asked: Digest
    """Of the passes tried, their settings, the permissions and the input shapes."""
    steps: tuple[PlanStep, ...] = Field(min_length=1)
    speedup: Positive
    budget: Positive
    complete: bool
    """Whether every candidate had been measured."""
    created: AwareDatetime


def environment_of(runtime: Runtime) -> Environment:
    """This machine, and how models are run on it.  Raises NotVerified where the provider is missing."""
    setting = setting_of(runtime)
    return Environment(
        tool=_tool(),
        provider=runtime.provider,
        options=dict(sorted(runtime.provider_options)),
        device=setting.device,
        instructions=setting.instructions,
        driver=setting.driver,
        libraries=setting.libraries,
        onnxruntime=setting.onnxruntime,
        build=setting.build,
        level=runtime.level,
        threads=runtime.threads,
    )


def _tool() -> str:
    try:
        return version("onnx-conv-rewriter")
    except PackageNotFoundError:
        return "not installed"


def finite(value: float | None) -> float | None:
    """The number, if it is one."""
    return value if value is not None and math.isfinite(value) else None
