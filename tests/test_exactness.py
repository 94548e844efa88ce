"""The exactness probe: what is run with which options, what is kept for the next time, and the line that sums it up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import platformdirs
import pytest
from numpy.typing import NDArray

from rewriter import exactness as module
from rewriter import nvidia
from rewriter.errors import NotVerified
from rewriter.exactness import CaseResult, Exactness, exactness, probe, stored
from rewriter.exactness_cases import CASES, Case, exercise
from rewriter.providers import PROVIDERS
from rewriter.session import Runtime, SessionFailed, open_session

BY_NAME = {case.name: case for case in CASES}
FEW = (BY_NAME["conv1d 5"], BY_NAME["matmul batched"])

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CASES", FEW)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's record, run by the CPU provider, which ignores CUDA's options."""
    fake = dataclasses.replace(PROVIDERS["cuda"], onnxruntime="CPUExecutionProvider")
    monkeypatch.setitem(PROVIDERS, "cuda", fake)
    pretend_gpus(monkeypatch, "NVIDIA H200")


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *names: str, driver: str = "580.65.06") -> None:
    found = tuple(nvidia.Device(index, name, (9, 0), None) for index, name in enumerate(names))
    monkeypatch.setattr(nvidia, "devices", lambda: found)
    monkeypatch.setattr(nvidia, "driver_version", lambda: driver)
    monkeypatch.setattr(nvidia, "cudnn", lambda: "9.28.0")
    monkeypatch.setattr(module, "_cublas", lambda: None)


# The whole probe


def test_cpu_precisions_and_levels() -> None:
    found = probe(Runtime(threads=1))
    assert {(case.precision, case.level) for case in found.cases} == {
        (precision, level) for precision in ("float32", "float16", "float64") for level in ("disable", "all")
    }
    assert len(found.cases) == len(CASES) * 6
    assert found.exact == {"float32": True, "float16": True, "float64": True}
    exact = "exact (22 of 22 cases)"
    assert found.summary().startswith(f"float32: {exact}; float16: {exact}; float64: exact (")


def test_unoptimized_runtime_is_probed_once(few: None) -> None:
    assert {case.level for case in probe(Runtime(level="disable")).cases} == {"disable"}


def test_cuda_is_probed_with_and_without_tf32_whatever_the_user_set(fake_cuda: None, few: None) -> None:
    seen = []

    def execute(model: onnx.ModelProto, feeds: Any, runtime: Runtime) -> NDArray[Any]:
        seen.append((feeds["x"].dtype.name, dict(runtime.provider_options)))
        return np.zeros(1, np.float32)

    options = (("use_tf32", "1"), ("prefer_nhwc", "1"), ("enable_cuda_graph", "1"))
    found = probe(Runtime("cuda", provider_options=options), execute)
    assert found.precisions == ("float32", "tf32", "float16")
    rest = {"prefer_nhwc": "1", "enable_cuda_graph": "0"}
    expected = [("float32", "0"), ("float32", "1"), ("float16", "0")]
    assert seen == [(kind, {"use_tf32": tf32, **rest}) for kind, tf32 in expected for _ in range(2 * len(FEW))]
    assert found.options == {"use_tf32": "0", **rest}
    assert (found.device, found.driver, found.libraries) == ("NVIDIA H200", "580.65.06", ("cuDNN 9.28.0",))


def test_the_whole_cuda_path_by_the_cpu_provider(fake_cuda: None) -> None:
    found = exactness(Runtime("cuda"))
    assert found.summary() == (
        "float32: exact (22 of 22 cases); tf32: exact (22 of 22 cases); float16: exact (22 of 22 cases)"
    )
    assert stored(Runtime("cuda")) == found
    assert stored(Runtime("cuda", provider_options=(("prefer_nhwc", "1"),))) is None


def test_a_provider_that_is_not_there_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dataclasses.replace(PROVIDERS["cuda"], onnxruntime="NoSuchProvider")
    monkeypatch.setitem(PROVIDERS, "cuda", gone)
    for question in (exactness, stored, probe):
        with pytest.raises(NotVerified):
            question(Runtime("cuda"))


def test_a_provider_that_cannot_start_is_no_finding(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_execute", refuse("CUDA failure 35"))
    with pytest.raises(NotVerified, match="CUDA failure 35"):
        exactness(Runtime("cuda"))


def refuse(reason: str) -> Callable[..., NDArray[Any]]:
    def execute(*_: object) -> NDArray[Any]:
        raise SessionFailed(reason)

    return execute


# Storing


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Runtime]:
    calls: list[Runtime] = []

    def counting(runtime: Runtime) -> Exactness:
        calls.append(runtime)
        return probe(runtime)

    monkeypatch.setattr(module, "probe", counting)
    return calls


def only_file(cache: Path) -> Path:
    (file,) = (cache / "exactness").iterdir()
    return file


def test_probed_once_and_stored(few: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    assert stored(Runtime()) is None
    first = exactness(Runtime())
    assert exactness(Runtime()) == stored(Runtime()) == first
    assert len(calls) == 1
    record = json.loads(only_file(cache).read_text())
    assert record["provider"] == "cpu"
    assert [case["exact"] for case in record["cases"] if case["precision"] == "float32"] == [True] * 4


def test_infinite_errors_survive_storing() -> None:
    found = probe(Runtime(level="disable"), lambda *_: np.zeros(1, np.float32))
    assert found.exact["float32"] is False
    assert Exactness.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\0" + text,
        lambda text: text.replace('"provider": "cpu"', '"provider": "cuda"'),
        lambda text: text.replace('"onnxruntime": "', '"onnxruntime": "9'),
        lambda text: text.replace("conv1d 5", "conv1d 6"),
        lambda text: json.dumps({**json.loads(text), "cases": json.loads(text)["cases"][1:]}),
        lambda text: json.dumps({**json.loads(text), "more": 1}),
    ],
)
def test_a_damaged_or_foreign_file_is_probed_again(few: None, cache: Path, damage: Callable[[str], str]) -> None:
    first = exactness(Runtime())
    text = only_file(cache).read_text()
    assert damage(text) != text
    only_file(cache).write_text(damage(text))
    assert stored(Runtime()) is None
    assert exactness(Runtime()) == first
    assert only_file(cache).read_text() == text


def test_a_folder_that_cannot_be_made_is_no_error(few: None, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert exactness(Runtime()).exact["float32"] is True
    assert stored(Runtime()) is None


def test_what_may_succeed_next_time_is_not_stored(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = module._execute

    def short_of_memory(model: onnx.ModelProto, feeds: Any, runtime: Runtime) -> NDArray[Any]:
        if model.graph.node[0].op_type == "MatMul":
            raise SessionFailed("out of memory.")
        return usual(model, feeds, runtime)

    monkeypatch.setattr(module, "_execute", short_of_memory)
    found = exactness(Runtime())
    assert "1 could not be run" in found.summary()
    assert stored(Runtime()) is None


def test_a_case_that_is_left_to_the_cpu_tells_nothing_but_is_an_answer(
    fake_cuda: None, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ONNX Runtime's words; without its option the CPU's exactness would be taken for the GPU's."""
    said = (
        "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been "
        "explicitly disabled by the user."
    )
    asked = []

    def opened(model: onnx.ModelProto, runtime: Runtime, *, cpu_fallback: bool) -> Any:
        asked.append(cpu_fallback)
        if model.graph.node[0].op_type == "MatMul":
            raise SessionFailed(f"ONNX Runtime cannot load the model: {said}")
        return open_session(model, runtime, cpu_fallback=cpu_fallback)

    monkeypatch.setattr(module, "open_session", opened)
    found = exactness(Runtime("cuda"))
    assert not any(asked)
    (missing, *others) = {case.name for case in found.cases if case.missing}
    assert (missing, others) == ("matmul batched", [])
    assert {case.reason for case in found.cases if case.missing} == {"the provider has no kernel for it"}
    assert stored(Runtime("cuda")) == found


def test_a_gpu_that_nobody_can_name_is_not_stored(fake_cuda: None, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    assert exactness(Runtime("cuda")).device == "unknown GPU"
    assert stored(Runtime("cuda")) is None


def test_gpus_of_different_kinds_are_told_apart(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, "A", "B")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert module.setting_of(Runtime("cuda", provider_options=(("device_id", "0"),))).device == (
        "device 0 of A, B (1 visible)"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(module, "VERSION", 2),
        lambda patch: patch.setattr(ort, "__version__", "0.0"),
        lambda patch: patch.setattr(ort, "get_build_info", lambda: "another"),
        lambda patch: pretend_gpus(patch, "NVIDIA L4"),
        lambda patch: pretend_gpus(patch, "NVIDIA H200", driver="1.0"),
        lambda patch: patch.setattr(nvidia, "cudnn", lambda: "9.0.0"),
        lambda patch: patch.setattr(module, "_cublas", lambda: "130000"),
    ],
)
def test_another_gpu_or_version_has_a_file_of_its_own(
    change: Callable[[pytest.MonkeyPatch], None], fake_cuda: None, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    exactness(Runtime("cuda"))
    change(monkeypatch)
    assert stored(Runtime("cuda")) is None


@pytest.mark.parametrize("fact", ["_processor", "_instructions"])
def test_another_processor_has_a_file_of_its_own(fact: str, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    exactness(Runtime())
    monkeypatch.setattr(module, fact, lambda: "another")
    assert stored(Runtime()) is None


@pytest.mark.parametrize("other", [Runtime(level="basic"), Runtime(threads=2)])
def test_another_level_or_number_of_threads_has_a_file_of_its_own(few: None, other: Runtime) -> None:
    exactness(Runtime())
    assert stored(other) is None


def test_options_that_audits_override_share_a_file(fake_cuda: None, few: None) -> None:
    found = exactness(Runtime("cuda", provider_options=(("use_tf32", "1"),)))
    assert stored(Runtime("cuda", provider_options=(("enable_cuda_graph", "1"),))) == found


def test_without_the_variable_it_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REWRITER_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert module._file(module.setting_of(Runtime())).parent == tmp_path / "onnx-conv-rewriter" / "exactness"


# The line


def result(name: str, exact: bool | None = True, level: Any = "all", **figures: Any) -> CaseResult:
    return CaseResult(name=name, precision="float32", level=level, exact=exact, elements=4096, **figures)


WRONG: dict[str, Any] = {"exact": False, "wrong": 2, "largest_error": 1.0}


@pytest.mark.parametrize(
    ("results", "line"),
    [
        ([result("a"), result("b")], "exact (2 of 2 cases)"),
        ([result("a"), result("b", None, reason="no")], "exact (1 of 2 cases, 1 could not be run)"),
        ([result("a"), result("b", None, reason="no", missing=True)], "exact (1 of 2 cases, no kernel for 1)"),
        ([result("a", None, reason="no kernel")], "none of 1 cases could be run (no kernel)"),
        ([result("a"), result("b", **WRONG)], "exact but for b (2 wrong of 4096, at most 1)"),
        (
            [result("a"), result("b", level="disable"), result("b", **WRONG)],
            "exact but for b at level 'all' (2 wrong of 4096, at most 1)",
        ),
        ([result("a", **WRONG)], "not exact: a (2 wrong of 4096, at most 1)"),
        ([result("a", False, wrong=9, reason="it is flat"), result("b")], "exact but for a (it is flat)"),
    ],
)
def test_summary(results: list[CaseResult], line: str) -> None:
    found = Exactness(**module.setting_of(Runtime()).model_dump(), cases=tuple(results))
    assert found.summary() == f"float32: {line}"


def test_summary_names_three_at_most() -> None:
    bad = tuple(result(name, **WRONG) for name in "abcd")
    found = Exactness(**module.setting_of(Runtime()).model_dump(), cases=(*bad, result("e")))
    assert found.summary().count("(") == 3
    assert found.summary().endswith(" and 1 more")


# On a GPU


@pytest.mark.cuda
def test_cuda_gives_a_definite_answer_to_every_case() -> None:
    found = exactness(Runtime("cuda"))
    assert found.driver is not None
    assert found.instructions is None
    assert any(library.startswith("cuDNN") for library in found.libraries)
    unanswered = [(case.name, case.reason) for case in found.results("float32") if case.exact is None]
    assert unanswered == []
    assert found.precisions == ("float32", "tf32", "float16")
    assert stored(Runtime("cuda")) == found


@pytest.mark.cuda
@every_case
def test_cuda_runs_the_case_itself_and_leaves_nothing_to_the_cpu(case: Case) -> None:
    for precision in ("float32", "float16"):
        for runtime in (Runtime("cuda"), Runtime("cuda", level="disable")):
            open_session(exercise(case, precision).model, runtime, cpu_fallback=False)
