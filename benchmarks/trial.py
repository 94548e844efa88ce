"""What benchmarks/cuda.py does with a candidate before it is timed: make it, audit it, run it once as it will be timed.

These functions run in processes of their own, several at once; everything they take and give can be pickled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.candidates import Candidate, Made, NotApplicable, check, make
from models.catalogue import Options, build
from models.write import write_model
from rewriter import equivalence
from rewriter.equivalence import Audit, AuditOptions
from rewriter.errors import RewriterError
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import replay
from rewriter.saving import save
from rewriter.session import Runtime, open_session, run
from rewriter.timing import Contender
from rewriter.timing.runners import open_runner

Status = Literal["ready", "does not apply", "different", "failed", "not measured", "measured", "same model"]


@dataclass(frozen=True)
class Subject:
    """A model in one type, in a folder of its own: model.onnx, feeds.npz, and in expected.npz what the CPU computes."""

    name: str
    dtype: str
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "model.onnx"

    def arrays(self, what: Literal["feeds", "expected"]) -> dict[str, np.ndarray]:
        """The named arrays of one of the files."""
        with np.load(self.folder / f"{what}.npz") as archive:
            return {name: archive[name] for name in archive.files}


@dataclass(frozen=True)
class Trial:
    """One candidate on one model, before timing."""

    candidate: Candidate
    status: Status
    reason: str = ""
    path: Path | None = None
    """The file to time; that of the original where only options differ."""
    sha256: str = ""
    rewrites: int = 0
    declined: dict[str, int] = field(default_factory=dict)
    verdict: str | None = None
    grade: str | None = None
    audit: dict[str, Any] = field(default_factory=dict)
    error: float | None = None
    """As timed: the largest difference from the original on the CPU over the largest value, worst output."""
    seconds: dict[str, float] = field(default_factory=dict)


def prepare(name: str, dtype: str, folder: Path) -> Subject:
    """Build the model `name` of `models` in `dtype`, its inputs, and what the CPU computes of them."""
    subject = Subject(name, dtype, folder)
    write_model(build(name, Options(float16=dtype == "float16")), subject.path)
    feeds = dict(representative(Model.load(subject.path), RunOptions()).feeds)
    expected = run(open_session(subject.path, Runtime("cpu")), feeds)
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]  # its keywords are names of arrays
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]
    return subject


def examine(subject: Subject, candidate: Candidate, runtime: Runtime) -> Trial:
    """Make the candidate, audit it in full precision on the runtime's provider, and run it once as it will be timed.

    Whatever goes wrong is in the result, bugs too: one candidate must not cost a run its others.
    """
    try:
        check(candidate, runtime.provider, subject.dtype)
        return _examined(subject, candidate, runtime)
    except NotApplicable as no:
        return Trial(candidate, "does not apply", str(no))
    except RewriterError as error:
        return Trial(candidate, "failed", str(error))
    except Exception as error:  # noqa: BLE001 - see above
        return Trial(candidate, "failed", f"A bug: {type(error).__name__}: {error}")


def _examined(subject: Subject, candidate: Candidate, runtime: Runtime) -> Trial:
    begin = time.perf_counter()
    before = Model.load(subject.path)
    made = make(candidate, before, runtime.provider) if candidate.stages else Made(before)
    trial = Trial(
        candidate,
        "ready",
        path=subject.path,
        sha256=made.model.sha256,
        rewrites=len(made.applied),
        declined=dict(made.declined or {}),
        verdict="equivalent",
        grade="bitwise",
        reason="The model is the same.",
        seconds={"rewrite": _lap(begin)},
    )
    if candidate.stages:
        trial = _audited(trial, subject, before, made, runtime)
    if trial.status != "ready":
        return trial
    try:
        return _tried(trial, subject, runtime)
    except RewriterError as error:
        return replace(trial, status="failed", reason=str(error))


def _audited(trial: Trial, subject: Subject, before: Model, made: Made, runtime: Runtime) -> Trial:
    begin = time.perf_counter()
    options = AuditOptions(runtime=runtime.for_audit())
    audit = equivalence.audit(before, made.model, options, rerun=replay(made.applied))
    trial.seconds["audit"] = _lap(begin)
    trial = replace(trial, verdict=audit.verdict, grade=audit.grade, reason=audit.reason, audit=figures(audit))
    if audit.verdict == "different":
        return replace(trial, status="different")
    path = subject.folder / f"{trial.sha256}.onnx"
    save(made.model, path)
    return replace(trial, path=path)


def _tried(trial: Trial, subject: Subject, runtime: Runtime) -> Trial:
    """Run it once as it will be timed, so that what cannot be loaded, bound or captured is known before the timing."""
    begin = time.perf_counter()
    assert trial.path is not None
    own = runtime.with_options(**dict(trial.candidate.options))
    runner = open_runner(Contender(trial.candidate.name, trial.path), own, subject.arrays("feeds"))
    runner.repeat(1)
    error = worst_error(runner.outputs(), subject.arrays("expected"))
    trial.seconds["first runs"] = _lap(begin)
    return replace(trial, error=error)


def worst_error(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """max|actual - expected| / max|expected|, of the worst output; infinite where shapes or finiteness differ."""
    worst = 0.0
    for name, value in expected.items():
        wide, found = value.astype(np.float64), actual[name].astype(np.float64)
        if found.shape != wide.shape or not np.array_equal(np.isfinite(found), np.isfinite(wide)):
            return float("inf")
        finite = np.isfinite(wide)
        difference = np.abs(found - wide)[finite].max(initial=0.0)
        worst = max(worst, float(difference / (np.abs(wide)[finite].max(initial=0.0) or 1.0)))
    return worst


def figures(audit: Audit) -> dict[str, Any]:
    """The audit in a few numbers: regions by verdict, levels by outcome, and the errors of the outputs."""
    regions: dict[str, int] = {}
    levels: dict[str, dict[str, int]] = {}
    for region in audit.regions:
        regions[region.verdict] = regions.get(region.verdict, 0) + 1
        for entry in region.levels:
            counts = levels.setdefault(entry.level, {})
            counts[entry.outcome] = counts.get(entry.outcome, 0) + 1
    for entry in audit.levels:
        levels[entry.level] = {entry.outcome: 1}
    outputs = [
        {
            "name": output.name,
            "max_abs": _number(output.max_abs),
            "max_rel": _number(output.max_rel),
            "of_allowed": _number(output.ratio),
        }
        for output in audit.outputs
    ]
    return {"provider": audit.provider, "regions": regions, "levels": levels, "outputs": outputs}


def _number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def _lap(begin: float) -> float:
    return round(time.perf_counter() - begin, 3)
