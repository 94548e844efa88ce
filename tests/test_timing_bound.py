"""A model bound to a device, and captured: every call it makes, seen from outside, with the CPU as the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from rewriter import providers
from rewriter.session import Runtime, SessionFailed, open_session, run
from rewriter.timing import Contender, latency, output_sha256, runners
from rewriter.timing.bound import BoundRunner
from rewriter.timing.tensors import Place
from timed_models import FULL, GRAPH, conv, feeds, model, pretend_cuda


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)


class Watched:
    """A session that notes the calls made to it and its binding, in order, and passes them on."""

    def __init__(self, proto: onnx.ModelProto, refuse_capture: str = "") -> None:
        self.session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        self.calls: list[str] = []
        self.refuse_capture = refuse_capture

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def io_binding(self) -> WatchedBinding:
        return WatchedBinding(self)

    def run_with_iobinding(self, binding: WatchedBinding, options: ort.RunOptions | None = None) -> None:
        graph = None if options is None else options.get_run_config_entry("gpu_graph_id")
        self.calls.append("run" if graph is None else f"run {graph}")
        if graph is None and self.refuse_capture:
            raise RuntimeError(self.refuse_capture)
        self.session.run_with_iobinding(binding.binding, options)


class WatchedBinding:
    def __init__(self, owner: Watched) -> None:
        self.calls = owner.calls
        self.binding = owner.session.io_binding()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.binding, name)

        def passed(*args: Any) -> Any:
            self.calls.append({"synchronize_outputs": "wait", "synchronize_inputs": "inputs there"}.get(name, name))
            return attribute(*args)

        return passed


PLACED = ["bind_ortvalue_input", "inputs there"]
LOOK = ["bind_output", "{run}", "wait", "get_outputs"]


def looked(run: str) -> list[str]:
    """Two ordinary runs that tell the outputs' shapes, then outputs with an address."""
    return PLACED + 2 * [call.format(run=run) for call in LOOK] + ["bind_ortvalue_output"]


def test_inputs_are_placed_once_and_the_device_is_waited_for() -> None:
    watched = Watched(conv())
    runner = BoundRunner(watched, feeds(), Place("cpu"))
    assert watched.calls == looked("run")
    watched.calls.clear()
    runner.repeat(1)
    assert watched.calls == ["run", "wait"]
    watched.calls.clear()
    runner.repeat(4)
    assert watched.calls == ["run"] * 4 + ["wait"]


def test_a_capture_is_one_run_after_ordinary_ones_with_the_outputs_bound_and_all_later_runs_replay_it() -> None:
    watched = Watched(conv())
    runner = BoundRunner(watched, feeds(), Place("cpu"), captures=True)
    assert watched.calls == [*looked("run -1"), "run", "wait"]  # -1: not captured
    watched.calls.clear()
    runner.repeat(2)
    runner.outputs()
    assert watched.calls == ["run", "run", "wait", "run", "wait"]


def test_outputs_keep_their_address_and_are_computed_by_the_run_itself() -> None:
    watched = Watched(conv())
    runner = BoundRunner(watched, feeds(), Place("cpu"))
    address = runner.bound_outputs["y"].value.data_ptr()
    expected = run(open_session(conv(), Runtime()), feeds())["y"]
    runner.bound_outputs["y"].write(np.zeros_like(expected))
    assert output_sha256(runner.outputs()) == output_sha256({"y": expected})
    runner.repeat(3)
    assert runner.bound_outputs["y"].value.data_ptr() == address


def test_new_inputs_are_seen_by_the_next_run() -> None:
    runner = BoundRunner(Watched(conv()), feeds(), Place("cpu"), captures=True)
    runner.inputs["x"].write(feeds(1)["x"])
    assert output_sha256(runner.outputs()) == output_sha256(run(open_session(conv(), Runtime()), feeds(1)))


@pytest.mark.parametrize(
    "kind", [np.float16, np.float64, np.int64, np.bool_, np.uint8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_tensors_of_any_type_are_bound(kind: Any) -> None:
    array = np.array([[0, 1, 1], [1, 0, 0]]).astype(kind).T  # not contiguous
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    node = helper.make_node("Transpose" if code != TensorProto.FLOAT8E4M3FN else "Identity", ["x"], ["y"])
    proto = model([node], code, ["m", "n"])
    proto.opset_import[0].version = 21
    try:
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions have no other base
        proto.graph.node[0].op_type = "Identity"
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    result = BoundRunner(session, {"x": array}, Place("cpu")).outputs()["y"]
    expected = array.T if proto.graph.node[0].op_type == "Transpose" else array
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result.astype(np.float64), expected.astype(np.float64))


def test_empty_and_scalar_tensors_are_bound() -> None:
    for array in (np.zeros((0, 3), np.float32), np.float32(2)):
        proto = model([helper.make_node("Relu", ["x"], ["y"])], TensorProto.FLOAT, list(np.shape(array)))
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        result = BoundRunner(session, {"x": np.asarray(array)}, Place("cpu")).outputs()["y"]
        np.testing.assert_array_equal(result, array)


def test_what_cannot_be_bound_is_said() -> None:
    strings = model([helper.make_node("Identity", ["x"], ["y"])], TensorProto.STRING, ["n"])
    with pytest.raises(SessionFailed, match=r"^The input 'x' has type string, which cannot be bound .* on the cpu\.$"):
        BoundRunner(Watched(strings), {"x": np.array(["a"], object)}, Place("cpu"))
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)
    written = model([cast], TensorProto.INT64, ["n"])
    written.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(SessionFailed, match="The output 'y' has type string"):
        BoundRunner(Watched(written), {"x": np.array([1])}, Place("cpu"))
    with pytest.raises(SessionFailed, match="The input 'x' has type int4"):
        BoundRunner(Watched(conv()), {"x": np.zeros((1, 8, 8, 8), ml_dtypes.int4)}, Place("cpu"))
    sequence = model([helper.make_node("SequenceConstruct", ["x"], ["y"])], TensorProto.FLOAT, ["n"])
    sequence.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(sequence.graph.input[0].type))
    with pytest.raises(SessionFailed, match=r"The output 'y' has type seq\(tensor\(float\)\)"):
        BoundRunner(Watched(sequence), {"x": np.zeros(3, np.float32)}, Place("cpu"))
    with pytest.raises(SessionFailed, match="cannot place the model's inputs on nowhere:3: "):
        BoundRunner(Watched(conv()), feeds(), Place("nowhere", 3))
    with pytest.raises(SessionFailed, match="cannot run the model: "):
        BoundRunner(Watched(conv()), {"x": np.zeros((1, 8, 1, 1), np.float32)}, Place("cpu"))


def test_shapes_that_change_from_run_to_run_are_refused() -> None:
    """A draw of many coins: how many show heads is another number in every run."""
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["u"]),
        helper.make_node("Round", ["u"], ["coins"]),
        helper.make_node("NonZero", ["coins"], ["heads"]),
        helper.make_node("Cast", ["heads"], ["y"], to=TensorProto.FLOAT),
    ]
    random = model(nodes, TensorProto.FLOAT, ["a", "b"])
    with pytest.raises(SessionFailed, match=r"^The output 'y' has shape \[2, \d+\] in one run and .* fixed shapes"):
        BoundRunner(Watched(random), {"x": np.zeros((100, 1000), np.float32)}, Place("cpu"))


# Capture


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("as the model has control flow nodes which can't be supported by CUDA", "it has control flow"),
        ("as all compute graph nodes have not been partitioned to the CUDA", "some of its nodes run on the CPU"),
        ("as all the graph nodes have not been assigned to CUDA", "some of its nodes run on the CPU"),
        ("as it is Friday", r"it failed \(This session cannot"),
    ],
)
def test_a_graph_that_cannot_be_captured_is_an_error_that_says_what_to_do(
    said: str, why: str, fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise SessionFailed(f"This session cannot use the graph capture feature as requested by the user {said}.")

    monkeypatch.setattr(runners, "open_session", refuse)
    with pytest.raises(SessionFailed, match=rf"'m' cannot be timed: .* because {why}.*: time it .*enable_cuda_graph=1"):
        latency(Contender("m", b""), {}, GRAPH, budget_seconds=1)


def test_a_capture_that_fails_while_running_says_what_to_do() -> None:
    with pytest.raises(SessionFailed, match=r"because it failed \(.*CUDA failure 900.*\): time it without"):
        BoundRunner(Watched(conv(), "CUDA failure 900"), feeds(), Place("cpu"), captures=True)
    with pytest.raises(SessionFailed, match=r"^ONNX Runtime cannot run the model: CUDA failure 900\.$"):
        BoundRunner(Watched(conv(), "CUDA failure 900"), feeds(), Place("cpu"))


def test_other_errors_of_loading_stay_what_they_are(fake_cuda: None) -> None:
    with pytest.raises(SessionFailed, match="cannot be timed: ONNX Runtime cannot load the model"):
        latency(Contender("m", b"\xff"), {}, GRAPH, budget_seconds=1)


def test_the_providers_record_decides_how_a_model_is_run(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    contender = Contender("m", conv())
    seen: list[Any] = []

    class Spy(BoundRunner):
        def __init__(self, session: Any, feeds: Any, place: Place, *, captures: bool) -> None:
            seen.append((place, captures))
            super().__init__(session, feeds, place, captures=captures)

    monkeypatch.setattr(runners, "BoundRunner", Spy)
    assert isinstance(runners.open_runner(contender, GRAPH, feeds()), Spy)
    assert isinstance(runners.open_runner(contender, FULL, feeds()), Spy)
    assert seen == [(Place("cpu", 0), True), (Place("cpu", 0), False)]
    assert isinstance(runners.open_runner(contender, Runtime(), feeds()), runners.PlainRunner)
    monkeypatch.setitem(providers.PROVIDERS, "cuda", dataclasses.replace(providers.PROVIDERS["cuda"], bound=False))
    assert isinstance(runners.open_runner(contender, FULL, feeds()), runners.PlainRunner)
