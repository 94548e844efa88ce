"""Where a model spends its time: every kernel of the optimized graph, its milliseconds, and the table made of two."""

from __future__ import annotations

import numpy as np
import pytest

from models.resnext import ResNeXt, resnext_model
from rewriter.census import census
from rewriter.profile import KernelTime, _spent, profile
from rewriter.report import text
from rewriter.report.record import kernel_records
from rewriter.session import Runtime, SessionFailed

MODEL = resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10))
FEEDS = {"input": np.ones((1, 3, 32, 32), np.float32)}


@pytest.mark.parametrize("level", ["disable", "all"])
def test_the_kernels_are_those_of_the_census_and_take_time(level: str) -> None:
    runtime = Runtime(level=level)  # type: ignore[arg-type]  # a parameter is a string
    found = profile(MODEL, FEEDS, runtime)
    assert {one.kind: one.count for one in found} == dict(census(MODEL, runtime).counts)
    assert all(one.ms > 0 for one in found)
    assert [one.ms for one in found] == sorted((one.ms for one in found), reverse=True)


def test_what_cannot_run_is_a_session_that_failed() -> None:
    with pytest.raises(SessionFailed):
        profile(MODEL, {"input": np.ones((1, 4, 32, 32), np.float32)}, Runtime())


def test_runs_are_told_apart_and_warm_ones_left_out() -> None:
    def node(name: str, op: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op}}

    end = {"cat": "Session", "name": "model_run", "dur": 1}
    events = [event for run in (900, 800, 1000, 2000) for event in (node("a", "Conv", run), node("", "Relu", 500), end)]
    runs = _spent(events, {"a": "com.microsoft.nchwc:Conv"})
    assert runs == [
        {"com.microsoft.nchwc:Conv": 1.0, "Relu": 0.5},
        {"com.microsoft.nchwc:Conv": 2.0, "Relu": 0.5},
    ]


def test_the_table_says_what_changed_and_adds_up() -> None:
    before = (KernelTime("Conv", 3, 8.0), KernelTime("Relu", 2, 2.0), KernelTime("Tiny", 1, 0.001))
    after = (KernelTime("com.microsoft.nchwc:Conv", 3, 4.0), KernelTime("Relu", 1, 1.0), KernelTime("Tiny", 1, 0.001))
    records = kernel_records(before, after)
    table = text.kernel_table(records, verbose=False)
    assert table.rows == (
        ("Conv", "3", "0", "8.00", "0.00"),
        ("com.microsoft.nchwc:Conv", "0", "3", "0.00", "4.00"),
        ("Relu", "2", "1", "2.00", "1.00"),
        ("others", "1", "1", "0.00", "0.00"),
        ("all kernels", "6", "5", "10.00", "5.00"),
    )
    assert ("Tiny", "1", "1", "0.00", "0.00") in text.kernel_table(records, verbose=True).rows
