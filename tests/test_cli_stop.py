"""Ctrl-C during `optimize`: once for the best so far, twice to give up, and never in somebody else's way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import rewriter.choose
import rewriter.whole_timing
from cli_runs import small_network
from rewriter.cli import main
from rewriter.cli_stop import STOPPING, stoppable
from timings import timing


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """As in a terminal: what starts the tests in the background may have them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_one_asks_and_the_second_one_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with stoppable() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        assert capfd.readouterr().err == f"{STOPPING}\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_afterwards_it_is_as_it_was() -> None:
    with stoppable() as asked:
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not asked()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_where_it_is_ignored_or_taken_it_stays_so(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with stoppable() as asked:
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
    assert not asked()


def test_another_thread_cannot_ask() -> None:
    found: list[bool] = []

    def other() -> None:
        with stoppable() as asked:
            found.append(asked())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize("after", [1, 5])
def test_the_command_writes_the_best_so_far_if_there_is_any(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two places are measured, in one to three looks each: the interrupt comes during the first or a later one."""
    looks = 0

    def in_context(_: Any, some: Any, *__: Any, **___: Any) -> list[Any]:
        nonlocal looks
        looks += 1
        if looks == after:
            signal.raise_signal(signal.SIGINT)
        return [timing(1.5 if "regroup" in one.name else 1.2, "FASTER") for one in some]

    monkeypatch.setattr(rewriter.choose, "compare", in_context)
    monkeypatch.setattr(
        rewriter.whole_timing, "compare", lambda _, some, *__, **___: [timing(1.3, "FASTER") for _ in some]
    )
    onnx.save(small_network(), tmp_path / "net.onnx")
    code = main(["optimize", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out.onnx"), "--no-records"])
    shown = capfd.readouterr()
    assert STOPPING in shown.err
    if after == 1:
        assert code == 130
        assert shown.out.splitlines()[-1].endswith("| interrupted, nothing written")
        assert shown.err.splitlines()[-1].startswith("Interrupted")
        assert not (tmp_path / "out.onnx").exists()
        return
    assert code == 0
    assert shown.out.splitlines()[-1].startswith("EQUIVALENT")
    assert "Interrupted: the search ended before its time" in shown.out
    assert (tmp_path / "out.onnx").exists()
