"""The GPU measurement, run on the CPU: what its JSON and table say, not how fast anything is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks import candidates, cuda, cuda_table, readme, trial, workers
from benchmarks.candidates import ORIGINAL, Candidate, NotApplicable, Stage, make, smallest_factor, table
from benchmarks.judge import judged
from benchmarks.record import Job
from benchmarks.trial import Trial, examine, prepare
from models.resnext import ResNeXt, resnext_model
from passes.regroup import Regroup
from rewriter import Graph, Match, Rewrite, Settings, providers, registry
from rewriter.model import Model
from rewriter.session import Runtime

TINY = ResNeXt(image=32, blocks=(1, 1), width=16, groups=8, classes=5)
"""Groups of 4 and 8 channels."""


class Wrong(Regroup):
    """Regroups, and gets one weight wrong."""

    name = "wrong"

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        made = super().rewrite(graph, found, settings)
        weight = onnx.numpy_helper.to_array(made.initializers[0]).copy()
        weight.flat[weight.size // 2] += 1
        return replace(made, initializers=(onnx.numpy_helper.from_array(weight, made.initializers[0].name),))


WRONG = Candidate("wrong", (Stage("wrong", (("groups", 1),), "grouped"),))
MISSING = Candidate("missing", (Stage("no-such-pass"),))
UNDONE = Candidate("undone", (Stage("depthwise-sum-to-grouped"),))
DENSE = Candidate("dense", (Stage("regroup", (("groups", 1),), "grouped"),))
AMPLE = 600.0
"""Seconds that are never needed."""
AGAIN = Candidate("again", (Stage("regroup", (("groups", 1),), "any"),))


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Every model is the tiny one, there is a wrong pass, and any interval is narrow enough."""
    known = registry.pass_named
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "build", lambda _name, _options: resnext_model(TINY))
        patch.setattr(registry, "pass_named", lambda name: Wrong() if name == "wrong" else known(name))
        patch.setattr(cuda, "_HALF_WIDTH", 100.0)
        yield


def entries(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in row["candidates"]}


def measured_by(plan: cuda.Plan, *chosen: Candidate) -> dict[str, Any]:
    """What a run writes."""
    said: list[str] = []
    cuda.measure(plan, chosen, said.append)
    report: dict[str, Any] = json.loads(plan.output.read_text())
    assert len(said) == len(report["rows"])
    return report


@pytest.fixture(scope="module")
def report(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plan = cuda.Plan("cpu", ("zoo:any",), ("float32",), AMPLE, tmp_path_factory.mktemp("run") / "out.json")
    nhwc = next(candidate for candidate in table() if candidate.name == "prefer_nhwc=1")
    return measured_by(plan, DENSE, WRONG, MISSING, UNDONE, AGAIN, nhwc)


def test_the_whole_run(report: dict[str, Any]) -> None:
    assert report["finished"]
    assert datetime.fromisoformat(report["date"]).tzinfo is not None
    assert report["environment"]["provider"] == report["exactness"]["provider"] == "cpu"
    (row,) = report["rows"]
    assert (row["model"], row["dtype"], row["batch"]) == ("any", "float32", 1)
    found = entries(row)
    dense = found["dense"]
    assert (dense["verdict"], dense["grade"], dense["rewrites"]) == ("equivalent", "finite", 2)
    assert dense["audit"]["regions"] == {"equivalent": 2}
    assert dense["audit"]["levels"]["L1"] == {"pass": 2}
    assert dense["error"] < 1e-6
    assert dense["status"] == "measured", dense["reason"]
    assert dense["timing"]["pairs"] >= 7
    assert len(dense["timing"]["interval"]) == len(row["control_interval"]) == 2
    assert row["original"]["ms"] == dense["timing"]["before_ms"] > 0
    assert (found["again"]["status"], found["again"]["timing"]) == ("same model", None)
    assert "dense" in found["again"]["reason"]
    statuses = [entry["status"] for entry in found.values()]
    assert all(report["counts"][status] == statuses.count(status) for status in set(statuses))
    assert report["counts"]["audits"] == 3


def test_what_does_not_apply_says_why(report: dict[str, Any]) -> None:
    found = entries(report["rows"][0])
    for name, why in (
        ("missing", "No pass 'no-such-pass' is installed."),
        ("undone", "no sum over channels"),
        ("prefer_nhwc=1", "The cpu provider has no options."),
    ):
        assert (found[name]["status"], found[name]["timing"]) == ("does not apply", None)
        assert why.lower() in found[name]["reason"].lower()


def test_a_wrong_candidate_is_different_and_has_no_speed(report: dict[str, Any]) -> None:
    wrong = entries(report["rows"][0])["wrong"]
    assert (wrong["status"], wrong["verdict"], wrong["timing"]) == ("different", "different", None)
    assert "something else" in wrong["reason"]  # by the audit, before its outputs are looked at
    assert wrong["error"] is None
    lines = cuda_table.section(report)
    (cells,) = [line for line in lines if line.startswith("| wrong ")]
    assert cells == "| wrong | different |"
    assert not any("wrong" in line for line in lines if line.startswith("| any "))


def measured(name: str, verdict: str, speedup: float) -> dict[str, Any]:
    timing = {"verdict": "FASTER", "speedup": speedup, "interval": [speedup - 0.1, speedup + 0.1]}
    return {"name": name, "status": "measured", "verdict": verdict, "grade": "finite", "timing": timing}


def test_the_table_boasts_only_of_what_is_proven() -> None:
    found = [
        measured("quick", "approximate", 3.0),
        measured("sure", "equivalent", 1.5),
        measured("bad", "different", 9),
    ]
    slow = measured("slow", "equivalent", 1.4)
    slow["timing"]["verdict"] = "NOISE"
    row: dict[str, Any] = {
        "model": "m",
        "dtype": "float16",
        "batch": 1,
        "original": {"ms": 1.234},
        "candidates": [*found, slow],
    }
    names = [{"name": entry["name"]} for entry in row["candidates"]]
    report: dict[str, Any] = {
        "environment": {"onnxruntime": "1"},
        "device": {},
        "counts": {"audits": 0},
        "candidates": names,
        "rows": [row],
        "finished": False,
    }
    lines = cuda_table.section(report)
    assert "| m | float16 | 1 | 1.23 | sure (finite) | 1.50× (1.40 to 1.60) |" in lines
    assert "| quick | 3.00× (2.90 to 3.10), approximate |" in lines
    assert "cut short" in lines[0]
    row["candidates"] = [found[0], slow]
    assert "| m | float16 | 1 | 1.23 | none | 2 measured |" in cuda_table.section(report)


def test_without_figures_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cuda_table.section(None) == [cuda_table.NOTHING]
    assert "`make bench-cuda`" in cuda_table.NOTHING
    assert (cuda_table.NOTHING in readme.section().splitlines()) is not cuda.RESULTS.exists()


def test_no_time_is_said_of_each(tiny: None, tmp_path: Path) -> None:
    plan = cuda.Plan("cpu", ("zoo:any",), ("float32", "float16"), 0, tmp_path / "out.json")
    report = measured_by(plan, DENSE)
    assert [row["dtype"] for row in report["rows"]] == ["float32", "float16"]
    for row in report["rows"]:
        dense = entries(row)["dense"]
        assert (dense["status"], dense["timing"]) == ("not measured", None)
        assert "in time" in dense["reason"]


def test_what_does_not_fit_is_said(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_fitting", lambda *_: 1)
    plan = cuda.Plan("cpu", ("zoo:any",), ("float32",), AMPLE, tmp_path / "out.json")
    wider = next(candidate for candidate in table() if candidate.name == "regroup to 8")
    found = entries(measured_by(plan, wider, DENSE)["rows"][0])
    assert found["regroup to 8"]["status"] == "measured"
    assert found["dense"]["status"] == "not measured"
    assert "of 2 candidates 1 fit" in found["dense"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seconds", "nan"), "--seconds nan is no positive number of seconds"),
        (("--seconds", "-5"), "--seconds -5 is no positive number of seconds"),
        (("--processes", "-1"), "--processes -1 is negative"),
        (("--output", "nowhere/out.json"), "the folder of --output nowhere/out.json does not exist"),
    ],
)
def test_bad_usage(arguments: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cuda.main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_measured_nothing_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_tried", lambda *_: [])
    found = measured_by(cuda.Plan("cpu", (), (), 1.0, tmp_path / "out.json"))
    assert not found["finished"]


def test_the_time_goes_to_models_with_something_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(name: str, *statuses: trial.Status) -> Job:
        tried = [Trial(Candidate(str(number)), status) for number, status in enumerate(statuses)]
        return Job(trial.Subject(name, "float32", tmp_path), None, [Trial(ORIGINAL, "ready"), *tried])

    jobs = [job("none", "failed", "does not apply"), job("two", "ready", "failed", "ready"), job("one", "ready")]
    given: list[float] = []
    monkeypatch.setattr(cuda, "_tried", lambda *_: jobs)
    monkeypatch.setattr(cuda, "_time", lambda job, runtime, seconds: given.append(seconds))
    cuda.measure(cuda.Plan("cpu", (), (), 1e6, tmp_path / "out.json"), [], lambda line: None)
    assert given == pytest.approx([1e6 / 10, 1e6 * 5 / 9, 1e6], rel=1e-3)


def test_options_are_tried_on_a_provider_that_has_them(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU in CUDA's place: it ignores the options."""
    fake = replace(providers.PROVIDERS["cuda"], onnxruntime="CPUExecutionProvider", device="cpu")
    monkeypatch.setitem(providers.PROVIDERS, "cuda", fake)
    nhwc, replays, full = [candidate for candidate in table() if candidate.options and not candidate.stages]
    plan = cuda.Plan("cuda", ("zoo:any",), ("float32",), AMPLE, tmp_path / "out.json")
    report = measured_by(plan, nhwc, full, DENSE)
    found = entries(report["rows"][0])
    for candidate in (nhwc, full):
        entry = found[candidate.name]
        assert (entry["status"], entry["verdict"], entry["grade"]) == ("measured", "equivalent", "bitwise")
        assert [list(option) for option in candidate.options] == entry["timing"]["after_options"]
    assert found["dense"]["timing"]["after_options"] == []
    assert replays.options == (("enable_cuda_graph", "1"),)
    with pytest.raises(NotApplicable, match="float32 only"):
        candidates.check(full, "cuda", "float16")


def test_outputs_as_timed_are_checked() -> None:
    """Of one model and two options, one is as accurate as the original, one is not; TF32's unit forgives both."""
    original = Trial(ORIGINAL, "ready", sha256="a", verdict="equivalent", error=1e-6)
    near = Trial(Candidate("near", options=(("x", "1"),)), "ready", sha256="a", verdict="equivalent", error=7e-6)
    far = Trial(Candidate("far", options=(("y", "1"),)), "ready", sha256="a", verdict="equivalent", error=2e-5)
    nan = Trial(Candidate("nan", options=(("z", "1"),)), "ready", sha256="a", verdict="equivalent", error=float("inf"))
    found = judged([original, near, far, nan], 2.0**-24)
    assert [entry.status for entry in found] == ["ready", "ready", "different", "different"]
    assert "off by 2.0e-05" in found[2].reason
    assert [entry.status for entry in judged([original, near, far, nan], 2.0**-11)] == ["ready"] * 3 + ["different"]


@pytest.mark.parametrize(
    ("groups", "i_per", "o_per", "width", "factor"),
    [(32, 4, 4, 8, 2), (32, 8, 8, 8, 1), (13, 8, 8, 16, None), (6, 3, 2, 4, None), (8, 24, 24, 16, 2), (4, 2, 4, 8, 4)],
)
def test_the_factor_for_a_width(groups: int, i_per: int, o_per: int, width: int, factor: int | None) -> None:
    assert smallest_factor(groups, i_per, o_per, width) == factor


def test_each_convolution_gets_the_factor_it_needs() -> None:
    """Groups of 4 and 8 channels to 16: by 4 and by 2; to 8, only the first."""
    model = Model.load(resnext_model(TINY))
    wider = {candidate.name: candidate for candidate in table()}
    groups = {}
    for width in (8, 16):
        made = make(wider[f"regroup to {width}"], model, "cpu")
        groups[width] = sorted(done.step.settings["factor"] for done in made.applied)
    assert groups == {8: [2], 16: [2, 4]}
    with pytest.raises(NotApplicable, match="do not merge to a multiple"):
        make(wider["regroup to 32"], Model.load(resnext_model(replace(TINY, groups=2, width=6))), "cpu")
    with pytest.raises(NotApplicable, match=r"multiple of it already \(2x\)"):
        make(wider["regroup to 4"], model, "cpu")


def test_a_bug_in_a_candidate_is_its_own(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "make", lambda *_: 1 / 0)
    found = examine(prepare("any", "float32", tmp_path), DENSE, Runtime())
    assert (found.status, found.reason) == ("failed", "A bug: ZeroDivisionError: division by zero")


def test_what_applies_is_given_in_order_by_other_processes() -> None:
    calls = [(2, 3), (2, 5)]
    assert workers.run_all(pow, calls, 1, time.perf_counter() + AMPLE) == [8, 32]


def test_at_the_deadline_processes_are_ended() -> None:
    begin = time.perf_counter()
    assert workers.run_all(time.sleep, [(600,)], 1, begin + 0.1) == [None]


def test_cpu_figures_never_land_in_the_file_of_cuda(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "measure", lambda *_: pytest.fail("it measures"))
    for more in ([], ["--output", str(cuda.RESULTS)]):
        with pytest.raises(SystemExit) as ended:
            cuda.main(["--provider", "cpu", *more])
        assert ended.value.code == 2
        assert "--output" in capsys.readouterr().err


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cuda.main(["--models", "none"])
    assert ended.value.code == 2
    assert "there is no model none" in capsys.readouterr().err


@pytest.mark.skipif(providers.available("cuda"), reason="here CUDA can be used")
def test_without_a_gpu_nothing_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cuda.main(["--output", str(tmp_path / "cuda.json")]) == 3
    assert "onnxruntime-gpu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
def test_on_a_gpu(tmp_path: Path) -> None:
    """A small model in both types, all candidates: what was measured is on the device, and no audit refutes a pass."""
    output = tmp_path / "cuda.json"
    assert cuda.main(["--models", "regnet_y_400mf", "--seconds", "120", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["device"]["devices"]
    assert {row["dtype"] for row in report["rows"]} == {"float32", "float16"}
    for row in report["rows"]:
        assert any(entry["status"] == "measured" and entry["timing"]["bound"] for entry in row["candidates"])
        refuted = [entry["name"] for entry in row["candidates"] if entry["status"] in ("different", "failed")]
        assert [name for name in refuted if not entries(row)[name]["name"].startswith("enable_cuda_graph")] == []
