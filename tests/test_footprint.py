"""Peak memory: it grows with what a model holds, whatever it is fed, and where it cannot be told that is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.resnext import ResNeXt, resnext_model
from rewriter import footprint, footprint_child
from rewriter.errors import BadInput, NotVerified
from rewriter.footprint import NOISE_MIB, peak_memory
from rewriter.model import Edit, Model
from rewriter.session import Runtime, SessionFailed, open_session

MIB = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc tells is looked at on Linux only")


def network(nodes: list[onnx.NodeProto], shape: list[int], kind: int = TensorProto.FLOAT, **weights: Any) -> bytes:
    """A model from x to y, of these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def repeated(times: int, kind: int = TensorProto.FLOAT) -> bytes:
    """A model whose output holds its input so many times."""
    repeats = np.array([times], np.int64)
    return network([helper.make_node("Tile", ["x", "repeats"], ["y"])], [MIB], kind, repeats=repeats)


RELU = network([helper.make_node("Relu", ["x"], ["y"])], [4])
X = {"x": np.ones(4, np.float32)}


def peak(model: bytes, feeds: dict[str, np.ndarray], **more: Any) -> float:
    return peak_memory(Model.load(model), feeds, Runtime(), repeats=1, **more)


def test_it_grows_by_what_the_model_holds() -> None:
    """The output is 4 or 16 MiB times 4; the input of 4 MiB is there before and does not count."""
    feeds = {"x": np.ones(MIB, np.float32)}
    small, large = peak(repeated(4), feeds), peak(repeated(16), feeds)
    assert 16 <= small < 16 + 12  # code that is first used, and the session itself
    assert 48 <= large - small < 48 + 3


def test_the_same_model_again_differs_by_less_than_the_noise() -> None:
    model = resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10)).SerializeToString()
    feeds = {"input": np.ones((1, 3, 32, 32), np.float32)}
    first, second = (peak_memory(Model.load(model), feeds, Runtime()) for _ in range(2))
    assert abs(first - second) <= NOISE_MIB


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(TensorProto.BFLOAT16, ml_dtypes.bfloat16), (TensorProto.FLOAT16, np.float16), (TensorProto.BOOL, np.bool_)],
)
def test_inputs_of_any_type_arrive(kind: int, dtype: Any) -> None:
    model = network([helper.make_node("Identity", ["x"], ["y"])], [3], kind)
    assert peak(model, {"x": np.array([0, 1, 1], dtype)}) < 30


@pytest.mark.parametrize("dtype", [object, np.str_, np.bytes_])
def test_texts_arrive(dtype: Any) -> None:
    model = network([helper.make_node("Identity", ["x"], ["y"])], [2], TensorProto.STRING)
    assert peak(model, {"x": np.array(["one", "two"], dtype)}) < 30


def external_model(folder: Path) -> Path:
    """A model with 4 MiB of weights in a file beside it."""
    (folder / "w.bin").write_bytes(np.ones(MIB, np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[MIB], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    model = onnx.load_from_string(network([helper.make_node("Add", ["x", "w"], ["y"])], [1]))
    model.graph.initializer.append(weight)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_weights_are_found_also_of_a_rewritten_model(tmp_path: Path) -> None:
    model = Model.load(external_model(tmp_path))
    renamed = model.splice(Edit(frozenset({0}), {0: (helper.make_node("Sub", ["w", "x"], ["y"]),)}))
    feeds = {"x": np.ones(1, np.float32)}
    for one in (model, renamed):
        assert 8 <= peak_memory(one, feeds, Runtime(), repeats=1) < 40  # the weights and the output


def test_a_rewritten_model_is_loaded_as_its_original_is(tmp_path: Path) -> None:
    """Also where nothing in it is external any more: what is loaded in another way takes other memory."""
    model = Model.load(external_model(tmp_path))
    inline = model.splice(Edit(frozenset({0}), {0: (helper.make_node("Relu", ["x"], ["y"]),)}))
    assert not inline.headers
    for one, beside in ((model, str(tmp_path)), (inline, str(tmp_path)), (Model.load(RELU), None)):
        task = json.loads((stored(tmp_path, one) / footprint_child.TASK).read_text())
        assert task["external_folder"] == beside


@pytest.mark.parametrize(
    ("model", "feeds", "said"),
    [
        (RELU, {"x": np.ones((4, 4), np.float32)}, "cannot run the model: .*rank"),
        (RELU, {}, "cannot run the model: .*"),
        (network([helper.make_node("Relu", ["z"], ["y"])], [4]), X, "cannot load the model: .*"),
    ],
)
def test_what_cannot_run_says_why(model: bytes, feeds: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(SessionFailed, match=f"^ONNX Runtime {said}"):
        peak(model, feeds)


def test_other_providers_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^peak memory is measured on the cpu provider only, not on cuda: "):
        peak_memory(Model.load(RELU), X, Runtime(provider="cuda"))


def test_a_process_that_ends_otherwise_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_PROGRAM", "this.module.is.not.there")
    with pytest.raises(SessionFailed, match="ended with 1 and without a result"):
        peak(RELU, X)


def test_one_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_SECONDS", 0.01)
    with pytest.raises(SessionFailed, match=r"takes over 0 s\."):
        peak(RELU, X)


def test_the_median_of_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([7 * MIB, MIB, 3 * MIB])
    monkeypatch.setattr(footprint, "_one_process", lambda folder: next(told))
    assert peak_memory(Model.load(RELU), X, Runtime(), repeats=3) == 3.0
    with pytest.raises(StopIteration):
        next(told)


def stored(folder: Path, model: Model | None = None) -> Path:
    footprint._store(folder, model or Model.load(RELU), X, Runtime())
    return folder


def test_the_allocator_gives_back_what_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise peaks of one model differ by megabytes, by chance: seen here is that the process is told."""
    told = "import os; print('{\"bytes\": ' + os.environ['MALLOC_MMAP_THRESHOLD_'] + '}')"
    (tmp_path / "telling.py").write_text(told)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(footprint, "_PROGRAM", "telling")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "5")
    assert peak(RELU, X) == 131072 / MIB


@linux
def test_what_the_process_had_before_is_no_part_of_it(tmp_path: Path) -> None:
    high = np.ones(64 * MIB, np.uint8)
    del high
    assert footprint_child._measured(stored(tmp_path))["bytes"] < 32 * MIB


def test_the_runtime_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def watched(model: Any, runtime: Runtime, **more: Any) -> Any:
        opened.append(runtime)
        return open_session(model, runtime, **more)

    monkeypatch.setattr(footprint_child, "open_session", watched)
    runtime = Runtime(threads=2, level="basic")
    footprint._store(tmp_path, Model.load(RELU), X, runtime)
    assert "bytes" in footprint_child._measured(tmp_path)
    assert opened == [runtime]


@linux
def test_the_peak_is_forgotten_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    high = np.ones(64 * MIB, np.uint8)
    del high
    before = footprint_child._peak()
    now = footprint_child._resident()
    assert before is not None
    assert now is not None
    footprint_child._forget_peak()
    after = footprint_child._peak()
    assert after is not None
    assert after < before - 32 * MIB
    assert after >= now - MIB


def test_without_proc_it_is_what_rusage_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="there is none on Windows")
    monkeypatch.setattr(footprint_child, "_STATUS", tmp_path / "none")
    unit = 1 if sys.platform == "darwin" else 1024
    assert footprint_child._peak() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert footprint_child._resident() == footprint_child._peak()


def test_a_peak_that_does_not_rise_there_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint_child, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(footprint_child, "_peak", lambda: 5)
    assert footprint_child._measured(stored(tmp_path)) == {"unknown": True}


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint_child, "_STATUS", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    found = footprint_child._measured(stored(tmp_path))
    assert found == {"unknown": True}
    with pytest.raises(NotVerified, match="the system does not tell") as caught:
        footprint._peak_of(json.dumps(found).encode(), 0)
    assert not isinstance(caught.value, SessionFailed)


SLOW = """
import os, sys, time
from pathlib import Path
from rewriter import footprint_child
(Path(sys.argv[1]) / "pid").write_text(str(os.getpid()))
footprint_child._measured = lambda folder: time.sleep(600)
footprint_child.main()
"""
ASK = """
import sys
from pathlib import Path
from rewriter import footprint
footprint._PROGRAM = "slow"
footprint._one_process(Path(sys.argv[1]))
"""


@linux
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_process_ends_with_the_one_that_asked(ending: signal.Signals, tmp_path: Path) -> None:
    """However that ends, what it started is gone soon, and not after ten minutes."""
    (tmp_path / "slow.py").write_text(SLOW)
    paths = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])
    asking = subprocess.Popen(
        [sys.executable, "-c", ASK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    told = tmp_path / "pid"
    wait_for(lambda: told.exists() and told.read_text() != "")
    child = int(told.read_text())
    assert alive(child)
    asking.send_signal(ending)
    wait_for(lambda: not alive(child))
    assert asking.wait() != 0


def alive(process: int) -> bool:
    """Whether it runs: a process that has ended and that nobody asked about has no command line."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


def wait_for(condition: Any) -> None:
    """Wait until it holds; a minute is long enough for any machine."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("It did not happen in a minute.")
