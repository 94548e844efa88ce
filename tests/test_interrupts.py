"""Ctrl-C during the loading of a module is neither lost nor early."""

from __future__ import annotations

import signal
import threading

import pytest

from rewriter.interrupts import held_back


def test_an_interrupt_inside_is_raised_behind_the_block() -> None:
    steps = []

    def interrupted() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            steps.append("done")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["done"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_one_nothing_happens_and_the_handler_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_back():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_errors_of_the_block_pass_through() -> None:
    with pytest.raises(ValueError, match="inside"), held_back():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_have_no_interrupts_to_hold() -> None:
    found: list[object] = []

    def inside() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
