"""Whole models timed against the original, in one interleaved run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rewriter.choose import Looking
from rewriter.feeds import Inputs
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.session import SessionFailed, open_session, run
from rewriter.timing import MINIMUM_PAIRS, Contender, Timing, compare

BLOCK_SECONDS: Final = 0.1
_MARGIN: Final = 1.3  # a run on a machine that others use takes longer now and then


def time_whole(
    before: Model,
    afters: Sequence[Model],
    looking: Looking,
    seconds: float,
    *,
    block_seconds: float = BLOCK_SECONDS,
    half_width: float = 0.03,
    seed: int = 0,
    until_stopped: bool = False,
) -> list[Timing]:
    """All models in one interleaved run of at most `seconds`; `seed` gives another order, for fresh data.

    `until_stopped`: no longer than until somebody asks the search to stop.
    """
    options = looking.options
    return compare(
        Contender("original", before.to_bytes(), before.folder),
        [Contender("rewritten", after.to_bytes(), after.folder) for after in afters],
        looking.inputs.feeds,
        options.runtime,
        budget_seconds=seconds,
        block_seconds=block_seconds,
        half_width=half_width,
        seed=options.seed + seed,
        stop=lambda: until_stopped and looking.patience.stopped,
        progress=lambda fraction: looking.progress("timing the whole model", round(100 * fraction), 100),
    )


def runs(model: Model, feeds: Feeds, options: RunOptions) -> bool:
    """Whether ONNX Runtime loads the model and runs it."""
    try:
        session = open_session(model.to_bytes(), options.runtime.plain(), external_folder=model.folder)
        run(session, feeds)
    except SessionFailed:
        return False
    return True


@dataclass(frozen=True)
class Cost:
    """What the least number of pairs for an interval takes of each session, in seconds."""

    each: float

    @staticmethod
    def of(model: Model, inputs: Inputs, options: RunOptions, block_seconds: float = BLOCK_SECONDS) -> Cost:
        """From one load and two runs of the model; each pair times two blocks of every session."""
        begin = time.perf_counter()
        session = open_session(model.to_bytes(), options.runtime.plain(), external_folder=model.folder)
        run(session, inputs.feeds)
        loaded = time.perf_counter()
        run(session, inputs.feeds)
        block = max(block_seconds, time.perf_counter() - loaded)
        return Cost(_MARGIN * ((loaded - begin) + (MINIMUM_PAIRS + 1) * 2 * block))

    def seconds(self, sessions: int) -> float:
        """Of so many sessions; the original takes two."""
        return sessions * self.each

    def sessions(self, seconds: float) -> int:
        """How many fit."""
        return int(max(0.0, seconds) / self.each)
