"""benchmarks/peers.py and its page: what a row says, what breaks a model, what is counted, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import openvino, optimize, peer_tools, peers, peers_page, peers_plot, peers_table, readme
from benchmarks.peer_check import agreement
from benchmarks.peer_tools import OPENVINO, OWN, REWRITERS, TOOLS, Task, convert
from benchmarks.peer_work import fastest_dense
from benchmarks.peers_figures import SHOWN, best_other, figure, mean, roofline
from cli_runs import small_network
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.session import Runtime, SessionFailed
from rewriter.timing import Contender

Row = dict[str, Any]


def timed(speedup: float, ms: float = 10.0) -> Row:
    return {"speedup": speedup, "interval": [speedup - 0.01, speedup + 0.02], "verdict": "NOISE", "ms": ms}


def made(tool: str, problem: str = "") -> Row:
    return {"tool": tool, "version": "1", "seconds": 2.0, "peak_mib": 64.0, "problem": problem}


def row(model: str = "mobilenet_v2", threads: int = 1, **changes: Any) -> Row:
    """As `peers.measure` gives them: all tools are as fast as the original, OpenVINO 1.5, this one 2 times."""
    report = {"verdict": "equivalent", "grade": "finite", "reason": "", "seconds": 9.0}
    checked = {"verdict": "agrees", "error": 1e-7, "response": 0.1, "reason": ""}
    return {
        "model": model,
        "threads": threads,
        "plan": {"budget": 1.0, "seconds": 1.0},
        "work": {"multiplications": 300, "grouped": 1, "unaligned": 0},
        "tools": {tool: made(tool) for tool in SHOWN},
        "own": {**report, "changed": True, "rewrites": 3, "kept": {"regroup: 4 -> 8": 3}},
        "checks": dict.fromkeys(SHOWN, checked),
        "openvino_threads": 1,
        "original": {"ms": 20.0, "control_interval": [0.98, 1.03]},
        "dense": {"what": "a few channels", "multiplications": 1000, "gflops_alone": 1.0},
        "timings": {
            **{tool: timed(1.0) for tool in REWRITERS},
            OPENVINO: timed(1.5),
            OWN: timed(2.0),
            "dense": timed(0.5, 40.0),
        },
        "problem": "",
        **changes,
    }


def results(*rows: Row) -> dict[str, Any]:
    facts = {"processor": "P", "cores": "2", "onnxruntime": "1", "python": "3", **dict.fromkeys(SHOWN, "1")}
    return {"schema": peers.SCHEMA, "environment": facts, "rows": list(rows)}


def broken(tool: str, check: Mapping[str, Any]) -> Row:
    plain = row()
    return row(checks={**plain["checks"], tool: {"error": 0.5, "response": 0.1, "reason": "off", **check}})


# What a row says.


def test_a_figure_is_of_a_model_that_is_right() -> None:
    assert str(figure(row(), OPENVINO)) == "1.50× (1.49 to 1.52)"
    wrong = figure(broken("onnxsim", {"verdict": "differs"}), "onnxsim")
    assert (wrong.speedup, wrong.counted, str(wrong)) == (None, 1.0, "**wrong outputs**")
    stuck = figure(broken("onnxsim", {"verdict": "fails", "error": None}), "onnxsim")
    assert str(stuck) == "**cannot be run**"
    assert str(figure(broken("onnxsim", {"verdict": "blind"}), "onnxsim")) == "1.00× (0.99 to 1.02) †"


def test_who_makes_nothing_counts_as_the_original() -> None:
    plain = row()
    absent = row(tools={**plain["tools"], OPENVINO: made(OPENVINO, "not installed")})
    crashed = row(tools={**plain["tools"], OWN: made(OWN, "ended with -11")})
    assert (str(figure(absent, OPENVINO)), str(figure(crashed, OWN))) == ("not installed", "failed")
    same = row(own={**plain["own"], "changed": False})
    assert (str(figure(same, OWN)), figure(same, OWN).counted) == ("unchanged", 1.0)
    assert mean([plain, crashed], OWN) == pytest.approx(2**0.5)
    assert mean([plain, absent], OPENVINO) == pytest.approx(1.5**0.5)


def test_the_best_of_the_others_is_named_and_is_none_that_is_wrong() -> None:
    plain = row()
    timings = {**plain["timings"], "onnxslim": timed(1.2), "onnxsim": timed(9.0)}
    found = best_other({**broken("onnxsim", {"verdict": "differs"}), "timings": timings})
    assert found is not None
    assert found[0] == "onnxslim"
    assert best_other(row(tools={tool: made(tool, "not installed") for tool in SHOWN})) is None


def test_the_roofline_is_a_ratio_of_rates() -> None:
    # 300 multiplications in 20 ms beside 1000 in 40 ms
    assert roofline(row()) == pytest.approx((300 / 20) / (1000 / 40))
    assert roofline(row(), OWN) == pytest.approx((300 / 10) / (1000 / 40))
    unknown = row(work={"multiplications": None, "grouped": 0, "unaligned": 0})
    assert roofline(unknown) is None


# The page, the picture and the README's table.


def test_the_page_has_both_settings_and_says_what_is_missing() -> None:
    late = row("regnet_x_400mf", 0, problem="It broke.", timings={}, original=None, dense=None)
    text = peers_page.page(results(row(), broken("onnxsim", {"verdict": "differs"}), late))
    assert "| mobilenet_v2 | 20.0 | 0.98 to 1.03 | 1.00× (0.99 to 1.02) |" in text
    assert "| mobilenet_v2 | 20.0 | 0.98 to 1.03 | **wrong outputs** |" in text
    assert "- mobilenet\\_v2: onnxsim: off" in text
    assert "- regnet\\_x\\_400mf: It broke." in text
    assert "| regnet_x_400mf | – | – | not timed |" in text
    assert text.count("**geometric mean**, all") == 2
    assert "| mobilenet_v2 | 0.00 | 60 % | 90 % | 120 % |" in text
    assert "| **median** | 2.0 s, 64 MiB |" in text
    assert "3 × regroup: 4 -> 8" in text
    for link in ("peers-1-thread.svg", "peers-all-cores.svg"):
        assert f"](pictures/{link})" in text


def test_the_page_and_the_pictures_are_those_of_the_results() -> None:
    assert list(peers_page.differences(peers.read(peers.RESULTS))) == []


def test_what_is_stale_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_page, "PAGE", tmp_path / "peers.md")
    monkeypatch.setattr(peers_page, "PICTURES", tmp_path)
    found = results(row())
    assert len(list(peers_page.differences(found))) == 2
    (tmp_path / "peers.md").write_text(peers_page.page(found), encoding="utf-8")
    (tmp_path / "peers-1-thread.svg").write_text(f"<svg>{peers_plot.digest(found['rows'])}</svg>", encoding="utf-8")
    assert list(peers_page.differences(found)) == []
    (tmp_path / "peers-all-cores.svg").write_text("<svg/>", encoding="utf-8")
    changed = results(row(own={**row()["own"], "seconds": 99.0}))
    assert len(list(peers_page.differences(found))) == 1
    assert len(list(peers_page.differences(changed))) == 3


def test_the_picture_is_the_same_twice_and_has_every_model_and_tool() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws it, is in the extra `peers`")
    rows = [row(), row("regnet_x_400mf", tools={tool: made(tool, "not installed") for tool in SHOWN})]
    text = peers_plot.picture(rows, "Speed-ups")
    assert text == peers_plot.picture(rows, "Speed-ups")
    for name in ("mobilenet_v2", "regnet_x_400mf", "OpenVINO", *REWRITERS, OWN, peers_plot.digest(rows)):
        assert name in text
    assert "<dc:date>" not in text


def test_the_readme_takes_the_table_beside_others_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in readme.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "peers.json").unlink(missing_ok=True)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    heading = "| model | rewriter | best of onnxsim, onnxslim, onnxoptimizer, onnxscript | OpenVINO |"
    assert heading not in readme.section()
    (tmp_path / "peers.json").write_text(json.dumps(results(row(), row(threads=0))), encoding="utf-8")
    text = readme.section()
    assert heading in text
    assert "| mobilenet_v2 | 2.00× (1.99 to 2.02) | 1.00× (0.99 to 1.02), onnxsim | 1.50× (1.49 to 1.52) |" in text
    assert "| geometric mean, all 1, all cores | 2.00× | 1.00×, onnxsim | 1.50× | | | |" in text


def test_the_readme_explains_its_sign() -> None:
    assert not any(line.startswith("†") for line in peers_table.section(results(row())))
    assert any(line.startswith("†") for line in peers_table.section(results(broken(OPENVINO, {"verdict": "blind"}))))


# The rows of a run.


def test_a_row_takes_the_place_of_an_older_one_in_the_order_of_the_models() -> None:
    rows: list[Row] = []
    for one in (row("mobilenet_v2", 0), row("mobilenet_v2"), row("resnext50_32x4d"), row("mobilenet_v2", 0, own=None)):
        rows = peers.merged(rows, one)
    found = [(one["model"], one["threads"], one["own"] is None) for one in rows]
    assert found == [("resnext50_32x4d", 1, False), ("mobilenet_v2", 1, False), ("mobilenet_v2", 0, True)]


def test_only_a_whole_row_of_the_same_settings_is_kept() -> None:
    plan = peers.Plan(1.0, 1.0)
    failed = row(tools={**row()["tools"], OWN: made(OWN, "ended with 4")})
    assert peers._is_there([row()], "mobilenet_v2", 1, plan)
    assert not peers._is_there([row()], "mobilenet_v2", 0, plan)
    assert not peers._is_there([row()], "mobilenet_v2", 1, peers.Plan(2.0, 1.0))
    assert not peers._is_there([failed, row(problem="It broke.")], "mobilenet_v2", 1, plan)


def test_results_of_another_machine_are_not_mixed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(results(row())), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["peers", "--output", str(path)])
    assert peers.main() == 2
    assert "another machine or other versions" in capsys.readouterr().err
    path.write_text('{"schema": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="schema 0"):
        peers.main()


def test_a_run_writes_after_each_model_and_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "peers.json"

    def measure(name: str, threads: int, *_: object) -> Row:
        assert threads == 1 or json.loads(path.read_text())["rows"]
        return row(name, threads, problem="It broke." if threads == 0 else "")

    monkeypatch.setattr(peers, "measure", measure)
    monkeypatch.setattr(peers, "fastest_dense", lambda _runtime: None)
    monkeypatch.setattr(
        sys, "argv", ["peers", "mobilenet_v2", "--budget", "1", "--seconds", "1", "--output", str(path)]
    )
    assert peers.main() == 1
    said = capsys.readouterr()
    assert said.err == "Not measured, `--resume` tries again: mobilenet_v2, all cores.\n"
    assert [one["threads"] for one in json.loads(path.read_text())["rows"]] == [1, 0]
    sys.argv.append("--resume")
    assert peers.main() == 1
    assert "mobilenet_v2, 1 thread: there already, kept." in capsys.readouterr().out


def test_a_model_is_measured_beside_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `measure`, with tools that copy, break, and fail."""

    def fake(tool: str, task: Task) -> peer_tools.Converted:
        model = small_network()
        if tool == "onnxslim":
            weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
            weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
        if tool not in (OPENVINO, "onnxoptimizer"):
            onnx.save(model, task.target)
        if tool == OWN:
            Path(task.report).write_text(json.dumps(report), encoding="utf-8")
        problem = "not installed" if tool in (OPENVINO, "onnxoptimizer") else ""
        return peer_tools.Converted(tool, "1", 1.0, 1.0, problem)

    side = {"nodes": 1, "ops": {}}
    said = {"changed": True, "verdict": "equivalent", "grade": "exact", "reason": "", "seconds": 1.0}
    report = {**said, "timing": None, "attempts": [], "before": side, "after": side}
    monkeypatch.setattr(peers, "convert", fake)
    monkeypatch.setattr(peers, "zoo_model", lambda _name: small_network())
    monkeypatch.setattr(peers, "_ROUNDS", 0)
    dense = fastest_dense(Runtime(), [(16, 4, 1), (16, 4, 3)], 0.01)
    found = json.loads(json.dumps(peers.measure("small", 1, peers.Plan(1.0, 0.01), dense)))
    assert found["problem"] == ""
    assert {name: one["verdict"] for name, one in found["checks"].items()} == {
        "onnxsim": "agrees",
        "onnxslim": "differs",
        "onnxscript": "agrees",
        OWN: "agrees",
    }
    assert set(found["timings"]) == {"onnxsim", "onnxscript", OWN, "dense"}
    assert found["work"]["multiplications"] > 0
    assert found["own"]["verdict"] == "equivalent"
    assert "onnxslim off by" in peers.line(found)
    assert "onnxoptimizer not installed" in peers.line(found)
    assert roofline(found) is not None
    assert "**wrong outputs**" in peers_page.page(results(found))


# A tool in a process of its own.


def test_a_tool_that_is_not_there_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_tools, "installed", lambda _tool: "")
    assert convert("onnxsim", Task("a", "b", 1, 1.0)).problem == "not installed"


@pytest.mark.slow
def test_our_own_tool_is_one_of_them_and_its_report_a_row(tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    onnx.save(small_network(), source)
    task = Task(str(source), str(tmp_path / "b.onnx"), 1, 2.0)
    found = convert(OWN, task)
    assert (found.problem, Path(task.target).exists()) == ("", True)
    assert found.seconds is not None
    assert found.peak_mib is not None
    assert found.seconds > 0
    assert found.peak_mib > 30
    own = optimize.row("a", json.loads(Path(task.report).read_text(encoding="utf-8")))
    assert (own["model"], own["verdict"]) == ("a", "equivalent")
    gone = convert(OWN, Task(str(tmp_path / "gone.onnx"), task.target, 1, 1.0))
    assert gone.problem.startswith("RuntimeError: rewriter ended with 2: ")
    assert "gone.onnx" in gone.problem


def test_the_peak_is_not_inherited() -> None:
    """`ru_maxrss` of a child begins with its parent's; the figure of a child that does nothing must not."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of a process by itself")
    ballast = np.ones(400 << 17)  # 400 MiB
    code = "from benchmarks.peer_tools import peak_mib; print(peak_mib())"
    done = subprocess.run([sys.executable, "-c", code], cwd=peer_tools.ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200 < ballast.nbytes >> 20


@pytest.mark.parametrize("tool", [*REWRITERS, OPENVINO])
def test_the_other_tools_do_what_is_asked(tool: str, tmp_path: Path) -> None:
    if not peer_tools.installed(tool):
        pytest.skip(f"{tool} is not installed: it is in the extra `peers`")
    source = tmp_path / "a.onnx"
    onnx.save(small_network(), source)
    found = convert(tool, Task(str(source), str(tmp_path / "b.onnx"), 1, 1.0))
    assert found.problem == ""
    assert (tmp_path / "b.onnx").exists() == (tool in REWRITERS)


def test_openvino_gives_the_outputs_and_says_what_it_cannot_load(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is in the extra `peers`")
    source, bad = tmp_path / "a.onnx", tmp_path / "bad.onnx"
    onnx.save(small_network(), source)
    bad.write_text("no model")
    feeds = representative(Model.load(source), RunOptions()).feeds
    runner = openvino.OpenVINO(Contender(OPENVINO, source), Runtime(threads=1), feeds)
    assert runner.threads == 1
    original = peers._open(Contender("original", source), Runtime(), feeds)
    assert agreement([original.outputs()], [runner.outputs()]).error == pytest.approx(0, abs=1e-5)
    with pytest.raises(SessionFailed, match="OpenVINO cannot load it: "):
        openvino.OpenVINO(Contender(OPENVINO, bad), Runtime(threads=1), feeds)


def test_every_tool_has_a_place_in_the_tables() -> None:
    assert set(SHOWN) == set(TOOLS) == set(peers_plot._LOOKS)
