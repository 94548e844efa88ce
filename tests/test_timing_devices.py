"""Timing on a device, simulated: warm-up, contenders with runtimes of their own, clocks, and what users read of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from rewriter import nvidia
from rewriter.cli_reports import bench_report
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.nvidia import Clocks
from rewriter.report.record import timing_record
from rewriter.report.text_audit import bench_blocks, bench_conclusion, latency_blocks, latency_conclusion
from rewriter.session import Runtime, open_session, run
from rewriter.timing import Contender, Timing, compare, latency, output_sha256
from rewriter.timing.clocks import device_name, driver_index, read_clocks, unsteadiness
from simulated_timing import Machine, Simulated, named
from timed_models import FULL, GRAPH, conv, feeds, pretend_cuda


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)


def reading(sm: int, *slowed: str, memory: int = 2600) -> Clocks:
    return Clocks(sm=sm, memory=memory, sm_max=1980, memory_max=2619, slowed=slowed)


def timed(
    machine: Machine, *afters: Contender, before: Contender | None = None, runtime: Runtime = FULL
) -> list[Timing]:
    readings = iter([reading(1980), reading(1965)])
    return compare(
        named(0.01) if before is None else before,
        afters,
        {},
        runtime,
        budget_seconds=60,
        clock=machine.clock,
        open_with=machine.open,
        clocks=lambda _: next(readings),
    )


def test_a_device_is_warmed_up_past_its_first_runs(fake_cuda: None) -> None:
    """The first run is much the slowest here, the second much the fastest: neither may set the block's length."""
    seconds = [5.0, 0.001]

    class Settling(Simulated):
        def repeat(self, runs: int) -> None:
            self.machine.log.append((self.name, runs))
            self.machine.now += runs * (seconds[self.results] if self.results < 2 else self.seconds)
            self.results += 1

    machine = Machine()
    alone = latency(
        named(0.25),
        {},
        FULL,
        budget_seconds=60,
        clock=machine.clock,
        open_with=lambda contender, *_: Settling(machine, contender.name, 0.25),
        clocks=lambda _: None,
    )
    assert machine.log[:3] == [("0.25", 1)] * 3
    assert alone.ms == 250
    assert alone.runs_per_block == 1  # 100 if the second run had counted


def test_the_cpu_is_warmed_up_as_before() -> None:
    machine = Machine()
    latency(named(1), {}, Runtime(), budget_seconds=2.5, clock=machine.clock, open_with=machine.open)
    assert machine.log == [("1#1", 1)]  # one run of the warm-up, and no round fits


def test_contenders_run_with_a_runtime_of_their_own(fake_cuda: None) -> None:
    machine = Machine()
    opened: list[tuple[str, Runtime]] = []

    def open_with(contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Simulated:
        opened.append((contender.name, runtime))
        return machine.open(contender, runtime, feeds)

    tf32 = Runtime("cuda", provider_options=(("use_tf32", "1"),))
    found = compare(
        Contender("0.01", b"", runtime=tf32),
        [Contender("0.02", b"", runtime=GRAPH), named(0.03)],
        {},
        FULL,
        budget_seconds=60,
        clock=machine.clock,
        open_with=open_with,
        clocks=lambda _: None,
    )
    # The control is the original with its own runtime.
    assert opened == [("0.01", tf32), ("0.01", tf32), ("0.02", GRAPH), ("0.03", FULL)]
    assert [entry.before_options for entry in found] == [(("use_tf32", "1"),)] * 2
    assert [dict(entry.after_options) for entry in found] == [
        {"use_tf32": "0", "enable_cuda_graph": "1"},
        {"use_tf32": "0"},
    ]
    assert [(entry.before_cuda_graph, entry.cuda_graph) for entry in found] == [(False, True), (False, False)]


@pytest.mark.parametrize(
    "own",
    [Runtime(), dataclasses.replace(FULL, threads=4), FULL.at("basic"), FULL.with_options(device_id="1")],
)
def test_a_runtime_of_ones_own_may_differ_in_options_only(own: Runtime) -> None:
    machine = Machine()
    with pytest.raises(BadInput, match=r"^'0.02' has a runtime of its own on .*only provider options may differ"):
        timed(machine, Contender("0.02", b"", runtime=own))
    assert machine.opened == []


def test_a_contender_of_the_cpu_is_no_replay() -> None:
    machine = Machine()
    (entry,) = timed(machine, named(0.02), runtime=Runtime(provider_options=(("enable_cuda_graph", "1"),)))
    assert not entry.cuda_graph
    assert not entry.bound


def test_clocks_are_read_between_warm_up_and_first_block_and_after_the_last(fake_cuda: None) -> None:
    machine = Machine()
    moments: list[int] = []

    def read(runtime: Runtime) -> Clocks | None:
        assert runtime is FULL
        moments.append(len(machine.log))
        return reading(1980 - len(moments))

    (entry,) = compare(
        named(0.25),
        [named(0.5)],
        {},
        FULL,
        budget_seconds=60,
        clock=machine.clock,
        open_with=machine.open,
        clocks=read,
    )
    assert moments == [9, len(machine.log)]  # 3 models, warmed up with 3 runs each
    assert entry.clocks == (reading(1979), reading(1978))


def test_only_the_clocks_of_nvidia_devices_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answer(index: int) -> Clocks:
        asked.append(index)
        return reading(index)

    monkeypatch.setattr(nvidia, "clocks", answer)
    monkeypatch.setattr(nvidia, "devices", lambda: (SimpleNamespace(name="H"),) * 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert read_clocks(Runtime()) is None
    assert device_name(Runtime()) == ""
    assert asked == []
    assert read_clocks(FULL) == reading(0)
    assert read_clocks(FULL.with_options(device_id="3")) == reading(3)
    assert read_clocks(FULL.with_options(device_id="4")) is None
    assert device_name(FULL) == "H"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert read_clocks(FULL) == reading(2)
    monkeypatch.setattr(nvidia, "devices", lambda: ())
    assert read_clocks(FULL) is None
    assert device_name(FULL) == ""


@pytest.mark.parametrize(
    ("number", "names", "environment", "index"),
    [
        (0, ["A"], {"CUDA_VISIBLE_DEVICES": "GPU-5d3f"}, 0),  # there is no other
        (0, [], {}, None),
        (1, ["A", "A"], {}, 1),
        (2, ["A", "A"], {}, None),
        (1, ["A", "A", "A"], {"CUDA_VISIBLE_DEVICES": "1, 2"}, 2),
        (1, ["A", "A", "A"], {"CUDA_VISIBLE_DEVICES": "1"}, None),
        (0, ["A", "A"], {"CUDA_VISIBLE_DEVICES": "GPU-5d3f"}, None),
        (0, ["A", "A"], {"CUDA_VISIBLE_DEVICES": "7"}, None),
        (0, ["A", "A"], {"CUDA_VISIBLE_DEVICES": ""}, None),
        (0, ["A", "B"], {}, None),  # which of them is faster is not known
        (1, ["A", "B"], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 1),
    ],
)
def test_cudas_number_of_a_device_is_not_always_the_drivers(
    number: int, names: list[str], environment: dict[str, str], index: int | None
) -> None:
    assert driver_index(number, names, environment) == index


@pytest.mark.parametrize(
    ("clocks", "expected"),
    [
        ((None, None), ""),
        ((reading(1980), None), ""),
        ((reading(1980), reading(1882)), ""),
        ((reading(1980, "clocks set by the user"), reading(1980, "idle")), ""),
        ((reading(1980), reading(1880)), "its SM clock fell by 5%"),
        ((reading(1500), reading(1980)), ""),
        ((reading(1980), reading(1980, memory=1300)), "its memory clock fell by 50%"),
        ((reading(1980, "power limit"), reading(990, "power limit")), "it was throttled (power limit) and its SM"),
        ((None, reading(1980, "power brake")), "it was throttled (power brake)"),
        ((dataclasses.replace(reading(0), sm=None, memory=None), reading(990)), ""),
    ],
)
def test_what_is_unsteady_is_said(clocks: tuple[Clocks | None, Clocks | None], expected: str) -> None:
    found = unsteadiness(clocks)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


# What users read


def in_words(timings: list[Timing]) -> str:
    return "\n".join(block for block in bench_blocks(timings)[1:] if isinstance(block, str))


def test_a_comparison_on_a_device_says_how_it_was_timed(fake_cuda: None) -> None:
    (plain,) = timed(Machine(), named(0.005))
    text = in_words([plain])
    assert "Timed on cuda, without a CUDA graph (--provider-option enable_cuda_graph=1 captures one)" in text
    assert "Clocks: 1980 of 1980 MHz before, 1965 after." in text
    assert "Note:" not in text
    assert "was run with" not in text
    assert bench_conclusion([plain]).endswith("| cuda")
    (graph,) = timed(Machine(), named(0.005), runtime=GRAPH)
    assert "Timed on cuda, as a captured CUDA graph;" in in_words([graph])
    assert bench_conclusion([graph]).endswith("| cuda, CUDA graph")
    (mixed,) = timed(Machine(), Contender("0.005", b"", runtime=GRAPH))
    assert "some as a captured CUDA graph" in in_words([mixed])
    assert "0.01 was run with use_tf32=0." in in_words([mixed])
    assert "0.005 was run with use_tf32=0, enable_cuda_graph=1." in in_words([mixed])
    assert bench_conclusion([mixed]).endswith("| cuda")
    unknown = dataclasses.replace(plain, clocks=(None, None), device="H")
    assert "Timed on H, " in in_words([unknown])
    assert "Clocks: the device does not tell them." in in_words([unknown])
    untold = dataclasses.replace(reading(0), sm=None, sm_max=None)
    for clocks in ((untold, reading(1980)), (reading(1980), untold), (None, reading(1980))):
        assert "Clocks: the device does not tell them." in in_words([dataclasses.replace(plain, clocks=clocks)])
    throttled = dataclasses.replace(plain, clocks=(reading(1980), reading(990, "power limit")))
    assert "Note: the device was not steady, since it was throttled (power limit) and its SM clock fell by 50%" in (
        in_words([throttled])
    )
    (cpu,) = timed(Machine(), named(0.005), runtime=Runtime())
    assert "Clocks" not in in_words([cpu])
    assert "Timed on" not in in_words([cpu])


def test_one_model_by_itself_says_the_same(fake_cuda: None) -> None:
    machine = Machine()
    alone = latency(
        named(0.00004),
        {},
        GRAPH,
        budget_seconds=60,
        clock=machine.clock,
        open_with=machine.open,
        clocks=lambda _: reading(1980),
    )
    assert alone.options == GRAPH.provider_options
    text = "\n".join(map(str, latency_blocks(alone)))
    assert "0.04 ms per run" in text
    assert "Timed on cuda, as a captured CUDA graph" in text
    assert "Clocks: 1980 of 1980 MHz before, 1980 after." in text
    assert latency_conclusion(alone) == "0.04 ms | 4e-05 | 1 thread | cuda, CUDA graph"


def test_reports_hold_options_graph_and_clocks(fake_cuda: None) -> None:
    (entry,) = timed(Machine(), Contender("0.005", b"", runtime=GRAPH))
    plain = timing_record(entry).model_dump(mode="json")
    assert plain["before_options"] == {"use_tf32": "0"}
    assert plain["after_options"] == {"use_tf32": "0", "enable_cuda_graph": "1"}
    assert (plain["before_cuda_graph"], plain["cuda_graph"], plain["device"]) == (False, True, "")
    assert [clocks["sm"] for clocks in plain["clocks"]] == [1980, 1965]
    loaded = Model.load(conv())
    assert bench_report([entry], [loaded, loaded], FULL).data["timing"]["cuda_graph"] is True
    machine = Machine()
    alone = latency(
        named(0.1),
        {},
        GRAPH,
        budget_seconds=60,
        clock=machine.clock,
        open_with=machine.open,
        clocks=lambda _: reading(1980, "power limit"),
    )
    found = bench_report(alone, [loaded], GRAPH).data["latency"]
    assert found["options"] == {"use_tf32": "0", "enable_cuda_graph": "1"}
    assert found["cuda_graph"] is True
    assert found["clocks"][1]["slowed"] == ("power limit",)


def test_real_sessions_are_compared_bound_with_options_of_their_own(fake_cuda: None) -> None:
    """From end to end, on the CPU: its provider ignores the options, so only structure and outputs are looked at."""
    runtimes = [FULL, GRAPH, Runtime("cuda", provider_options=(("prefer_nhwc", "1"),))]
    contenders = [Contender(str(number), conv(), runtime=own) for number, own in enumerate(runtimes)]
    found = compare(
        contenders[0],
        contenders[1:],
        feeds(),
        FULL,
        budget_seconds=1,
        block_seconds=0.002,
        warmup_seconds=0.01,
        half_width=0.2,
    )
    expected = output_sha256(run(open_session(conv(), Runtime()), feeds()))
    assert [entry.before_sha256 for entry in found] == [expected] * 2
    assert [entry.after_sha256 for entry in found] == [expected] * 2
    assert all(entry.bound and entry.clocks == (None, None) and entry.nondeterministic == () for entry in found)
