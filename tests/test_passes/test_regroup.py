"""regroup: which factor, what stays in place, and that the zeros change nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from funnel import Sizes, check, declines
from models.grouped import GroupedConv, example_input, grouped_conv_model, parameters
from models.sample import draw_spec
from programs import program
from rewriter import BadInput, Safety
from rewriter.api import rewrite
from rewriter.census import census, nchwc_block
from rewriter.cli import main
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined, Settings
from rewriter.session import Runtime

PASS = "regroup"
SPEC = GroupedConv(groups=12, in_per_group=2, out_per_group=3, spatial=(5, 5), shapes="dynamic_batch")


def sizes(spec: GroupedConv) -> list[Sizes]:
    return [{"x": example_input(replace(spec, batch=batch)).shape} for batch in (2, 3)]


@pytest.mark.parametrize(
    ("options", "chosen", "groups"),
    [
        # The default: the smallest divisor f with f·I and f·O multiples of the block.
        ({"groups": 32, "in_per_group": 4, "out_per_group": 4}, {"block": 8}, 16),
        ({"groups": 32, "in_per_group": 4, "out_per_group": 4}, {"block": 16}, 8),
        ({"groups": 8, "in_per_group": 4, "out_per_group": 8}, {"block": 8}, 4),
        ({"groups": 8, "in_per_group": 8, "out_per_group": 4}, {"block": 8}, 4),
        ({"groups": 6, "in_per_group": 24, "out_per_group": 24}, {"block": 16}, 3),
        ({"groups": 12, "in_per_group": 4, "out_per_group": 4}, {"block": 16}, 3),
        ({"groups": 16, "in_per_group": 1, "out_per_group": 2}, {"block": 8}, 2),
        ({"groups": 8, "in_per_group": 1, "out_per_group": 3}, {"block": 8}, 1),
        # One that the user chose, whatever the block.
        ({}, {"factor": 2}, 6),
        ({}, {"factor": 12}, 1),
        ({}, {"factor": 3, "block": 8}, 4),
        ({}, {"groups": 4}, 4),
        ({}, {"groups": 1}, 1),
        ({"in_per_group": 1}, {"factor": 4}, 3),
        ({"kernel": (3,), "spatial": (6,)}, {"factor": 4}, 3),
        ({"kernel": (1, 2, 2), "spatial": (3, 4, 3), "bias": "conv"}, {"factor": 4}, 3),
        ({"strides": (2, 1), "pads": (0, 1, 2, 1), "bias": "conv"}, {"factor": 4}, 3),
        ({"dilations": (1, 2), "auto_pad": "VALID"}, {"factor": 4}, 3),
        ({"auto_pad": "SAME_LOWER", "strides": (2, 2)}, {"factor": 4}, 3),
        ({"auto_pad": "SAME_UPPER", "strides": (2, 2)}, {"factor": 4}, 3),
        ({"shapes": "dynamic"}, {"factor": 4}, 3),
        ({"dtype": "float16"}, {"factor": 4}, 3),
        ({"dtype": "float64", "bias": "conv"}, {"factor": 4}, 3),
        *(({"weights": weights}, {"factor": 4}, 3) for weights in ("constant", "identity", "cast", "shared")),
        ({"weights": "constant_of_shape"}, {"factor": 4}, 3),
        *(({"opset": opset, "bias": "conv"}, {"factor": 4}, 3) for opset in (7, 13, 26)),
        ({"opset": 8, "ir_version": 3, "bias": "conv"}, {"factor": 4}, 3),
    ],
)
def test_before_and_after(options: dict[str, Any], chosen: Settings, groups: int) -> None:
    spec = replace(SPEC, **options)
    again = "factor" in chosen and groups > 1  # a factor is asked for again each time
    becomes = f"Conv/{groups} Neg Conv/{groups}" if spec.weights == "shared" else f"Conv/{groups}"
    where = sizes(spec)
    passed = check(
        grouped_conv_model(spec), PASS, chosen, becomes=becomes, safety=Safety.FINITE, sizes=where, again=again
    )
    conv = {node.op_type: node for node in passed.after.graph.node}["Conv"]
    before = {node.op_type: node for node in passed.before.graph.node}["Conv"]
    assert [a for a in conv.attribute if a.name != "group"] == [a for a in before.attribute if a.name != "group"]
    assert (conv.name, list(conv.output), list(conv.input[2:])) == (
        before.name,
        list(before.output),
        list(before.input[2:]),
    )


def test_zeros_are_zeros_and_weights_keep_their_bits() -> None:
    passed = check(grouped_conv_model(SPEC), PASS, {"factor": 3}, again=True, sizes=sizes(SPEC))
    wide = passed.initializer("regroup/weight").reshape(4, 3, 3, 3, 2, 3, 3)  # [G', f, O, f, I, *K]
    weight = parameters(SPEC).weight.reshape(4, 3, 3, 2, 3, 3)
    for row in range(3):
        for column in range(3):
            block = wide[:, row, :, column]
            expected = weight[:, row] if row == column else np.zeros_like(weight[:, row])
            assert block.tobytes() == np.ascontiguousarray(expected).tobytes()  # +0, not −0


def test_a_bias_given_as_a_constant_node_stays() -> None:
    body = "b = Identity (c) y = Conv <group = 4> (x, w, b)"
    model = program(body, w=(8, 2, 3, 3), c=(8,))
    check(model, PASS, {"factor": 2}, becomes="Identity Conv/2", again=True, sizes=[{"x": (2, 8, 5, 5)}])


def test_an_empty_bias_name_is_no_bias() -> None:
    model = program("y = Conv <group = 4> (x, w)", w=(8, 2, 3, 3))
    model.graph.node[0].input.append("")
    check(model, PASS, {"groups": 2}, becomes="Conv/2", sizes=[{"x": (2, 8, 5, 5)}])


@pytest.mark.parametrize(
    ("options", "chosen", "reason"),
    [
        ({"groups": 1}, {}, "It is dense (group 1): there are no groups to merge."),
        ({"groups": 1}, {"factor": 2}, "It is dense (group 1): there are no groups to merge."),
        ({}, {"factor": 5}, "Its 12 groups are no multiple of regroup.factor 5."),
        ({}, {"factor": 24}, "Its 12 groups are no multiple of regroup.factor 24."),
        ({}, {"factor": -2}, "Its 12 groups are no multiple of regroup.factor -2."),
        ({}, {"factor": 1}, "A regroup.factor of 1 changes nothing."),
        ({}, {"groups": 5}, "Its 12 groups are no multiple of regroup.groups 5."),
        ({}, {"groups": -4}, "Its 12 groups are no multiple of regroup.groups -4."),
        ({}, {"groups": 12}, "It has 12 groups already."),
        ({}, {"block": 16}, "No divisor of its 12 groups makes 2 in, 3 out per group multiples of 16."),
        ({"kernel": (3,), "spatial": (6,)}, {"block": 8}, "The fast path takes 2-D float32 convolutions only"),
        ({"dtype": "float16"}, {"block": 8}, "The fast path takes 2-D float32 convolutions only"),
        ({"in_per_group": 1, "out_per_group": 1}, {"block": 8}, "It is on the fast path already (depthwise, block 8)."),
        ({"groups": 4, "in_per_group": 16, "out_per_group": 16}, {"block": 16}, "(16 in and 16 out per group, b"),
        ({"groups": 4, "in_per_group": 8, "out_per_group": 16}, {"block": 8}, "It is on the fast path already"),
    ],
)  # fmt: skip
def test_declines(options: dict[str, Any], chosen: Settings, reason: str) -> None:
    declines(grouped_conv_model(replace(SPEC, **options)), PASS, reason, chosen)


def test_float16_is_measured_on_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """By casts to float32, so that `optimize` may try it, but nobody gets it who did not measure."""
    monkeypatch.setattr("passes.regroup.nchwc_block", lambda: 8)
    spec = replace(SPEC, groups=32, in_per_group=4, out_per_group=4)

    def tried(dtype: Any) -> list[Settings]:
        graph = Graph(Model.load(grouped_conv_model(replace(spec, dtype=dtype))), {})
        return list(pass_named(PASS).candidates(graph, 0))

    assert tried("float16") == tried("float32") == [{"factor": 2}, {"factor": 4}, {"factor": 8}]
    with pytest.raises(Declined, match="fast path takes 2-D float32 and float16 convolutions only"):
        tried("float64")


def test_onnx_runtime_takes_float16_to_the_fast_path() -> None:
    block = nchwc_block()
    if not block:
        pytest.skip("this machine has no blocked fast path")
    wide = replace(SPEC, groups=2, in_per_group=block, out_per_group=block, dtype="float16")
    assert census(grouped_conv_model(wide), Runtime())["com.microsoft.nchwc:Conv"] == 1


@pytest.mark.parametrize("groups", [12, 1])
def test_factor_and_groups_together_are_an_error(
    groups: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the pass has nothing to do: groups of 1."""
    model = grouped_conv_model(replace(SPEC, groups=groups))
    says = "both regroup.factor and regroup.groups are set: set one."
    both: Settings = {"factor": 2, "groups": 2}
    with pytest.raises(BadInput, match=says):
        rewrite("not looked at yet.onnx", [PASS], settings={PASS: both})
    with pytest.raises(BadInput, match=says):
        pass_named(PASS).propose(Graph(Model.load(model)), 0, both)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    assert main(["rewrite", str(path), "--pass", PASS, "--set", "regroup.factor=2", "--set", "regroup.groups=2"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"Error: {says[0].upper()}{says[1:]}\n"
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == [path]


def test_a_machine_without_a_fast_path_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.regroup.nchwc_block", lambda: 0)
    declines(grouped_conv_model(SPEC), PASS, "This machine has no blocked fast path to reach: set regroup.factor.")
    check(grouped_conv_model(SPEC), PASS, {"factor": 2}, becomes="Conv/6", again=True, sizes=sizes(SPEC))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        ("w = Neg (v)", "Its weight 'w' is computed by Neg from constants; fold constants first"),
        ("w = DequantizeLinear (v8, s)", "Its weight 'w' is computed by DequantizeLinear from quantized constants."),
    ],
)
def test_weights_that_are_no_constants_decline(weight: str, reason: str) -> None:
    values = {"v": (8, 2, 3, 3), "v8": np.ones((8, 2, 3, 3), np.int8), "s": np.float32(1)}
    read = {name: value for name, value in values.items() if name in weight[weight.index("(") + 1 : -1].split(", ")}
    model = program(f"{weight} y = Conv <group = 4> (x, w)", **read)  # type: ignore[arg-type]  # constants of all kinds
    declines(model, PASS, reason, {"factor": 2})


def test_an_overridable_weight_declines() -> None:
    model = program("y = Conv <group = 4> (x, w)", w=(8, 2, 3, 3))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (8, 2, 3, 3)))
    declines(model, PASS, "'w' is an initializer that callers may override", {"factor": 2})


def test_an_overridable_bias_declines() -> None:
    model = program("y = Conv <group = 4> (x, w, b)", w=(8, 2, 3, 3), b=(8,))
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, (8,)))
    declines(model, PASS, "Its bias 'b' is an initializer that callers may override", {"factor": 2})


@given(st.integers(0, 10**9), st.data())
@settings(max_examples=30)
def test_any_factor_of_any_grouped_conv_changes_nothing(seed: int, data: st.DataObject) -> None:
    spec = replace(draw_spec(random.Random(seed), "grouped"), shapes="static")
    assume(spec.groups > 1)
    groups = data.draw(st.sampled_from([number for number in range(1, spec.groups) if spec.groups % number == 0]))
    check(grouped_conv_model(spec), PASS, {"groups": groups}, safety=Safety.FINITE)


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"groups": 32, "in_per_group": 4, "out_per_group": 4}, [2, 4, 8]),
        ({"groups": 32, "in_per_group": 1, "out_per_group": 2}, [8]),
    ],
)
def test_what_is_worth_measuring(options: dict[str, Any], factors: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.regroup.nchwc_block", lambda: 8)
    graph = Graph(Model.load(grouped_conv_model(replace(SPEC, **options))))
    assert [dict(one) for one in pass_named(PASS).candidates(graph, 0)] == [{"factor": factor} for factor in factors]


def test_nothing_is_worth_measuring_on_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.regroup.nchwc_block", lambda: 8)
    graph = Graph(Model.load(grouped_conv_model(replace(SPEC, in_per_group=1, out_per_group=1))))
    with pytest.raises(Declined, match="on the fast path already"):
        pass_named(PASS).candidates(graph, 0)


def test_a_nan_spreads_to_the_groups_merged_with_and_no_further() -> None:
    """What FINITE means."""
    import onnxruntime

    passed = check(grouped_conv_model(SPEC), PASS, {"factor": 3}, again=True, sizes=sizes(SPEC))
    x = example_input(SPEC)
    x[:, 0] = np.nan  # of group 0, which is merged with 1 and 2
    for model, spoilt in ((passed.before, 3), (passed.after, 9)):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": x})
        assert np.isnan(y).all(axis=(0, 2, 3)).tolist() == [channel < spoilt for channel in range(36)]
