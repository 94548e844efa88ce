"""Weights elsewhere than in plain initializers: data files, subgraphs, sparse tensors.  They must count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.equivalence import Audit, AuditOptions, audit
from rewriter.errors import BadInput
from rewriter.model import Model
from test_equivalence.models import UNSURE, W, conv, documented, info, model, node, random
from test_equivalence.nets import Array, audited


def saved(folder: Path, weight: Array) -> Path:
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(conv([1, 3, 8, 8]), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").write_bytes(weight.tobytes())
    return path


def audited_files(before: Path, after: Path) -> Audit:
    return audit(Model.load(before), Model.load(after), AuditOptions())


def test_equal_files_with_other_data_beside_them_are_different(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "a", W), saved(tmp_path / "b", W * 3)
    assert before.read_bytes() == after.read_bytes()
    result = audited_files(before, after)
    assert result.verdict == "different"
    assert "'w'" in result.reason


def test_equal_files_with_equal_data_are_identical(tmp_path: Path) -> None:
    result = audited_files(saved(tmp_path / "a", W), saved(tmp_path / "b", W))
    assert (result.verdict, result.grade) == ("equivalent", "bitwise")
    assert "identical" in result.reason


def test_equal_files_without_their_data_are_bad_input(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "a", W), saved(tmp_path / "b", W)
    (tmp_path / "b" / "w.bin").unlink()
    with pytest.raises(BadInput, match=r"w\.bin' does not exist"):
        audited_files(before, after)
    with pytest.raises(BadInput, match=r"w\.bin' does not exist"):
        audited_files(after, after)


def branching(folder: Path, weight: Array, doc: str) -> Path:
    """A Conv with external weights in a branch that no ordinary input takes."""
    folder.mkdir()
    other = helper.make_graph([node("Conv", ["x", "v"], ["p"])], "e", [], [info("p", None)])
    other.initializer.append(numpy_helper.from_array(W, "v"))
    taken = helper.make_graph([node("Conv", ["x", "w"], ["o"])], "t", [], [info("o", None)])
    tensor = taken.initializer.add(name="w", dims=W.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="s.bin")
    nodes = [
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Greater", ["top", "limit"], ["c"]),
        node("If", ["c"], ["y"], then_branch=taken, else_branch=other),
    ]
    made = model(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], {"limit": np.asarray(1000, np.float32)})
    made.doc_string = doc
    onnx.save(made, folder / "m.onnx")
    (folder / "s.bin").write_bytes(weight.tobytes())
    return folder / "m.onnx"


def test_other_external_data_in_a_branch_never_taken(tmp_path: Path) -> None:
    before, after = branching(tmp_path / "a", W, "a"), branching(tmp_path / "b", W * 2, "b")
    assert audited_files(before, after).verdict in UNSURE


def test_equal_external_data_in_a_branch_is_the_same(tmp_path: Path) -> None:
    before, after = branching(tmp_path / "a", W, "a"), branching(tmp_path / "b", W, "b")
    result = audited_files(before, after)
    assert (result.verdict, result.regions) == ("equivalent", ())


def sparse(first: float) -> onnx.ModelProto:
    """A 1×1 Conv with sparse weights; channel 0 is dead for ordinary inputs."""
    nodes = [node("Conv", ["x", "w", "b"], ["t"]), node("Relu", ["t"], ["y"])]
    made = model(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], {"b": np.asarray([-1e4, 0, 0, 0], np.float32)})
    values = np.asarray([first, *random(11)], np.float32)
    indices = numpy_helper.from_array(np.arange(12), "w_indices")
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(numpy_helper.from_array(values, "w"), indices, [4, 3, 1, 1])
    )
    return made


def test_a_sparse_weight_of_a_dead_channel() -> None:
    assert audited(sparse(1.0), sparse(2.0)).verdict in UNSURE
    result = audited(sparse(1.0), documented(sparse(1.0)))
    assert (result.verdict, result.regions) == ("equivalent", ())
