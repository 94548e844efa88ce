"""The JSON of benchmarks/cuda.py: a row for each model, type and batch, with what became of every candidate."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.trial import Subject, Trial
from rewriter import nvidia
from rewriter.providers import PROVIDERS, Provider
from rewriter.timing import Timing

SCHEMA: Final = 1
_NO_TIME: Final = "The run ended before it was timed."
_LEFT_OUT: Final = frozenset({"before_sha256", "after_sha256"})


@dataclass
class Job:
    """One model in one type at one batch size, and what has become of its candidates, the original first."""

    subject: Subject
    batch: int | None
    """None: the batch of the export, or 1."""
    trials: list[Trial]
    timings: dict[str, Timing] = field(default_factory=dict)
    """By candidate."""
    unmeasured: dict[str, str] = field(default_factory=dict)
    """Why a candidate that could have been timed was not."""
    seconds: float = 0.0


def content(jobs: Sequence[Job]) -> dict[str, Any]:
    """Rows, and how many candidates there are of each status over all rows."""
    rows = [_row(job) for job in jobs]
    counts = Counter(entry["status"] for row in rows for entry in row["candidates"])
    unsure = sum(entry["status"] == "measured" and entry["verdict"] != "equivalent" for entry in _entries(rows))
    audits = sum("audit" in trial.seconds for job in jobs if job.batch is None for trial in job.trials)
    return {
        "counts": {"rows": len(rows), "audits": audits, "measured, not proven": unsure, **dict(sorted(counts.items()))},
        "rows": rows,
    }


def device_facts(provider: Provider) -> dict[str, Any]:
    """What the driver tells about a GPU and its libraries; empty for any other device."""
    if PROVIDERS[provider].device != "cuda":
        return {}
    clocks = nvidia.clocks(0)
    return {
        "devices": [dataclasses.asdict(device) for device in nvidia.devices()],
        "driver": nvidia.driver_version(),
        "driver_cuda": _dotted(nvidia.driver_cuda()),
        "cuda_runtime": _dotted(nvidia.cuda_runtime(13) or nvidia.cuda_runtime(12)),
        "cudnn": nvidia.cudnn(),
        "clocks": None if clocks is None else dataclasses.asdict(clocks),
    }


def _entries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for row in rows for entry in row["candidates"]]


def _dotted(version: tuple[int, int] | None) -> str | None:
    return None if version is None else ".".join(map(str, version))


def _row(job: Job) -> dict[str, Any]:
    original = job.trials[0]
    first = next(iter(job.timings.values()), None)
    return {
        "model": job.subject.name.removeprefix("zoo:"),
        "dtype": job.subject.dtype,
        "batch": job.batch or 1,
        "seconds": round(job.seconds, 3),
        "original": {
            "sha256": original.sha256,
            "ms": first.before_ms if first else None,
            "error": _finite(original.error),
            "problem": "" if original.status == "ready" else original.reason,
        },
        "control_interval": first.control_interval if first else None,
        "smallest_effect": first.smallest_effect if first else None,
        "candidates": [_candidate(trial, job) for trial in job.trials[1:]],
    }


def _candidate(trial: Trial, job: Job) -> dict[str, Any]:
    name = trial.candidate.name
    timing = job.timings.get(name)
    status, reason = trial.status, trial.reason
    if status == "ready":
        status = "measured" if timing else "not measured"
        reason = reason if timing else job.unmeasured.get(name, _NO_TIME)
    return {
        "name": name,
        "status": status,
        "reason": reason,
        "verdict": trial.verdict,
        "grade": trial.grade,
        "rewrites": trial.rewrites,
        "declined": trial.declined,
        "audit": trial.audit,
        "error": _finite(trial.error),
        "timing": _plain(timing) if timing else None,
        "seconds": trial.seconds,
    }


def _plain(timing: Timing) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(timing).items() if key not in _LEFT_OUT}


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
