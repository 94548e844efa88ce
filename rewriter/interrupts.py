"""Ctrl-C held back for a moment, and heard afterwards.

While an extension module is loaded, an interrupt can surface as an ImportError that some optional import inside it
swallows: the user's Ctrl-C would be lost.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Run the block without interrupts; one that came meanwhile is raised behind it.  Only the main thread has any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came and callable(usual):
        usual(came[0], None)
