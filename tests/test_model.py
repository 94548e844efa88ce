"""Load, look, splice: what is refused and how, what is not read, and that nothing done means nothing changed."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphs import UNUSUAL, exotic_model, grouped_conv, model, node, several_convs_ir3, tensor, unusual, value, weights
from rewriter.errors import BadInput
from rewriter.model import Edit, Model
from rewriter.region import extract
from rewriter.wire import header
from untouched import assert_untouched


def serialised(made: onnx.ModelProto) -> bytes:
    return made.SerializeToString(deterministic=True)


# What is no model.


def assert_one_sentence(error: pytest.ExceptionInfo[BadInput], words: str) -> None:
    text = str(error.value)
    assert re.search(words, text), text
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: it holds no model"),
        (bytes(range(1, 200)), r"is not an ONNX model \(protobuf: "),
        (b"\xff" * 100, r"is not an ONNX model \(protobuf: "),
        (b"Version https://git-lfs", r"is not an ONNX model"),
        (serialised(grouped_conv())[:-1], "is not an ONNX model"),
        (serialised(grouped_conv())[:400], "is not an ONNX model"),
        (serialised(onnx.ModelProto(ir_version=8)), "is not an ONNX model: it holds no graph"),
        (serialised(onnx.ModelProto(graph=onnx.GraphProto(name="g"))), "it names no operator set"),
        (b"\x38\x05" + serialised(onnx.ModelProto(opset_import=[helper.make_opsetid("", 17)])), "it holds no graph"),
        (b"\x3a\x03\x0a\x05a\x42\x02\x10\x11", r"is not an ONNX model \(protobuf: field 1"),
        (b"\x3a\x03\x0a\x01\xff\x42\x02\x10\x11", "is not an ONNX model: Error parsing"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        Model.load(path)
    assert_one_sentence(error, words)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("size", range(1, len(serialised(grouped_conv())), 37))
def test_a_truncated_file_is_refused_wherever_it_ends(size: int) -> None:
    with pytest.raises(BadInput) as error:
        Model.load(serialised(grouped_conv())[:size])
    assert_one_sentence(error, "the given model is not an ONNX model")


def test_a_large_initializer_that_is_damaged() -> None:
    data = serialised(model([], [value("x", [1])], [value("x", [1])], [weights("w", 1000)]))
    at = data.index(b"\x4a\xa0\x1f")  # raw_data and its length, 4000
    with pytest.raises(BadInput) as error:
        Model.load(data[:at] + b"\x4a\xa1\x1f" + data[at + 3 :])
    assert_one_sentence(error, "is not an ONNX model")
    # What it holds is not looked at: any bytes are weights.
    noise = data[: at + 3] + b"\xff" * 4000 + data[at + 4003 :]
    assert Model.load(noise).initializer("w").raw_data == b"\xff" * 4000


def test_a_damaged_tensor_is_told_when_it_is_read() -> None:
    bad = b"\x08\x04\x10\x01" + header(8, 1) + b"w" + header(4, 2001) + bytes(2001)  # float_data of 500.25 floats
    plain = model([], [value("x", [1])], [value("x", [1])])
    made = Model.load(serialised(plain) + header(7, len(bad) + 3) + header(5, len(bad)) + bad)
    with pytest.raises(BadInput) as error:
        made.initializer("w")
    assert_one_sentence(error, "the initializer 'w' of the given model is damaged")


def test_names_that_are_no_text_are_refused() -> None:
    made = serialised(model([node("Relu", ["x"], ["abc"])], [value("x", [1])], [value("y", [1])]))
    with pytest.raises(BadInput) as error:
        _ = Model.load(made.replace(b"abc", b"\xff\xfe\xfd")).wiring
    assert_one_sentence(error, r"a name that is not UTF-8 text: b'\\xff\\xfe\\xfd'")


def test_doc_strings_that_are_no_text_are_kept() -> None:
    given = grouped_conv()
    given.graph.node[1].doc_string = given.doc_string = "doc string"
    data = serialised(given).replace(b"doc string", b"doc \xff\xfe\xfding")
    loaded = Model.load(data)
    after = loaded.splice(Edit(inserted={0: (node("Relu", ["x"], ["more"]),)}))
    assert loaded.wiring.producer("y") == 1
    assert after.to_bytes().count(b"doc \xff\xfe\xfding") == 2


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.onnx", "does not exist"),
        ("", "is a folder, not a model"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_a_path_that_is_no_file(tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        Model.load(str(tmp_path / path))
    assert_one_sentence(error, words)


def test_a_path_with_a_null_byte() -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        Model.load("a\0b")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.onnx"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:  # root may read everything, so no mode refuses it
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput) as error:
        Model.load(path)
    assert_one_sentence(error, f"^'{path}' cannot be read: Permission denied.$")


def test_a_model_can_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = serialised(grouped_conv())
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    loaded = Model.load(pipe)
    writer.join()
    assert loaded.to_bytes() == data


# What loading gives.


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "bytearray", "memoryview", "proto", "model"])
def test_every_kind_of_source_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    made = exotic_model()
    data = serialised(made)
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    sources: dict[str, Callable[[], object]] = {
        "path": lambda: path,
        "text": lambda: str(path),
        "bytes": lambda: data,
        "bytearray": lambda: bytearray(data),
        "memoryview": lambda: memoryview(data),
        "proto": lambda: made,
        "model": lambda: Model.load(data),
    }
    loaded = Model.load(sources[kind]())  # type: ignore[arg-type]  # one table for all the kinds
    assert loaded.to_bytes() == data
    assert loaded.size == len(data)
    assert loaded.to_proto() == made
    assert loaded.folder == (tmp_path if kind in ("path", "text") else None)


def test_a_bytearray_may_change_afterwards() -> None:
    data = bytearray(serialised(grouped_conv()))
    loaded = Model.load(data)  # type: ignore[arg-type]  # not promised, but mypy is not asked in a notebook
    before = bytes(data)
    data[:] = bytes(len(data))
    assert loaded.to_bytes() == before


def test_what_is_an_input_and_what_may_be_overridden() -> None:
    loaded = Model.load(exotic_model())
    assert [entry.name for entry in loaded.inputs] == ["x", "sequence", "maybe", "flag"]
    assert loaded.overridable == {"overridable"}
    old = Model.load(several_convs_ir3())
    assert [entry.name for entry in old.inputs] == ["x"]
    assert old.overridable == frozenset()
    assert (old.ir_version, old.opset) == (3, 9)


def test_a_sparse_initializer_needs_no_feeding() -> None:
    made = exotic_model()
    made.graph.input.append(value("sparse", [4, 4]))
    assert "sparse" not in [entry.name for entry in Model.load(made).inputs]


@pytest.mark.parametrize(
    ("domains", "opset"), [([("", 17)], 17), ([("ai.onnx", 9)], 9), ([("x", 3), ("", 12)], 12), ([("x", 3)], 0)]
)
def test_the_opset_is_that_of_the_default_domain(domains: list[tuple[str, int]], opset: int) -> None:
    made = grouped_conv()
    del made.opset_import[:]
    made.opset_import.extend(helper.make_opsetid(*entry) for entry in domains)
    assert Model.load(made).opset == opset


def test_the_data_of_large_initializers_is_not_parsed() -> None:
    made = grouped_conv()
    big = weights("big", 40, 40)
    big.doc_string = "kept"
    made.graph.initializer.extend([big, tensor("small", [1, 2])])
    loaded = Model.load(made)
    skeleton = loaded.skeleton
    assert skeleton.ByteSize() < 3000 < 6400 < loaded.size
    head = loaded.headers["big"]
    assert (list(head.dims), int(head.data_type), head.doc_string) == ([40, 40], 1, "kept")
    assert not head.HasField("raw_data")
    assert loaded.initializer("big") == big
    assert numpy_helper.to_array(loaded.headers["small"]).tolist() == [1, 2]


def test_float_data_is_data_too() -> None:
    made = grouped_conv()
    made.graph.initializer.append(helper.make_tensor("big", onnx.TensorProto.FLOAT, [1000], np.ones(1000)))
    loaded = Model.load(made)
    assert len(loaded.headers["big"].float_data) == 0
    assert len(loaded.initializer("big").float_data) == 1000


# Splice with nothing.


@pytest.mark.parametrize("name", UNUSUAL)
def test_nothing_done_is_nothing_changed(name: str, tmp_path: Path) -> None:
    data = unusual(name)
    assert data != serialised(exotic_model())
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    for loaded in (Model.load(data), Model.load(path)):
        spliced = loaded.splice(Edit())
        assert b"".join(spliced.chunks()) == spliced.to_bytes() == data
        assert spliced.sha256 == loaded.sha256
        assert spliced.size == len(data)
    assert Model.load(data).splice(Edit(inserted={3: ()})).to_bytes() == data


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_encodings_are_understood_and_kept(name: str) -> None:
    data = unusual(name)
    loaded = Model.load(data)
    whole = onnx.ModelProto.FromString(data)
    assert [entry.name for entry in loaded.nodes] == [entry.name for entry in whole.graph.node]
    assert list(loaded.headers) == [entry.name for entry in whole.graph.initializer]
    assert loaded.initializer("c_weight") == next(t for t in whole.graph.initializer if t.name == "c_weight")
    at = [entry.name for entry in loaded.nodes].index("conv c")
    new = onnx.NodeProto.FromString(loaded.nodes[at].SerializeToString())
    new.input[1] = "fresh"
    edit = Edit(frozenset([at]), {at: (new,)}, (weights("fresh", 8, 2, 3, 3),))
    after = loaded.splice(edit).to_bytes()
    if name in ("reversed fields", "interleaved"):  # nodes are in order all the same
        assert onnx.ModelProto.FromString(after).graph.node[at] == new
    assert_untouched(data, after, edit)


# Splices.


def chain(length: int = 5) -> Model:
    """x -> Relu -> t0 -> Relu -> t1 ...; every tensor has a value_info and an annotation, every node a weight."""
    nodes = [node("Add", ["x" if i == 0 else f"t{i - 1}", f"w{i}"], [f"t{i}"], name=f"n{i}") for i in range(length)]
    made = model(nodes, [value("x", [4])], [value(f"t{length - 1}", [4])], [weights(f"w{i}", 4) for i in range(length)])
    for i in range(length):
        made.graph.value_info.append(value(f"t{i}", [4]))
        made.graph.quantization_annotation.add(tensor_name=f"t{i}")
    return Model.load(made)


@given(st.data())
def test_any_edit_changes_what_it_says_and_nothing_else(data: st.DataObject) -> None:
    loaded = chain()
    removed = data.draw(st.frozensets(st.integers(0, 4)))
    inserted = {}
    for index in data.draw(st.lists(st.integers(0, 5), unique=True)):
        # Each inserted node makes again what the removed one at its place made, or something new.
        output = f"t{index}" if index in removed else f"new{index}"
        inserted[index] = (node("Relu", ["x"], [output], name=f"new node {index}"),)
    missing = {f"t{i}" for i in removed if i not in inserted}
    for i in sorted(removed - inserted.keys()):  # keep it a graph: what was removed is made elsewhere, before
        inserted[i] = (node("Neg", ["x"], [f"t{i}"], name=f"again {i}"),)
    assert missing <= {n.output[0] for nodes in inserted.values() for n in nodes}
    initializers = tuple(weights(f"v{i}", 4) for i in range(data.draw(st.integers(0, 2))))
    edit = Edit(removed, inserted, initializers)
    assert_untouched(loaded.to_bytes(), loaded.splice(edit).to_bytes(), edit)


def test_what_describes_a_tensor_goes_with_it() -> None:
    loaded = chain()
    edit = Edit(frozenset([1, 2]), {1: (node("Add", ["t0", "v"], ["t2"]),)}, (weights("v", 4),))
    after = loaded.splice(edit)
    assert_untouched(loaded.to_bytes(), after.to_bytes(), edit)
    graph = after.to_proto().graph
    assert [entry.name for entry in graph.value_info] == ["t0", "t2", "t3", "t4"]
    assert [entry.tensor_name for entry in graph.quantization_annotation] == ["t0", "t2", "t3", "t4"]
    assert [entry.name for entry in graph.initializer] == ["w0", "w3", "w4", "v"]


def test_a_weight_that_a_kept_annotation_or_training_names_stays() -> None:
    made = chain().to_proto()
    made.graph.quantization_annotation[0].quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w1")
    made.training_info.add().initialization_binding.add(key="w2", value="other")
    made.training_info[0].algorithm.node.append(node("Add", ["w3", "w3"], ["s"]))
    after = Model.load(made).splice(Edit(frozenset([1, 2, 3, 4]), {1: (node("Relu", ["t0"], ["t4"]),)}))
    assert list(after.headers) == ["w0", "w1", "w2", "w3"]


def test_a_weight_that_is_an_input_or_output_stays() -> None:
    made = chain().to_proto()
    made.graph.input.append(value("w1", [4]))
    made.graph.output.append(value("w2", [4]))
    after = Model.load(made).splice(Edit(frozenset([1, 2, 3]), {1: (node("Relu", ["t0"], ["t3"]),)}))
    assert list(after.headers) == ["w0", "w1", "w2", "w4"]


def test_a_weight_that_only_a_subgraph_reads_stays() -> None:
    inner = helper.make_graph([node("Neg", ["w1"], ["i"])], "inner", [], [value("i", [4])])
    made = chain().to_proto()
    made.graph.node.append(node("If", ["cond"], ["z"], then_branch=inner, else_branch=inner))
    after = Model.load(made).splice(Edit(frozenset([1]), {1: (node("Relu", ["t0"], ["t1"]),)}))
    assert "w1" in after.headers


def test_a_nameless_output_takes_no_description_with_it() -> None:
    made = model([node("Dropout", ["x"], ["y", ""])], [value("x", [4])], [value("y", [4])])
    made.graph.value_info.append(onnx.ValueInfoProto(doc_string="nameless"))
    after = Model.load(made).splice(Edit(frozenset([0]), {0: (node("Relu", ["x"], ["y"]),)}))
    assert len(after.to_proto().graph.value_info) == 1


@pytest.mark.parametrize(("first", "last", "goes"), [(b"zz", b"t1", True), (b"t1", b"zz", False)])
def test_of_a_name_given_twice_the_last_counts(first: bytes, last: bytes, goes: bool) -> None:
    made = chain().to_proto()
    del made.graph.value_info[1]
    info = b"\x0a\x02" + first + b"\x0a\x02" + last
    data = serialised(made) + header(7, len(info) + 2) + header(13, len(info)) + info
    edit = Edit(frozenset([1]), {1: (node("Relu", ["t0"], ["new"]), node("Relu", ["t0"], ["u"]))})
    names = [entry.name for entry in Model.load(data).splice(edit).to_proto().graph.value_info]
    assert names == ["t0", "t2", "t3", "t4"] + ([] if goes else [last.decode()])


def test_a_graph_without_initializers_gets_its_first() -> None:
    loaded = Model.load(model([node("Relu", ["x"], ["y"])], [value("x", [1])], [value("y", [1])]))
    edit = Edit(frozenset([0]), {0: (node("Add", ["x", "w"], ["y"]),)}, (weights("w", 1),))
    assert_untouched(loaded.to_bytes(), loaded.splice(edit).to_bytes(), edit)


def test_a_splice_leaves_the_model_as_it_was_and_remembers_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(serialised(grouped_conv()))
    loaded = Model.load(path)
    before = loaded.to_bytes()
    one = loaded.splice(Edit(inserted={0: (node("Relu", ["x"], ["n1"]),)}))
    two = one.splice(Edit(inserted={0: (node("Relu", ["x"], ["n2"]),)}))
    assert loaded.to_bytes() == before == path.read_bytes()
    assert len({loaded.sha256, one.sha256, two.sha256}) == 3
    assert (two.original, one.original, loaded.original) == (loaded, loaded, loaded)
    assert (two.path, two.folder, loaded.path) == (None, tmp_path, path)
    assert [len(m.nodes) for m in (loaded, one, two)] == [2, 3, 4]


def test_more_outputs_to_look_inside() -> None:
    loaded = Model.load(grouped_conv())
    wider = loaded.with_outputs([value("c", None)])
    assert [entry.name for entry in wider.outputs] == ["y", "c"]
    assert [entry.name for entry in loaded.outputs] == ["y"]
    assert wider.to_proto().graph.node == loaded.to_proto().graph.node


def test_a_region_cut_out_takes_every_kind_of_weight_along() -> None:
    loaded = Model.load(exotic_model())
    x = value("x", [2, 8, 12, 12]).type
    cut = extract(loaded, [0, 1], {"x": x}, ["m", "a"])
    assert [entry.name for entry in cut.graph.node] == ["mystery", "conv a"]
    assert [entry.values.name for entry in cut.graph.sparse_initializer] == ["sparse"]
    read = {"a_weight", "a_bias", "half", "eighth", "quarter", "words", "also_from_file"}
    assert {entry.name for entry in cut.graph.initializer} == read
    assert [entry.name for entry in cut.functions] == ["Twice"]
