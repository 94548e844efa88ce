"""The report: what was considered, what became of it, whether it is equivalent, and how fast it is, as one record."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field

from rewriter import nvidia
from rewriter.diagnosis import built_for, distributions
from rewriter.equivalence.records import Audit, Verdict
from rewriter.model import Model
from rewriter.nvidia import Clocks
from rewriter.pareto import Variant, efficient
from rewriter.profile import KernelTime
from rewriter.providers import PROVIDERS
from rewriter.rule import Attempt, Outcome
from rewriter.session import Runtime
from rewriter.timing import Timing

SCHEMA = "https://onnx-conv-rewriter/report/1"
"""Identifier of this report's layout; the number rises when a reader would have to change."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class AttemptRecord(_Record):
    """One considered rewrite; `pass` in JSON."""

    pass_name: str = Field(serialization_alias="pass")
    site: str
    outcome: Outcome
    reason: str
    summary: str = ""
    where: tuple[str, ...] = ()
    matched: int = 0
    details: dict[str, Any] = {}


class TimingRecord(_Record):
    """The whole model before and after, in one interleaved run: milliseconds per run, speedup, its 95 % interval."""

    provider: str
    threads: int
    speedup: float
    interval: tuple[float, float] | None
    before_ms: float
    after_ms: float
    verdict: Literal["FASTER", "SLOWER", "NOISE"]
    reason: str
    pairs: int
    control_interval: tuple[float, float] | None
    smallest_effect: float | None
    nondeterministic: tuple[str, ...] = ()
    before_options: dict[str, str] = {}
    """Provider options, and whether replays of a CUDA graph were timed, of either side."""
    after_options: dict[str, str] = {}
    before_cuda_graph: bool = False
    cuda_graph: bool = False
    device: str = ""
    bound: bool = False
    """Whether inputs and outputs stayed on the device."""
    clocks: tuple[Clocks | None, Clocks | None] = (None, None)
    """Of the device, before and after; null where they are not known, and on the CPU."""


class KernelRecord(_Record):
    """One kind of ONNX Runtime's own kernels in both models: how many nodes, and their milliseconds in one run."""

    kind: str
    before: int
    after: int
    before_ms: float
    after_ms: float


class VariantRecord(_Record):
    """One whole model that was considered: what it costs, and whether another one is better (see `rewriter.pareto`)."""

    name: str
    rewrites: int
    ms: float
    speedup: float | None
    """Over the original; null for the original itself."""
    interval: tuple[float, float] | None
    bytes: int
    peak_mib: float | None
    chosen: bool
    efficient: bool
    """Whether no other one is better in latency, size or peak memory and as good in the rest, within the noise."""


class FileRecord(_Record):
    """One of the two models."""

    path: str | None
    sha256: str
    bytes: int
    nodes: int
    ops: dict[str, int]


class Report(_Record):
    """What a command did; `to_json` is what `--report` writes."""

    schema_id: str = Field(default=SCHEMA, serialization_alias="schema")
    command: str
    verdict: Verdict
    grade: str | None
    reason: str
    changed: bool
    """Whether the output differs from the input at all."""
    attempts: tuple[AttemptRecord, ...]
    timing: TimingRecord | None
    audit: Audit | None
    before: FileRecord
    after: FileRecord
    inputs: dict[str, tuple[int, ...]]
    """Input shapes the timing ran with."""
    chosen_shapes: dict[str, tuple[int, ...]]
    """Those of them with dimensions that nobody gave."""
    environment: dict[str, str]
    notes: tuple[str, ...] = ()
    kernels: tuple[KernelRecord, ...] = ()
    """Where both models spend their time, by ONNX Runtime's profiler, which takes some itself; empty: not looked at."""
    variants: tuple[VariantRecord, ...] = ()
    """The whole models that were considered, the original among them; empty: not compared."""
    objective: str = "latency"
    """What was to become better: latency, throughput, size or memory."""
    items_per_run: int = 1
    """How many inputs, the batch, one run takes: for the throughput."""
    seconds: float

    @property
    def accepted(self) -> bool:
        """Whether the model may be written: equivalent, or an approximation that was asked for."""
        return self.verdict == "equivalent" or (self.changed and self.audit is not None and self.audit.accepted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"audit"})
        plain["audit"] = None if self.audit is None else self.audit.to_dict()
        return plain


def attempt_record(attempt: Attempt) -> AttemptRecord:
    """An attempt as it stands in the report."""
    return AttemptRecord(
        pass_name=attempt.pass_name,
        site=attempt.site,
        outcome=attempt.outcome,
        reason=attempt.reason,
        summary=attempt.summary,
        where=attempt.where,
        matched=attempt.matched,
        details=dict(attempt.details),
    )


def timing_record(timing: Timing) -> TimingRecord:
    """A timing as it stands in the report."""
    return TimingRecord(
        provider=timing.provider,
        threads=timing.threads,
        speedup=timing.speedup,
        interval=timing.interval,
        before_ms=timing.before_ms,
        after_ms=timing.after_ms,
        verdict=timing.verdict,
        reason=timing.reason,
        pairs=timing.pairs,
        control_interval=timing.control_interval,
        smallest_effect=timing.smallest_effect,
        nondeterministic=timing.nondeterministic,
        before_options=dict(timing.before_options),
        after_options=dict(timing.after_options),
        before_cuda_graph=timing.before_cuda_graph,
        cuda_graph=timing.cuda_graph,
        device=timing.device,
        bound=timing.bound,
        clocks=timing.clocks,
    )


def kernel_records(before: Sequence[KernelTime], after: Sequence[KernelTime]) -> tuple[KernelRecord, ...]:
    """Both profiles side by side, the kernels that take most time first."""
    old, new = ({one.kind: one for one in side} for side in (before, after))
    found = [
        KernelRecord(
            kind=kind,
            before=old[kind].count if kind in old else 0,
            after=new[kind].count if kind in new else 0,
            before_ms=old[kind].ms if kind in old else 0.0,
            after_ms=new[kind].ms if kind in new else 0.0,
        )
        for kind in dict.fromkeys([*old, *new])
    ]
    return tuple(sorted(found, key=lambda one: -max(one.before_ms, one.after_ms)))


def variant_records(variants: Sequence[Variant]) -> tuple[VariantRecord, ...]:
    """All variants, each with whether it is efficient among them, in their order."""
    return tuple(
        VariantRecord(**asdict(one), efficient=good) for one, good in zip(variants, efficient(variants), strict=True)
    )


def file_record(model: Model, path: Path | None) -> FileRecord:
    """Hash, size and operator counts of a model."""
    ops = Counter(
        f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type for node in model.nodes
    )
    return FileRecord(
        path=None if path is None else str(path),
        sha256=model.sha256,
        bytes=model.size,
        nodes=len(model.nodes),
        ops=dict(sorted(ops.items())),
    )


def environment(*runtimes: Runtime) -> dict[str, str]:
    """Versions and machine that the figures hold for, and of every runtime's provider what it is and runs on."""
    facts = {name: _version(name) for name in ("onnx-conv-rewriter", "onnx", "onnx-graphsurgeon", "numpy")}
    facts["onnxruntime"] = ort.__version__  # whichever of its packages is installed
    facts["onnxruntime_package"] = ", ".join(distributions())
    facts["python"] = platform.python_version()
    facts["machine"] = f"{platform.system()} {platform.machine()}"
    facts["processor"] = _processor()
    facts["cores"] = str(os.cpu_count())
    facts["provider"] = ", ".join(runtime.provider for runtime in runtimes)
    facts["ort_level"] = ", ".join(dict.fromkeys(runtime.level for runtime in runtimes))
    for runtime in runtimes:
        if PROVIDERS[runtime.provider].takes_options:
            facts |= _device_facts(runtime)
    return facts


def _device_facts(runtime: Runtime) -> dict[str, str]:
    """The options it ran with, the devices of the machine, its driver, and the CUDA and cuDNN that were loaded."""
    built = built_for()
    cuda = nvidia.cuda_runtime(built[0]) if built else None
    return {
        "provider_options": " ".join(f"{key}={value}" for key, value in runtime.provider_options),
        "gpus": ", ".join(device.name for device in nvidia.devices()),
        "driver": nvidia.driver_version() or "",
        "cuda": f"{cuda[0]}.{cuda[1]}" if cuda else "",
        "cudnn": nvidia.cudnn() or "",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
