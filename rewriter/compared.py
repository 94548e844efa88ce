"""Whole models side by side, for the report: their latency, size and memory, and which kernels their time goes into."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from rewriter.errors import BadInput, NotVerified
from rewriter.footprint import peak_memory
from rewriter.model import Model
from rewriter.pareto import Variant
from rewriter.profile import KernelTime, profile
from rewriter.providers import PROVIDERS
from rewriter.saving import file_bytes
from rewriter.session import SessionFailed
from rewriter.task import Task
from rewriter.timing import Timing

_REPEATS: Final = 3
_WORTH: Final = 0.15  # of the budget must be left for a look at the memory

Kernels = tuple[tuple[KernelTime, ...], tuple[KernelTime, ...]]


@dataclass(frozen=True)
class Last:
    """The set of rewrites that was timed last: the model, how many rewrites are in it, and whether it is written."""

    name: str
    model: Model
    rewrites: int
    timing: Timing
    chosen: bool


def side_by_side(task: Task, last: Last, others: Sequence[Variant]) -> tuple[Variant, ...]:
    """The original, the other sets that were timed, and the last one; with the peak memory of both where there is time.

    Where memory is not the objective, it is looked at once only, and not at all when the budget is nearly spent.
    """
    timing = last.timing
    original = Variant("original", 0, timing.before_ms, None, None, file_bytes(task.model), None, not last.chosen)
    final = Variant(
        last.name,
        last.rewrites,
        timing.after_ms,
        timing.speedup,
        timing.interval,
        file_bytes(last.model),
        None,
        last.chosen,
    )
    peaks = _peaks(task, last.model) if last.chosen else None
    if peaks is not None:
        original, final = replace(original, peak_mib=peaks[0]), replace(final, peak_mib=peaks[1])
    return (original, *(entry for entry in others if entry.name != last.name), final)


def _peaks(task: Task, after: Model) -> tuple[float, float] | None:
    repeats = _REPEATS if task.objective == "memory" else 1
    if repeats == 1 and (task.patience.left < _WORTH * task.patience.budget or task.patience.stopped):
        return None
    task.looking.progress("measuring memory", 0, 0)
    feeds, runtime = task.looking.inputs.feeds, task.options.runtime
    with contextlib.suppress(BadInput, NotVerified, SessionFailed):  # a figure beside the others, no more
        before, now = (peak_memory(one, feeds, runtime, repeats=repeats) for one in (task.model, after))
        return before, now
    return None


def kernels(task: Task, after: Model) -> Kernels | None:
    """Where both models spend their time, on providers whose kernels finish when they return."""
    if PROVIDERS[task.options.runtime.provider].bound:
        return None
    task.looking.progress("profiling", 0, 1)
    try:
        before, now = (
            profile(one.to_bytes(), task.looking.inputs.feeds, task.options.runtime, external_folder=one.folder)
            for one in (task.model, after)
        )
    except SessionFailed:
        return None
    return before, now
