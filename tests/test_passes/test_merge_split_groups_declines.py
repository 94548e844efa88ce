"""merge-split-groups: what keeps convolutions apart, what is measured, and what the audit says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from branch_programs import BEFORE, JOIN, KERNELS, LARGER, PICKED, SPLIT, SWAPPED, TWO, build
from funnel import declines
from rewriter import BadInput
from rewriter.api import rewrite
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from rewriter.rule import Settings

PASS = "merge-split-groups"
ONES = {"v": (3, 8, 1, 1), "w": (5, 8, 1, 1)}


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("y = Conv (x, w)", {"w": (3, 8, 3, 3)}, "'y' is a graph output, so it must stay."),
        ("p = Conv (x, w) y = Relu (p)", {"w": (3, 8, 3, 3)}, "Its output goes into Relu 'y', no Concat."),
        (f"{SPLIT} {TWO} y = Concat <axis = 2> (p, q)", {}, "Concat 'y' is along axis 2, not channels."),
        ("p = Conv (x, w) y = Concat <axis = 1> (p)", {"w": (3, 8, 3, 3)}, "Concat 'y' has no other branch."),
        ("p = Conv (x, w) y = Concat <axis = 1> (p, p)", {"w": (3, 8, 3, 3)}, "Concat 'y' reads a branch twice."),
        (
            f"{SPLIT} p = Conv (a, v) q = Relu (b) {JOIN}",
            {"v": (3, 4, 1, 1)},
            "Branch 1 of Concat 'y' is made by Relu, no Conv.",
        ),
        (
            "p = Conv <pads = [1,1,1,1]> (x, v) y = Concat <axis = 1> (p, x)",
            {"v": (3, 8, 3, 3)},
            "Branch 1 of Concat 'y' is made by no node",
        ),
        (
            f"{SPLIT} {TWO} r = Relu (p) t = Tanh (q) y = Concat <axis = 1> (r, t)",
            {},
            "What is behind 'p' and 'q' differs (Relu and Tanh).",
        ),
        (
            f"{SPLIT} {TWO} r = LeakyRelu <alpha = 0.1> (p) t = LeakyRelu <alpha = 0.2> (q) "
            "y = Concat <axis = 1> (r, t)",
            {},
            "What is behind 'p' and 'q' differs (LeakyRelu and LeakyRelu).",
        ),
        (
            f"{SPLIT} {TWO} r = Clip (p, l) t = Clip (q, h) y = Concat <axis = 1> (r, t)",
            {"l": np.float32(-1), "h": np.float32(-2)},
            "What is behind 'p' and 'q' differs (Clip and Clip).",
        ),
        (
            f"{SPLIT} {TWO} t = Relu (q) y = Concat <axis = 1> (p, t)",
            {},
            "behind 'p' and 'q' differs (nothing and Relu).",
        ),
        (
            f"{SPLIT} {TWO} r = Relu (p) t = Relu (q) y = Concat <axis = 1> (r, t)",
            {"y": "y r"},
            "Its output goes into Relu 'r', no Concat.",
        ),
        (
            f"{SPLIT} {TWO} r = Relu (p) t = Relu (q) y = Concat <axis = 1> (r, t)",
            {"y": "y t"},
            "'t' is a graph output, so it must stay.",
        ),
        (
            "p = Conv (x, v) k = Neg (x) q = Conv (x, w) y = Concat <axis = 1> (p, k, q)",
            {"v": (3, 8, 1, 1), "w": (5, 8, 1, 1)},
            "Branch 1 of Concat 'y' is made by Neg, no Conv.",
        ),
        (
            "a, b, e = Split <axis = 1> (x, s) p = Conv (a, v) q = Conv (b, w) k = Neg (e) "
            "y = Concat <axis = 1> (p, q, k)",
            {"s": [3, 3, 2], "v": (3, 3, 1, 1), "w": (3, 3, 1, 1)},
            "Split 'a' takes pieces of 'x' that others read, too.",
        ),
        (
            f"{SPLIT} p = Conv (x, v) q = Conv (a, w) {JOIN}",
            {"v": (3, 8, 3, 3)},
            "Its branches read overlapping but different input channels; with merge-split-groups.fill=groups",
        ),
        (f"{SPLIT} {TWO} {JOIN}", {"y": "y q"}, "'q' is a graph output, so it must stay."),
        (f"{SPLIT} {TWO} z = Relu (q) {JOIN}", {"y": "y z"}, "'q' has 2 readers, not one."),
        (
            f"a = Relu (x) b = Neg (x) {TWO} {JOIN}",
            {"v": (3, 8, 3, 3), "w": (3, 8, 3, 3)},
            "read different tensors, or channels known only at run time: 'a', 'b'.",
        ),
        (
            "a = Relu (x) p = Conv (a, v) q = Conv (x, w) " + JOIN,
            {"v": (3, 8, 3, 3), "w": (3, 8, 3, 3)},
            "read different tensors",
        ),
        (
            "h = Shape (x) k = Gather (h, i) l = Div (k, t) f = Add (l, g) "
            f"a = Slice (x, z, f, o) b = Slice (x, f, e, o) {TWO} {JOIN}",
            {"x": "float[N,8,H,5]", "i": [2], "t": [1000], "z": [0], "g": [4], "e": [8], "o": [1]},
            "channels known only at run time: 'a', 'b'.",
        ),
        (
            f"{SPLIT} p = Conv <strides = [5,5]> (a, v) q = Conv <strides = [3,3]> (b, w) {JOIN}",
            {},
            "The strides of 'p' and 'q' differ.",
        ),
        (
            f"{SPLIT} p = Conv <pads = [0,0,1,1], strides = [2,2]> (a, v) q = Conv <strides = [2,2]> (b, w) {JOIN}",
            {"x": "float[N,8,5,5]"},
            "outputs differ in size on spatial axis 0",
        ),
        (
            f'{SPLIT} p = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (a, v) '
            f"q = Conv <pads = [1,1,1,1], strides = [2,2]> (b, w) {JOIN}",
            {"x": "float[N,8,H,W]"},
            "Its pads (SAME_UPPER) depend on the input's size, which is not fixed.",
        ),
        (
            f"{SPLIT} {TWO} {JOIN}",
            {"s": [2, 6], "v": (1, 2, 3, 3), "w": (3, 6, 3, 3)},
            "groups of different sizes (2 in and 1 out, 6 in and 3 out)",
        ),
        (
            f"a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) {TWO} {JOIN}",
            {"i": [0, 1, 1, 0], "j": [4, 5, 6, 7]},
            "reads an input channel twice",
        ),
        (
            f"{SPLIT} r = Neg (w) p = Conv (a, v) q = Conv (b, r) {JOIN}",
            {},
            "Its weight 'r' is computed by Neg from constants",
        ),
    ],
)
def test_declines(body: str, constants: dict[str, Any], reason: str) -> None:
    declines(build(body, **constants), PASS, reason)


@pytest.mark.parametrize(
    ("body", "constants", "chosen", "reason"),
    [
        (SWAPPED, {}, {"shuffle": "none"}, "Its groups need a channel shuffle, and its setting shuffle is none."),
        (SWAPPED, {}, {"shuffle": "producer"}, "No convolution comes before 'x' to take the shuffle."),
        (PICKED, {"i": [0, 2, 4, 5], "j": [1, 3, 6, 7]}, {"shuffle": "reshape"}, "no regular interleave"),
        (
            f"p = Conv <group = 8> (x, v) q = Conv <group = 8> (x, w) {JOIN}",
            {"v": (8, 1, 3, 3), "w": (8, 1, 3, 3)},
            {"shuffle": "none"},
            "Its outputs need a channel shuffle, and merge-split-groups.shuffle is none.",
        ),
        (
            "y = Conv (x, w)",
            {"w": (3, 8, 3, 3)},
            {"parallel": True},
            "No other Conv of its kernel, stride, padding and groups",
        ),
    ],
)
def test_declines_by_its_settings(body: str, constants: dict[str, Any], chosen: Settings, reason: str) -> None:
    declines(build(body, **constants), PASS, reason, chosen)


@pytest.mark.parametrize("chosen", [{"fill": "some"}, {"shuffle": "cards"}])
def test_settings_that_are_none(chosen: Settings) -> None:
    with pytest.raises(BadInput, match="must be one of"):
        rewrite("not looked at yet.onnx", [PASS], settings={PASS: chosen})


@pytest.mark.parametrize(
    ("body", "constants", "choices"),
    [
        (f"{SPLIT} {TWO} {JOIN}", {}, [{"fill": "none", "shuffle": "auto"}]),
        (KERNELS.format(""), LARGER, [{"fill": "kernels", "shuffle": "auto"}]),
        (
            f"{SPLIT} {TWO} {JOIN}",
            {"s": [2, 6], "v": (1, 2, 3, 3), "w": (3, 6, 3, 3)},
            [{"fill": "groups", "shuffle": "auto"}],
        ),
        (SWAPPED, {}, [{"fill": "none", "shuffle": way} for way in ("producer", "gather")]),
    ],
)
def test_what_is_worth_measuring(body: str, constants: dict[str, Any], choices: list[Settings]) -> None:
    model = Model.load(build(body, **constants))
    graph, rule = Graph(model), pass_named(PASS)
    (join,) = [node for node in model.nodes if node.op_type == "Concat"]
    first = model.wiring.producer(join.input[0])
    assert first is not None
    assert [dict(one) for one in rule.candidates(graph, first)] == choices


@pytest.mark.parametrize(
    ("body", "constants", "chosen", "grade"),
    [
        (f"{SPLIT} {TWO} {JOIN}", {}, {}, "exact"),
        (SWAPPED, {}, {}, "exact"),
        (BEFORE, {"u": (8, 8, 1, 1)}, {}, "exact"),
        (KERNELS.format(""), LARGER, {}, "finite"),
        (f"{SPLIT} {TWO} {JOIN}", {"s": [2, 6], "v": (1, 2, 3, 3), "w": (3, 6, 3, 3)}, {"fill": "groups"}, "finite"),
        (
            "p = Conv (x, v) q = Conv (x, w)",
            {"y": "p q", "v": (3, 8, 3, 3), "w": (3, 8, 3, 3)},
            {"parallel": True},
            "exact",
        ),
        ("p = Conv (x, v) q = Conv (x, w) y = Concat <axis = 1> (x, p, q)", ONES, {}, "exact"),
    ],
)
def test_the_audit_agrees(body: str, constants: dict[str, Any], chosen: Settings, grade: str) -> None:
    report = rewrite(build(body, **constants), [PASS], settings={PASS: chosen}).report
    assert report.verdict == "equivalent", report.reason
    assert report.audit is not None
    assert report.audit.grade == grade


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (f"{SPLIT} {TWO} r = Relu (p) t = Relu (q) y = Concat <axis = 1> (r, t)", {}),
        (f"{SPLIT} {TWO} r = Relu (p) t = Relu (q) y = Concat <axis = 1> (t, r)", {}),
        (
            "p = Conv (x, v) q = Conv <pads = [1, 1, 1, 1]> (x, w) r = Clip (p, z, m) t = Clip (q, z, m) "
            "y = Concat <axis = 1> (r, t)",
            {"v": (3, 8, 1, 1), "w": (3, 8, 3, 3), "z": np.float32(0), "m": np.float32(6)},
        ),
        ("p = Conv (x, v) q = Conv (x, w) r = Relu (p) t = Relu (q) n = Neg (x) y = Concat <axis = 1> (r, t, n)", ONES),
    ],
)
def test_the_audit_of_activations(body: str, constants: dict[str, Any]) -> None:
    report = rewrite(build(body, **constants), [PASS]).report
    # Of activations on this side of a Concat and that the audit may know only that runs agree.
    assert report.verdict in ("equivalent", "approximate"), report.reason
    assert report.audit is not None
