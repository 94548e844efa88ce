"""fuse-conv-activation: what becomes one operator and what stays, the import it needs, and the permission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import rewriter
import rewriter.choose
import rewriter.whole_timing
from funnel import check, declines
from programs import program
from rewriter.cli import main
from rewriter.engine import optimize
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Safety
from rewriter.timing import Contender, Timing
from timings import timing

PASS = "fuse-conv-activation"
MICROSOFT = "com.microsoft"
ALLOWED = rewriter.RunOptions(allow=frozenset({"contrib-ops"}))
PADDED = "Conv <pads = [1, 1, 1, 1]>"
SIZES = [{"x": (2, 8, 5, 5)}, {"x": (3, 8, 5, 5)}]
W, B = (8, 8, 3, 3), (8,)
SIMPLE = "t = Conv (x, w, b) y = Relu (t)"
RESIDUAL = f"t = {PADDED} (x, w, b) s = Add (t, x) y = Relu (s)"


def node_of(model: onnx.ModelProto) -> onnx.NodeProto:
    (found,) = [node for node in model.graph.node if node.op_type == "FusedConv"]
    return found


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        (SIMPLE, {"w": W, "b": B}, "FusedConv"),
        ("t = Conv (x, w) y = Relu (t)", {"w": W}, "FusedConv"),
        (RESIDUAL, {"w": W, "b": B}, "FusedConv"),
        (f"t = {PADDED} (x, w, b) s = Add (x, t) y = Relu (s)", {"w": W, "b": B}, "FusedConv"),
        (f"t = {PADDED} (x, w) s = Add (t, x) y = Relu (s)", {"w": W}, "FusedConv"),
        ("t = Conv <group = 4> (x, w, b) y = Relu (t)", {"w": (8, 2, 3, 3), "b": B}, "FusedConv"),
        ("t = Conv <group = 8, strides = [2, 1]> (x, w) y = Relu (t)", {"w": (16, 1, 3, 3)}, "FusedConv"),
        ('t = Conv <auto_pad = "SAME_LOWER"> (x, w, b) s = Add (t, x) y = Relu (s)', {"w": W, "b": B}, "FusedConv"),
        ('t = Conv <auto_pad = "VALID", dilations = [2, 1]> (x, w) y = Relu (t)', {"w": W}, "FusedConv"),
        # The residual is made after the convolution: the new node goes where the Relu stood.
        (f"t = {PADDED} (x, w, b) n = Neg (x) s = Add (t, n) y = Relu (s)", {"w": W, "b": B}, "Neg FusedConv"),
        # Two convolutions meet in one sum: one takes the other in.
        (
            f"t = {PADDED} (x, w, b) u = Conv (x, v) s = Add (t, u) y = Relu (s)",
            {"w": W, "b": B, "v": (8, 8, 1, 1)},
            "Conv/1 FusedConv",
        ),
        # A chain, each fused by itself.
        (
            "t = Conv (x, w, b) r = Relu (t) u = Conv (r, v) y = Relu (u)",
            {"w": W, "b": B, "v": (8, 8, 1, 1)},
            "FusedConv FusedConv",
        ),
        ("w = Neg (v) t = Conv (x, w) y = Relu (t)", {"v": W}, "Neg FusedConv"),
    ],
)
def test_before_and_after(body: str, constants: dict[str, Any], becomes: str) -> None:
    passed = check(program(body, **constants), PASS, becomes=becomes, safety=Safety.EXACT, sizes=SIZES)
    assert [(entry.domain, entry.version) for entry in passed.after.opset_import] == [("", 18), (MICROSOFT, 1)]


def test_volumes_are_fused() -> None:
    body = "t = Conv (x, w, b) y = Relu (t)"
    check(program(body, x="float[N,2,4,4,4]", w=(3, 2, 3, 2, 2), b=(3,)), PASS, sizes=[{"x": (2, 2, 4, 4, 4)}])


def test_free_spatial_sizes() -> None:
    check(program(RESIDUAL, x="float[N,8,H,W]", w=W, b=B), PASS, becomes="FusedConv", sizes=[{"x": (2, 8, 9, 7)}])


@pytest.mark.parametrize("opset", [7, 11, 13, 26])
def test_every_opset(opset: int) -> None:
    check(program(RESIDUAL, opset=opset, w=W, b=B), PASS, becomes="FusedConv", sizes=SIZES)


def test_constants_of_ir_3_go_into_nodes() -> None:
    model = program(f"t = {PADDED} (x, w) s = Add (t, x) y = Relu (s)", opset=8, ir=3, w=W)
    passed = check(model, PASS, sizes=SIZES)
    assert [node.op_type for node in passed.after.graph.node] == ["Constant", "FusedConv"]


def test_a_residual_without_bias_gets_one_of_zeros() -> None:
    """ONNX Runtime's CUDA kernel reads the bias wherever there is a residual."""
    passed = check(program(f"t = {PADDED} (x, w) s = Add (t, x) y = Relu (s)", w=W), PASS, sizes=SIZES)
    node = node_of(passed.after)
    assert list(node.input) == ["x", "w", "y/fused/bias", "x"]
    zeros = passed.initializer("bias")
    assert zeros.tobytes() == np.zeros(8, np.float32).tobytes()  # +0, not −0


def test_name_attributes_and_weights_are_those_of_the_convolution() -> None:
    model = program("t = Conv <group = 2, pads = [1, 0, 1, 0]> (x, w, b) y = Relu (t)", w=(8, 4, 3, 3), b=B)
    after = check(model, PASS, sizes=SIZES).after
    conv, fused = model.graph.node[0], node_of(after)
    assert (fused.name, fused.domain, list(fused.input)) == (conv.name, MICROSOFT, list(conv.input))
    assert list(fused.attribute) == [*conv.attribute, helper.make_attribute("activation", "Relu")]
    assert after.graph.initializer == model.graph.initializer


def test_an_empty_bias_name_is_no_bias() -> None:
    model = program("t = Conv (x, w) y = Relu (t)", w=W)
    model.graph.node[0].input.append("")
    assert list(node_of(check(model, PASS, sizes=SIZES).after).input) == ["x", "w"]


@pytest.mark.parametrize(
    ("body", "phrase"),
    [
        ("t = Conv (x, w, b) y = Sigmoid (t)", "It goes into Sigmoid, neither Relu nor Add."),
        ("t = Conv (x, w, b) y = Clip (t)", "It goes into Clip, neither Relu nor Add."),
        (f"t = {PADDED} (x, w, b) y = Add (t, x)", "'y' is a graph output, so it must stay."),
        (
            f"t = {PADDED} (x, w, b) s = Add (t, x) y = Tanh (s)",
            "The sum goes into Tanh, not Relu: CUDA has no FusedConv without one.",
        ),
        ("t = Conv (x, w, b) s = Add (t, t) y = Relu (s)", "It is added to itself, which FusedConv cannot do."),
        ("t = Conv (x, w, b) r = Relu (t) y = Add (r, t)", "'t' has 2 readers, not one."),
        (
            f"t = {PADDED} (x, w, b) s = Add (t, x) r = Relu (s) y = Add (r, s)",
            "'s' has 2 readers, not one.",
        ),
        (
            f"t = {PADDED} (x, w, b) m = GlobalAveragePool (x) s = Add (t, m) y = Relu (s)",
            "FusedConv broadcasts nothing, and 'm' is [2, 8, 1, 1], not [2, 8, 5, 5].",
        ),
        (
            "t = Conv (x, w, b) s = Add (t, c) y = Relu (s)",
            "FusedConv broadcasts nothing, and 'c' is [1, 8, 1, 1], not [2, 8, 3, 3].",
        ),
        ("y = Conv (x, w, b)", "'y' is a graph output, so it must stay."),
    ],
)
def test_what_is_declined(body: str, phrase: str) -> None:
    model = program(body, w=W, b=B, c=(1, 8, 1, 1)) if " c)" in body else program(body, w=W, b=B)
    declines(model, PASS, phrase)


def test_a_relu_that_is_read_in_the_middle_stays_as_it_is() -> None:
    declines(program(SIMPLE, y="y t", w=W, b=B), PASS, "'t' is a graph output, so it must stay.")


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_types_that_cuda_has_no_kernel_for(kind: str, dtype: type) -> None:
    model = program(SIMPLE, x=f"{kind}[N,8,5,5]", dtype=dtype, w=W, b=B)
    declines(model, PASS, f"Its type is {kind}, and ONNX Runtime's CUDA provider has FusedConv for float only.")


def test_one_dimension_is_left_alone() -> None:
    model = program(SIMPLE, x="float[N,8,9]", w=(8, 8, 3), b=B)
    declines(model, PASS, "It is 1-D: FusedConv is for 2-D and 3-D convolutions.")


def test_old_opsets_are_left_alone() -> None:
    declines(program(SIMPLE, opset=6, ir=3, w=W, b=B), PASS, "opset 6 is below 7")


def test_an_operator_of_another_domain_is_no_relu() -> None:
    model = program(SIMPLE, w=W, b=B)
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    declines(model, PASS, "It goes into com.example.Relu, neither Relu nor Add.")


def test_a_residual_from_another_input_may_be_broadcast() -> None:
    """Both batches are free: at [1, 8, 5, 5] the sum spreads it over the batch, FusedConv would refuse."""
    model = program(f"t = {PADDED} (x, w, b) s = Add (t, z) y = Relu (s)", w=W, b=B)
    model.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["M", 8, 5, 5]))
    declines(model, PASS, "their free axes are those of several inputs: 'x' and 'z'.")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 8, 5, 5]))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2
    check(model, PASS, becomes="FusedConv")


@pytest.mark.parametrize("where", ["tail", "head"])
def test_only_the_import_is_added_to_the_file(where: str) -> None:
    """Wherever the operator sets stand in the file, before the graph or behind it."""
    data = program(SIMPLE, w=W, b=B).SerializeToString(deterministic=True)
    if where == "head":
        imports = onnx.ModelProto(opset_import=[helper.make_opsetid("", 18)]).SerializeToString()
        assert data.count(imports) == 1
        data = imports + data.replace(imports, b"")
    before = Model.load(data)
    after, applied, _ = sweep(before, Step(pass_named(PASS)), {})
    added = onnx.ModelProto(opset_import=[helper.make_opsetid(MICROSOFT, 1)]).SerializeToString()
    assert len(applied) == 1
    found = after.to_bytes()
    assert found.count(added) == 1
    assert (found.index(added) < found.index(b"node0")) == (where == "head")
    without = Model.load(found.replace(added, b""))
    assert (bytes(without.head), bytes(without.tail)) == (bytes(before.head), bytes(before.tail))


def test_a_model_that_imports_it_gets_no_second_import() -> None:
    model = program(SIMPLE, w=W, b=B)
    model.opset_import.insert(0, helper.make_opsetid(MICROSOFT, 1))
    after = check(model, PASS, sizes=SIZES).after
    assert [entry.domain for entry in after.opset_import] == [MICROSOFT, ""]


def test_it_is_proven_and_saved_with_its_external_data(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    onnx.save(program(RESIDUAL, w=W, b=B), source, save_as_external_data=True, location="net.data", size_threshold=0)
    result = rewriter.rewrite(source, [PASS], ALLOWED)
    assert result.report.verdict == "equivalent"
    assert result.report.grade == "exact"
    assert result.report.audit is not None
    assert any(MICROSOFT in note for note in result.report.audit.notes)
    out = tmp_path / "out" / "net.onnx"
    out.parent.mkdir()
    result.save(out)
    assert rewriter.audit(source, out).verdict == "equivalent"
    assert [node.op_type for node in onnx.load(out).graph.node] == ["FusedConv"]


def test_it_is_made_only_where_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.onnx"
    onnx.save(program(SIMPLE, w=W, b=B), source)
    for arguments in (["rewrite", "--pass", PASS], ["optimize", "--only", "regroup", "--only", PASS]):
        assert main([arguments[0], str(source), *arguments[1:]]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"Error: The pass {PASS} needs --allow contrib-ops")
    assert list(tmp_path.iterdir()) == [source]
    assert main(["rewrite", str(source), "--pass", PASS, "--allow", "contrib-ops"]) == 0
    assert "EQUIVALENT | 1 rewrite" in capsys.readouterr().out
    assert main(["rewrite", str(source), "--pass", PASS, "--allow", "everything"]) == 2
    assert "contrib-ops" in capsys.readouterr().err


def test_an_unknown_permission_is_bad_input() -> None:
    with pytest.raises(BadInput, match="there are: approximate, contrib-ops"):
        rewriter.RunOptions(allow=frozenset({"anything"}))


def test_where_nobody_asked_it_is_no_near_miss() -> None:
    (site,) = rewriter.inspect(program(SIMPLE, w=W, b=B))
    (opinion,) = [entry for entry in site.passes if entry.pass_name == PASS]
    assert (opinion.applies, opinion.matched) == (False, 0)
    assert "--allow contrib-ops" in opinion.reason
    (site,) = rewriter.inspect(program(SIMPLE, w=W, b=B), ALLOWED)
    assert [entry.applies for entry in site.passes if entry.pass_name == PASS] == [True]


def test_passes_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(PASS)]
    assert line.rstrip().endswith("--allow contrib-ops")
    assert main(["passes", PASS]) == 0
    told = capsys.readouterr().out
    assert "It needs --allow contrib-ops" in told
    assert told.splitlines()[-1] == f"rewriter rewrite MODEL --pass {PASS} --allow contrib-ops"


def test_it_has_its_turn_when_the_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fused cannot be regrouped any more: the convolution is regrouped first, then fused as it is then."""
    compared: list[list[str]] = []

    def faster(_: Contender, some: Sequence[Contender], *_args: Any, **_options: Any) -> list[Timing]:
        compared.append([contender.name.partition(" at ")[0] for contender in some])
        return [timing(2.0, "FASTER") for _ in some]

    monkeypatch.setattr(rewriter.choose, "compare", faster)
    monkeypatch.setattr(rewriter.whole_timing, "compare", faster)
    rules = {name: pass_named(name) for name in (PASS, "regroup")}
    model = Model.load(program("t = Conv <group = 4> (x, w, b) y = Relu (t)", w=(8, 2, 3, 3), b=B))
    outcome = optimize(model, rules, {"regroup": {"factor": 2}}, ALLOWED)
    assert outcome.verdict == "equivalent", outcome.reason
    accepted = [(entry.pass_name, entry.site) for entry in outcome.attempts if entry.outcome == "accepted"]
    assert accepted == [("regroup", "t"), (PASS, "y")]
    (node,) = outcome.model.nodes
    assert node.op_type == "FusedConv"
    assert {entry.name: entry.i for entry in node.attribute}["group"] == 2
    assert [names for names in compared if "original" not in names][:2] == [["regroup"], [PASS]]
    # Without the permission nothing of it is measured.
    compared.clear()
    outcome = optimize(model, rules, {"regroup": {"factor": 2}}, rewriter.RunOptions())
    assert PASS not in [name for names in compared for name in names]
    reasons = [entry.reason for entry in outcome.attempts if entry.pass_name == PASS]
    assert len(reasons) == 1
    assert "--allow contrib-ops" in reasons[0]


def test_two_convolutions_into_one_sum_are_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either could take the other in; only one can."""

    def faster(_: Contender, some: Sequence[Contender], *_args: Any, **_options: Any) -> list[Timing]:
        return [timing(2.0, "FASTER") for _ in some]

    monkeypatch.setattr(rewriter.choose, "compare", faster)
    monkeypatch.setattr(rewriter.whole_timing, "compare", faster)
    body = f"t = {PADDED} (x, w, b) u = Conv (x, v) s = Add (t, u) y = Relu (s)"
    outcome = optimize(Model.load(program(body, w=W, b=B, v=(8, 8, 1, 1))), {PASS: pass_named(PASS)}, {}, ALLOWED)
    assert outcome.verdict == "equivalent", outcome.reason
    assert [node.op_type for node in outcome.model.nodes] == ["Conv", "FusedConv"]
    assert {entry.outcome for entry in outcome.attempts} == {"accepted", "not_worth_it"}
