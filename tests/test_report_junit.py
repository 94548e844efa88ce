"""Reports as JUnit XML: a case for each thing checked, red exactly where the exit code is not 0."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml

import rewriter.equivalence
from cli_runs import dense_model
from fake_cuda import fake_cuda, faulty_cuda
from report_files import ALL, REWRITE, audit, cases, content, is_red, output, page, region, results, told, write_models
from rewriter.cli import main
from rewriter.cli_reports import audit_report, replay_report
from rewriter.equivalence import Audit
from rewriter.equivalence.records import LevelResult, OutputAudit, RegionAudit, Verdict, failed, not_applicable, passed
from rewriter.model import Model
from rewriter.report.formats import render
from rewriter.session import Runtime

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    """Let every audit end with that verdict."""
    real = rewriter.equivalence.audit

    def pretend(*arguments: Any, **options: Any) -> Audit:
        found = real(*arguments, **options)
        regions = tuple(entry.model_copy(update={"verdict": verdict}) for entry in found.regions)
        update = {"verdict": verdict, "grade": None, "reason": f"Pretended {verdict}.", "regions": regions}
        return found.model_copy(update=update)

    monkeypatch.setattr(rewriter.equivalence, "audit", pretend)


def test_an_audit_has_a_case_for_each_region_output_and_level(folder: Path) -> None:
    assert main(["audit", "dense.onnx", "wrong.onnx", "--report", "r.xml"]) == 1
    found = results()
    assert found["rewriter.audit.verdict", "verdict"] == "failure"
    assert found["rewriter.audit.levels", "L0 interface and structure"] == ""
    assert ("rewriter.audit.levels", "L4 outputs of the whole model") in found
    assert found["rewriter.audit.regions", "region y"] == "failure"
    assert ("rewriter.audit.outputs", "output y") in found
    region = cases()["rewriter.audit.regions", "region y"].result[0]
    assert "(weight 'w')" in region.message
    assert region.type == "different"
    assert "L1 FAILED" in region.text


@pytest.mark.parametrize(("verdict", "code"), [("different", 1), ("approximate", 3), ("not_verified", 3)])
@pytest.mark.parametrize("command", [("audit", "net.onnx", "net.onnx"), REWRITE], ids=["audit", "rewrite"])
def test_a_build_is_green_only_where_the_exit_code_is_0(
    command: tuple[str, ...], verdict: str, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*command, *ALL]) == 0
    assert not is_red()
    judged(monkeypatch, verdict)
    assert main([*command, *ALL]) == code
    part = "" if command[0] == "audit" else ".Audit"
    red = results()[f"rewriter.{command[0]}{part}.verdict", "verdict"]
    assert red == ("failure" if verdict == "different" else "error")
    assert cases()[f"rewriter.{command[0]}{part}.verdict", "verdict"].result[0].message == f"Pretended {verdict}."


def test_what_was_rewritten_is_told_by_region(folder: Path) -> None:
    assert main([*REWRITE, "--report", "r.xml"]) == 0
    document = ET.parse("r.xml").getroot()
    names = [case.get("name") for case in document.iter("testcase") if case.get("classname", "").endswith(".regions")]
    assert len(names) == 2
    assert document.find("testsuite").get("file") == "out.onnx"  # type: ignore[union-attr]  # there is one
    told = [case.findtext("system-out", "") for case in document.iter("testcase")]
    assert sum("L1 passed" in text for text in told) == 2


def test_nothing_to_rewrite_is_one_green_case(folder: Path) -> None:
    assert main(["rewrite", "dense.onnx", "-o", "out.onnx", "--pass", "regroup", "--report", "r.xml"]) == 0
    assert results() == {("rewriter.rewrite.verdict", "verdict"): ""}


@pytest.mark.parametrize("command", ["audit", "rewrite", "bench"])
def test_a_check_that_could_not_be_made_is_an_error(command: str, folder: Path, capsys: Captured) -> None:
    more = {"audit": ["dense.onnx"], "rewrite": ["-o", "out.onnx", "--pass", "regroup"], "bench": []}[command]
    assert main([command, "dense.onnx", *more, "--provider", "cuda", *ALL]) == 3
    assert results() == {(f"rewriter.{command}.verdict", "verdict"): "error"}
    (said,) = capsys.readouterr().err.splitlines()
    reason = json.loads(Path("r.json").read_text())["reason"]
    assert reason in said
    assert cases()[f"rewriter.{command}.verdict", "verdict"].result[0].message == reason
    assert Path("r.txt").read_text() == f"NOT VERIFIED | {reason.rstrip('.')}\n"
    assert reason.rstrip(".") in told("r.md")


def test_bench_is_green_and_says_that_it_judges_nothing(folder: Path, capsys: Captured) -> None:
    assert main(["bench", "dense.onnx", "dense.onnx", "--budget", "1", *ALL]) == 0
    assert results() == {
        ("rewriter.bench.timing", "dense.onnx against dense.onnx"): "",
        ("rewriter.bench.verdict", "equivalence"): "skipped",
    }
    assert Path("r.txt").read_text() == capsys.readouterr().out


def test_an_audit_across_providers_keeps_them_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    arguments = ["audit", "dense.onnx", "wrong.onnx", "--provider", "cpu", "--provider", "cuda", *ALL]
    assert main(arguments) == 1
    found = results()
    assert found["rewriter.audit.B_against_A_on_cpu.regions", "region y"] == "failure"
    assert found["rewriter.audit.A_on_cuda_against_A_on_cpu.regions", "region y"] == ""
    assert found["rewriter.audit.A_on_cuda_against_A_on_cpu_in_TF32_as_deployed.regions", "region y"] == ""
    assert Path("r.md").read_text().count("<summary>The same in TF32, as deployed</summary>") == 2
    headings = re.findall("^## (.*)$", Path("r.md").read_text(), re.MULTILINE)
    assert headings == [f"B against A on {name}" for name in ("cpu", "cuda")] + [
        f"{name} on cuda against {name} on cpu" for name in "AB"
    ]


def test_one_provider_that_computes_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty_cuda(monkeypatch, outputs=lambda value: value * np.float32(1.01))
    assert main(["audit", "dense.onnx", "--provider", "cpu", "--provider", "cuda", "--report", "r.xml"]) == 1
    assert results()["rewriter.audit.A_on_cuda_against_A_on_cpu.regions", "region y"] == "failure"


@pytest.mark.parametrize(("same", "said"), [(True, "Reproduced: all of it."), (False, "Not reproduced: y | z.")])
def test_an_audit_that_does_not_come_out_again_is_red(same: bool, said: str, tmp_path: Path) -> None:
    made = replay_report(content(audit()), same, said, ("Another | version.",))
    (tmp_path / "r.xml").write_bytes(render(".xml", made))
    assert is_red(tmp_path / "r.xml") is not same
    assert results(tmp_path / "r.xml")["rewriter.audit.verdict", "replay"] == ("" if same else "error")
    word, _, why = said.partition(": ")
    assert render(".txt", made).decode().endswith(f"\n\nNote: Another | version.\n\n{word.upper()} | {why[:-1]}\n")
    assert json.loads(render(".json", made))["replay"]["same"] is same
    text = page(render(".md", made).decode())[1]
    assert {said, "Note: Another | version."} <= set(text)


def test_a_certificate_replayed_is_told_in_every_format(folder: Path, capsys: Captured) -> None:
    assert main(["audit", "dense.onnx", "dense.onnx", "--certificate", "c.json", *ALL]) == 0
    capsys.readouterr()
    assert main(["audit", "dense.onnx", "dense.onnx", "--replay", "c.json", *ALL]) == 0
    assert Path("r.txt").read_text() == capsys.readouterr().out
    assert results()["rewriter.audit.verdict", "replay"] == ""


def test_errors_against_float64_are_told() -> None:
    held = output().model_copy(update={"own_error": 1.5e-7, "new_error": 2.5e-7})
    model = Model.load(dense_model().SerializeToString())
    made = audit_report(audit(outputs=(held,)), model, model, Runtime())
    for suffix in (".md", ".xml"):
        assert "Against float64, 'y' is off by 2.50e-07, the original's by 1.50e-07." in render(suffix, made).decode()


def test_the_verdict_comes_with_what_it_does_not_cover(tmp_path: Path) -> None:
    found = audit(
        verdict="different", flags={"nonfinite": "differs"}, notes=("The first tensor that differs is 'z|'.",)
    )
    (tmp_path / "r.xml").write_bytes(render(".xml", content(found)))
    text = cases(tmp_path / "r.xml")["rewriter.audit.verdict", "verdict"].result[0].text
    assert "Edges (L5): holds for finite inputs only" in text
    assert "The first tensor that differs is 'z|'." in text


ratios = st.sampled_from([0.5, 2.0, float("inf"), float("nan")])
levels = st.sampled_from(
    [passed("L0", "Good."), failed("L4", "Bad."), not_applicable("L4", "None."), not_applicable("L0", "None.")]
)
verdicts = st.sampled_from(get_args(Verdict))
audits = st.builds(
    audit,
    verdict=verdicts,
    levels=st.lists(levels, max_size=2).map(tuple),
    regions=st.lists(st.builds(region, st.sampled_from("yz"), verdicts), max_size=3).map(tuple),
    outputs=st.lists(
        st.builds(output, st.sampled_from("yz"), ratios, st.booleans()),
        max_size=3,
    ).map(tuple),
)


@given(audits, st.none() | audits)
def test_a_report_is_red_exactly_where_the_verdict_is_not_equivalent(found: Audit, deployed: Audit | None) -> None:
    written = render(".xml", content(found.model_copy(update={"deployed": deployed})))
    document = JUnitXml.fromstring(written)
    assert bool(document.failures or document.errors) == (found.verdict != "equivalent")


@pytest.mark.parametrize(
    ("found", "where", "fate"),
    [
        (region("y", "different"), "regions", "failure"),
        (region("y", "not_verified"), "regions", "error"),
        (region("y", "approximate"), "regions", "error"),
        (region("y", "approximate").model_copy(update={"allowed_error": 0.1}), "regions", ""),
        (output("y", 1.5), "outputs", "failure"),
        (output("y", float("nan")), "outputs", "failure"),
        (output("y", 1.0), "outputs", ""),
        (output("y", 0.0, compared=False), "outputs", "skipped"),
        (failed("L4", "It differs."), "levels", "failure"),
        (not_applicable("L4", "It says nothing."), "levels", "skipped"),
    ],
)
def test_what_becomes_of_a_case(
    found: RegionAudit | OutputAudit | LevelResult, where: str, fate: str, tmp_path: Path
) -> None:
    (tmp_path / "r.xml").write_bytes(render(".xml", content(audit(verdict="not_verified", **{where: (found,)}))))
    ((_, told),) = (entry for entry in results(tmp_path / "r.xml").items() if entry[0][0] == f"rewriter.audit.{where}")
    assert told == fate


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    twins = audit(outputs=(output("a\n"), output("a\\n")))
    (tmp_path / "r.xml").write_bytes(render(".xml", content(twins)))
    assert {name for group, name in cases(tmp_path / "r.xml") if group.endswith("outputs")} == {
        "output a\\n",
        "output a\\n (2)",
    }
