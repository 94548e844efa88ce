"""Objectives other than speed: what is taken for a smaller file or less memory, and what keeps it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import rewriter
import rewriter.lean
import rewriter.whole_timing
from models.resnext import ResNeXt, resnext_model
from programs import program
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.saving import file_bytes
from rewriter.session import Runtime
from rewriter.timing import Contender, Timing
from timings import timing

SEED = np.random.default_rng(0)


def block_diagonal(blocks: int, width: int) -> np.ndarray:
    """A dense weight [M, C, 3, 3] that is a grouped one with zeros between."""
    weight = np.zeros((blocks * width, blocks * width, 3, 3), np.float32)
    for block in range(blocks):
        part = slice(block * width, (block + 1) * width)
        weight[part, part] = SEED.standard_normal((width, width, 3, 3))
    return weight


@pytest.fixture
def filled() -> onnx.ModelProto:
    """A dense convolution most of whose weights are zeros that grouping takes away."""
    return program("y = Conv <pads = [1, 1, 1, 1]> (x, w)", x="float[1,32,9,9]", w=block_diagonal(4, 8))


class Whole:
    """How fast whole models are, made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found = timing(1.0, "NOISE")
        monkeypatch.setattr(rewriter.whole_timing, "compare", self._compare)

    def _compare(self, _: Contender, some: Sequence[Contender], *__: Any, **___: Any) -> list[Timing]:
        return [self.found for _ in some]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Whole:
    return Whole(monkeypatch)


def test_the_smallest_form_is_taken_where_it_is_as_fast(filled: onnx.ModelProto, whole: Whole) -> None:
    assert whole.found.verdict == "NOISE"
    result = rewriter.optimize(filled, objective="size", records=False)
    assert result.changed
    assert result.report.verdict == "equivalent"
    assert [entry.pass_name for entry in result.report.attempts if entry.outcome == "accepted"] == ["dense-to-grouped"]
    assert result.report.after.bytes < result.report.before.bytes / 3
    assert result.report.objective == "size"
    names = [(one.name, one.chosen, one.efficient) for one in result.report.variants]
    assert names == [("original", False, False), ("all that makes the file smaller", True, True)]


def test_a_smaller_file_that_is_slower_is_not_written(filled: onnx.ModelProto, whole: Whole) -> None:
    whole.found = timing(0.8, "SLOWER")
    result = rewriter.optimize(filled, objective="size", records=False)
    assert not result.changed
    assert result.model.SerializeToString() == filled.SerializeToString()
    assert "was not shown to be as fast" in result.report.reason


def test_an_interval_that_reaches_past_slower_is_slower(filled: onnx.ModelProto, whole: Whole) -> None:
    whole.found = timing(0.975, "NOISE")  # down to 0.965, with a smallest effect of 0.01
    assert not rewriter.optimize(filled, objective="size", records=False).changed
    whole.found = timing(0.995, "NOISE")
    assert rewriter.optimize(filled, objective="size", records=False).changed


@pytest.mark.parametrize(
    ("interval", "effect", "verdict"),
    [((0.981, 0.985), 0.01, "SLOWER"), ((0.70, 0.75), 0.5, "NOISE"), ((0.97, 0.99), 0.04, "NOISE")],
)
def test_noise_is_no_excuse(
    interval: tuple[float, float], effect: float, verdict: Any, filled: onnx.ModelProto, whole: Whole
) -> None:
    whole.found = replace(timing(0.98, verdict), interval=interval, smallest_effect=effect)
    assert not rewriter.optimize(filled, objective="size", records=False).changed


def test_what_makes_it_larger_says_by_how_much() -> None:
    model = resnext_model(ResNeXt(image=32, blocks=(1,), width=16, groups=8, classes=10))
    result = rewriter.optimize(model, objective="size", only=["split-groups"], records=False)
    assert not result.changed
    assert result.report.reason == "No rewrite makes the file smaller."
    (attempt,) = [entry for entry in result.report.attempts if entry.outcome == "not_worth_it"]
    assert attempt.reason.startswith("The file would be ")
    assert attempt.reason.endswith(" bytes larger.")


def test_less_memory_is_what_is_measured(
    filled: onnx.ModelProto, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(model: Model, *_: Any, **__: Any) -> float:
        return model.size / 1e3

    monkeypatch.setattr(rewriter.lean, "peak_memory", peak)
    monkeypatch.setattr("rewriter.compared.peak_memory", peak)
    result = rewriter.optimize(filled, objective="memory", records=False)
    assert whole.found.verdict == "NOISE"
    assert result.changed
    before, after = (one.peak_mib for one in result.report.variants)
    assert before is not None
    assert after is not None
    assert after < before / 3


def test_a_smaller_file_that_takes_more_memory_is_not_taken_for_it(
    filled: onnx.ModelProto, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriter.lean, "peak_memory", lambda model, *_, **__: 1e9 / model.size)
    result = rewriter.optimize(filled, objective="memory", records=False)
    assert whole.found.verdict == "NOISE"
    assert not result.changed
    assert result.report.reason == "No rewrite takes less memory."


def test_external_data_counts_as_part_of_the_file(tmp_path: Any, filled: onnx.ModelProto) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(filled, path, save_as_external_data=True, location="m.data", size_threshold=0)
    model = Model.load(path)
    assert file_bytes(model) == path.stat().st_size + (tmp_path / "m.data").stat().st_size


def test_an_objective_that_there_is_not() -> None:
    with pytest.raises(BadInput, match="there is no objective 'speed'; there are: latency, throughput, size, memory"):
        rewriter.optimize(program("y = Relu (x)"), objective="speed")  # type: ignore[arg-type]  # as callers do
    with pytest.raises(BadInput, match="cpu provider only"):
        rewriter.optimize(program("y = Relu (x)"), RunOptions(Runtime("cuda")), objective="memory")


@pytest.mark.parametrize(("batch", "expected"), [(None, 8), (3, 3)])
def test_throughput_is_of_a_whole_batch(batch: int | None, expected: int, whole: Whole) -> None:
    model = program("y = Conv (x, w)", x="float[N,8,5,5]", w=(8, 8, 1, 1))
    report = rewriter.optimize(model, RunOptions(batch=batch), objective="throughput", records=False).report
    assert whole.found.verdict == "NOISE"
    assert report.items_per_run == expected
    assert report.inputs == {"x": (expected, 8, 5, 5)}


def test_a_batch_that_the_model_does_not_take_is_not_insisted_on(whole: Whole) -> None:
    model = program("t = Reshape (x, s) y = MatMul (t, w)", x="float[N,8]", s=[1, -1], w=(8, 4))
    report = rewriter.optimize(model, objective="throughput", records=False).report
    assert whole.found.verdict == "NOISE"
    assert report.items_per_run == 1
    assert "The model does not run with a batch of 8: it was timed with 1." in report.notes


def test_a_batch_beside_inputs_is_refused() -> None:
    with pytest.raises(BadInput, match="--batch has no effect on inputs that are given"):
        RunOptions(samples=[{"x": np.zeros((1, 8), np.float32)}], batch=2)


def test_latency_is_of_one_item_unless_another_batch_is_given(whole: Whole) -> None:
    model = program("y = Conv (x, w)", x="float[N,8,5,5]", w=(8, 8, 1, 1))
    assert whole.found.verdict == "NOISE"
    assert rewriter.optimize(model, records=False).report.inputs == {"x": (1, 8, 5, 5)}
    assert rewriter.optimize(model, RunOptions(batch=4), records=False).report.inputs == {"x": (4, 8, 5, 5)}
