"""merge-split-groups: every spelling of convolutions side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from branch_programs import BEFORE, INTERLEAVED, JOIN, KERNELS, LARGER, PICKED, SPLIT, SWAPPED, TWO, build
from funnel import Passed, Sizes, check, declines
from rewriter import Safety
from rewriter.rule import Settings

PASS = "merge-split-groups"
BATCHES: list[Sizes] = [{"x": (2, 8, 5, 5)}, {"x": (1, 8, 5, 5)}]


def merged(body: str, becomes: str, safety: Safety, chosen: Settings | None = None, **constants: Any) -> Passed:
    sizes = constants.pop("sizes", BATCHES)
    return check(build(body, **constants), PASS, chosen, becomes=becomes, safety=safety, sizes=sizes)


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        (f"{SPLIT} {TWO} {JOIN}", {}, "Conv/2"),
        (f"{SPLIT} p = Conv (a, v, c) q = Conv (b, w, d) {JOIN}", {}, "Conv/2"),
        (f"{SPLIT} p = Conv (a, v, c) q = Conv (b, w) {JOIN}", {}, "Conv/2"),
        (f"{SPLIT} {TWO} y = Concat <axis = -3> (p, q)", {}, "Conv/2"),
        ("a, b = Split <axis = -3> (x, s) " + f"{TWO} {JOIN}", {}, "Conv/2"),
        ("a, b = Split <axis = 1, num_outputs = 2> (x) " + f"{TWO} {JOIN}", {}, "Conv/2"),
        (f"a, b = Split <axis = 1> (x) {TWO} {JOIN}", {"opset": 13}, "Conv/2"),
        (f"a, b = Split <axis = 1, split = [4, 4]> (x) {TWO} {JOIN}", {"opset": 11}, "Conv/2"),
        (f"a, b = Split <axis = 1, split = [4, 4]> (x) {TWO} {JOIN}", {"opset": 7, "ir": 3}, "Conv/2"),
        (
            "a = Slice <axes = [1], starts = [0], ends = [4]> (x) "
            f"b = Slice <axes = [1], starts = [4], ends = [9223372036854775807]> (x) {TWO} {JOIN}",
            {"opset": 9},
            "Conv/2",
        ),
        (
            f"a = Slice (x, z, f, o) b = Slice (x, f, e, o) {TWO} {JOIN}",
            {"z": [0], "f": [4], "e": [8], "o": [1]},
            "Conv/2",
        ),
        (
            f"a = Slice (x, m, f, o) b = Slice (x, n, e, o) {TWO} {JOIN}",
            {"m": [-8], "n": [-4], "f": [4], "e": [99], "o": [-3]},
            "Conv/2",
        ),
        # Bounds computed from the number of channels, as exporters write chunk().
        (
            f"h = Shape (x) k = Gather (h, i) l = Div (k, t) g = Mul (l, t) a = Slice (x, z, l, o) "
            f"b = Slice (x, l, g, o) {TWO} {JOIN}",
            {"i": [1], "t": [2], "z": [0], "o": [1]},
            "Conv/2",
        ),
        (
            f"a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) {TWO} {JOIN}",
            {"i": [0, 1, 2, 3], "j": [4, 5, 6, 7]},
            "Conv/2",
        ),
        # The order within a group is in the weights.
        (
            f"a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) {TWO} {JOIN}",
            {"i": [3, 1, 2, 0], "j": [-1, 5, 6, -4]},
            "Conv/2",
        ),
        # Splits of a split.
        (
            "a, k = Split <axis = 1> (x, s) b, e = Split <axis = 1> (k, t) p = Conv <group = 2> (a, v) "
            "q = Conv (b, w) r = Conv (e, u) y = Concat <axis = 1> (p, q, r)",
            {"t": [2, 2], "v": (6, 2, 3, 3), "w": (3, 2, 3, 3), "u": (3, 2, 3, 3)},
            "Conv/4",
        ),
        # Depthwise and grouped branches keep all their groups.
        (
            f"{SPLIT} p = Conv <group = 4> (a, v) q = Conv <group = 4> (b, w) {JOIN}",
            {"v": (8, 1, 3, 3), "w": (8, 1, 3, 3)},
            "Conv/8",
        ),
        (
            f"{SPLIT} p = Conv <group = 3> (a, v) q = Conv (b, w) {JOIN}",
            {"s": [6, 2], "v": (9, 2, 3, 3), "w": (3, 2, 3, 3)},
            "Conv/4",
        ),
        # One input.
        ("p = Conv (x, v) q = Conv (x, w) " + JOIN, {"v": (3, 8, 3, 3), "w": (5, 8, 3, 3)}, "Conv/1"),
        (f"a = Relu (x) p = Conv (a, v) q = Conv (a, w) {JOIN}", {"v": (3, 8, 3, 3), "w": (5, 8, 3, 3)}, "Relu Conv/1"),
        (
            "p = Conv <group = 2> (x, v) q = Conv <group = 2> (x, w) " + JOIN,
            {"v": (2, 4, 3, 3), "w": (4, 4, 3, 3)},
            "Conv/2 Gather",
        ),
        # Only some channels of it; the same piece of it twice.
        (
            f"a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) {TWO} {JOIN}",
            {"i": [0, 1], "j": [6, 7], "v": (3, 2, 3, 3), "w": (3, 2, 3, 3)},
            "Gather Conv/2",
        ),
        (
            f"{SPLIT} h = Neg (b) p = Conv (a, v) q = Conv (a, w) y = Concat <axis = 1> (p, q)",
            {"y": "y h"},
            "Split Neg Conv/1",
        ),
        # Ranks, types, attributes.
        (
            f"{SPLIT} {TWO} {JOIN}",
            {"x": "float[N,8,7]", "v": (3, 4, 3), "w": (3, 4, 3), "sizes": [{"x": (2, 8, 7)}]},
            "Conv/2",
        ),
        (
            f"{SPLIT} {TWO} {JOIN}",
            {"x": "float[N,8,3,4,4]", "v": (3, 4, 1, 3, 3), "w": (3, 4, 1, 3, 3), "sizes": [{"x": (2, 8, 3, 4, 4)}]},
            "Conv/2",
        ),
        (f"{SPLIT} {TWO} {JOIN}", {"x": "float16[N,8,5,5]", "dtype": np.float16}, "Conv/2"),
        (
            f"{SPLIT} {TWO} {JOIN}",
            {"x": "float[N,8,H,W]", "sizes": [{"x": (2, 8, 5, 6)}, {"x": (1, 8, 9, 4)}]},
            "Conv/2",
        ),
        (f"{SPLIT} {TWO} {JOIN}", {"x": "float[N,C,H,W]"}, "Conv/2"),
        (
            f'{SPLIT} p = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (a, v) '
            f'q = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (b, w) {JOIN}',
            {"x": "float[N,8,H,W]"},
            "Conv/2",
        ),
    ],
)
def test_weights_only_move(body: str, constants: dict[str, Any], becomes: str) -> None:
    merged(body, becomes, Safety.EXACT, **constants)


@pytest.mark.parametrize(
    ("body", "constants", "window"),
    [
        (KERNELS.format(""), LARGER, [5, 1, 2, 2]),
        (KERNELS.format(", strides = [2,2]"), LARGER, [5, 1, 2, 2]),
        (KERNELS.format(", group = 4"), {"v": (4, 1, 3, 3), "w": (4, 1, 5, 5)}, [5, 1, 2, 2]),
        (f"{SPLIT} p = Conv (a, v) q = Conv <pads = [1,1,1,1]> (b, w) {JOIN}", {"v": (3, 4, 1, 1)}, [3, 1, 1, 1]),
        # The same as a dilated kernel (as in atrous pyramids), of one input.
        (
            f"p = Conv <pads = [1,1,1,1]> (x, v) q = Conv <dilations = [2,2], pads = [2,2,2,2]> (x, w) {JOIN}",
            {"v": (3, 8, 3, 3), "w": (3, 8, 3, 3)},
            [5, 1, 2, 2],
        ),
        (
            f"p = Conv (x, v) q = Conv <dilations = [2,2], pads = [2,2,2,2]> (x, w) {JOIN}",
            {"v": (3, 8, 1, 1), "w": (3, 8, 3, 3)},
            [3, 2, 2, 2],
        ),
        (
            f'{SPLIT} p = Conv <auto_pad = "SAME_UPPER"> (a, v) q = Conv <auto_pad = "SAME_LOWER"> (b, w) {JOIN}',
            {"w": (3, 4, 4, 4), "x": "float[N,8,H,W]"},
            [4, 1, 2, 1],
        ),
        (
            f'{SPLIT} p = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (a, v) '
            f"q = Conv <pads = [2,2,2,2], strides = [2,2]> (b, w) {JOIN}",
            LARGER,
            [5, 1, 2, 2],
        ),
    ],
)
def test_kernels_of_different_sizes(body: str, constants: dict[str, Any], window: list[int]) -> None:
    passed = check(build(body, **constants), PASS, safety=Safety.FINITE, sizes=BATCHES)
    (conv,) = [node for node in passed.after.graph.node if node.op_type == "Conv"]
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in conv.attribute}
    size, dilation, begin, end = window
    assert found["kernel_shape"] == [size, size]
    assert found["dilations"] == [dilation, dilation]
    assert found["pads"] == [begin, begin, end, end]
    assert "auto_pad" not in found
    declines(
        build(body, **constants), PASS, "kernels of different sizes, and merge-split-groups.fill is", {"fill": "none"}
    )


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        (f"{SPLIT} {TWO} {JOIN}", {"s": [2, 6], "v": (1, 2, 3, 3), "w": (3, 6, 3, 3)}, "Conv/1"),
        (
            "a, b, e = Split <axis = 1> (x, s) p = Conv (a, v) q = Conv (b, w) r = Conv (e, u) "
            "y = Concat <axis = 1> (p, q, r)",
            {"s": [2, 2, 4], "v": (1, 2, 3, 3), "w": (2, 2, 3, 3), "u": (3, 4, 3, 3)},
            "Conv/2",
        ),
        # Overlapping channels.
        (
            f"a = Gather <axis = 1> (x, i) b = Gather <axis = 1> (x, j) {TWO} {JOIN}",
            {"i": [0, 1, 2, 3, 4], "j": [4, 5, 6, 7], "v": (3, 5, 3, 3)},
            "Conv/1",
        ),
    ],
)
def test_groups_of_different_sizes(body: str, constants: dict[str, Any], becomes: str) -> None:
    merged(body, becomes, Safety.FINITE, {"fill": "groups"}, **constants)
    declines(build(body, **constants), PASS, "with merge-split-groups.fill=groups they are merged with zeros between")


@pytest.mark.parametrize(
    ("body", "way", "becomes"),
    [
        (SWAPPED, "auto", "Gather Conv/2"),
        (SWAPPED, "gather", "Gather Conv/2"),
        (BEFORE, "auto", "Conv/1 Relu Conv/2"),
        (BEFORE, "producer", "Conv/1 Relu Conv/2"),
        (BEFORE, "gather", "Conv/1 Relu Gather Conv/2"),
    ],
)
def test_branches_in_another_order(body: str, way: str, becomes: str) -> None:
    merged(body, becomes, Safety.EXACT, {"shuffle": way}, u=(8, 8, 1, 1))


def test_interleaved_branches_by_reshape() -> None:
    becomes = "Reshape Transpose Reshape Conv/2"
    merged(PICKED, becomes, Safety.EXACT, {"shuffle": "reshape"}, **INTERLEAVED)
    steps = "a = Slice (x, z, e, o, t) b = Slice (x, o, e, o, t)"
    merged(f"{steps} {TWO} {JOIN}", "Gather Conv/2", Safety.EXACT, z=[0], o=[1], e=[8], t=[2])
    merged(
        f"p = Conv <group = 8> (x, v) q = Conv <group = 8> (x, w) {JOIN}",
        "Conv/8 Reshape Transpose Reshape",
        Safety.EXACT,
        {"shuffle": "reshape"},
        v=(8, 1, 3, 3),
        w=(8, 1, 3, 3),
    )


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        ("p = Conv (x, v, c) q = Conv (x, w)", {}, "Conv/1 Split"),
        ("p = Conv (x, v) h = Relu (p) q = Conv (x, w) k = Relu (q)", {"y": "h k"}, "Conv/1 Split Relu Relu"),
        (
            "p = Conv <group = 2> (x, v) q = Conv <group = 2> (x, w)",
            {"v": (4, 4, 1, 1), "w": (2, 4, 1, 1)},
            "Conv/2 Gather Split",
        ),
        # What is unlike the others stays apart.
        ("p = Conv (x, v) q = Conv (x, w) k = Conv (x, u)", {"y": "p q k", "u": (3, 8, 1, 1)}, "Conv/1 Split Conv/1"),
    ],
)
def test_without_a_concat_only_when_asked(body: str, constants: dict[str, Any], becomes: str) -> None:
    options = {"y": "p q", "v": (3, 8, 3, 3), "w": (5, 8, 3, 3)} | constants
    merged(body, becomes, Safety.EXACT, {"parallel": True}, **options)
    declines(build(body, **options), PASS, "")


RELU = f"{SPLIT} {TWO} r = Relu (p) t = Relu (q) y = Concat <axis = 1> (r, t)"
WIDE = {"v": (3, 8, 3, 3), "w": (5, 8, 3, 3)}


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        (RELU, {}, "Conv/2 Relu"),
        (RELU.replace("Relu", "HardSwish"), {"opset": 14}, "Conv/2 HardSwish"),
        (RELU.replace("Relu", "LeakyRelu <alpha = 0.3>"), {}, "Conv/2 LeakyRelu"),
        (RELU.replace("(x, s)", "(x)").replace("Relu", "Clip <min = 0.0, max = 2.0>"), {"opset": 9}, "Conv/2 Clip"),
        (
            f"{SPLIT} {TWO} r = Clip (p, l, h) t = Clip (q, m, h) y = Concat <axis = 1> (r, t)",
            {"l": np.float32(-1), "m": np.float32(-1), "h": np.float32(2)},
            "Conv/2 Clip",
        ),
        # Several of them; behind a shuffle.
        (
            f"{SPLIT} {TWO} a1 = Sigmoid (p) a2 = Neg (a1) b1 = Sigmoid (q) b2 = Neg (b1) "
            "y = Concat <axis = 1> (a2, b2)",
            {},
            "Conv/2 Sigmoid Neg",
        ),
        (RELU.replace("(r, t)", "(t, r)"), {}, "Gather Conv/2 Relu"),
        (
            "p = Conv <group = 2> (x, v) q = Conv <group = 2> (x, w) r = Relu (p) t = Relu (q) "
            "y = Concat <axis = 1> (r, t)",
            {"v": (2, 4, 3, 3), "w": (4, 4, 3, 3)},
            "Conv/2 Gather Relu",
        ),
        (
            "p = Conv (x, v) q = Conv (x, w) r = Tanh (p) t = Tanh (q) y = Concat <axis = 1> (r, t)",
            {"v": (3, 8, 3, 3), "w": (5, 8, 3, 3)},
            "Conv/1 Tanh",
        ),
    ],
)
def test_the_same_activation_behind_each(body: str, constants: dict[str, Any], becomes: str) -> None:
    smooth = any(name in body for name in ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu"))
    check(build(body, **constants), PASS, becomes=becomes, safety=Safety.EXACT, sizes=BATCHES, integers=not smooth)


POOL = "k = MaxPool <kernel_shape = [3, 3], strides = [1, 1]> (x)"
PAIR = "p = Conv (x, v) q = Conv (x, w)"


@pytest.mark.parametrize(
    ("body", "constants", "becomes"),
    [
        (f"{POOL} {PAIR} y = Concat <axis = 1> (k, p, q)", WIDE, "MaxPool Conv/1 Concat"),
        (f"{PAIR} {POOL} y = Concat <axis = 1> (p, q, k)", WIDE, "MaxPool Conv/1 Concat"),
        (
            f"{PAIR} {POOL} r = Relu (p) t = Relu (q) y = Concat <axis = 1> (k, r, t, k)",
            WIDE,
            "MaxPool Conv/1 Relu Concat",
        ),
        # Two groups, apart because of what is between them, of their activation, or of what they read.
        (
            f"{PAIR} {POOL} e = Conv (x, u) f = Conv (x, g) y = Concat <axis = 1> (p, q, k, e, f)",
            WIDE | {"u": (2, 8, 3, 3), "g": (2, 8, 3, 3)},
            "MaxPool Conv/1 Conv/1 Concat",
        ),
        (
            f"{PAIR} e = Conv (x, u) f = Conv (x, g) m = Relu (e) n = Relu (f) y = Concat <axis = 1> (p, q, m, n)",
            WIDE | {"u": (2, 8, 3, 3), "g": (2, 8, 3, 3)},
            "Conv/1 Conv/1 Relu Concat",
        ),
        (
            f"{PAIR} h = Relu (x) e = Conv (h, u) f = Conv (h, g) y = Concat <axis = 1> (p, q, e, f)",
            WIDE | {"u": (2, 8, 3, 3), "g": (2, 8, 3, 3)},
            "Relu Conv/1 Conv/1 Concat",
        ),
        # Pieces beside convolutions of the whole.
        (
            f"{SPLIT} p = Conv (x, v) q = Conv (x, w) e = Conv (a, u) f = Conv (b, g) "
            "y = Concat <axis = 1> (p, q, e, f)",
            WIDE | {"u": (2, 4, 3, 3), "g": (2, 4, 3, 3)},
            "Conv/1 Conv/2 Concat",
        ),
        # A branch that is left and could be taken for shape arithmetic of the Concat.
        (
            "k = Slice (x, z, i, o) " + f"{PAIR} y = Concat <axis = 1> (k, p, q)",
            {"v": (3, 8, 1, 1), "w": (5, 8, 1, 1), "z": [0], "i": [3], "o": [1]},
            "Slice Conv/1 Concat",
        ),
    ],
)
def test_neighbours_among_the_branches(body: str, constants: dict[str, Any], becomes: str) -> None:
    passed = merged(body, becomes, Safety.EXACT, **constants)
    assert all("+ Concat" not in made.summary for made in passed.rewrites)
