"""Runs calls in several processes until a deadline, or one after the other in this one: for benchmarks/cuda.py."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

_CALLS_PER_PROCESS: Final = 24
"""An error that a CUDA context does not survive fails at most so many calls."""
_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_all(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], processes: int, deadline: float
) -> list[T | None]:
    """`function(*call)` of each call, begun in order; None for those not done at `deadline` (of time.perf_counter).

    With `processes` 0 they run here, and the one under way at the deadline is finished.  Processes are ended at the
    deadline, whatever they do, so that nothing runs beside what comes after.  A process that dies gives None too, but
    only at the deadline.  What a call raises is raised here.
    """
    if not processes:
        return [function(*call) if time.perf_counter() < deadline else None for call in calls]
    for name in _ONE_THREAD:  # read when NumPy is loaded: each process has a processor of its own
        os.environ.setdefault(name, "1")
    # Spawned, because a CUDA context does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=_CALLS_PER_PROCESS) as pool:
        waiting = [pool.apply_async(function, call) for call in calls]
        found: list[T | None] = []
        for result in waiting:
            try:
                found.append(result.get(max(0.0, deadline - time.perf_counter())))
            except multiprocessing.TimeoutError:
                found.append(None)
        pool.terminate()
        pool.join()
    return found
