"""Ctrl-C during a search: the first one ends the search and keeps the best so far, a second one ends the command."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = "Stopping: what is best so far is timed and audited. Ctrl-C once more gives up."


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed.

    It never says so where Ctrl-C is ignored or somebody else's, and in other threads than the main one.
    """
    asked = threading.Event()
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield asked.is_set
        return

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, usual)
        asked.set()
        with contextlib.suppress(OSError):  # not by way of Python's stream, which this may have interrupted
            os.write(2, f"{STOPPING}\n".encode())

    signal.signal(signal.SIGINT, first)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, usual)
