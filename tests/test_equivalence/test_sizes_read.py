"""Numbers made of sizes, one operator at a time: which of them two sizes determine, and which are the same number.

`test_sizes.py` asks for the verdicts, where one operator that is taken for another kind is hidden by those behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.equivalence.regions import Side
from rewriter.equivalence.sizes import _definition, _numbers
from rewriter.model import Model
from rewriter.shapes import bind
from test_equivalence.nets import audited, caught, chain
from test_equivalence.test_sizes import numbers
from test_equivalence.wrong_pairs import W

node = helper.make_node
SIZES = {"x": (3, 4, 8, 9)}
CONSTANTS: dict[str, Any] = {
    "w": W,
    "one_by_one": np.ones((4, 4, 1, 1), np.float32),
    "zero": np.asarray([0]),
    "one": np.asarray([1]),
    "also_one": np.asarray([1]),
    "one_one": np.asarray([[1]]),
    "one_as_float": np.asarray([1]).view(np.float64),
    "two": np.asarray([2]),
    "table": np.arange(9),
    "limit": np.asarray([4000]),
    "back": np.asarray([-3]),
    "none": np.asarray(0),
    "step": np.asarray(1),
    "many": np.asarray(2000000),
}
N = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"])]
POOLED = node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2])
SHAPE, HEIGHT = node("Shape", ["p"], ["r"]), node("Gather", ["r", "two"], ["g"])


def side(nodes: Sequence[onnx.NodeProto], x: Sequence[int | str] = ("n", 4, "h", "v")) -> Side:
    """The model x [n, 4, h, v] → y that these nodes make, at the sizes above."""
    model = Model.load(chain(nodes, CONSTANTS, x))
    return Side("before", model, bind(model, SIZES))


def undetermined(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",)) -> list[str]:
    made = side(nodes)
    return sorted(f"{kind} {name}" for name, kind in _numbers(range(len(nodes)), outputs, [made]))


DETERMINED = {
    "a size": [*N, node("Identity", ["n"], ["g"])],
    "sizes added": [*N, node("Add", ["n", "n"], ["g"])],
    "by a constant": [*N, node("Mul", ["two", "n"], ["g"])],
    "integers of another type": [*N, node("Cast", ["n"], ["g"], to=TensorProto.INT32)],
    "a kernel that keeps sizes": [node("Conv", ["x", "one_by_one"], ["p"]), SHAPE, HEIGHT],
    "a step of 1": [node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[1, 1]), SHAPE, HEIGHT],
    "what the model fixes": [POOLED, SHAPE, node("Gather", ["r", "one"], ["g"])],
    "what the model fixes, from the end": [POOLED, SHAPE, node("Gather", ["r", "back"], ["g"])],
    "of constants alone": [node("Mod", ["limit", "two"], ["g"])],
}
OPEN = {
    "Gather g": [*N, node("Gather", ["table", "n"], ["g"])],
    "Slice g": [*N, node("Add", ["n", "one"], ["m"]), node("Slice", ["table", "n", "m"], ["g"])],
    "Mul g": [*N, node("Mul", ["n", "n"], ["g"])],
    "Size r": [node("Size", ["x"], ["r"]), node("Unsqueeze", ["r", "zero"], ["g"])],
    "Div g": [*N, node("Div", ["n", "two"], ["g"])],
    "Cast b": [*N, node("Cast", ["n"], ["b"], to=TensorProto.BOOL), node("Cast", ["b"], ["g"], to=TensorProto.INT64)],
}
UNKNOWN = {
    "a stride": [POOLED, SHAPE, HEIGHT],
    "a part": [node("Slice", ["x", "zero", "limit", "two", "two"], ["p"]), SHAPE, HEIGHT],
    "behind a stride": [
        node("MaxPool", ["x"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Relu", ["q"], ["p"]),
        SHAPE,
        HEIGHT,
    ],
    "sizes from the third on": [POOLED, node("Shape", ["p"], ["r"], start=2), node("Gather", ["r", "one"], ["g"])],
}


READ = node("Gather", ["x", "g"], ["y"])


@pytest.mark.parametrize("nodes", DETERMINED.values(), ids=DETERMINED)
def test_what_two_sizes_determine(nodes: list[onnx.NodeProto]) -> None:
    assert undetermined([*nodes, READ]) == []


@pytest.mark.parametrize("name", OPEN)
def test_what_they_do_not_determine(name: str) -> None:
    assert undetermined([*OPEN[name], READ]) == [name]


@pytest.mark.parametrize("nodes", UNKNOWN.values(), ids=UNKNOWN)
def test_sizes_of_what_may_have_any_size(nodes: list[onnx.NodeProto]) -> None:
    assert undetermined([*nodes, READ]) == ["Shape r"]


def test_in_a_model_of_fixed_sizes_every_number_is_known() -> None:
    nodes = [*N, node("Mul", ["n", "n"], ["g"]), READ]
    assert list(_numbers(range(len(nodes)), ["y"], [side(nodes, SIZES["x"])])) == []


def test_a_number_too_large_to_be_followed_is_one_all_the_same() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "none"], ["n"]),
        node("Mul", ["n", "many"], ["m"]),
        node("Range", ["none", "m", "step"], ["t"]),
        node("ReduceMax", ["t"], ["g"], keepdims=0),
        READ,
    ]
    assert side(nodes).bound.value("g") is None
    assert undetermined(nodes) == ["Range t", "ReduceMax g"]


def test_a_size_that_depends_on_the_data_is_a_number_too() -> None:
    nodes = [node("NonZero", ["x"], ["p"]), SHAPE, node("Gather", ["r", "one"], ["g"]), READ]
    assert side(nodes).bound.value("g") is None
    assert undetermined(nodes) == ["Shape r"]


def test_a_target_shape_may_be_any_product_and_any_size() -> None:
    """What comes of it shows in the shapes, which are compared at large sizes."""
    assert undetermined([*N, node("Mul", ["n", "n"], ["g"]), node("Expand", ["x", "g"], ["y"])]) == []
    assert undetermined([POOLED, SHAPE, node("Expand", ["x", "r"], ["y"])]) == []
    assert undetermined([*N, node("Div", ["n", "two"], ["g"]), node("Expand", ["x", "g"], ["y"])]) == ["Div g"]


def test_a_number_that_is_given_out_is_read() -> None:
    nodes = [*N, node("Mul", ["n", "n"], ["g"]), node("Relu", ["x"], ["y"])]
    assert undetermined(nodes, ["y"]) == []
    assert undetermined(nodes, ["y", "g"]) == ["Mul g"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ([*N, node("Add", ["n", "one"], ["g"])], True),
        ([*N, node("Add", ["n", "also_one"], ["g"])], True),
        ([*N, node("Sub", ["n", "one"], ["g"])], False),
        ([*N, node("Add", ["n", "two"], ["g"])], False),
        ([*N, node("Add", ["n", "one_one"], ["g"])], False),
        ([node("Shape", ["x"], ["s"], start=1), N[1], node("Add", ["n", "one"], ["g"])], False),
    ],
)
def test_numbers_are_the_same_that_are_computed_in_the_same_way(other: list[onnx.NodeProto], same: bool) -> None:
    known = _definition(side([*N, node("Add", ["n", "one"], ["g"]), READ]), "g")
    assert (_definition(side([*other, READ]), "g") == known) is same


def test_equal_bytes_are_no_equal_constants() -> None:
    one = side([node("Gather", ["x", "one"], ["y"])])
    assert _definition(one, "one") == _definition(one, "also_one")
    assert len({_definition(one, name) for name in ("one", "one_one", "one_as_float", "two")}) == 4


def _cut(most: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A convolution of pairs of rows, whose number must be even; of the batch no more than `most`."""
    nodes = [
        node("Reshape", ["x", "pairs"], ["r"]),
        node("Slice", ["r", "from", "most", "from"], ["q"]),
        node("Conv", ["q", "w"], ["y"]),
    ]
    constants = {"w": W, "from": np.asarray([0]), "most": most, "pairs": np.asarray([0, 4, -1, 2 * 9])}
    return chain(nodes, constants, ["n", 4, "h", 9])


def test_a_model_that_takes_no_odd_sizes_is_looked_at_at_even_ones() -> None:
    found = audited(_cut(np.asarray([2**62])), _cut(np.asarray([1000])))
    assert (found.verdict, caught(found)) == ("different", "L1"), found.reason
    assert "1009" in found.reason


def test_a_shape_that_depends_on_the_data_refutes_nothing() -> None:
    """The end is far behind the last row, whatever the data; how far is not known before they are."""
    nodes = [
        node("Conv", ["x", "w"], ["t"]),
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Clip", ["m", "low", "high"], ["l"]),
        node("Cast", ["l"], ["k"], to=TensorProto.INT64),
        node("Unsqueeze", ["k", "from"], ["e"]),
        node("Slice", ["t", "from", "e", "rows"], ["y"]),
    ]
    constants = numbers({"from": [0], "rows": [2], "low": np.float32(2e6), "high": np.float32(3e6)})
    models = [
        chain(each, {"w": W, **constants}, ("n", 4, "h", "v")) for each in ([node("Conv", ["x", "w"], ["y"])], nodes)
    ]
    for before, after in (models, models[::-1]):
        found = audited(before, after)
        assert found.verdict == "approximate", found.reason


def test_what_is_wrong_at_the_sizes_tried_is_refuted_whatever_is_not_determined() -> None:
    factor = [*N, node("Greater", ["n", "zero"], ["b"]), node("Cast", ["b"], ["f"], to=TensorProto.FLOAT)]
    after = [*factor, node("Conv", ["x", "w"], ["t"]), node("Add", ["t", "f"], ["y"])]
    free = ("n", 4, "h", "v")
    constants = {"w": W, "zero": np.asarray([0])}
    found = audited(chain([node("Conv", ["x", "w"], ["y"])], constants, free), chain(after, constants, free))
    assert (found.verdict, caught(found)) == ("different", "L1"), found.reason
