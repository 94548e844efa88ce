"""How long a search goes on, and that Ctrl-C in a terminal leaves alone the processes that it measures with."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import numpy as np
import pytest

from programs import program
from rewriter.equivalence.empty_batch import run_empty
from rewriter.footprint import peak_memory
from rewriter.model import Model
from rewriter.patience import Patience
from rewriter.session import Runtime


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process groups of the children that are started."""
    found: list[int] = []
    usual = subprocess.Popen.__init__

    def starting(child: Any, *arguments: Any, **options: Any) -> None:
        usual(child, *arguments, **options)
        found.append(os.getpgid(child.pid))

    monkeypatch.setattr(subprocess.Popen, "__init__", starting)
    return found


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has process groups")
def test_what_is_measured_has_a_group_of_its_own(groups: list[int]) -> None:
    """Ctrl-C goes to the whole group of the terminal, and asks only the command to stop."""
    model = Model.load(program("y = Relu (x)", x="float[N,8]"))
    peak_memory(model, {"x": np.zeros((1, 8), np.float32)}, Runtime(), repeats=1)
    run_empty((model, model), Runtime(), {"x": (0, 8)}, 0, {})
    assert len(groups) == 2
    assert os.getpgid(0) not in groups


def test_who_asks_to_stop_leaves_no_time_to_look_but_the_budget_to_finish() -> None:
    asked = False
    patience = Patience(1000, lambda: asked)
    assert patience.until(patience.at(0.5)) > 0
    asked = True
    assert patience.stopped
    assert patience.until(patience.at(0.5)) < 0
    assert patience.left > 0
