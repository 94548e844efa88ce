"""The user's own inputs: files, folders and scripts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rewriter
from rewriter import data_loader
from rewriter.data_loader import samples_of_script
from rewriter.errors import BadInput
from rewriter.feeds import check_samples
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.samples import samples_in_file, samples_in_folder

NAMES = ("x", "ids")


def numbers(samples: Sequence[rewriter.options.Feeds], name: str = "x") -> list[float]:
    """The first element of an array in each sample."""
    return [float(sample[name].ravel()[0]) for sample in samples]


def one(value: float) -> np.ndarray:
    return np.full((1, 2), value, np.float32)


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def save_tensor(path: Path, array: np.ndarray, name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def add_model(kinds: Sequence[tuple[str, int]] = (("x", TensorProto.FLOAT), ("ids", TensorProto.INT64))) -> Model:
    """Inputs [1, 2] of these types, each an output of its own."""
    inputs = [helper.make_tensor_value_info(name, kind, [1, 2]) for name, kind in kinds]
    outputs = [helper.make_tensor_value_info(f"{name} out", kind, [1, 2]) for name, kind in kinds]
    nodes = [helper.make_node("Identity", [name], [f"{name} out"]) for name, _ in kinds]
    graph = helper.make_graph(nodes, "add", inputs, outputs)
    return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_arrays_by_input_name_are_one_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=one(1), ids=np.zeros((1, 2), np.int64))
    found = samples_in_file(tmp_path / "a.npz", NAMES)
    assert len(found) == 1
    assert set(found[0]) == {"x", "ids"}


def test_numbered_arrays_are_as_many_samples_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    arrays = {f"{name}/{k}": one(k) for k in reversed(range(12)) for name in NAMES}
    save(tmp_path / "a.npz", arrays)
    found = samples_in_file(tmp_path / "a.npz", NAMES)
    assert numbers(found) == list(range(12))
    assert numbers(found, "ids") == list(range(12))
    assert numbers(found[3:5]) == [3, 4]


def test_an_input_that_is_called_like_a_numbered_one_is_itself(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", {"x/0": one(5), "x": one(6)})
    found = samples_in_file(tmp_path / "a.npz", ("x", "x/0"))
    assert len(found) == 1
    assert (numbers(found, "x/0"), numbers(found)) == ([5], [6])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (("x/0", "ids"), "'x/0', and 'ids' without: number all of them from /0"),
        (("x/0", "other/0"), "'x/0', and 'other/0' without"),
        (("x/0", "x/2"), "has 2 numbered samples, but none with /1"),
        (("x/1", "ids/1"), "has 1 numbered samples, but none with /0"),
    ],
)
def test_half_numbered_files_are_refused(arrays: Sequence[str], sentence: str, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", {name: one(0) for name in arrays})
    with pytest.raises(BadInput) as caught:
        samples_in_file(tmp_path / "a.npz", NAMES)
    assert sentence in str(caught.value)


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    model = add_model()
    ids = np.zeros((1, 2), np.int64)
    np.savez(tmp_path / "good.npz", x=one(1), ids=ids)
    save(tmp_path / "many.npz", {"x/0": one(1), "ids/0": ids, "x/1": one(1)})
    found = samples_in_folder(tmp_path, NAMES)
    with pytest.raises(BadInput, match=r"^the inputs number 1 in '.*many\.npz' have no array for the model's input"):
        check_samples(model, found)
    np.savez(tmp_path / "good.npz", x=one(1).astype(np.float64), ids=ids)
    with pytest.raises(BadInput, match=r"^the inputs in '.*good\.npz' have float64 \[1, 2\] for 'x', which the model"):
        check_samples(model, found)


def test_arrays_are_read_whenever_they_are_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=one(1))
    save_tensor(tmp_path / "input_0.pb", one(1))
    found = samples_in_folder(tmp_path, ["x"])
    assert numbers(found) == [1, 1]
    np.savez(tmp_path / "a.npz", x=one(2))
    save_tensor(tmp_path / "input_0.pb", one(3))
    assert sorted(numbers(found)) == [2, 3]
    (tmp_path / "a.npz").unlink()
    rest = found[1:]  # reads nothing
    with pytest.raises(BadInput, match="does not exist"):
        rest[0]


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for k in (10, 2, 1):
        np.savez(tmp_path / f"s{k}.npz", x=one(k))
        save_tensor(tmp_path / f"test_data_set_{k}" / "input_0.pb", one(100 + k))
        save_tensor(tmp_path / f"test_data_set_{k}" / "output_0.pb", one(-1))
    (tmp_path / "notes.txt").touch()
    assert numbers(samples_in_folder(tmp_path, ["x"])) == [1, 2, 10, 101, 102, 110]
    assert numbers(samples_in_folder(tmp_path / "test_data_set_2", ["x"])) == [102]


def test_tensors_go_to_the_inputs_by_their_own_names_or_by_order(tmp_path: Path) -> None:
    save_tensor(tmp_path / "input_0.pb", one(0))
    save_tensor(tmp_path / "input_1.pb", one(1), "what another framework calls it")
    assert {name: int(array[0, 0]) for name, array in samples_in_folder(tmp_path, NAMES)[0].items()} == {
        "x": 0,
        "ids": 1,
    }
    save_tensor(tmp_path / "input_0.pb", one(0), "ids")
    save_tensor(tmp_path / "input_1.pb", one(1), "x")
    assert numbers(samples_in_folder(tmp_path, NAMES), "ids") == [0]
    save_tensor(tmp_path / "input_1.pb", one(1))
    with pytest.raises(BadInput, match="are for the input 'ids'"):
        samples_in_folder(tmp_path, NAMES)[0]


def test_folders_that_hold_nothing_to_read(tmp_path: Path) -> None:
    for folder, sentence in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, r"holds no \.npz file and no test_data_set_\* folder"),
    ):
        with pytest.raises(BadInput, match=sentence):
            samples_in_folder(folder, NAMES)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is no folder"):
        samples_in_folder(tmp_path / "file", NAMES)
    save_tensor(tmp_path / "input_2.pb", one(0))
    with pytest.raises(BadInput, match=r"input_2\.pb', but the model's inputs, counted from 0, are: 'x', 'ids'"):
        samples_in_folder(tmp_path, NAMES)
    (tmp_path / "input_2.pb").unlink()
    (tmp_path / "input_0.pb").write_bytes(b"no tensor at all")
    with pytest.raises(BadInput, match=r"input_0\.pb' is no serialized TensorProto"):
        samples_in_folder(tmp_path, NAMES)[0]


SCRIPT = """
import helper_beside
import numpy as np

print("hello from the script")

def load_data():
    for k in range(3):
        yield {"x": np.full((1, 2), k + helper_beside.MORE, np.float32)}

def listed():
    return [{"x": np.zeros((1, 2), np.float32)}]
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside.py").write_text("MORE = 10\n")
    (tmp_path / "loader.py").write_text(SCRIPT)
    return tmp_path / "loader.py"


def test_a_script_is_run_with_what_lies_beside_it(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert numbers(samples_of_script(str(script))) == [10, 11, 12]
    assert numbers(samples_of_script(f"{script}:listed")) == [0]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("hello from the script") == 2
    assert {path.name for path in script.parent.iterdir()} == {"loader.py", "helper_beside.py"}  # no __pycache__


def test_the_surroundings_of_a_script_are_left_as_they_were(script: Path) -> None:
    import sys

    path, wrote = list(sys.path), sys.dont_write_bytecode
    samples_of_script(str(script))
    with pytest.raises(BadInput):
        samples_of_script(f"{script}:nothing")
    assert (sys.path, sys.dont_write_bytecode) == (path, wrote)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def load_data():\n    a = 1\n    yield {'x': a / 0}\n", "failed in line 3: ZeroDivisionError: division by"),
        ("import numpy as np\ndef load_data():\n    return [np.zeros(-1)]\n", "failed in line 3: ValueError"),
        ("def a():\n    return 1 / 0\ndef load_data():\n    return [a()]\n", "failed in line 2: ZeroDivisionError"),
        ("x = (\n", "failed in line 1: SyntaxError"),
        ("\nimport no_such_module_anywhere\n", "failed in line 2: ModuleNotFoundError"),
        ("\n\nraise SystemExit('bye')\n", "failed in line 3: SystemExit: bye"),
        ("def load_data(folder):\n    return []\n", "missing 1 required positional argument: 'folder'."),
        ("def other():\n    return []\n", "has no function 'load_data'; it has: other."),
        ("load_data = [{}]\n", "has no function 'load_data'; it has none at all."),
        ("def load_data():\n    pass\n", "gives None: have it yield, or return a list of, dicts"),
        ("def load_data():\n    return {'x': 1}\n", "gives one dict: have it yield"),
        ("def load_data():\n    return [1]\n", "inputs number 0 of the data loader"),
        ("def load_data():\n    return []\n", "gives no samples at all"),
        ("def load_data():\n    while True:\n        yield {'x': 1}\n", "gives more than 1000 samples"),
    ],
)
def test_a_script_that_fails_is_one_sentence_with_its_line(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        samples_of_script(str(path))
    said = str(caught.value)
    assert sentence in said
    assert f"data loader '{path}'" in said
    assert "\n" not in said


def test_a_script_that_gives_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.py"
    path.write_text("import numpy as np\ndef load_data():\n    while True:\n        yield {'x': np.zeros(1 << 20)}\n")
    monkeypatch.setattr(data_loader, "MOST_BYTES", 1 << 24)
    with pytest.raises(BadInput, match="gives more than 16 MiB of samples"):
        samples_of_script(str(path))


def test_scripts_that_are_not_there(tmp_path: Path) -> None:
    for text, sentence in (
        (str(tmp_path / "no.py"), r"no\.py' does not exist"),
        (f"{tmp_path / 'no.py'}:make", r"no\.py' does not exist"),
        (str(tmp_path), "is no file"),
    ):
        with pytest.raises(BadInput, match=sentence):
            samples_of_script(text)


def test_the_same_from_python(tmp_path: Path, script: Path) -> None:
    model = onnx.load_from_string(add_model([("x", TensorProto.FLOAT)]).to_bytes())
    np.savez(tmp_path / "a.npz", x=one(1))
    found = rewriter.load_samples(model, files=[tmp_path / "a.npz"], folders=[tmp_path], data_loader=str(script))
    assert numbers(found) == [1, 1, 10, 11, 12]
    with pytest.raises(BadInput, match="give a list, even of one"):
        rewriter.load_samples(model, files=str(tmp_path / "a.npz"))
    with pytest.raises(BadInput, match="samples is one set of inputs"):
        RunOptions(samples={"x": one(1)})  # type: ignore[arg-type]
    made = RunOptions(samples=({"x": one(k)} for k in range(2)))  # type: ignore[arg-type]
    assert numbers(made.samples) == [0, 1]


def test_the_script_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "inputs.md").read_text(encoding="utf-8")
    script = next(block for block in page.split("```python\n")[1:] if "def load_data" in block).split("```")[0]
    (tmp_path / "loader.py").write_text(script)
    found = samples_of_script(str(tmp_path / "loader.py"))
    assert [sample["image"].shape for sample in found] == [(1, 3, 224, 224)] * 4
    assert f"({data_loader.MOST_SAMPLES} samples and {data_loader.MOST_BYTES >> 30} GiB at most)" in page
