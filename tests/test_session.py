"""Sessions: options are what was asked for, providers never fall back, errors are sentences, exotic types survive."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter import logs
from rewriter import session as session_module
from rewriter.errors import BadInput, NotVerified
from rewriter.providers import PROVIDERS, Provider, available
from rewriter.session import (
    Runtime,
    SessionFailed,
    open_session,
    prepare,
    reason,
    require_provider,
    run,
)

FLOAT = TensorProto.FLOAT


def one_node(
    node: onnx.NodeProto,
    inputs: dict[str, tuple[int, list[int]]],
    outputs: dict[str, tuple[int, list[int] | None]],
    weights: list[onnx.TensorProto] | None = None,
    opset: int = 21,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        weights or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def cast(source: int, target: int, shape: list[int]) -> onnx.ModelProto:
    return one_node(helper.make_node("Cast", ["x"], ["y"], to=target), {"x": (source, shape)}, {"y": (target, shape)})


@pytest.fixture
def conv() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    return one_node(
        helper.make_node("Conv", ["x", "w"], ["y"], name="stem"),
        {"x": (FLOAT, [1, 4, 5, 5])},
        {"y": (FLOAT, [1, 4, 3, 3])},
        [numpy_helper.from_array(weight, "w")],
    )


@pytest.fixture
def image() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, 4, 5, 5)).astype(np.float32)}


# Runtime


def test_runtime_at_changes_only_the_level() -> None:
    runtime = Runtime(threads=3, provider_options=(("a", "b"),))
    assert runtime.level == "all"
    assert runtime.at("disable") == Runtime(threads=3, level="disable", provider_options=(("a", "b"),))


@pytest.mark.parametrize("wrong", [{"provider": "tpu"}, {"level": "most"}, {"threads": -1}])
def test_runtime_refuses_what_does_not_exist(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=str(next(iter(wrong.values())))):
        Runtime(**wrong)


# Options


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("disable", ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
        ("basic", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        ("extended", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
        ("layout", ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT),
        ("all", ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
    ],
)
def test_session_has_the_options_asked_for(conv: onnx.ModelProto, level: Any, expected: Any) -> None:
    session = open_session(conv, Runtime(threads=2, level=level))
    options = session.get_session_options()
    assert options.graph_optimization_level == expected
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_idle_threads_sleep_or_stop_spinning_with_the_run(conv: onnx.ModelProto) -> None:
    asleep = open_session(conv, Runtime()).get_session_options()
    assert asleep.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    spinning = open_session(conv, Runtime(), spin=True).get_session_options()
    assert spinning.get_session_config_entry("session.force_spinning_stop") == "1"
    with pytest.raises(RuntimeError, match="allow_spinning"):  # untouched: ONNX Runtime's default, which is to spin
        spinning.get_session_config_entry("session.intra_op.allow_spinning")


# Models


def test_bytes_path_and_proto_are_the_same_model_and_the_proto_stays(
    conv: onnx.ModelProto, image: dict[str, np.ndarray], tmp_path: Path
) -> None:
    before = conv.SerializeToString(deterministic=True)
    path = tmp_path / "conv.onnx"
    path.write_bytes(before)
    results = [run(open_session(model, Runtime()), image)["y"] for model in (conv, before, path)]
    assert conv.SerializeToString(deterministic=True) == before
    for result in results:
        assert result.dtype == np.float32
        assert result.shape == (1, 4, 3, 3)
        assert result.tobytes() == results[0].tobytes()


@pytest.fixture
def external(conv: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "conv.onnx"
    path.parent.mkdir()
    onnx.save(conv, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_found_beside_a_path(
    external: Path, conv: onnx.ModelProto, image: dict[str, np.ndarray]
) -> None:
    assert (external.parent / "weights.bin").stat().st_size >= 4 * 4 * 4 * 9
    loaded = onnx.load(external)
    expected = run(open_session(loaded, Runtime()), image)["y"]
    assert run(open_session(external, Runtime()), image)["y"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_external_data_is_found_in_the_folder_given(
    external: Path, image: dict[str, np.ndarray], relative: bool, as_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(external.parent.parent)
    folder = Path("data") if relative else external.parent
    proto = onnx.load(external, load_external_data=False)
    model = proto.SerializeToString() if as_bytes else proto
    with pytest.raises(SessionFailed, match=r"weights\.bin"):
        open_session(model, Runtime())
    expected = run(open_session(external, Runtime()), image)["y"]
    found = open_session(model, Runtime(), external_folder=folder)
    assert run(found, image)["y"].tobytes() == expected.tobytes()


def test_optimized_model_is_saved_with_its_weights_in_a_data_file(conv: onnx.ModelProto, tmp_path: Path) -> None:
    weight = np.zeros((64, 4, 3, 3), np.float32)  # 9 KB: enough for ONNX Runtime to move it out of the model
    conv.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    del conv.graph.output[0].type.tensor_type.shape.dim[:]
    conv.graph.output[0].type.tensor_type.ClearField("shape")
    target = tmp_path / "optimized.onnx"
    open_session(conv, Runtime(level="basic"), optimized_to=target)
    saved = onnx.load(target, load_external_data=False)
    assert [node.op_type for node in saved.graph.node] == ["Conv"]
    assert (tmp_path / "optimized.onnx.data").stat().st_size >= weight.nbytes > target.stat().st_size


# Providers


def test_cpu_is_always_there_and_cuda_is_named_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert available("cpu")
    assert not available("cuda")
    require_provider(Runtime())
    with pytest.raises(NotVerified, match=r"CUDA.*onnxruntime-gpu") as raised:
        require_provider(Runtime("cuda"))
    assert raised.value.exit_code == 3
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert available("cuda")


def test_a_provider_is_required_to_run_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit between a provider that works and one that does not would otherwise find a difference."""
    stand_in = dataclasses.replace(PROVIDERS["cuda"], onnxruntime="CPUExecutionProvider", package="required here")
    monkeypatch.setitem(PROVIDERS, "cuda", stand_in)
    asked = []

    def found(provider: Provider, device: int) -> str | None:
        asked.append((provider, device))
        return "A library is missing: install it." if len(asked) < 3 else None

    monkeypatch.setattr(session_module, "problem", found)
    for _ in range(2):
        with pytest.raises(NotVerified, match=r"could not start its cuda provider\. A library is missing") as raised:
            require_provider(Runtime("cuda"))
        assert raised.value.exit_code == 3
    for _ in range(2):
        require_provider(Runtime("cuda"))
    assert asked == [("cuda", 0)] * 3  # once it worked, it is not tried again
    require_provider(Runtime("cuda", provider_options=(("device_id", "1"),)))
    assert asked[3:] == [("cuda", 1)]  # another device is another question


def test_nothing_is_logged_while_a_session_is_opened(conv: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    during: list[list[int]] = []
    real = ort.InferenceSession

    def opened(*arguments: Any, providers: list[str], **others: Any) -> Any:
        during.append(list(set_to))
        return real(*arguments, providers=["CPUExecutionProvider"], **others)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OddExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", opened)
    monkeypatch.setattr(ort, "set_default_logger_severity", set_to.append)
    monkeypatch.setattr(logs, "_silent", False)
    monkeypatch.setattr(session_module, "explain", lambda *_: "It is odd.")
    odd = dataclasses.replace(PROVIDERS["cuda"], onnxruntime="OddExecutionProvider")
    monkeypatch.setitem(PROVIDERS, "cuda", odd)
    with pytest.raises(NotVerified, match="It is odd"):
        open_session(conv, Runtime("cuda"))
    assert (during, set_to) == ([[4]], [4, 2])
    open_session(conv, Runtime())
    assert set_to == [4, 2]


@pytest.mark.parametrize("number", ["gpu", "-1", "", "1.0", "²"])
def test_a_device_has_a_number(number: str) -> None:
    assert Runtime("cuda", provider_options=(("device_id", "3"),)).device == 3
    assert Runtime("cuda").device == 0
    with pytest.raises(BadInput, match=f"device_id is {number!r}"):
        Runtime("cuda").with_options(device_id=number)


def test_without_cpu_fallback_only_the_cpu_itself_may_use_the_cpu(
    conv: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ort.SessionOptions] = []

    def opened(_: Any, options: ort.SessionOptions, **others: Any) -> Any:
        seen.append(options)
        return SimpleNamespace(get_providers=lambda: others["providers"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(session_module, "preload", lambda provider: "")
    with monkeypatch.context() as patch:
        patch.setattr(ort, "InferenceSession", opened)
        open_session(conv, Runtime("cuda"), cpu_fallback=False)
        open_session(conv, Runtime("cuda"))
    assert seen[0].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    with pytest.raises(RuntimeError):  # there is no such entry
        seen[1].get_session_config_entry("session.disable_cpu_ep_fallback")
    assert open_session(conv, Runtime(), cpu_fallback=False).get_providers() == ["CPUExecutionProvider"]


def test_a_missing_provider_stops_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(NotVerified, match="onnxruntime-gpu"):
        open_session(b"not a model", Runtime(provider="cuda"))


def test_a_provider_that_cannot_start_is_an_error_and_not_the_cpu(
    conv: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU package without a GPU: ONNX Runtime itself would quietly give a session that runs on the CPU."""

    class Session:
        def __init__(self, *_: Any, **options: Any) -> None:
            assert options["providers"] == ["CUDAExecutionProvider"]
            assert options["provider_options"] == [{"use_tf32": "0"}]
            assert options["enable_fallback"] == 0

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(SessionFailed, match="could not start its cuda provider"):
        open_session(conv, Runtime(provider="cuda", provider_options=(("use_tf32", "0"),)))


@pytest.mark.parametrize(
    ("said", "found", "expected"),
    [
        (
            "CUDA failure 35: driver version is insufficient ; GPU=-1",
            "The driver is too old: install another.",
            "cannot load the model: CUDA failure 35: driver version is insufficient. The driver is too old: install ",
        ),
        ("CUDA failure 2: out of memory ; GPU=0", None, "cannot load the model: CUDA failure 2: out of memory."),
        ("CUDA failure 9: odd ; GPU=0", "It says: CUDA failure 9: odd.", "cannot load the model: CUDA failure 9: odd."),
        ("Not a model.", "The driver is too old: install another.", "cannot load the model: Not a model."),
    ],
)
def test_a_failure_of_cuda_is_explained_where_the_machine_is_at_fault(
    said: str, found: str | None, expected: str, conv: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", fail)
    monkeypatch.setattr(session_module, "problem", lambda provider, device: found)
    with pytest.raises(SessionFailed) as raised:
        open_session(conv, Runtime(provider="cuda"))
    text = str(raised.value)
    assert expected in text
    assert text.count("CUDA failure") <= 1
    assert ("install" in text) == ("install" in expected)


# Errors


def broken(conv: onnx.ModelProto) -> bytes:
    conv.graph.node[0].op_type = "Foo"
    return conv.SerializeToString()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda _: b"\xff\xff\xff", "protobuf parsing failed"),
        (lambda _: b"", "No graph was found"),
        (lambda _: Path("nowhere.onnx"), "nowhere.onnx"),
        (broken, "Foo"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(
    conv: onnx.ModelProto, model: Any, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SessionFailed, match=words) as raised:
        open_session(model(conv), Runtime())
    assert_sentence(raised.value)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_run_is_one_sentence_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model = one_node(
        helper.make_node("Reshape", ["x", "s"], ["y"], name="flat"),
        {"x": (FLOAT, [2, 4]), "s": (TensorProto.INT64, [2])},
        {"y": (FLOAT, None)},
    )
    session = open_session(model, Runtime())
    feeds = {"x": np.zeros((2, 4), np.float32), "s": np.array([3, -1])}
    for call in (lambda: run(session, feeds), prepare(session, feeds)):
        with pytest.raises(SessionFailed) as raised:
            call()
        assert_sentence(raised.value)
        assert "Reshape node 'flat': The input tensor cannot be reshaped" in str(raised.value)
        assert "/onnxruntime" not in str(raised.value)
        assert "was false" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "missing"),
        ({"z": np.zeros((1, 4, 5, 5), np.float32)}, "missing"),
        ({"x": np.zeros((1, 3, 5, 5), np.float32)}, "Got: 3 Expected: 4"),
        ({"x": np.zeros((1, 4, 5, 5))}, "double"),
    ],
)
def test_wrong_inputs_are_one_sentence(conv: onnx.ModelProto, feeds: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(SessionFailed, match=words) as raised:
        run(open_session(conv, Runtime()), feeds)
    assert_sentence(raised.value)


def assert_sentence(error: SessionFailed) -> None:
    text = str(error)
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert text.endswith(".")
    assert not text.endswith("..")
    assert error.__cause__ is not None
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : It broke.", "It broke"),
        ("[ONNXRuntimeError] : 1 : FAIL : Bad path. utils.cc:46 Check It is absolute", "Bad path. It is absolute"),
        ("[ONNXRuntimeError] : 1 : FAIL : /a/b.h:8 void ort::F(const X<T>&, int) n > 0 was false. Too few.", "Too few"),
        ("", "RuntimeError"),
        (
            "/a/cuda_call.cc:154 std::conditional_t<X, void> ort::CudaCall(E, int) [with E = cudaError; bool T = true] "
            "/a/cuda_call.cc:146 std::conditional_t<X, void> ort::CudaCall(E, int) [with E = cudaError; bool T = true] "
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; "
            "file=/a/cuda_execution_provider.cc ; line=355 ; expr=cudaSetDevice(info_.device_id); \n\n\n",
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'c1' Status "
            "Message: CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; GPU=0 ; hostname=vm ; file=/a/conv.cc ; line=9",
            "Conv node 'c1': CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED",
        ),
        ("Short. " + "long " * 100, "Short"),
        ("long " * 100, ("long " * 60).strip() + " …"),
    ],
)
def test_reason_keeps_what_is_useful(message: str, expected: str) -> None:
    assert reason(RuntimeError(message)) == expected


# Values


def test_outputs_are_named_and_chosen() -> None:
    model = one_node(
        helper.make_node("Split", ["x"], ["a", "b"], num_outputs=2),
        {"x": (FLOAT, [2])},
        {"a": (FLOAT, [1]), "b": (FLOAT, [1])},
    )
    session = open_session(model, Runtime())
    feeds = {"x": np.array([1, 2], np.float32)}
    assert {name: value.tolist() for name, value in run(session, feeds).items()} == {"a": [1.0], "b": [2.0]}
    assert [(name, value.tolist()) for name, value in run(session, feeds, ["b", "a"]).items()] == [
        ("b", [2.0]),
        ("a", [1.0]),
    ]
    assert list(run(session, feeds, ["b"])) == ["b"]
    assert run(session, feeds, []) == {}
    with pytest.raises(SessionFailed, match=r"no output 'c'.*a, b"):
        run(session, feeds, ["c"])


def test_arrays_that_are_not_contiguous_are_fed_by_value(conv: onnx.ModelProto, image: dict[str, np.ndarray]) -> None:
    session = open_session(conv, Runtime())
    flipped = image["x"].transpose(0, 1, 3, 2)
    assert not flipped.flags.c_contiguous
    expected = run(session, {"x": flipped.copy()})["y"]
    assert run(session, {"x": flipped})["y"].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.INT4, ml_dtypes.int4),
        (TensorProto.UINT4, ml_dtypes.uint4),
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.BOOL, np.bool_),
    ],
)
@pytest.mark.parametrize("shape", [[3], [1, 3], []])
def test_every_element_type_comes_out_as_itself(code: int, dtype: Any, shape: list[int]) -> None:
    values = np.array([1, 0, 3] if shape else 1, np.float32).reshape(shape)
    result = run(open_session(cast(FLOAT, code, shape), Runtime()), {"x": values})["y"]
    assert result.dtype == np.dtype(dtype)
    assert result.shape == tuple(shape)
    assert result.astype(np.float32).tolist() == values.astype(dtype).astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    ],
)
@pytest.mark.parametrize("shape", [[2, 3], []])
def test_exotic_inputs_are_fed_in_place_and_in_any_layout(code: int, dtype: Any, shape: list[int]) -> None:
    values = (np.arange(6).reshape(3, 2).T if shape else np.array(3)).astype(dtype, order="K")
    once = prepare(open_session(cast(code, FLOAT, shape), Runtime()), {"x": values})
    expected = values.astype(np.float32)
    del values  # the prepared call must keep what it reads alive
    scratch = [np.full((2, 3), 7, dtype) for _ in range(50)]
    assert once()[0].numpy().tolist() == expected.tolist()
    assert scratch


def test_types_that_cannot_be_fed_or_compared_say_so() -> None:
    session = open_session(cast(TensorProto.INT4, FLOAT, [2]), Runtime())
    with pytest.raises(SessionFailed, match="'x' is int4"):
        run(session, {"x": np.array([1, 2], ml_dtypes.int4)})
    sequence = one_node(helper.make_node("SequenceConstruct", ["x"], ["y"]), {"x": (FLOAT, [1])}, {})
    sequence.graph.output.append(helper.make_tensor_sequence_value_info("y", FLOAT, None))
    with pytest.raises(SessionFailed, match="'y' is seq"):
        run(open_session(sequence, Runtime()), {"x": np.zeros(1, np.float32)})


def test_strings_go_in_and_out() -> None:
    model = cast(TensorProto.STRING, TensorProto.STRING, [2])
    model.graph.node[0].CopyFrom(helper.make_node("Identity", ["x"], ["y"]))
    result = run(open_session(model, Runtime()), {"x": np.array(["a", "ü"], dtype=object)})["y"]
    assert result.tolist() == ["a", "ü"]
