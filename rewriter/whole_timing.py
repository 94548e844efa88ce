"""Whole models timed against the original, in one interleaved run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from rewriter.feeds import Inputs
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.session import open_session, run
from rewriter.timing import MINIMUM_PAIRS, Contender, Timing, compare

Progress = Callable[[str, int, int], None]
_BLOCK_SECONDS: Final = 0.1


def time_whole(
    before: Model,
    afters: Sequence[Model],
    inputs: Inputs,
    options: RunOptions,
    seconds: float,
    progress: Progress,
) -> list[Timing]:
    """All models in one interleaved run, for at least as long as the pairs for an interval take."""
    original = Contender("original", before.to_bytes(), before.folder)
    return compare(
        original,
        [Contender("rewritten", after.to_bytes(), after.folder) for after in afters],
        inputs.feeds,
        options.runtime,
        budget_seconds=max(seconds, _least_seconds(original, 2 + len(afters), inputs, options)),
        block_seconds=_BLOCK_SECONDS,
        seed=options.seed,
        progress=lambda fraction: progress("timing the whole model", round(100 * fraction), 100),
    )


def _least_seconds(original: Contender, sessions: int, inputs: Inputs, options: RunOptions) -> float:
    """About how long the least number of pairs takes: each times two blocks of every session."""
    begin = time.perf_counter()
    session = open_session(original.model, options.runtime.plain(), external_folder=original.external_folder)
    run(session, inputs.feeds)
    loaded = time.perf_counter()
    run(session, inputs.feeds)
    block = max(_BLOCK_SECONDS, time.perf_counter() - loaded)
    return 1.3 * sessions * ((loaded - begin) + (MINIMUM_PAIRS + 1) * 2 * block)
