"""How long a search may go on: a budget of seconds, and whoever asks it to stop before."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Final

OWN_GROUP: Final = 0 if os.name == "posix" else None
"""The `process_group` of a child: Ctrl-C in a terminal goes to a whole group, and is not meant for what is measured."""

Stop = Callable[[], bool]
"""Whether to stop looking, and to go on with the best so far."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Patience:
    """A budget in seconds that begins to run when this is made, and `stop`, which ends it at once."""

    def __init__(self, budget: float, stop: Stop = never) -> None:
        self.budget = budget
        self.begin = time.perf_counter()
        self._stop = stop

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop()

    @property
    def left(self) -> float:
        """Seconds of the budget, whoever asked to stop: what is left to do is done in them."""
        return self.budget - (time.perf_counter() - self.begin)

    def at(self, share: float) -> float:
        """When that part of the budget is spent, as a time of `time.perf_counter`."""
        return self.begin + share * self.budget

    def until(self, moment: float) -> float:
        """Seconds to look further before a time of `time.perf_counter`; none where somebody asked to stop."""
        return -math.inf if self.stopped else moment - time.perf_counter()
