"""The campaign of every pass on every model: its runner on two tiny models, and the page against its results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import campaign, campaign_page
from benchmarks.campaign import Campaign, Row, empty_row, read_rows, versions
from benchmarks.light import light_model, light_names
from benchmarks.subjects import Plan, Subject, plans, subjects
from cli_runs import dense_model, small_network
from models.catalogue import NETWORKS
from models.zoo.refill import zoo_names
from rewriter.registry import all_passes

GROUPED = Subject("code:grouped", small_network)
DENSE = Subject("zoo:dense", dense_model)
REGROUP = Plan(("regroup",), {"regroup": {"groups": 1}})
PASS = Plan(("regroup",))
AMPLE = 300.0


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Row]:
    output = tmp_path_factory.mktemp("campaign") / "out.json"
    Campaign(output, AMPLE, False, lambda _: None).run([(s, p) for s in (GROUPED, DENSE) for p in (PASS, REGROUP)])
    return read_rows(output)


def test_what_is_rewritten_is_counted_and_graded(rows: dict[tuple[str, str], Row]) -> None:
    found = rows["code:grouped", "regroup groups=1"]
    assert (found["outcome"], found["rewrites"], found["verdict"], found["grade"]) == (
        "rewritten",
        2,
        "equivalent",
        "finite",
    )
    assert found["regions"] == {"equivalent finite": 2}
    assert found["wrong"] == []


def test_what_does_not_apply_says_why(rows: dict[tuple[str, str], Row]) -> None:
    found = rows["zoo:dense", "regroup"]
    assert (found["outcome"], found["rewrites"], found["verdict"]) == ("does not apply", 0, None)
    assert found["reason"] == "It is dense (group 1): there are no groups to merge."


def test_a_plan_that_raises_is_a_row() -> None:
    found = campaign.examine(Path("no-such-model.onnx"), PASS)
    assert found["outcome"] == "failed"
    assert "BadInput" in found["reason"]


def told(output: Path, **options: Any) -> list[str]:
    """What a run of both models says."""
    said: list[str] = []
    given = {"again": False, "limit": AMPLE} | options
    made = Campaign(output, given["limit"], given["again"], said.append)
    made.run([(GROUPED, REGROUP), (DENSE, PASS)], options.get("deadline", float("inf")))
    return said


def test_only_what_is_missing_or_stale_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(campaign, "write_model", lambda _, path: built.append(str(path)))
    monkeypatch.setattr(campaign.Worker, "ask", lambda *_: empty_row("rewritten", "", 0.0))
    output = tmp_path / "deep" / "out.json"
    assert len(told(output)) == 2
    assert told(output) == []
    assert len(told(output, again=True)) == 2
    rows = read_rows(output)
    rows["zoo:dense", "regroup"]["versions"]["onnxruntime"] = "0.1"
    campaign.write_rows(output, rows)
    assert [line.split()[0] for line in told(output)] == ["zoo:dense"]
    rows["zoo:dense", "regroup"] = rows["zoo:dense", "regroup"] | {
        "versions": versions(PASS),
        "outcome": "timeout",
        "seconds": 9.5,
    }
    campaign.write_rows(output, rows)
    assert told(output, limit=9.0) == []
    assert [line.split()[0] for line in told(output, limit=60.0)] == ["zoo:dense"], "there is more time now"
    assert len(built) == 6
    assert [path.name for path in output.parent.iterdir()] == ["out.json"]


def test_a_deadline_begins_nothing_more(tmp_path: Path) -> None:
    assert told(tmp_path / "out.json", deadline=time.monotonic() - 1) == []
    assert not (tmp_path / "out.json").exists()


def sleeping(pipe: Connection, _path: Path) -> None:
    """A server that takes too long."""
    pipe.recv()
    time.sleep(AMPLE)


def dying(pipe: Connection, _path: Path) -> None:
    """A server that takes its process with it."""
    pipe.recv()
    os._exit(7)


@pytest.mark.parametrize(("server", "limit", "outcome"), [(sleeping, 0.1, "timeout"), (dying, AMPLE, "crashed")])
def test_what_does_not_end_by_itself_is_recorded(
    server: Callable[[Connection, Path], None],
    limit: float,
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(campaign, "_serve", server)
    worker = campaign.Worker(tmp_path / "model.onnx")
    assert [worker.ask(PASS, limit)["outcome"] for _ in range(2)] == [outcome, outcome], "a new process each time"
    worker.end()


def test_every_model_and_every_pass_is_in_it() -> None:
    names = [subject.name for subject in subjects()]
    assert len(set(names)) == len(names)
    assert {f"zoo:{name}" for name in zoo_names()} <= set(names)
    assert {f"code:{name}" for name in NETWORKS} <= set(names)
    assert {"light:shufflenet", "light+weights:shufflenet", "light:bvlc_alexnet"} <= set(names)
    found = plans(list(all_passes()))
    assert len({plan.name for plan in found}) == len(found)
    assert {plan.name for plan in found if plan.is_default} == set(all_passes())
    for plan in found:
        for name, settings in plan.settings.items():
            all_passes()[name].check({**all_passes()[name].defaults, **settings})
            assert settings.keys() <= all_passes()[name].defaults.keys()
        assert set().union(*(all_passes()[name].needs for name in plan.passes)) <= plan.allow


def test_light_models_get_weights_that_differ_and_an_answer_that_is_not_saturated() -> None:
    assert len(light_names()) == 9
    before, after = (light_model("shufflenet", filled) for filled in (False, True))
    onnx.checker.check_model(after)
    assert {node.op_type for node in before.graph.node} - {node.op_type for node in after.graph.node} == {
        "ConstantOfShape"
    }
    assert after.ir_version == 3
    session = ort.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["gpu_0/data_0"]
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    answer = session.run(None, {"gpu_0/data_0": image})[0]
    assert 0.002 < answer.max() < 0.5, "neither all alike nor all in one"


def row(model: str, name: str, outcome: str = "rewritten", **more: Any) -> Row:
    facts = {"onnx": "1", "onnxruntime": "2", "numpy": "3"}
    return (
        {"model": model, "plan": name, "passes": [name.partition(" ")[0]], "versions": facts, "sources": "a"}
        | empty_row(outcome, "", 1.0)
        | more
    )


def test_the_page_shows_every_outcome() -> None:
    good: dict[str, Any] = {"rewrites": 3, "verdict": "equivalent", "grade": "finite"}
    text = campaign_page.page(
        [
            row("zoo:a", "regroup", **good),
            row("zoo:a", "split-groups", "does not apply"),
            row("zoo:b", "split-groups", "timeout", reason="It was ended."),
            row("zoo:b", "regroup", rewrites=2, verdict="different", reason="One | two."),
            row("zoo:b", "regroup groups=1", **good),
        ],
        ["zoo:a", "zoo:b", "zoo:c"],
    )
    assert "5 pairs run" in text
    assert "Not run yet: zoo:c." in text
    assert "| model | regroup | split-groups |" in text
    assert "| a | 3 finite |  |" in text
    assert "| b | **2 different** | ended: too slow |" in text
    assert "| regroup groups=1 | 1 | 3 | 1 | finite | 0 |" in text
    assert "| zoo:b | regroup | 2 different | One \\| two. |" in text
    assert "1 of the" not in text
    assert "2 of the 3 audits ended `equivalent`. 1 pairs did not end" in text
    assert "Nothing." in campaign_page.page([row("zoo:a", "regroup", **good)], [])


def test_the_page_is_that_of_the_results() -> None:
    rows = read_rows(campaign.RESULTS)
    assert rows, "benchmarks/results/campaign.json is missing: run make campaign"
    assert campaign_page.PAGE.read_text(encoding="utf-8") == campaign_page.current()


def test_the_results_are_of_models_and_plans_that_there_are() -> None:
    rows = read_rows(campaign.RESULTS)
    known = {subject.name for subject in subjects()}, {plan.name for plan in plans(list(all_passes()))}
    assert {model for model, _ in rows} <= known[0]
    assert {name for _, name in rows} <= known[1]
    assert all(entry["versions"].keys() == versions(PASS).keys() for entry in rows.values())
