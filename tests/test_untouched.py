"""Untouched is untouched: each splice of each pass leaves all other bytes alone; and the funnel that says so works."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from graphs import (
    exotic_model,
    grouped_conv,
    model,
    node,
    several_convs_ir3,
    value,
    weights,
    write_exotic_data,
)
from models.zoo.refill import zoo_model
from rewriter.model import Edit, Model
from rewriter.propose import Applied, Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Setting
from untouched import assert_untouched, raw_fields

# With a divisor that not every number of groups has: the sites between those rewritten stay.
PASSES: list[tuple[str, dict[str, Setting]]] = [("regroup", {"factor": 2}), ("grouped-to-depthwise-sum", {})]


def checked_sweep(
    source: Model, name: str, settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> tuple[Model, list[Applied]]:
    """Sweep with a pass, every splice put through the funnel; nothing of the source may have changed either."""
    splice = Model.splice
    before = source.to_bytes()

    def checked(self: Model, edit: Edit) -> Model:
        result = splice(self, edit)
        assert_untouched(self.to_bytes(), result.to_bytes(), edit)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Model, "splice", checked)
        after, applied, _ = sweep(source, Step(pass_named(name), settings), {})
    assert source.to_bytes() == before
    return after, applied


def initializer_names(source: Model) -> list[str]:
    return [tensor.name for tensor in source.to_proto().graph.initializer]


@pytest.fixture(scope="module")
def regnet() -> bytes:
    return zoo_model("regnet_y_400mf_dynamo").SerializeToString(deterministic=True)


@pytest.fixture
def exotic(tmp_path: Path) -> Path:
    write_exotic_data(tmp_path)
    path = tmp_path / "exotic.onnx"
    path.write_bytes(exotic_model().SerializeToString(deterministic=True))
    return path


# What the passes leave alone.


@pytest.mark.parametrize(("name", "settings"), PASSES)
def test_dynamo_regnet(regnet: bytes, name: str, settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch) -> None:
    source = Model.load(regnet)
    after, applied = checked_sweep(source, name, settings, monkeypatch)
    groups = {entry.output[0]: next((a.i for a in entry.attribute if a.name == "group"), 1) for entry in source.nodes}
    fitting = {site for site, group in groups.items() if group > 1 and group % int(settings.get("factor", group)) == 0}
    assert {done.rewrite.site for done in applied} == fitting
    assert len(fitting) == {"regroup": 7}.get(name, 16)
    assert all(len(entry.metadata_props) > 2 for entry in source.nodes), "the model has lost its node metadata"
    # The convolution's own name and metadata live on in its replacement.
    if name == "regroup":
        old = {entry.output[0]: entry for entry in source.nodes if entry.output[0] in fitting}
        new = {entry.output[0]: entry for entry in after.nodes if entry.output[0] in old}
        assert all(old[key].metadata_props == new[key].metadata_props for key in old)
        assert all(old[key].name == new[key].name for key in old)


def test_tensorflow_resnext(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Model.load(zoo_model("tf_resnext50_depthwise_sum"))
    after, applied = checked_sweep(source, "depthwise-sum-to-grouped", {}, monkeypatch)
    assert len(applied) == 16
    assert [entry.op_type for entry in source.nodes].count("ReduceSum") == 16
    assert "ReduceSum" not in [entry.op_type for entry in after.nodes]


@pytest.mark.parametrize(("name", "settings"), PASSES)
def test_everything_exotic(
    exotic: Path, name: str, settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.checker.check_model(exotic)
    after, applied = checked_sweep(Model.load(exotic), name, settings, monkeypatch)
    (exotic.parent / "after.onnx").write_bytes(after.to_bytes())
    onnx.checker.check_model(exotic.parent / "after.onnx")
    assert [done.rewrite.site for done in applied] == ["a", "c", "shared_one", "shared_two", "y"]
    names = set(initializer_names(after))
    assert not names & {"a_weight", "c_weight", "shared", "from_file"}, "weights without readers stay"
    assert {"overridable", "nobody_reads", "a_bias", "also_from_file"} <= names
    if name == "regroup":
        assert "a/regroup/weight_2" in names, "the name in the If's branch was free for the taking"


def test_a_shared_weight_stays_while_one_conv_reads_it(monkeypatch: pytest.MonkeyPatch, exotic: Path) -> None:
    source = Model.load(exotic)
    step = Step(pass_named("regroup"), {"factor": 2}, frozenset(["shared_one"]))
    after, applied, _ = sweep(source, step, {})
    assert [done.rewrite.site for done in applied] == ["shared_one"]
    assert_untouched(source.to_bytes(), after.to_bytes(), applied[0].rewrite.edit)
    assert "shared" in initializer_names(after)


@pytest.mark.parametrize(("name", "settings"), PASSES)
def test_ir_version_3_keeps_its_inputs(
    name: str, settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Model.load(several_convs_ir3())
    onnx.checker.check_model(source.to_proto())
    after, applied = checked_sweep(source, name, settings, monkeypatch)
    onnx.checker.check_model(after.to_proto())
    assert len(applied) == 2
    # No new initializer (it would have to be an input), none dropped (that would change the interface).
    assert initializer_names(after) == initializer_names(source)
    assert "Constant" in [entry.op_type for entry in after.nodes]


@pytest.mark.parametrize(("name", "settings"), PASSES)
def test_the_same_input_gives_the_same_bytes(exotic: Path, name: str, settings: dict[str, Setting]) -> None:
    given = exotic_model()
    before = given.SerializeToString(deterministic=True)
    step = Step(pass_named(name), settings)
    results = [sweep(Model.load(source), step, {})[0].to_bytes() for source in (exotic, exotic)]
    assert results[0] == results[1] != before
    (exotic.parent / "copy.onnx").write_bytes(before)
    assert sweep(Model.load(exotic.parent / "copy.onnx"), step, {})[0].to_bytes() == results[0]


def test_a_model_proto_is_never_mutated() -> None:
    given = grouped_conv()
    before = given.SerializeToString(deterministic=True)
    after, applied, _ = sweep(Model.load(given), Step(pass_named("regroup"), {"factor": 2}), {})
    assert applied
    result = after.to_proto()
    result.graph.node[0].name = result.graph.input[0].name = "changed"
    assert given.SerializeToString(deterministic=True) == before
    assert after.to_proto().graph.node[0].name == "conv"


# The funnel: each loss, and each disguise of one, is noticed.

Tamper = Callable[[onnx.ModelProto], None]


@functools.cache
def spliced() -> tuple[bytes, bytes, Edit]:
    """The exotic model, the same with `conv a` regrouped, and the edit that did it."""
    with tempfile.TemporaryDirectory() as folder:
        write_exotic_data(Path(folder))
        return _spliced(Path(folder) / "exotic.onnx")


def _spliced(path: Path) -> tuple[bytes, bytes, Edit]:
    path.write_bytes(exotic_model().SerializeToString(deterministic=True))
    source = Model.load(path)
    step = Step(pass_named("regroup"), {"factor": 2}, frozenset(["a"]))
    after, (applied,), _ = sweep(source, step, {})
    return source.to_bytes(), after.to_bytes(), applied.rewrite.edit


def by_name(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(entry for entry in graph.node if entry.name == name)


def attribute(entry: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(found for found in entry.attribute if found.name == name)


def overridable_to_constant(made: onnx.ModelProto) -> None:
    kept = [entry for entry in made.graph.input if entry.name != "overridable"]
    del made.graph.input[:]
    made.graph.input.extend(kept)


def swap(repeated: object, one: int, other: int) -> None:
    items = list(repeated)  # type: ignore[call-overload]  # protobuf's repeated fields share no public base class
    items[one], items[other] = items[other], items[one]
    del repeated[:]  # type: ignore[attr-defined]
    repeated.extend(items)  # type: ignore[attr-defined]


def stale_value_info(made: onnx.ModelProto) -> None:
    made.graph.value_info.append(value("a_weight", [8, 2, 3, 3]))


def stale_annotation(made: onnx.ModelProto) -> None:
    made.graph.quantization_annotation.add(tensor_name="a_weight")


def inner_doc(made: onnx.ModelProto) -> None:
    attribute(by_name(made.graph, "choice"), "then_branch").g.doc_string = ""


TAMPERED: dict[str, Tamper] = {
    "model metadata": lambda m: m.ClearField("metadata_props"),
    "model version": lambda m: m.ClearField("model_version"),
    "model doc_string": lambda m: m.ClearField("doc_string"),
    "domain": lambda m: m.ClearField("domain"),
    "producer": lambda m: setattr(m, "producer_name", "another"),
    "IR version": lambda m: setattr(m, "ir_version", 12),
    "opset": lambda m: setattr(m.opset_import[1], "version", 4),
    "opset order": lambda m: swap(m.opset_import, 0, 1),
    "function": lambda m: m.ClearField("functions"),
    "function body": lambda m: m.functions[0].node[0].ClearField("doc_string"),
    "training": lambda m: m.ClearField("training_info"),
    "unknown model field": lambda m: m.DiscardUnknownFields(),
    "graph name": lambda m: setattr(m.graph, "name", "other"),
    "graph doc_string": lambda m: m.graph.ClearField("doc_string"),
    "graph metadata": lambda m: m.graph.ClearField("metadata_props"),
    "overridable turned constant": overridable_to_constant,
    "input order": lambda m: swap(m.graph.input, 0, 1),
    "input type": lambda m: m.graph.input[1].ClearField("type"),
    "output doc_string": lambda m: m.graph.output[0].ClearField("doc_string"),
    "sparse initializer": lambda m: m.graph.ClearField("sparse_initializer"),
    "value_info lost": lambda m: m.graph.value_info.__delitem__(0),
    "value_info metadata": lambda m: m.graph.value_info[0].ClearField("metadata_props"),
    "value_info left behind": stale_value_info,
    "annotation lost": lambda m: m.graph.quantization_annotation.__delitem__(0),
    "annotation changed": lambda m: m.graph.quantization_annotation[0].ClearField("quant_parameter_tensor_names"),
    "annotation left behind": stale_annotation,
    "node metadata": lambda m: by_name(m.graph, "relu").ClearField("metadata_props"),
    "node doc_string": lambda m: by_name(m.graph, "relu").ClearField("doc_string"),
    "node name": lambda m: setattr(by_name(m.graph, "relu"), "name", ""),
    "node unknown field": lambda m: by_name(m.graph, "relu").DiscardUnknownFields(),
    "node lost": lambda m: m.graph.node.__delitem__(len(m.graph.node) - 1),
    "node doubled": lambda m: m.graph.node.append(m.graph.node[0]),
    "nodes reordered": lambda m: swap(m.graph.node, 4, 5),
    "new node elsewhere": lambda m: swap(m.graph.node, 0, 1),
    "new node changed": lambda m: setattr(m.graph.node[1], "doc_string", "other"),
    "optional output": lambda m: by_name(m.graph, "dropout").output.__delitem__(1),
    "default domain spelled out": lambda m: setattr(by_name(m.graph, "relu"), "domain", ""),
    "overload": lambda m: by_name(m.graph, "mystery").ClearField("overload"),
    "attribute TENSORS": lambda m: attribute(by_name(m.graph, "mystery"), "tensors").ClearField("tensors"),
    "attribute GRAPHS": lambda m: attribute(by_name(m.graph, "mystery"), "graphs").ClearField("graphs"),
    "attribute TYPE_PROTO": lambda m: attribute(by_name(m.graph, "mystery"), "type").ClearField("tp"),
    "attribute STRINGS": lambda m: attribute(by_name(m.graph, "mystery"), "strings").strings.__setitem__(0, b"\xef"),
    "attribute doc_string": lambda m: attribute(by_name(m.graph, "mystery"), "ints").ClearField("doc_string"),
    "negative zero": lambda m: attribute(by_name(m.graph, "mystery"), "floats").floats.__setitem__(1, 0.0),
    "subgraph doc_string": inner_doc,
    "weight bit": lambda m: setattr(m.graph.initializer[0], "raw_data", b"\1" + m.graph.initializer[0].raw_data[1:]),
    "initializer order": lambda m: swap(m.graph.initializer, 0, 1),
    "unread initializer dropped": lambda m: m.graph.initializer.__delitem__(12),
    "removed weight kept": lambda m: m.graph.initializer.append(weights("a_weight", 8, 2, 3, 3)),
    "new weight changed": lambda m: setattr(m.graph.initializer[-1], "raw_data", b"\1" * 4),
    "new weight missing": lambda m: m.graph.initializer.__delitem__(len(m.graph.initializer) - 1),
    "external reference": lambda m: m.graph.initializer[11].external_data.__delitem__(3),
    "external weights read in": lambda m: m.graph.initializer[11].ClearField("data_location"),
}


def test_the_funnel_passes_what_is_right() -> None:
    assert_untouched(*spliced())


@pytest.mark.parametrize("name", TAMPERED)
def test_the_funnel_notices(name: str) -> None:
    before, after, edit = spliced()
    tampered = onnx.ModelProto.FromString(after)
    TAMPERED[name](tampered)
    with pytest.raises(AssertionError):
        assert_untouched(before, tampered.SerializeToString(deterministic=True), edit)


def test_the_funnel_notices_a_new_encoding_of_the_same_meaning() -> None:
    before, after, edit = spliced()
    # `domain` of the model with its length in two bytes instead of one: the same model to any parser.
    plain, padded = b"\x22\x0borg.example", b"\x22\x8b\x00org.example"
    assert before.count(plain) == after.count(plain) == 1
    assert onnx.ModelProto.FromString(after.replace(plain, padded)) == onnx.ModelProto.FromString(after)
    with pytest.raises(AssertionError, match="outside the graph"):
        assert_untouched(before, after.replace(plain, padded), edit)
    assert_untouched(before.replace(plain, padded), after.replace(plain, padded), edit)


def test_the_funnel_notices_a_re_encoded_node() -> None:
    nothing = Edit()
    before = grouped_conv().SerializeToString(deterministic=True)
    graph = next(field for field in raw_fields(before) if field.number == 7)
    relu = next(field for field in reversed(raw_fields(graph.body)) if field.number == 1)
    padded = relu.raw[:1] + bytes([len(relu.body) | 128, 0]) + relu.body
    body = graph.body.replace(relu.raw, padded)
    after = before.replace(graph.raw, b"\x3a" + bytes([len(body) & 127 | 128, len(body) >> 7]) + body)
    assert onnx.ModelProto.FromString(after) == onnx.ModelProto.FromString(before)
    assert_untouched(before, before, nothing)
    with pytest.raises(AssertionError, match="not a copy"):
        assert_untouched(before, after, nothing)


def test_the_funnel_notices_a_name_that_is_taken_in_a_subgraph() -> None:
    before, _, edit = spliced()
    taken = "a/regroup/weight"
    new = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in edit.initializers]
    conv = onnx.NodeProto.FromString(edit.inserted[1][0].SerializeToString())
    new[0].name = conv.input[1] = taken
    clash = Edit(edit.removed, {1: (conv,)}, tuple(new))
    after = Model.load(before).splice(clash).to_bytes()
    with pytest.raises(AssertionError, match=taken):
        assert_untouched(before, after, clash)


def test_the_funnel_notices_a_tensor_read_before_it_is_made() -> None:
    before, _, edit = spliced()
    late = Edit(edit.removed, {len(Model.load(before).nodes): edit.inserted[1]}, edit.initializers)
    after = Model.load(before).splice(late).to_bytes()
    with pytest.raises(AssertionError, match="nothing before it makes"):
        assert_untouched(before, after, late)


def metadata(made: onnx.ModelProto) -> None:
    made.metadata_props.add(key="k", value="v")


def annotation(made: onnx.ModelProto) -> None:
    made.graph.quantization_annotation.add(tensor_name="c")


def overridable(made: onnx.ModelProto) -> None:
    made.graph.input.append(value("b", [8]))


LOST_BY_GRAPHSURGEON: dict[str, tuple[Tamper, str]] = {
    "metadata": (metadata, "model: metadata_props"),
    "version": (lambda m: setattr(m, "model_version", 3), "model: model_version"),
    "domain": (lambda m: setattr(m, "domain", "org"), "model: domain"),
    "doc_string": (lambda m: setattr(m, "doc_string", "about"), "model: doc_string"),
    "node doc_string": (lambda m: setattr(m.graph.node[1], "doc_string", "about"), "node 1 .relu.: doc_string"),
    "annotation": (annotation, "quantization_annotation: 0 instead of 1"),
    "overridable": (overridable, "graph: input"),
}


@pytest.mark.parametrize("name", LOST_BY_GRAPHSURGEON)
def test_the_funnel_notices_what_graphsurgeon_loses(name: str) -> None:
    give, message = LOST_BY_GRAPHSURGEON[name]
    # A model that graphsurgeon gives back whole, and the same with one thing that it loses.
    plain = gs.export_onnx(gs.import_onnx(grouped_conv()))
    plain.producer_name, plain.ir_version = "", 8
    given = onnx.ModelProto.FromString(plain.SerializeToString())
    give(given)
    for source in (plain, given):
        before = source.SerializeToString(deterministic=True)
        exported = gs.export_onnx(gs.import_onnx(source), producer_name="")
        exported.ir_version = 8
        after = exported.SerializeToString(deterministic=True)
        if source is plain:
            assert_untouched(before, after, Edit())
            continue
        with pytest.raises(AssertionError, match=message):
            assert_untouched(before, after, Edit())


def test_an_unusual_opset_order_or_duplicate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = model(
        [node("Conv", ["x", "w"], ["y"], group=4)],
        [value("x", [1, 8, 5, 5])],
        [value("y", None)],
        [weights("w", 8, 2, 3, 3)],
    )
    given.opset_import.insert(0, helper.make_opsetid("com.example", 1))
    given.opset_import[1].domain = "ai.onnx"
    after, applied = checked_sweep(Model.load(given), "regroup", {"factor": 2}, monkeypatch)
    assert applied
    assert after.opset == 17
