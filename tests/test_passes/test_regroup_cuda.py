"""What is worth measuring on CUDA: factors by the provider's widths, and the candidates that `optimize` has there.

Where no GPU is, ONNX Runtime's CPU provider stands in for CUDA, so that all but the device is the real thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rewriter.choose
import rewriter.whole_timing
from cli_runs import small_network
from fake_cuda import fake_cuda
from models.grouped import GroupedConv, grouped_conv_model
from programs import program
from rewriter import Declined, Graph, RunOptions, Runtime, Settings
from rewriter.api import inspect, optimize, rewrite
from rewriter.model import Model
from rewriter.propose import Step, ask, sweep
from rewriter.providers import PROVIDERS
from rewriter.registry import all_passes, pass_named
from rewriter.rule import Attempt
from rewriter.timing import Contender, Timing
from timings import timing

PASS = "regroup"
THERE = "grouped-to-depthwise-sum"
BACK = "depthwise-sum-to-grouped"
SPEC = GroupedConv(groups=32, in_per_group=4, out_per_group=4, spatial=(5, 5), shapes="dynamic_batch")
CUDA = RunOptions(runtime=Runtime("cuda"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's record with the CPU provider to run it."""
    fake_cuda(monkeypatch)


def graph_of(**options: Any) -> Graph:
    return Graph(Model.load(grouped_conv_model(replace(SPEC, **options))), provider="cuda")


def factors(graph: Graph) -> list[Settings]:
    return list(pass_named(PASS).candidates(graph, 0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 4 is there already; 8, 16 and 32 need 2, 4 and 8; and dense.
        ({}, [2, 4, 8, 32]),
        ({"in_per_group": 8}, [2, 4, 8, 32]),  # the outputs of a group count as well
        ({"in_per_group": 2, "out_per_group": 2}, [2, 4, 8, 16, 32]),
        ({"in_per_group": 3, "out_per_group": 5}, [4, 8, 16, 32]),  # only f itself can be the multiple; dense is one
        ({"groups": 8, "in_per_group": 24, "out_per_group": 24}, [2, 4, 8]),
        ({"groups": 4, "in_per_group": 32, "out_per_group": 64}, [4]),  # wide enough: dense alone
        ({"groups": 12, "in_per_group": 2, "out_per_group": 2}, [2, 4, 12]),  # 16 and 32 are out of reach
        ({"groups": 3, "in_per_group": 1, "out_per_group": 2}, [3]),
        ({"groups": 2}, [2]),  # dense is what makes them 8 wide
        # Depthwise, which becomes nearly all zeros: two at most. With a multiplier of 2 it is none in this sense.
        ({"in_per_group": 1, "out_per_group": 1}, [4, 8]),
        ({"groups": 6, "in_per_group": 1, "out_per_group": 1}, [6]),
        ({"in_per_group": 1, "out_per_group": 2}, [4, 8, 16, 32]),
        # Any rank and type that the device multiplies.
        ({"kernel": (3,), "spatial": (6,)}, [2, 4, 8, 32]),
        ({"kernel": (2, 1, 3), "spatial": (4, 3, 5)}, [2, 4, 8, 32]),
        ({"dtype": "float16"}, [2, 4, 8, 32]),
    ],
)
def test_the_smallest_factor_for_each_width_and_dense(options: dict[str, Any], expected: list[int]) -> None:
    assert factors(graph_of(**options)) == [{"factor": factor} for factor in expected]


def test_bfloat16_has_candidates() -> None:
    weight = np.ones((64, 2, 3, 3), ml_dtypes.bfloat16)
    model = program("y = Conv <group = 32> (x, w)", x="bfloat16[N,64,5,5]", opset=22, w=weight)
    assert [one["factor"] for one in factors(Graph(Model.load(model), provider="cuda"))] == [2, 4, 8, 16, 32]


def test_the_widths_are_the_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up when asked: nothing about them is in the pass."""
    monkeypatch.setitem(PROVIDERS, "cuda", replace(PROVIDERS["cuda"], widths=(64,)))
    assert factors(graph_of()) == [{"factor": 16}, {"factor": 32}]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 1}, "it is dense"),
        (
            {"dtype": "float64"},
            "in float32, float16, bfloat16 only, and it is in float64: set regroup.factor to regroup it anyway",
        ),
    ],
)
def test_what_has_no_candidates(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Declined, match=reason):
        factors(graph_of(**options))


@pytest.mark.parametrize("settings", [{}, {"block": 8}, {"block": 16}, {"factor": 2}, {"factor": 5}, {"groups": 4}])
@pytest.mark.parametrize(
    "options",
    [{}, {"in_per_group": 16, "out_per_group": 16}, {"dtype": "float16"}, {"kernel": (3,), "spatial": (6,)}],
)
def test_the_same_settings_give_the_same_rewrite_on_every_provider(options: dict[str, Any], settings: Settings) -> None:
    """What declines declines; only the reason leaves the CPU's fast path out."""
    there = graph_of(**options)
    here = replace(there, provider="cpu")
    rule = pass_named(PASS)
    first, second = ask(here, rule, 0, settings), ask(there, rule, 0, settings)
    if not isinstance(first, Attempt):
        assert first == second
        return
    assert isinstance(second, Attempt)
    if "fast path" in first.reason:
        assert second.reason == "Neither regroup.factor nor regroup.groups is set: set one."
    else:
        assert second == first


def test_a_machine_without_a_fast_path_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.regroup.nchwc_block", lambda: 0)
    graph = graph_of()
    assert factors(graph) == [{"factor": factor} for factor in (2, 4, 8, 32)]
    answer = ask(graph, pass_named(PASS), 0, {})
    assert isinstance(answer, Attempt)
    assert answer.reason == "Neither regroup.factor nor regroup.groups is set: set one."


@pytest.mark.parametrize("command", ["inspect", "rewrite"])
def test_inspect_and_rewrite_do_not_speak_of_the_cpu(command: str, stand_in: None) -> None:
    """16 channels per group are on the fast path of every CPU that has one."""
    model = grouped_conv_model(replace(SPEC, in_per_group=16, out_per_group=16))
    if command == "inspect":
        reasons = [one.reason for site in inspect(model, CUDA) for one in site.passes if one.pass_name == PASS]
    else:
        reasons = [one.reason for one in rewrite(model, [PASS], CUDA).report.attempts]
    assert reasons == ["Neither regroup.factor nor regroup.groups is set: set one."]
    assert any("fast path" in one.reason for one in inspect(model)[0].passes), "on the CPU it is the reason"


def test_every_candidate_is_considered(stand_in: None) -> None:
    """Without time to measure, each says so: groups of 4 and of 8 channels, and the dense convolutions around them."""
    report = optimize(small_network(), CUDA, budget=1e-9).report
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in report.attempts:
        if entry.outcome != "declined" and entry.pass_name in (THERE, PASS):
            found.setdefault(entry.site, []).append((entry.pass_name, entry.summary))
    wide = "Conv group 8 -> depthwise Conv of {} channels, summed over {}"
    expected = {
        "stage1.block1.conv2": [
            *((THERE, wide.format(128, 4) + place) for place in ("", " in front", " at the end")),
            (PASS, "Conv group 8 -> group 4, 4 -> 8 channels per group"),
            (PASS, "Conv group 8 -> group 2, 4 -> 16 channels per group"),
            (PASS, "Conv group 8 -> group 1, 4 -> 32 channels per group"),
        ],
        "stage2.block1.conv2": [
            *((THERE, wide.format(512, 8) + place) for place in ("", " in front", " at the end")),
            (PASS, "Conv group 8 -> group 4, 8 -> 16 channels per group"),
            (PASS, "Conv group 8 -> group 2, 8 -> 32 channels per group"),
            (PASS, "Conv group 8 -> group 1, 8 -> 64 channels per group"),
        ],
    }
    assert found == expected
    declined = [(entry.pass_name, entry.site) for entry in report.attempts if entry.outcome == "declined"]
    assert len(declined) == len(set(declined)), "a pass that declines says so once, not once per candidate"
    assert not [entry.reason for entry in report.attempts if "fast path" in entry.reason]


def test_what_has_no_candidates_says_why_and_is_not_tried_with_the_defaults(stand_in: None) -> None:
    report = optimize(grouped_conv_model(replace(SPEC, dtype="float64")), CUDA, budget=1e-9).report
    (entry,) = [entry for entry in report.attempts if entry.pass_name == PASS]
    assert entry.outcome == "declined"
    assert entry.reason.startswith("Wider groups are measured in float32, float16, bfloat16 only, and it is in float64")


@pytest.fixture
def where_sums_are_fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A device on which depthwise sums are faster and nothing else is; gives the candidates that it measured."""
    seen: list[str] = []

    def compare(original: Contender, some: Sequence[Contender], *_: Any, **__: Any) -> list[Timing]:
        seen.extend(contender.name for contender in some)
        fast = [contender.name == "rewritten" or contender.name.startswith(f"{THERE} ") for contender in some]
        found = [(1.5, "FASTER") if each else (0.5, "SLOWER") for each in fast]
        return [timing(*each, original.name, one.name, "cuda") for one, each in zip(some, found, strict=True)]

    monkeypatch.setattr(rewriter.choose, "compare", compare)
    monkeypatch.setattr(rewriter.whole_timing, "compare", compare)
    return lambda: seen


def test_a_sum_that_was_faster_is_not_undone(stand_in: None, where_sums_are_fast: Callable[[], list[str]]) -> None:
    """The next round finds the sum that was just made, and the pass that would take it back."""
    result = optimize(small_network(), CUDA)
    assert result.changed
    kept = [entry for entry in result.report.attempts if entry.outcome == "accepted"]
    assert {(entry.pass_name, entry.site) for entry in kept} == {
        (THERE, "stage1.block1.conv2"),
        (THERE, "stage2.block1.conv2"),
    }
    names = {name.partition(" ")[0] for name in where_sums_are_fast()}
    assert names >= {THERE, PASS, "rewritten"}
    assert BACK not in names
    assert {entry.outcome for entry in result.report.attempts if entry.pass_name == BACK} == {"declined"}


CANDIDATES: list[tuple[str, Settings]] = [
    *((THERE, {"reduce": place}) for place in ("middle", "first", "last")),
    *((PASS, {"groups": groups}) for groups in (4, 2, 1)),
]


@pytest.mark.parametrize(("rule", "settings"), CANDIDATES, ids=str)
def test_every_candidate_passes_the_audit_on_the_stand_in(rule: str, settings: Settings, stand_in: None) -> None:
    audited(rule, settings)


@pytest.mark.cuda
@pytest.mark.parametrize(("rule", "settings"), CANDIDATES, ids=str)
def test_every_candidate_passes_the_audit_on_the_device(rule: str, settings: Settings) -> None:
    audited(rule, settings)


def audited(rule: str, settings: Settings) -> None:
    model = small_network()
    result = rewrite(model, [rule], CUDA, settings={rule: settings}, stamped=False)
    assert result.report.verdict == "equivalent", result.report.reason
    assert result.changed
    there, _, _ = sweep(Model.load(model), Step(all_passes()[rule], settings), {})
    assert result.rewritten.to_bytes() == there.to_bytes(), "it depends on the provider"
