"""The whole product on CUDA: audits, passes, the measured choice, timing, the command line.

Each test runs twice: on a stand-in (the CPU's provider under CUDA's name), so that everything but the kernels is tested
everywhere, and on a GPU, where there is one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import rewriter.activations
import rewriter.equivalence.cut
import rewriter.equivalence.whole
import rewriter.timing.runners
import rewriter.whole_timing
from cli_runs import small_network
from fake_cuda import fake_cuda
from rewriter import RunOptions, Runtime, audit, bench, cross_audit, optimize, rewrite
from rewriter.cli import main
from rewriter.equivalence import AuditOptions
from rewriter.registry import all_passes
from rewriter.timing import Latency
from test_equivalence.nets import audited, half, net
from test_equivalence.wrong_suite import CASES

Array = np.ndarray[Any, Any]


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.cuda)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """CUDA as users have it: TF32 on."""
    if request.param == "stand-in":
        fake_cuda(monkeypatch)
    return Runtime("cuda")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_model_computes_the_same_on_cpu_and_cuda(cuda: Runtime, dtype: str) -> None:
    model = net(groups=8, inputs=4, outputs=4, size=(14, 14))
    found = cross_audit([model if dtype == "float32" else half(model)], [Runtime(), cuda])
    assert found.verdict == "equivalent", found.reason
    (crossing,) = found.crossings
    assert crossing.regions
    assert (crossing.deployed is not None) == (dtype == "float32")  # what TF32 concerns


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grouped-to-depthwise-sum", {}),
        ("grouped-to-depthwise-sum", {"reduce": "first"}),
        ("grouped-to-depthwise-sum", {"reduce": "last"}),
        ("regroup", {"factor": 2}),
        ("regroup", {"groups": 1}),
    ],
)
def test_each_rewrite_is_equivalent_there(cuda: Runtime, name: str, settings: dict[str, Any], dtype: str) -> None:
    model = net(groups=8, inputs=4, outputs=4, size=(14, 14), batch="n")
    result = rewrite(model if dtype == "float32" else half(model), [name], RunOptions(cuda), settings={name: settings})
    assert result.report.verdict == "equivalent", result.report.reason
    assert result.changed
    made = result.report.audit
    assert made is not None
    assert made.provider == "cuda"
    assert made.provider_options["use_tf32"] == "0"
    assert (made.deployed is not None) == (dtype == "float32")
    assert all(region.level("L3").outcome == "pass" for region in made.regions)  # type: ignore[union-attr] # it ran


def test_depthwise_sums_are_recognised_there(cuda: Runtime) -> None:
    wide = rewrite(net(groups=8, inputs=4, outputs=4, size=(14, 14), batch="n"), ["grouped-to-depthwise-sum"])
    result = rewrite(wide.model, ["depthwise-sum-to-grouped"], RunOptions(cuda))
    assert (result.report.verdict, result.changed) == ("equivalent", True), result.report.reason


@pytest.mark.parametrize("name", list(CASES))
def test_wrong_rewrites_are_rejected_there(cuda: Runtime, name: str) -> None:
    before, after = CASES[name][1]()
    found = audited(before, after, runtime=cuda)
    assert found.verdict != "equivalent", name
    if CASES[name][0] in ("L0", "L1"):  # what needs no run is refuted whatever the kernels do
        assert found.verdict == "different", found.reason


def test_optimize_measures_and_audits_there(cuda: Runtime, tmp_path: Path) -> None:
    model = small_network()
    result = optimize(model, RunOptions(cuda), budget=8)
    assert result.report.verdict == "equivalent"
    assert result.report.environment["provider"] == "cuda"
    considered = {entry.summary for entry in result.report.attempts if entry.pass_name == "regroup" and entry.summary}
    assert considered
    result.save(tmp_path / "out.onnx")
    if result.changed:
        assert result.report.timing is not None
        assert result.report.timing.verdict == "FASTER"
    else:
        assert (tmp_path / "out.onnx").read_bytes() == model.SerializeToString()


def test_optimize_captures_only_what_it_times(cuda: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured session that is fed NumPy arrays replays on the addresses of the first ones."""
    fed: list[Runtime] = []
    timed: list[Runtime] = []

    def noted(where: ModuleType, seen: list[Runtime]) -> None:
        real = where.open_session

        def opened(model: Any, runtime: Runtime, **others: Any) -> Any:
            seen.append(runtime)
            return real(model, runtime, **others)

        monkeypatch.setattr(where, "open_session", opened)

    for where in (rewriter.activations, rewriter.whole_timing, rewriter.equivalence.cut, rewriter.equivalence.whole):
        noted(where, fed)
    noted(rewriter.timing.runners, timed)
    result = optimize(small_network(), RunOptions(cuda.with_options(enable_cuda_graph="1")), budget=8)
    assert result.report.verdict == "equivalent"
    assert fed
    assert timed
    assert not any(runtime.captures for runtime in fed)
    assert all(runtime.captures for runtime in timed)


@pytest.mark.parametrize("captured", ["0", "1"])
def test_timing_with_and_without_a_cuda_graph(cuda: Runtime, captured: str) -> None:
    model = net(groups=8, inputs=4, outputs=4, size=(14, 14))
    found = bench([model], RunOptions(cuda.with_options(enable_cuda_graph=captured)), budget=3)
    assert isinstance(found, Latency)
    assert found.ms > 0
    assert found.cuda_graph == (captured == "1")
    assert found.nondeterministic == ()


def test_the_command_line_takes_two_providers(
    cuda: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, report = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "r.json"
    onnx.save(net(), before)
    regrouped = ["rewrite", str(before), "-o", str(after), "--pass", "regroup", "--set", "regroup.factor=2"]
    assert main([*regrouped, "--provider", "cuda"]) == 0
    both = ["--provider", "cpu", "--provider", "cuda", "--provider-option", "use_tf32=0"]
    assert main(["audit", str(before), str(after), *both, "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert "== B against A on cuda ==" in said
    assert "== B on cuda against B on cpu ==" in said
    assert said.splitlines()[-1] == (
        "EQUIVALENT | B against A on cpu: equivalent (finite) | B against A on cuda: equivalent (finite) | "
        "A on cuda against A on cpu: equivalent (rounding) | B on cuda against B on cpu: equivalent (rounding)"
    )
    assert "first provider's own" in said
    content = json.loads(report.read_text())
    assert content["providers"] == ["cpu", "cuda"]
    facts = {"gpus", "driver", "cuda", "cudnn", "provider_options"}  # whichever provider is the first
    assert facts <= content["environment"].keys()
    assert content["environment"]["provider_options"] == "use_tf32=0"
    assert content["environment"]["provider"] == "cpu, cuda"
    assert [entry["provider_options"].get("use_tf32") for entry in content["pairs"]] == [None, "0"]
    assert main(["audit", str(before), *both]) == 0
    assert main(["bench", str(before), str(after), "--provider", "cuda", "--budget", "2"]) == 0


def test_one_audit_on_cuda_names_its_precision(cuda: Runtime) -> None:
    before = net()
    after = rewrite(before, ["regroup"], settings={"regroup": {"factor": 2}}).model
    found = audit(before, after, RunOptions(cuda))
    assert (found.verdict, found.precision, found.reference) == ("equivalent", "full", "")
    assert found.deployed is not None
    assert found.deployed.precision == "tf32"
    assert dataclasses.replace(AuditOptions(), runtime=cuda).runtime.tf32
    assert all_passes()
