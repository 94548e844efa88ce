"""External data: what a tensor's reference says, what is refused, and that files are opened only where needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from graphs import DATA_FILE, exotic_model, grouped_conv, model, node, save_with_data, tensor, value, weights
from rewriter import external
from rewriter.constants import constant
from rewriter.errors import BadInput
from rewriter.external import Reference
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import all_passes, pass_named
from rewriter.survey import survey


def external_tensor(**entries: str) -> onnx.TensorProto:
    made = onnx.TensorProto(name="w", data_type=1, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in entries.items():
        made.external_data.add(key=key, value=text)
    return made


# References.


def test_references() -> None:
    assert external.reference(weights("w", 3)) is None
    assert external.reference(external_tensor(location="f")) == Reference("f", 0, None)
    full = external_tensor(location="a/f", offset="12", length="34", checksum="x")
    assert external.reference(full) == Reference("a/f", 12, 34)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "names no file"),
        ({"location": ""}, "names no file"),
        ({"location": "f", "offset": "x"}, "not a number"),
        ({"location": "f", "length": ""}, "not a number"),
        ({"location": "f", "offset": "-1"}, "negative"),
        ({"location": "f", "length": "-1"}, "negative"),
    ],
)
def test_references_that_make_no_sense(entries: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=f"^tensor 'w' .*{words}.*\\.$"):
        external.reference(external_tensor(**entries))


@pytest.mark.parametrize("location", ["/etc/passwd", "../up", "a/../../up", "a/../b", ".."])
def test_locations_that_leave_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves the model's folder; refused for safety"):
        external.resolve(location, tmp_path)


def test_a_model_without_a_folder_has_no_files() -> None:
    with pytest.raises(BadInput, match=r"give the path of the \.onnx file instead"):
        external.resolve("m.data", None)


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    assert external.read(Reference("f", 2, 3), tmp_path, "w") == b"234"
    assert external.read(Reference("f", 8, None), tmp_path, "w") == b"89"
    assert external.read(Reference("f", 0, 0), tmp_path, "w") == b""


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        (Reference("missing", 0, 1), "the weights of tensor 'w' cannot be read from '.*missing': No such file"),
        (Reference("folder", 0, 1), "cannot be read from '.*folder': Is a directory"),
        (Reference("f", 8, 3), "the external data file '.*f' ends inside tensor 'w'"),
        (Reference("f", 800, 3), "ends inside tensor 'w'"),
        (Reference("f", 2**70, 3), "ends inside tensor 'w'"),
        (Reference("f", 0, 2**62), "ends inside tensor 'w'"),  # and no memory is asked for
    ],
)
def test_reading_what_is_not_there(ref: Reference, words: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match=f"{words}.*\\.$"):
        external.read(ref, tmp_path, "w")


def test_a_file_of_another_size_does_not_fit_the_shape(tmp_path: Path) -> None:
    made = model([], [value("x", [1])], [value("x", [1])], [external_tensor(location="f")])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    (tmp_path / "f").write_bytes(bytes(16))
    with pytest.raises(BadInput, match=r"the data of tensor 'w' does not fit its shape \[3\]"):
        constant(Model.load(tmp_path / "m.onnx"), "w")


# Every place a tensor can be.


def test_tensors_are_found_everywhere() -> None:
    def named(name: str) -> onnx.TensorProto:
        made = external_tensor(location=f"{name}.bin")
        made.name = name
        return made

    def sparse(name: str) -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(values=named(f"{name}_values"), indices=named(f"{name}_indices"), dims=[9])

    def graph(name: str) -> onnx.GraphProto:
        return onnx.GraphProto(name=name, initializer=[named(name)])

    attributes = {
        "one": named("attribute"),
        "many": [named("in_list")],
        "sparse": sparse("sparse_attribute"),
        "sparses": [sparse("sparse_list")],
        "graph": graph("subgraph"),
        "graphs": [graph("subgraph_list")],
    }
    made = model([node("N", [], ["n"], **attributes)], [], [], [named("initializer")])
    made.graph.sparse_initializer.append(sparse("sparse"))
    inner = node("C", [], ["c"], value=named("function_node"))
    function = helper.make_function(
        "d", "F", [], ["c"], [inner], [], [], [helper.make_attribute("a", named("function_default"))]
    )
    made.functions.append(function)
    made.training_info.add().algorithm.CopyFrom(graph("training"))
    made.training_info[0].initialization.CopyFrom(graph("training_start"))
    expected = ["attribute", "function_default", "function_node", "in_list", "initializer"]
    for name in ("sparse", "sparse_attribute", "sparse_list"):
        expected += [f"{name}_indices", f"{name}_values"]
    expected += ["subgraph", "subgraph_list", "training", "training_start"]
    assert sorted(tensor.name for tensor in external.tensors(made) if tensor.name) == sorted(expected)
    assert sorted(external.locations(made)) == sorted(f"{name}.bin" for name in expected)


def test_locations_are_named_once_in_order() -> None:
    made = model([], [], [], [external_tensor(location=name) for name in ("b", "a", "b")])
    assert external.locations(made) == ["b", "a"]
    assert external.locations(Model.load(exotic_model()).skeleton) == [DATA_FILE]


# Read only where needed.


def test_looking_opens_no_data_file(tmp_path: Path) -> None:
    path = save_with_data(grouped_conv(), tmp_path, size_threshold=0)
    (tmp_path / "m.data").unlink()
    loaded = Model.load(path)
    assert loaded.headers["w"].dims == [8, 2, 3, 3]
    sites, _ = survey(Graph(loaded), {})
    (site,) = sites
    assert (site.form, site.group, site.channels_in, site.output_shape, site.macs) == (
        "grouped",
        4,
        8,
        (2, 8, 4, 4),
        4608,
    )


def test_weights_that_a_rewrite_needs_and_that_are_missing_are_named(tmp_path: Path) -> None:
    path = save_with_data(grouped_conv(), tmp_path, size_threshold=0)
    (tmp_path / "m.data").unlink()
    with pytest.raises(BadInput, match=r"the weights of tensor 'w' cannot be read from '.*m\.data'"):
        survey(Graph(Model.load(path)), all_passes())


def test_only_the_weights_of_the_rewritten_conv_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = grouped_conv()
    made.graph.node.append(node("Conv", ["y", "dense"], ["z"], name="dense"))
    made.graph.initializer.append(weights("dense", 8, 8, 3, 3))
    made.graph.output[0].CopyFrom(value("z", [2, 8, 2, 2]))
    path = save_with_data(made, tmp_path, size_threshold=100)
    read: list[str] = []
    original = external.read

    def recorded(ref: Reference, folder: Path | None, name: str) -> bytes:
        read.append(name)
        return original(ref, folder, name)

    monkeypatch.setattr(external, "read", recorded)
    after, applied, _ = sweep(Model.load(path), Step(pass_named("regroup"), {"factor": 2}), {})
    assert len(applied) == 1
    assert set(read) == {"w"}
    # The untouched weight is still a reference, the new one is in the file itself.
    assert external.locations(after.skeleton) == ["m.data"]
    assert after.headers["dense"].data_location == onnx.TensorProto.EXTERNAL
    assert after.headers["c/regroup/weight"].data_location == onnx.TensorProto.DEFAULT


def test_shape_arithmetic_reads_the_integers_it_needs(tmp_path: Path) -> None:
    made = model(
        [node("Reshape", ["x", "target"], ["r"]), node("Add", ["r", "bias"], ["y"])],
        [value("x", [6])],
        [value("y", None)],
        [tensor("target", np.array([2, 3], np.int64)), tensor("bias", np.ones(3, np.float32))],
    )
    path = save_with_data(made, tmp_path, size_threshold=0)
    assert Graph(Model.load(path)).declared.shape("y") == (2, 3)
    (tmp_path / "m.data").unlink()
    with pytest.raises(BadInput, match="tensor 'target'"):
        _ = Graph(Model.load(path)).declared


def test_a_links_data_is_beside_the_link(tmp_path: Path) -> None:
    """As ONNX Runtime has it; caches of downloaded models keep every file as a link into a store."""
    (tmp_path / "store").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = save_with_data(grouped_conv(), tmp_path / "snapshot", size_threshold=0)
    for name, blob in (("m.onnx", "0a"), ("m.data", "0b")):
        (tmp_path / "snapshot" / name).rename(tmp_path / "store" / blob)
        (tmp_path / "snapshot" / name).symlink_to(f"../store/{blob}")
    found = constant(Model.load(path), "w")
    assert found is not None
    assert found.tobytes() == grouped_conv().graph.initializer[0].raw_data
