"""regroup-transposed, split-transposed and merge-transposed: what they make, there and back, and when they decline."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import rewriter
from funnel import Sizes, check, declines
from programs import program
from rewriter import BadInput, Safety
from rewriter.api import rewrite
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Declined, Settings
from transposed_models import transposed

REGROUP, SPLIT, MERGE = "regroup-transposed", "split-transposed", "merge-transposed"


def sizes(model: onnx.ModelProto) -> list[Sizes]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    rest = [dim.dim_value or 6 + axis for axis, dim in enumerate(dims)][1:]
    return [{"x": (batch, *rest)} for batch in (2, 3)]


SHAPES: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"i_per": 1, "o_per": 1},
    {"kernel": (3,)},
    {"kernel": (1, 2, 2), "options": "strides = [1, 2, 2]"},
    {"options": "strides = [2, 3], pads = [1, 0, 2, 1], output_padding = [1, 2]"},
    {"options": "dilations = [2, 1]"},
    {"options": "output_shape = [8, 9], strides = [2, 2]"},
    {"options": 'output_shape = [8, 9], strides = [2, 2], auto_pad = "SAME_UPPER"'},
    {"options": 'auto_pad = "SAME_LOWER", strides = [2, 2]'},
    {"options": 'auto_pad = "VALID", kernel_shape = [3, 3]'},
    {"x": "float[N,8,H,W]", "options": "strides = [2, 2], output_padding = [1, 1]"},
    {"x": "float[N,8,1,1]", "kernel": (4, 4)},
    {"dtype": np.float16},
    {"dtype": np.float64, "options": "strides = [2, 1]"},
    *({"opset": opset} for opset in (7, 10, 11, 13, 21, 22)),
    {"opset": 8, "ir": 3},
]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_apart_and_together_again(options: dict[str, Any]) -> None:
    model = transposed(**options)
    one, where = "ConvTranspose/1", sizes(model)
    passed = check(model, SPLIT, becomes=f"Split {' '.join([one] * 4)} Concat", safety=Safety.EXACT, sizes=where)
    apart = passed.after.SerializeToString()
    back = check(apart, MERGE, becomes="ConvTranspose/4", safety=Safety.EXACT, sizes=where)
    before, after = (
        next(node for node in proto.graph.node if node.op_type == "ConvTranspose") for proto in (model, back.after)
    )
    assert list(before.attribute) == list(after.attribute)
    assert before.name == after.name
    if model.ir_version > 3:
        weights = [sorted(bytes(t.raw_data) for t in proto.graph.initializer) for proto in (model, back.after)]
        assert weights[0] == weights[1]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_in_wider_groups(options: dict[str, Any]) -> None:
    model = transposed(**options)
    passed = check(model, REGROUP, becomes="ConvTranspose/1", safety=Safety.FINITE, sizes=sizes(model))
    assert passed.rewrites[0].summary.startswith("ConvTranspose group 4 -> 1, ")


@pytest.mark.parametrize(
    ("rule", "chosen", "becomes"),
    [
        (REGROUP, {"groups": 2}, "ConvTranspose/2"),
        (REGROUP, {"factor": 2}, "ConvTranspose/2"),
        (REGROUP, {"factor": 4}, "ConvTranspose/1"),
        (SPLIT, {"parts": 2}, "Split ConvTranspose/2 ConvTranspose/2 Concat"),
    ],
)
def test_settings(rule: str, chosen: Settings, becomes: str) -> None:
    model = transposed()
    again = 2 in chosen.values() and "groups" not in chosen
    check(model, rule, chosen, becomes=becomes, sizes=sizes(model), again=again)


def test_the_same_weights_in_two_places() -> None:
    body = "a = ConvTranspose <group = 4> (x, w) n = Neg (a) y = ConvTranspose <group = 4> (n, w)"
    model = program(body, w=(8, 2, 2, 2))
    check(model, REGROUP, becomes="ConvTranspose/1 Neg ConvTranspose/1", sizes=[{"x": (2, 8, 5, 5)}])


SPLIT_TEXT = "p, q = Split <axis = 1> (x, s)"


@pytest.mark.parametrize(
    ("body", "weights", "becomes"),
    [
        (  # of one input: wide
            "a = ConvTranspose (x, v) b = ConvTranspose (x, w, d) y = Concat <axis = 1> (a, b)",
            {"v": (8, 2, 3, 3), "w": (8, 3, 3, 3), "d": (3,)},
            "ConvTranspose/1",
        ),
        (
            f"{SPLIT_TEXT} a = ConvTranspose <group = 2> (p, v) b = ConvTranspose <group = 2> (q, w) "
            "y = Concat <axis = -3> (a, b)",
            {"v": (4, 2, 3, 3), "w": (4, 2, 3, 3), "s": [4, 4]},
            "ConvTranspose/4",
        ),
        (
            "p = Slice (x, zero, four, one) q = Slice (x, four, eight, one) "
            "a = ConvTranspose <strides = [2, 2]> (p, v) b = ConvTranspose <strides = [2, 2]> (q, w, d) "
            "y = Concat <axis = 1> (a, b)",
            {
                "v": (4, 2, 3, 3),
                "w": (4, 2, 3, 3),
                "d": (2,),
                "zero": [0],
                "four": [4],
                "eight": [8],
                "one": [1],
            },
            "ConvTranspose/2",
        ),
        (  # what else reads the pieces keeps the Split
            f"{SPLIT_TEXT} a = ConvTranspose (p, v) b = ConvTranspose (q, w) c = Concat <axis = 1> (a, b) "
            "r = ReduceMax <keepdims = 1> (p) y = Add (c, r)",
            {"v": (4, 2, 3, 3), "w": (4, 2, 3, 3), "s": [4, 4]},
            "Split ConvTranspose/2 ReduceMax Add",
        ),
    ],
)
def test_side_by_side_they_are_merged(body: str, weights: dict[str, Any], becomes: str) -> None:
    model = program(body, **weights)
    check(model, MERGE, becomes=becomes, safety=Safety.EXACT, sizes=[{"x": (1, 8, 5, 5)}, {"x": (3, 8, 5, 5)}])


V, S = (4, 2, 3, 3), [4, 4]
PAIR = "a = ConvTranspose (p, v) b = ConvTranspose (q, w) y = Concat <axis = 1> "


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = ConvTranspose (x, v)", {"v": (8, 2, 3, 3)}, "'y' is a graph output, so it must stay."),
        ("a = ConvTranspose (x, v) y = Relu (a)", {"v": (8, 2, 3, 3)}, "goes into Relu 'y', no Concat"),
        ("a = ConvTranspose (x, v) y = Concat <axis = 1> (a)", {"v": (8, 2, 3, 3)}, "has no other branch"),
        ("a = ConvTranspose (x, v) y = Concat <axis = 1> (a, a)", {"v": (8, 2, 3, 3)}, "reads a branch twice"),
        (f"{SPLIT_TEXT} {PAIR.replace('1', '2')}(a, b)", {"v": V, "w": V, "s": S}, "along axis 2, not channels"),
        (f"{SPLIT_TEXT} {PAIR}(b, a)", {"v": V, "w": V, "s": S}, "in another order, or not all of them"),
        (
            f"{SPLIT_TEXT} a = ConvTranspose (p, v) b = Relu (q) y = Concat <axis = 1> (a, b)",
            {"v": (4, 2, 1, 1), "s": S},
            "Branch 1 of Concat 'y' is made by Relu, no ConvTranspose.",
        ),
        (
            f"{SPLIT_TEXT} a = ConvTranspose (p, v) b = ConvTranspose <pads = [1, 1, 1, 1]> (q, w) "
            "y = Concat <axis = 1> (a, b)",
            {"v": (4, 2, 1, 1), "w": V, "s": S},
            "The kernels of 'a' and 'b' differ.",
        ),
        (
            f"{SPLIT_TEXT} a = ConvTranspose <pads = [1, 0, 0, 0]> (p, v) "
            "b = ConvTranspose <pads = [0, 0, 1, 0]> (q, w) y = Concat <axis = 1> (a, b)",
            {"v": V, "w": V, "s": S},
            "Strides, pads or other attributes of 'a' and 'b' differ.",
        ),
        (
            f"r = Relu (x) {SPLIT_TEXT} t, u = Split <axis = 1> (r, s) a = ConvTranspose (p, v) "
            "b = ConvTranspose (u, w) y = Concat <axis = 1> (a, b)",
            {"v": V, "w": V, "s": S},
            "read different tensors",
        ),
        (f"{SPLIT_TEXT} {PAIR}(a, b)", {"v": (3, 2, 3, 3), "w": (5, 2, 3, 3), "s": [3, 5]}, "of different sizes"),
        *(
            (
                f"{SPLIT_TEXT} {PAIR.replace('y =', 'c =')}(a, b) e = Relu ({other}) y = Concat <axis = 1> (c, e)",
                {"v": V, "w": V, "s": S},
                f"'{other}' has 2 readers",
            )
            for other in "ab"
        ),
    ],
)
def test_side_by_side_they_are_not_merged(body: str, weights: dict[str, Any], reason: str) -> None:
    declines(program(body, **weights), MERGE, reason)


@pytest.mark.parametrize("rule", [REGROUP, SPLIT])
@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = ConvTranspose (x, w)", {"w": (8, 2, 3, 3)}, "It is dense (group 1)"),
        (
            "y = ConvTranspose <group = 3> (x, w)",
            {"w": (8, 2, 3, 3)},
            "Its 8 input channels do not divide into 3 groups.",
        ),
        ("v = Add (w, e) y = ConvTranspose <group = 4> (x, v)", {"w": (8, 2, 3, 3), "e": (1,)}, "Its weight "),
        ("v = Relu (b) y = ConvTranspose <group = 4> (x, w, v)", {"w": (8, 2, 3, 3), "b": (8,)}, "Its bias "),
        (
            "y = ConvTranspose <group = 4, output_shape = [1, 8, 7, 7]> (x, w)",
            {"w": (8, 2, 3, 3)},
            "Its output_shape does not have one size for each of its 2 spatial axes.",
        ),
    ],
)
def test_declines(rule: str, body: str, weights: dict[str, Any], reason: str) -> None:
    declines(program(body, **weights), rule, reason)


@pytest.mark.parametrize(
    ("rule", "chosen", "reason"),
    [
        (REGROUP, {"groups": 3}, "Its 4 groups are no multiple of regroup-transposed.groups 3."),
        (REGROUP, {"groups": 4}, "It has 4 groups already."),
        (REGROUP, {"factor": 3}, "Its 4 groups are no multiple of regroup-transposed.factor 3."),
        (REGROUP, {"factor": 1}, "A regroup-transposed.factor of 1 changes nothing."),
        (SPLIT, {"parts": 3}, "Its 4 groups are no multiple of split-transposed.parts 3."),
        (SPLIT, {"parts": 1}, "A split-transposed.parts of 1 changes nothing."),
    ],
)
def test_settings_that_do_not_fit(rule: str, chosen: Settings, reason: str) -> None:
    declines(transposed(), rule, reason, chosen)


def test_inspect_counts_its_channels_and_multiplications() -> None:
    model = transposed("strides = [2, 2]", kernel=(3, 2))
    (site,) = rewriter.inspect(model)
    assert (site.form, site.group, site.channels_in, site.channels_out) == ("grouped transposed", 4, 8, 12)
    assert site.macs == (8 * 4 * 5) * 3 * (3 * 2)
    assert site.output_shape == (1, 12, 9, 10)
    assert [entry.pass_name for entry in site.passes if entry.applies] == [REGROUP, SPLIT]


def test_two_ways_to_say_the_groups_are_refused() -> None:
    with pytest.raises(BadInput, match=r"both regroup-transposed.factor and regroup-transposed.groups are set"):
        pass_named(REGROUP).check({"factor": 2, "groups": 2})


@pytest.mark.parametrize(
    ("rule", "options", "measured"),
    [
        (REGROUP, {}, [{"groups": 1}]),
        (REGROUP, {"group": 9}, "9 times the multiplications"),
        (REGROUP, {"i_per": 1}, "4 times the multiplications"),
        (SPLIT, {}, [{"parts": 4}]),
        (SPLIT, {"group": 9}, "9 convolutions of one group each are too many"),
        (SPLIT, {"i_per": 1}, "its groups have one input channel each"),
    ],
)
def test_what_is_worth_measuring(rule: str, options: dict[str, Any], measured: list[Settings] | str) -> None:
    graph = Graph(Model.load(transposed(**options)))
    if isinstance(measured, str):
        with pytest.raises(Declined, match=measured):
            pass_named(rule).candidates(graph, 0)
    else:
        assert [dict(one) for one in pass_named(rule).candidates(graph, 0)] == measured


@pytest.mark.parametrize(
    "options",
    [
        {"options": "strides = [2, 2], pads = [1, 0, 1, 1], output_padding = [1, 0]"},
        {"kernel": (1, 2, 2), "options": "strides = [1, 2, 2]"},
        {"kernel": (4,), "options": 'strides = [2], auto_pad = "SAME_UPPER"'},
        {"options": "output_shape = [8, 9], strides = [2, 2], dilations = [1, 2]"},
        {"x": "float[N,8,1,1]", "kernel": (4, 4)},
        {"dtype": np.float16},
    ],
    ids=str,
)
def test_all_of_them_are_proved(options: dict[str, Any]) -> None:
    model = transposed(**options)
    apart = rewrite(model, [SPLIT])
    for report, grade in ((apart.report, "exact"), (rewrite(model, [REGROUP]).report, "finite")):
        assert (report.verdict, report.audit and report.audit.grade) == ("equivalent", grade), report.reason
    back = rewrite(apart.model, [MERGE]).report
    assert (back.verdict, back.audit and back.audit.grade) == ("equivalent", "exact"), back.reason
    for report in (apart.report, back):
        assert report.audit is not None
        levels = [level for region in report.audit.regions for level in region.levels]
        assert [level.outcome for level in levels] == ["pass"] * 3, [level.detail for level in levels]
        assert levels[2].figures["certified"]
