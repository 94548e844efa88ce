"""split-groups and back: which parts, what stays in place, and that merging them again gives the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from funnel import Sizes, check, declines
from models.grouped import GroupedConv, example_input, grouped_conv_model
from models.resnext import ResNeXt, resnext_model
from programs import program
from rewriter import Safety
from rewriter.api import rewrite
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined, Settings

PASS = "split-groups"
SPEC = GroupedConv(groups=6, in_per_group=2, out_per_group=3, spatial=(5, 5), shapes="dynamic_batch")


def sizes(spec: GroupedConv) -> list[Sizes]:
    return [{"x": example_input(replace(spec, batch=batch)).shape} for batch in (2, 3)]


@pytest.mark.parametrize(
    ("options", "chosen", "parts"),
    [
        ({}, {}, 6),
        ({}, {"parts": 2}, 2),
        ({}, {"parts": 3}, 3),
        ({"bias": "conv"}, {"parts": 2}, 2),
        ({"in_per_group": 1}, {}, 6),
        ({"kernel": (3,), "spatial": (6,)}, {}, 6),
        ({"kernel": (1, 2, 2), "spatial": (3, 4, 3), "bias": "conv"}, {}, 6),
        ({"strides": (2, 1), "pads": (0, 1, 2, 1), "bias": "conv"}, {}, 6),
        ({"dilations": (1, 2), "auto_pad": "VALID"}, {}, 6),
        ({"auto_pad": "SAME_LOWER", "strides": (2, 2)}, {}, 6),
        ({"auto_pad": "SAME_UPPER", "strides": (2, 2)}, {"parts": 3}, 3),
        ({"shapes": "dynamic"}, {}, 6),
        ({"dtype": "float16"}, {"parts": 2}, 2),
        ({"dtype": "float64", "bias": "conv"}, {}, 6),
        *(({"weights": weights}, {}, 6) for weights in ("constant", "identity", "cast", "shared")),
        *(({"opset": opset, "bias": "conv"}, {}, 6) for opset in (7, 12, 13, 18, 21, 26)),
        ({"opset": 8, "ir_version": 3, "bias": "conv"}, {}, 6),
    ],
)
def test_there_and_back(options: dict[str, Any], chosen: Settings, parts: int) -> None:
    spec = replace(SPEC, **options)
    one = f"Split {' '.join([f'Conv/{6 // parts}'] * parts)} Concat"
    becomes = f"{one} Neg {one}" if spec.weights == "shared" else one
    where = sizes(spec)
    model = grouped_conv_model(spec)
    again = parts < 6 and 6 // parts % parts == 0
    passed = check(model, PASS, chosen, becomes=becomes, safety=Safety.EXACT, sizes=where, again=again)
    back = check(
        passed.after.SerializeToString(),
        "merge-split-groups",
        becomes="Conv/6 Neg Conv/6" if spec.weights == "shared" else "Conv/6",
        safety=Safety.EXACT,
        sizes=where,
    )
    first, last = ([node for node in proto.graph.node if node.op_type == "Conv"] for proto in (model, back.after))
    for before, after in zip(first, last, strict=True):
        assert list(before.attribute) == list(after.attribute)
        assert before.name == after.name
    if spec.weights == "initializer":
        weights = [{bytes(t.raw_data) for t in proto.graph.initializer} for proto in (model, back.after)]
        assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("options", "chosen", "reason"),
    [
        ({"groups": 1}, {}, "It is dense (group 1): there are no groups to split."),
        ({}, {"parts": 4}, "Its 6 groups are no multiple of split-groups.parts 4."),
        ({}, {"parts": 12}, "Its 6 groups are no multiple of split-groups.parts 12."),
        ({}, {"parts": 1}, "A split-groups.parts of 1 changes nothing."),
    ],
)
def test_declines(options: dict[str, Any], chosen: Settings, reason: str) -> None:
    declines(grouped_conv_model(replace(SPEC, **options)), PASS, reason, chosen)


@pytest.mark.parametrize("how", ["initializer", "Constant"])
def test_a_bias_of_another_size_is_declined_whatever_makes_it(how: str) -> None:
    body = "y = Conv <group = 4> (x, w, b)"
    if how == "Constant":
        model = program(f"b = Constant <value = float[3] {{1, 2, 3}}> () {body}", w=(8, 2, 3, 3))
    else:
        model = program(body, w=(8, 2, 3, 3), b=(3,))
    declines(model, PASS, "Its bias is not of shape [8].")


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({}, [{"parts": 6}]),
        ({"groups": 9}, "9 convolutions of one group each are too many"),
        ({"in_per_group": 1}, "its groups have one input channel each"),
    ],
)
def test_what_is_worth_measuring(options: dict[str, Any], measured: list[Settings] | str) -> None:
    graph = Graph(Model.load(grouped_conv_model(replace(SPEC, **options))))
    if isinstance(measured, str):
        with pytest.raises(Declined, match=measured):
            pass_named(PASS).candidates(graph, 0)
    else:
        assert [dict(one) for one in pass_named(PASS).candidates(graph, 0)] == measured


def test_a_split_and_a_grouped_network_become_each_other_and_are_proved() -> None:
    spec = ResNeXt(batch=None, image=16, blocks=(1, 1), width=8, groups=4, classes=10)
    grouped, split = (resnext_model(replace(spec, form=form)) for form in ("grouped", "split_concat"))
    where: list[Sizes] = [{"input": (2, 3, 16, 16)}]
    merged = check(split, "merge-split-groups", safety=Safety.EXACT, sizes=where, integers=False)
    apart = check(grouped, PASS, safety=Safety.EXACT, sizes=where, integers=False)
    kinds = [[node.op_type for node in proto.graph.node] for proto in (merged.after, grouped, apart.after, split)]
    assert kinds[0] == kinds[1]
    assert kinds[2] == kinds[3]
    weights = [{bytes(t.raw_data) for t in proto.graph.initializer} for proto in (merged.after, grouped)]
    assert weights[0] == weights[1]
    for model, name in ((split, "merge-split-groups"), (grouped, PASS)):
        report = rewrite(model, [name]).report
        assert report.verdict == "equivalent"
        assert report.audit is not None
        assert report.audit.grade == "exact"


def test_a_graph_output_and_readers_of_it_keep_its_name() -> None:
    model = program("y = Conv <group = 4> (x, w) z = Relu (y)", y="y z", w=(8, 2, 3, 3))
    text = "Split Conv/1 Conv/1 Conv/1 Conv/1 Concat Relu"
    check(model, PASS, becomes=text, sizes=[{"x": (2, 8, 5, 5)}])


def test_a_shape_of_the_input_that_others_need_stays() -> None:
    body = "s = Shape (x) c = Conv <group = 4> (x, w) y = Reshape (c, s)"
    model = program(body, w=np.ones((8, 2, 1, 1), np.float32) * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1))
    check(model, PASS, becomes="Shape Split Conv/1 Conv/1 Conv/1 Conv/1 Concat Reshape", sizes=[{"x": (2, 8, 5, 5)}])
