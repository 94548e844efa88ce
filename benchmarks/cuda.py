"""The whole GPU measurement: zoo × float32 and float16 × candidates, each audited and timed, into one JSON.

    python -m benchmarks.cuda [--models NAME ...] [--dtypes float32 float16] [--seconds 420]
    python -m benchmarks.cuda --provider cpu --output FILE     # the same run on the CPU: what it does, no figures

First all models are built and all candidates made and audited, in processes of their own; these end after half of the
time at the latest.  Then, with nothing else running, the candidates of each model are timed against it in one
interleaved run, with the model against itself as control.  A candidate that is refuted, or whose outputs as timed are
far from what the CPU computes, is not timed.  The JSON is written after each model; whatever was left out stands in it
with its reason.  `finished` says that the run came to its end and that something was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast, get_args

import onnxruntime as ort

from benchmarks.candidates import ORIGINAL, Candidate, table
from benchmarks.judge import judged
from benchmarks.record import SCHEMA, Job, content, device_facts
from benchmarks.trial import Subject, Trial, examine, prepare
from benchmarks.workers import run_all
from models.catalogue import catalogue
from rewriter.bindings import known_size
from rewriter.errors import RewriterError
from rewriter.exactness import exactness
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.providers import Provider
from rewriter.report.record import environment
from rewriter.saving import write_atomically
from rewriter.session import Runtime, require_provider
from rewriter.timing import MINIMUM_PAIRS, Contender, compare
from rewriter.timing.runners import open_runner

RESULTS: Final = Path(__file__).parent / "results" / "cuda.json"
MODELS: Final = (
    "tf_resnext50_depthwise_sum",
    "resnext50_32x4d_dyn",
    "regnet_y_400mf",
    "timm_skresnext50_32x4d",
    "regnet_x_1_6gf",
    "mobilenet_v2",
    "timm_dpn68",
    "shufflenet_v2_x1_0",
    "timm_mixnet_s",
)
DTYPES: Final = ("float32", "float16")
LARGER_BATCH: Final = 32
"""Also timed, behind everything else, where the batch is free."""

_AUDIT_SHARE: Final = 0.5
_BLOCK, _WARMUP, _HALF_WIDTH = 0.02, 0.1, 0.02  # seconds, seconds, and the relative half-width aimed at
_SURE: Final = 1.3  # times what the least number of pairs should take
_UNIT: Final = {11: 2.0**-11, 24: 2.0**-24}
_NOT_VERIFIED: Final = 3


@dataclass(frozen=True)
class Plan:
    """What is asked for.  `processes` are for audits; 0 makes them here, one after the other."""

    provider: Provider
    models: tuple[str, ...]
    """Names of the catalogue of models."""
    dtypes: tuple[str, ...]
    seconds: float
    output: Path
    processes: int = 0
    larger_batch: int = LARGER_BATCH


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 done, 2 bad usage, 3 where the provider cannot be used."""
    plan = _asked(arguments)
    try:
        report = measure(plan, table(), print)
    except RewriterError as error:
        print(f"benchmarks/cuda.py: {error}", file=sys.stderr)
        return _NOT_VERIFIED
    print(f"{plan.output}: {json.dumps(report['counts'])}, {report['seconds']['total']:.0f} s")
    return 0


def _asked(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        prog="benchmarks/cuda.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--provider", choices=get_args(Provider), default="cuda")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--seconds", type=float, default=420.0, help="for everything together (default: 420)")
    parser.add_argument("--processes", type=int, default=_spare_processors(), help="for audits; 0: none of their own")
    parser.add_argument("--output", type=Path, help=f"default: results/{RESULTS.name} beside this file, for cuda only")
    asked = parser.parse_args(arguments)
    if asked.provider != "cuda" and (asked.output is None or asked.output.resolve() == RESULTS.resolve()):
        parser.error(f"results/{RESULTS.name} holds figures of CUDA only: name another file with --output")
    if not (math.isfinite(asked.seconds) and asked.seconds > 0):
        parser.error(f"--seconds {asked.seconds:g} is no positive number of seconds")
    if asked.processes < 0:
        parser.error(f"--processes {asked.processes} is negative: give 0 for none of their own")
    if asked.output is not None and not asked.output.parent.is_dir():
        parser.error(f"the folder of --output {asked.output} does not exist: create it first")
    names = tuple(name if name in catalogue() else f"zoo:{name}" for name in asked.models)
    for name in names:
        if name not in catalogue():
            parser.error(f"there is no model {name.removeprefix('zoo:')}: python -m models --list shows the names")
    output = asked.output or RESULTS
    return Plan(cast(Provider, asked.provider), names, tuple(asked.dtypes), asked.seconds, output, asked.processes)


def measure(plan: Plan, candidates: Sequence[Candidate], tell: Callable[[str], None]) -> dict[str, Any]:
    """The whole run; `tell` gets a line per row.  Returns what it wrote to `plan.output`.

    Raises NotVerified where the provider cannot be used, and BadInput where the file cannot be written.
    """
    begin = time.perf_counter()
    runtime = Runtime(plan.provider)
    require_provider(runtime)
    probe = exactness(runtime)
    spent = {"exactness": _since(begin)}
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "finished": False,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {**environment(runtime), "onnxruntime": ort.__version__},
        "device": device_facts(plan.provider),
        "exactness": probe.model_dump(mode="json"),
        "plan": {**dataclasses.asdict(plan), "output": plan.output.name, "threads": runtime.threads},
        "seconds": spent,
        "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
    }

    def write(jobs: Sequence[Job], *, finished: bool = False) -> None:
        spent["total"] = _since(begin)
        report.update(content(jobs), finished=finished)
        write_atomically(plan.output, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())

    with tempfile.TemporaryDirectory() as folder:
        jobs = _tried(plan, candidates, runtime, Path(folder), begin)
        spent["audits"] = _since(begin) - spent["exactness"]
        write(jobs)
        for number, job in enumerate(jobs):
            left = plan.seconds - (time.perf_counter() - begin)
            _time(job, runtime, left * _load(job) / sum(map(_load, jobs[number:])))
            write(jobs)
            tell(_line(job))
    write(jobs, finished=any(job.timings for job in jobs))
    return report


def _tried(plan: Plan, candidates: Sequence[Candidate], runtime: Runtime, folder: Path, begin: float) -> list[Job]:
    """Every model in every type, with each candidate made, audited and run once; larger batches last."""
    deadline = begin + _AUDIT_SHARE * plan.seconds
    wanted = [
        (name, dtype, folder / f"{number}-{dtype}") for number, name in enumerate(plan.models) for dtype in plan.dtypes
    ]
    for _, _, place in wanted:
        place.mkdir()
    built = run_all(prepare, wanted, plan.processes, deadline)
    subjects = [subject for subject in built if subject is not None]
    every = (ORIGINAL, *candidates)
    # All models' first candidates before any model's second, so that what is left out is what matters least.
    calls = [(subject, candidate, runtime) for candidate in every for subject in subjects]
    late = f"It was not audited within {_AUDIT_SHARE * plan.seconds:.0f} s, or its process died."
    found = [
        trial or Trial(candidate, "not measured", late)
        for (_, candidate, _), trial in zip(calls, run_all(examine, calls, plan.processes, deadline), strict=True)
    ]
    jobs = [
        Job(subject, None, judged(found[index :: len(subjects)], _unit(subject, runtime)))
        for index, subject in enumerate(subjects)
    ]
    larger = [Job(job.subject, plan.larger_batch, job.trials) for job in jobs if _open_batch(job.subject)]
    unbuilt = [
        Job(Subject(*asked), None, [Trial(each, "not measured", "The model was not built in time.") for each in every])
        for asked, subject in zip(wanted, built, strict=True)
        if subject is None
    ]
    return jobs + larger + unbuilt


def _unit(subject: Subject, runtime: Runtime) -> float:
    """The unit roundoff of what is timed: float16 and TF32 have 11 bits."""
    return _UNIT[11 if subject.dtype == "float16" or runtime.tf32 else 24]


def _open_batch(subject: Subject) -> bool:
    shapes = [value.type.tensor_type.shape.dim for value in Model.load(subject.path).inputs]
    return all(len(dims) > 1 and known_size(dims[0]) is None for dims in shapes)


def _time(job: Job, runtime: Runtime, seconds: float) -> None:
    """Time as many of the job's candidates as fit, by priority, in one interleaved run; fills the job."""
    begin = time.perf_counter()
    ready = [trial for trial in job.trials[1:] if trial.status == "ready"]
    if not ready:
        return
    if job.trials[0].status != "ready":
        job.unmeasured = dict.fromkeys(_names(ready), f"The original cannot be timed: {job.trials[0].reason}")
        return
    if seconds <= 0:
        job.unmeasured = dict.fromkeys(_names(ready), "No time was left for this model.")
        return
    try:
        feeds = _feeds(job)
        original = Contender("original", job.subject.path)
        fit = _fitting(original, runtime, feeds, seconds)
        chosen = ready[: max(0, fit)]
        late = f"No time was left for it: of {len(ready)} candidates {len(chosen)} fit into {max(0.0, seconds):.0f} s."
        job.unmeasured = dict.fromkeys(_names(ready[len(chosen) :]), late)
        timings = compare(
            original,
            [_contender(trial, runtime) for trial in chosen],
            feeds,
            runtime,
            budget_seconds=seconds - (time.perf_counter() - begin),
            block_seconds=_BLOCK,
            warmup_seconds=_WARMUP,
            half_width=_HALF_WIDTH,
        )
    except Exception as error:  # noqa: BLE001 - one model must not cost the run its others
        job.unmeasured = dict.fromkeys(_names(ready), f"The timing failed: {error}")
    else:
        job.timings = dict(zip(_names(chosen), timings, strict=True))
    job.seconds = time.perf_counter() - begin


def _load(job: Job) -> int:
    """Models that timing the job loads, the original thrice among them: once to see how long it takes, and a control.

    What is left of the time is shared in proportion, so that it does not go to models with nothing to time.
    """
    ready = sum(trial.status == "ready" for trial in job.trials[1:])
    return ready + 3 if ready else 1


def _names(trials: Sequence[Trial]) -> list[str]:
    return [trial.candidate.name for trial in trials]


def _contender(trial: Trial, runtime: Runtime) -> Contender:
    assert trial.path is not None
    own = runtime.with_options(**dict(trial.candidate.options)) if trial.candidate.options else None
    return Contender(trial.candidate.name, trial.path, runtime=own)


def _feeds(job: Job) -> Feeds:
    """What the trials ran with, or new inputs at the larger batch."""
    feeds = job.subject.arrays("feeds")
    if job.batch is None:
        return feeds
    shapes = {name: (job.batch, *array.shape[1:]) for name, array in feeds.items()}
    return representative(Model.load(job.subject.path), RunOptions(input_shapes=shapes)).feeds


def _fitting(original: Contender, runtime: Runtime, feeds: Feeds, seconds: float) -> int:
    """How many candidates can be timed against the original and its control in the time, by what the original takes."""
    begin = time.perf_counter()
    runner = open_runner(original, runtime, feeds)
    runner.repeat(2)
    loaded = time.perf_counter()
    runner.repeat(1)
    run = time.perf_counter() - loaded
    rounds = (MINIMUM_PAIRS + 1) * 2 * (max(_BLOCK, run) + run)
    each = _SURE * ((loaded - begin) + max(_WARMUP, 3 * run) + rounds)
    return int((seconds - (time.perf_counter() - begin)) / each) - 2


def _spare_processors() -> int:
    """Two are left for this process and the driver; none of their own where there are no more than two."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(14, usable - 2))


def _since(begin: float) -> float:
    return round(time.perf_counter() - begin, 3)


def _line(job: Job) -> str:
    sure = [timing for timing in job.timings.values() if timing.verdict == "FASTER"]
    best = max(sure, key=lambda timing: timing.speedup, default=None)
    said = "nothing was timed" if not job.timings else "nothing is faster" if best is None else ""
    if best is not None and best.interval is not None:
        said = f"{best.after} {best.speedup:.2f}x ({best.interval[0]:.2f} to {best.interval[1]:.2f})"
    where = f"{job.subject.name} {job.subject.dtype} batch {job.batch or 1}"
    return f"{where}: {len(job.timings)} candidates timed, {said}, {job.seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
