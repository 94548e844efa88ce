"""split-separable: weights of low rank are split, others are not and it says by how much, and there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from funnel import check, declines
from models.emit import Array
from programs import program
from rewriter import BadInput, Safety
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import pass_named
from test_seeds import assert_tensorflows, model, one_input

PASS = "split-separable"
FREE = "float[N,8,H,W]"
SIZES = [{"x": (2, 8, 9, 9)}, {"x": (3, 8, 11, 10)}]


def low(form: str, rank: int = 1, group: int = 1, kernel: tuple[int, ...] = (3, 3)) -> Array:
    """Weight `[12, 8/G, *K]` of that rank as that form."""
    rng = np.random.default_rng(rank)
    i, o, k = 8 // group, 12 // group, int(np.prod(kernel))
    if form == "depthwise":
        w = np.einsum(
            "girk,goir->goik", rng.standard_normal((group, i, rank, k)), rng.standard_normal((group, o, i, rank))
        )
    elif form == "pointwise":
        w = np.einsum(
            "goir,gork->goik", rng.standard_normal((group, o, i, rank)), rng.standard_normal((group, o, rank, k))
        )
    else:
        near = rng.standard_normal((group, i, rank, kernel[0]))
        w = np.einsum("gira,grob->goiab", near, rng.standard_normal((group, rank, o, k // kernel[0])))
    weight: Array = w.reshape(12, i, *kernel).astype(np.float32)
    return weight


def conv(attributes: str = "") -> str:
    return f"y = Conv <{attributes}> (x, w)".replace(" <>", "")


@pytest.mark.parametrize(
    ("weight", "attributes", "becomes"),
    [
        (low("depthwise"), "", "Conv/8 Conv/1"),
        (low("depthwise", 2), "", "Conv/8 Conv/1"),
        (low("pointwise"), "", "Conv/1 Conv/12"),
        (low("spatial"), "", "Conv/1 Conv/1"),
        (low("spatial", 4), "", "Conv/1 Conv/1"),
        (low("depthwise", group=2), "group=2", "Conv/8 Conv/2"),
        (low("spatial", group=4), "group=4", "Conv/4 Conv/4"),
        (low("depthwise"), "pads=[1,0,2,1], strides=[2,1], dilations=[1,2]", "Conv/8 Conv/1"),
        (low("pointwise"), "pads=[1,0,2,1], dilations=[1,2]", "Conv/1 Conv/12"),
        (low("spatial"), "pads=[1,0,2,1], strides=[2,1], dilations=[1,2]", "Conv/1 Conv/1"),
        (low("spatial"), "auto_pad=\"SAME_UPPER\", strides=[2,2]", "Conv/1 Conv/1"),
        (low("depthwise"), "auto_pad=\"SAME_LOWER\", strides=[2,2]", "Conv/8 Conv/1"),
        (low("pointwise"), "auto_pad=\"SAME_LOWER\"", "Conv/1 Conv/12"),
        (low("depthwise", kernel=(1, 5)), "strides=[2,1], pads=[1,2,0,2]", "Conv/8 Conv/1"),
        (low("pointwise", kernel=(5, 1)), "pads=[1,2,0,2]", "Conv/1 Conv/12"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_low_rank_is_split(weight: Array, attributes: str, becomes: str, bias: bool) -> None:
    body = conv(attributes).replace("(x, w)", "(x, w, b)" if bias else "(x, w)")
    given: dict[str, Any] = {"b": (12,)} if bias else {}
    proto = program(body, x=FREE, w=weight, **given)
    passed = check(proto, PASS, becomes=becomes, safety=Safety.ROUNDING, sizes=SIZES)
    before, after = (int(number) for number in passed.rewrites[0].summary.split(": ")[1].split()[:3:2])
    assert before == weight.size
    assert after < before


def test_spatial_axes_that_are_1_wide_go_first() -> None:
    """With their stride and padding, so that there are fewer positions in the second."""
    rng = np.random.default_rng(0)
    weight = np.einsum("ira,rob->oiab", rng.standard_normal((8, 1, 3)), rng.standard_normal((1, 12, 3)))
    body = "y = Conv <strides=[2,2,1], pads=[1,1,0,0,1,2]> (x, w)"
    proto = program(body, x="float[N,8,D,H,W]", w=weight[:, :, None].astype(np.float32))
    passed = check(proto, PASS, becomes="Conv/1 Conv/1", sizes=[{"x": (2, 8, 4, 7, 6)}])
    kept = [{a.name: list(a.ints) for a in node.attribute} for node in passed.after.graph.node]
    assert kept[0]["strides"] == [2, 2, 1]
    assert kept[0]["pads"] == [1, 1, 0, 0, 1, 0]
    assert kept[1]["strides"] == [1, 1, 1]
    assert kept[1]["pads"] == [0, 0, 0, 0, 0, 2]


def test_what_splits_twice_is_split_twice() -> None:
    ones = np.ones((12, 8, 3, 3), np.float32)
    passed = check(
        program(conv("pads=[1,1,1,1]"), x=FREE, w=ones), PASS, becomes="Conv/1 Conv/1 Conv/1 Conv/1", sizes=SIZES
    )
    for tensor in passed.after.graph.initializer:
        assert (onnx.numpy_helper.to_array(tensor) == 1).all()


@pytest.mark.parametrize("options", [
    {"x": "float[N,8,S]", "w": low("depthwise", kernel=(5,)), "sizes": [{"x": (1, 8, 9)}, {"x": (2, 8, 12)}]},
    {"x": "float[N,8,D,H,W]", "w": low("depthwise", kernel=(2, 3, 2)), "sizes": [{"x": (2, 8, 5, 6, 7)}]},
    {"x": "float16[N,8,9,9]", "w": low("depthwise").astype(np.float16)},
    {"x": "double[N,8,9,9]", "w": np.ones((12, 8, 3, 3)) * np.arange(1.0, 9).reshape(8, 1, 1)},
    {"opset": 7}, {"opset": 8, "ir": 3}, {"opset": 21},
], ids=lambda options: str({key: value for key, value in options.items() if key != "w"}))  # fmt: skip
def test_ranks_types_and_opsets(options: dict[str, Any]) -> None:
    given = {"w": low("depthwise"), "sizes": [{"x": (2, 8, 9, 9)}], "x": "float[N,8,9,9]", **options}
    where = given.pop("sizes")
    passed = check(program(conv(), **given), PASS, sizes=where)
    assert len(passed.text.split()) > 1


def test_the_form_can_be_chosen() -> None:
    proto = program(conv(), x=FREE, w=np.ones((12, 8, 3, 3), np.float32))
    check(proto, PASS, {"form": "spatial"}, becomes="Conv/1 Conv/1", sizes=SIZES)
    check(proto, PASS, {"form": "depthwise"}, becomes="Conv/8 Conv/1", sizes=SIZES)
    check(proto, PASS, {"form": "pointwise"}, becomes="Conv/1 Conv/12", sizes=SIZES)
    declines(program(conv("group=8"), w=(8, 1, 3, 3)), PASS, "It has no pointwise split", {"form": "pointwise"})
    with pytest.raises(BadInput, match="form 'low' is none of auto, depthwise, pointwise, spatial"):
        pass_named(PASS).check({"form": "low"})


def test_every_form_that_saves_is_measured_and_nothing_else() -> None:
    graph = Graph(Model.load(program(conv(), w=np.ones((12, 8, 3, 3), np.float32))))
    forms = [settings["form"] for settings in pass_named(PASS).candidates(graph, 0)]
    assert sorted(map(str, forms)) == ["depthwise", "pointwise", "spatial"]
    graph = Graph(Model.load(program(conv(), w=low("depthwise", 2))))
    assert [dict(entry) for entry in pass_named(PASS).candidates(graph, 0)] == [{"form": "depthwise"}]


def test_the_original_bias_and_shared_weights_stay() -> None:
    body = "s = Conv (x, w, b) z = Conv (x, w, b) y = Add (s, z)"
    passed = check(program(body, x=FREE, w=low("depthwise"), b=(12,)), PASS, sizes=SIZES)
    assert passed.text == "Conv/8 Conv/1 Conv/8 Conv/1 Add"
    assert {tensor.name for tensor in passed.after.graph.initializer} & {"w", "b"} == {"b"}


# --- declines ---


def test_random_weights_are_declined_with_ranks_costs_and_singular_values() -> None:
    (attempt,) = declines(program(conv(), w=(12, 8, 3, 3)), PASS, "No split saves any of its 864")
    for part in (
        "as depthwise 3x3 and 1x1 its rank is 9 (1512 multiplications; up to 5 would save, singular values ",
        "as 1x1 and depthwise 3x3 its rank is 8",
    ):
        assert part in attempt.reason


@pytest.mark.parametrize(
    ("body", "constants", "phrase"),
    [
        (conv(), {"w": (12, 8, 1, 1)}, "There is nothing to separate in its kernel."),
        (conv("group=8"), {"w": (8, 1, 1, 3)}, "There is nothing to separate"),
        ("n = Neg (w) y = Conv (x, n)", {"w": (12, 8, 3, 3)}, "Its weight 'n' is computed"),
        (conv(), {"w": np.full((12, 8, 3, 3), np.inf, np.float32)}, "Its weights are not finite"),
    ],
)
def test_declines(body: str, constants: dict[str, Any], phrase: str) -> None:
    declines(program(body, **constants), PASS, phrase)


def test_nearly_low_rank_is_not_low_rank() -> None:
    """What is far below the weights counts as long as it is above the precision of their type."""
    noise = np.random.default_rng(0).standard_normal((12, 8, 3, 3)).astype(np.float32)
    declines(program(conv(), w=low("depthwise") + np.float32(1e-5) * noise), PASS, "No split saves")


# --- TensorFlow's programs, and there and back ---


def test_tensorflows_convolution_of_ones_is_split() -> None:
    name = "seed3_regular_ones"
    passed = check(model(name), PASS, becomes="Transpose Conv/2 Conv/1 Transpose", sizes=one_input(name))
    assert_tensorflows(passed.after, name)
    (made,) = passed.rewrites
    assert made.summary.endswith(": 12 -> 10 multiplications per output position")


def test_tensorflows_random_dense_convolution_is_no_separable_one() -> None:
    (attempt,) = declines(model("seed3_regular_random"), PASS, "No split saves any of its 12 multiplications")
    expected = (
        "as depthwise 1x3 and 1x1 its rank is 2 (20 multiplications; up to 1 would save, singular values 2.26, 1.23)"
    )
    assert expected in attempt.reason


@pytest.mark.parametrize("name", ["seed2_conv2d", "seed2_depthwise", "seed0_depthwise_multiplier"])
def test_others_of_tensorflows_that_have_low_rank(name: str) -> None:
    assert_tensorflows(check(model(name), PASS, sizes=one_input(name)).after, name)


def test_tensorflows_separable_convolution_of_multiplier_2_comes_back() -> None:
    """Fused into a dense convolution, it has rank 2 again, and takes as many multiplications as before."""
    name = "seed3_separable_multiplier2"
    where = [{model(name).graph.input[0].name: (1, 14, 14, 128)}]
    fused = check(model(name), "fuse-separable", sizes=where)
    back = check(fused.after, PASS, becomes="Transpose Conv/128 Conv/1 Transpose", sizes=where)
    assert back.rewrites[0].summary.endswith(": 73728 -> 18688 multiplications per output position")
    assert_tensorflows(back.after, name)


@pytest.mark.parametrize("weight", [low("depthwise", 2), low("pointwise"), low("spatial", 3)], ids=["d", "p", "s"])
def test_split_and_fused_is_the_same_convolution(weight: Array) -> None:
    proto = program("y = Conv <pads=[1,1,1,1], strides=[2,1]> (x, w, b)", x=FREE, w=weight, b=(12,))
    there = check(proto, PASS, {"form": "auto"}, sizes=SIZES)
    back = check(there.after, "fuse-separable", becomes="Conv/1", sizes=SIZES)
    again = back.initializer("fused/weight")
    assert np.abs(again - weight).max() <= 2.0**-20 * np.abs(weight).max()
    (node,) = back.after.graph.node
    kept = {entry.name: list(entry.ints) for entry in node.attribute if entry.ints}
    assert kept["pads"] == [1, 1, 1, 1]
    assert kept["strides"] == [2, 1]
