"""Real sessions are measured. Only the structure is asserted, since times are the machine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.session import Runtime, SessionFailed, open_session, prepare, run
from rewriter.timing import Contender, Timing, compare, latency, runners, tensor_sha256
from rewriter.timing.statistics import MINIMUM_PAIRS


def conv(group: int, channels: int = 8) -> onnx.ModelProto:
    weight = np.random.default_rng(group).standard_normal((channels, channels // group, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=group)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


FEEDS = {"x": np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)}


def quick(before: Contender, afters: Sequence[Contender]) -> list[Timing]:
    return compare(
        before, afters, FEEDS, Runtime(), budget_seconds=2, block_seconds=0.002, warmup_seconds=0.01, half_width=0.2
    )


def test_real_models_are_measured_and_their_outputs_hashed() -> None:
    grouped, dense = Contender("grouped", conv(2)), Contender("dense", conv(1).SerializeToString())
    timings = quick(grouped, [dense, grouped])
    assert [timing.after for timing in timings] == ["dense", "grouped"]
    outputs = {c.name: run(open_session(c.model, Runtime()), FEEDS) for c in (grouped, dense)}
    for timing in timings:
        assert timing.before_ms > 0
        assert timing.after_ms > 0
        assert min(timing.runs_per_block) >= 1
        assert timing.before_sha256 == {"y": tensor_sha256(outputs["grouped"]["y"])}
        assert timing.after_sha256 == {"y": tensor_sha256(outputs[timing.after]["y"])}
        assert timing.nondeterministic == ()
        if timing.interval is not None:  # a very busy machine may allow too few pairs
            assert timing.interval[0] <= timing.speedup <= timing.interval[1]
            assert timing.pairs >= MINIMUM_PAIRS


def test_failures_name_the_model() -> None:
    with pytest.raises(SessionFailed, match="'broken' cannot be timed: ONNX Runtime cannot load the model"):
        quick(Contender("good", conv(2)), [Contender("broken", b"\xff")])
    with pytest.raises(SessionFailed, match="'wider' cannot be timed: ONNX Runtime cannot run the model: Got invalid"):
        quick(Contender("good", conv(2)), [Contender("wider", conv(2, channels=16))])


def test_one_model_by_itself_is_measured_too() -> None:
    real = latency(Contender("conv", conv(2)), FEEDS, Runtime(), budget_seconds=0.2, block_seconds=0.002)
    assert real.ms > 0
    assert set(real.sha256) == {"y"}


def test_a_runner_loads_as_users_do_and_runs_as_often_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv(2)
    onnx.save(model, tmp_path / "conv.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    lean = onnx.load(tmp_path / "conv.onnx", load_external_data=False).SerializeToString()
    called: list[str] = []

    def open_spy(*args: Any, **options: Any) -> Any:
        assert options == {"external_folder": tmp_path, "spin": True}
        return open_session(*args, **options)

    def prepare_spy(*args: Any) -> Callable[[], list[Any]]:
        once = prepare(*args)

        def counted() -> list[Any]:
            called.append("run")
            return once()

        return counted

    monkeypatch.setattr(runners, "open_session", open_spy)
    monkeypatch.setattr(runners, "prepare", prepare_spy)
    runner = runners.open_runner(Contender("lean", lean, tmp_path), Runtime(), FEEDS)
    assert isinstance(runner, runners.PlainRunner)
    runner.repeat(5)
    assert called == ["run"] * 5
    assert runner.outputs()["y"].shape == (1, 8, 6, 6)
