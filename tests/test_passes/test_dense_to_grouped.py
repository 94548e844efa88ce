"""dense-to-grouped and grouped-to-dense: there and back, also where channels are in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from funnel import Sizes, check, declines
from models.grouped import GroupedConv, example_input, grouped_conv_model
from programs import program
from rewriter import BadInput, Safety
from rewriter.api import rewrite
from rewriter.conv import regroup
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined, Settings

PASS, BACK = "dense-to-grouped", "grouped-to-dense"
SPEC = GroupedConv(groups=6, in_per_group=2, out_per_group=3, spatial=(5, 5), shapes="dynamic_batch")
BATCHES: list[Sizes] = [{"x": (2, 8, 5, 5)}, {"x": (1, 8, 5, 5)}]


def sizes(spec: GroupedConv) -> list[Sizes]:
    return [{"x": example_input(replace(spec, batch=batch)).shape} for batch in (2, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": "conv"},
        {"in_per_group": 1, "out_per_group": 1},
        {"kernel": (3,), "spatial": (6,)},
        {"kernel": (1, 2, 2), "spatial": (3, 4, 3), "bias": "conv"},
        {"strides": (2, 1), "pads": (0, 1, 2, 1), "bias": "conv"},
        {"dilations": (1, 2), "auto_pad": "VALID"},
        {"auto_pad": "SAME_LOWER", "strides": (2, 2)},
        {"shapes": "dynamic"},
        {"dtype": "float16"},
        {"dtype": "float64", "bias": "conv"},
        *({"weights": weights} for weights in ("constant", "identity", "cast", "shared")),
        *({"opset": opset, "bias": "conv"} for opset in (7, 13, 21, 26)),
        {"opset": 8, "ir_version": 3, "bias": "conv"},
    ],
)
def test_there_and_back(options: dict[str, Any]) -> None:
    spec = replace(SPEC, **options)
    model, where = grouped_conv_model(spec), sizes(spec)
    twice = spec.weights == "shared"
    dense = check(model, BACK, becomes="Conv/1 Neg Conv/1" if twice else "Conv/1", safety=Safety.FINITE, sizes=where)
    again = check(
        dense.after.SerializeToString(),
        PASS,
        becomes="Conv/6 Neg Conv/6" if twice else "Conv/6",
        safety=Safety.FINITE,
        sizes=where,
        integers=False,  # they would fill the zeros
    )
    if spec.weights == "initializer":
        weights = [{bytes(t.raw_data) for t in proto.graph.initializer} for proto in (model, again.after)]
        assert weights[0] == weights[1]
    attributes = [
        [list(node.attribute) for node in proto.graph.node if node.op_type == "Conv"] for proto in (model, again.after)
    ]
    assert attributes[0] == attributes[1]


def blocks(order_in: list[int], order_out: list[int], group: int = 4) -> np.ndarray[Any, Any]:
    """A dense weight `[8, 8, 3, 3]` of that many blocks, rows and columns in another order."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((8, 8 // group, 3, 3)).astype(np.float32)
    return regroup(weight, group, 1)[order_out][:, order_in]


PLAIN = list(range(8))
INTERLEAVED = [0, 4, 1, 5, 2, 6, 3, 7]  # inputs 0, 2, 4, 6 are of blocks 0 and 1
BEFORE = "h = Conv (x, u) k = Relu (h) y = Conv (k, w, b)"
ALONE = "y = Conv (x, w, b)"


@pytest.mark.parametrize(
    ("body", "weight", "way", "becomes"),
    [
        (ALONE, lambda: blocks(PLAIN, PLAIN), "auto", "Conv/4"),
        (ALONE, lambda: blocks(PLAIN, PLAIN), "none", "Conv/4"),
        (ALONE, lambda: blocks(INTERLEAVED, PLAIN), "auto", "Gather Conv/4"),
        (ALONE, lambda: blocks(INTERLEAVED, INTERLEAVED, 2), "auto", "Gather Conv/2 Gather"),
        (ALONE, lambda: blocks(PLAIN, INTERLEAVED), "auto", "Conv/4 Gather"),
        (ALONE, lambda: blocks([0, 4, 1, 5, 2, 6, 3, 7], PLAIN, 8), "reshape", "Reshape Transpose Reshape Conv/8"),
        (BEFORE, lambda: blocks(INTERLEAVED, PLAIN), "auto", "Conv/1 Relu Conv/4"),
        (BEFORE, lambda: blocks(INTERLEAVED, PLAIN), "producer", "Conv/1 Relu Conv/4"),
        (BEFORE, lambda: blocks(INTERLEAVED, PLAIN), "gather", "Conv/1 Relu Gather Conv/4"),
    ],
)
def test_channels_in_another_order(
    body: str, weight: Callable[[], np.ndarray[Any, Any]], way: str, becomes: str
) -> None:
    constants: dict[str, Any] = {"w": weight(), "b": (8,)} | ({"u": (8, 8, 1, 1)} if body == BEFORE else {})
    model = program(body, **constants)
    passed = check(model, PASS, {"shuffle": way}, becomes=becomes, safety=Safety.FINITE, sizes=BATCHES, integers=False)
    found = [numpy_helper.to_array(t) for t in passed.after.graph.initializer]
    kept = [value for value in found if value.shape[1:] == (8 // int(becomes[becomes.rindex("/") + 1]), 3, 3)]
    assert len(kept) == 1
    assert (kept[0] != 0).all()
    report = rewrite(model, [PASS], settings={PASS: {"shuffle": way}}).report
    assert report.verdict == "equivalent", report.reason
    assert report.audit is not None
    assert report.audit.grade == "finite"


def test_integers_in_blocks_stay_exact() -> None:
    """What the funnel's integer twin cannot ask: it would fill the zeros."""
    model = program(ALONE, w=np.round(4 * blocks(INTERLEAVED, PLAIN)), b=np.arange(8, dtype=np.float32))
    check(model, PASS, becomes="Gather Conv/4", sizes=BATCHES, integers=False)
    import onnxruntime

    x = np.random.default_rng(1).integers(-4, 5, (2, 8, 5, 5)).astype(np.float32)
    after = rewrite(model, [PASS]).model
    first, second = (
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for proto in (model, after)
    )
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize(
    ("name", "weight", "chosen", "reason"),
    [
        (PASS, (8, 8, 3, 3), {}, "Its weight has no more blocks of one size than its groups: 1."),
        (PASS, (8, 1, 3, 3), {}, "Each of its groups has one input channel already."),
        (PASS, blocks(INTERLEAVED, PLAIN), {"shuffle": "none"}, "that lie next to each other than its groups: 1."),
        (PASS, blocks(INTERLEAVED, PLAIN), {"shuffle": "producer"}, "No convolution comes before 'x' to take"),
        (BACK, (8, 8, 3, 3), {}, "It is dense (group 1) already."),
    ],
)
def test_declines(name: str, weight: Any, chosen: Settings, reason: str) -> None:
    shape = weight if isinstance(weight, tuple) else weight.shape
    body = "y = Conv (x, w)" if shape[1] == 8 else "y = Conv <group = 8> (x, w)"
    declines(program(body, w=weight), name, reason, chosen)


def test_a_shuffle_that_is_none_is_an_error() -> None:
    with pytest.raises(BadInput, match=r"the setting dense-to-grouped\.shuffle is 'cards'"):
        rewrite("not looked at yet.onnx", [PASS], settings={PASS: {"shuffle": "cards"}})


@pytest.mark.parametrize(
    ("weight", "choices"),
    [
        (blocks(PLAIN, PLAIN), [{}]),
        (blocks([0, 2, 4, 6, 3, 1, 5, 7], PLAIN), [{"shuffle": "producer"}, {"shuffle": "gather"}]),
        (blocks(INTERLEAVED, PLAIN), [{"shuffle": "producer"}, {"shuffle": "gather"}, {"shuffle": "reshape"}]),
        (blocks(PLAIN, INTERLEAVED), [{"shuffle": "gather"}]),
        # Four blocks out of order within two that are in order.
        (
            blocks([0, 2, 1, 3, 4, 6, 5, 7], PLAIN),
            [{"shuffle": "producer"}, {"shuffle": "gather"}, {"shuffle": "none"}],
        ),
    ],
)
def test_what_is_worth_measuring(weight: Any, choices: list[Settings]) -> None:
    graph = Graph(Model.load(program("y = Conv (x, w)", w=weight)))
    assert [dict(one) for one in pass_named(PASS).candidates(graph, 0)] == choices


@pytest.mark.parametrize(
    ("options", "provider", "reason"),
    [
        ({}, "cpu", ""),
        ({"groups": 9}, "cpu", "9 times the multiplications are too many"),
        ({"in_per_group": 1}, "cpu", "too many to be faster"),
        ({"groups": 8, "out_per_group": 4}, "cpu", "regroup measures wider groups there"),
        ({}, "cuda", "regroup measures one dense convolution"),
    ],
)
def test_when_dense_is_worth_measuring(
    options: dict[str, Any], provider: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passes.grouped_to_dense.nchwc_block", lambda: 16)
    graph = Graph(Model.load(grouped_conv_model(replace(SPEC, **options))), provider=provider)
    if not reason:
        assert pass_named(BACK).candidates(graph, 0) == ({},)
        return
    with pytest.raises(Declined, match=reason):
        pass_named(BACK).candidates(graph, 0)


def test_regrouped_groups_come_back() -> None:
    model = grouped_conv_model(SPEC)
    wide = check(model, "regroup", {"groups": 2}, becomes="Conv/2", sizes=sizes(SPEC))
    back = check(wide.after.SerializeToString(), PASS, becomes="Conv/6", sizes=sizes(SPEC), integers=False)
    kept = [{bytes(t.raw_data) for t in proto.graph.initializer} for proto in (model, back.after)]
    assert kept[0] == kept[1]


def test_the_audit_agrees_with_dense() -> None:
    report = rewrite(grouped_conv_model(SPEC), [BACK]).report
    assert report.verdict == "equivalent"
    assert report.audit is not None
    assert report.audit.grade == "finite"
    assert isinstance(report.audit.regions[0].outputs, tuple)


def test_a_nan_no_longer_spreads() -> None:
    """What FINITE means, in this direction."""
    import onnxruntime

    model = program("y = Conv (x, w)", w=blocks(PLAIN, PLAIN))
    x = np.ones((1, 8, 5, 5), np.float32)
    x[:, 0] = np.nan
    spoilt = []
    for proto in (model, check(model, PASS, sizes=BATCHES, integers=False).after):
        assert isinstance(proto, onnx.ModelProto)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": x})
        spoilt.append(np.isnan(y).any(axis=(0, 2, 3)).tolist())
    assert spoilt == [[True] * 8, [True, True, *[False] * 6]]
