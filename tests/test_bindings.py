"""Sizes for unknown dimensions: what is given wins, then what constants imply, then batch sizes and primes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphs import exotic_model, model, node, several_convs_ir3, tensor, value, weights
from models.zoo.refill import FOLDER
from rewriter.bindings import EVEN_SIZES, PRIMES, SMALL_PRIMES, Binding, describe, find_bindings
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.shapes import Shape

Dims = list[int | str | None]
FIRST, SECOND = PRIMES[:2]
THIRD, FOURTH = EVEN_SIZES[:2]


def conv(dims: Dims, *further: onnx.NodeProto, initializers: tuple[onnx.TensorProto, ...] = ()) -> Model:
    """x of the given dimensions -> Conv 3 to 8 channels, pad 1 -> c, and further nodes."""
    first = node("Conv", ["x", "w"], ["c"], pads=[1] * 4)
    made = model([first, *further], [value("x", dims)], [value("y", None)], [weights("w", 8, 3, 3, 3), *initializers])
    return Model.load(made)


def shapes(bindings: tuple[Binding, ...]) -> list[Shape]:
    return [binding.shapes["x"] for binding in bindings]


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ([1, 3, 20, 30], [(1, 3, 20, 30)]),
        (["N", 3, 20, 30], [(1, 3, 20, 30), (3, 3, 20, 30)]),
        ([None, 3, 20, 30], [(1, 3, 20, 30), (3, 3, 20, 30)]),
        ([-1, 3, 0, 30], [(1, 3, FIRST, 30), (3, 3, THIRD, 30)]),
        (["N", 3, "H", "W"], [(1, 3, FIRST, SECOND), (3, 3, THIRD, FOURTH)]),
        (["N", 3, "S", "S"], [(1, 3, FIRST, FIRST), (3, 3, THIRD, THIRD)]),
        (["N", "C", "H", "W"], [(1, 3, FIRST, SECOND), (3, 3, THIRD, FOURTH)]),
        ([None, None, None, None], [(1, 3, FIRST, SECOND), (3, 3, THIRD, FOURTH)]),
        ([2, 3, "H", None], [(2, 3, FIRST, SECOND), (2, 3, THIRD, FOURTH)]),
    ],
)
def test_free_dimensions(dims: Dims, expected: list[Shape]) -> None:
    found = find_bindings(conv(dims))
    assert shapes(found) == expected
    free = any(not isinstance(size, int) or size <= 0 for size in dims)
    assert [dict(binding.chosen) for binding in found] == [{"x": shape} if free else {} for shape in expected]
    assert [binding.bound.shape("c") for binding in found] == [(shape[0], 8, *shape[2:]) for shape in expected]


def test_other_batches() -> None:
    assert shapes(find_bindings(conv(["N", 3, 20, 30]), {}, (2, 5))) == [(2, 3, 20, 30), (5, 3, 20, 30)]
    assert shapes(find_bindings(conv([4, 3, 20, 30]), {}, (2, 5))) == [(4, 3, 20, 30)]


@pytest.mark.parametrize("baked", [14, 56])
def test_sizes_baked_into_shape_arithmetic_win_over_primes(baked: int) -> None:
    """x [N, C, H, W] -> Reshape [N, 2, 4, 14, 14]: the input must be 14, whatever it is called."""
    further = [
        node("Shape", ["c"], ["s"]),
        node("Slice", ["s", "zero", "one"], ["n"]),
        node("Concat", ["n", "rest"], ["t"], axis=0),
        node("Reshape", ["c", "t"], ["y"]),
    ]
    rest = np.array([2, 4, baked, baked], np.int64)
    constants = (tensor("rest", rest), tensor("zero", np.array([0])), tensor("one", np.array([1])))
    found = find_bindings(conv([None, None, None, None], *further, initializers=constants))
    assert shapes(found) == [(1, 3, baked, baked), (3, 3, baked, baked)]
    assert [binding.bound.problems for binding in found] == [(), ()]
    assert [binding.bound.shape("y") for binding in found] == [(n, 2, 4, baked, baked) for n in (1, 3)]


def test_a_baked_size_may_be_that_of_a_later_stage() -> None:
    further = [node("MaxPool", ["c"], ["p"], kernel_shape=[8, 8], strides=[8, 8]), node("Reshape", ["p", "t"], ["y"])]
    target = tensor("t", np.array([0, 8, 28, 28], np.int64))
    found = find_bindings(conv(["N", 3, "H", "W"], *further, initializers=(target,)))
    assert shapes(found) == [(1, 3, 224, 224), (3, 3, 224, 224)]


def test_a_table_of_positions_implies_its_size() -> None:
    further = [node("Add", ["c", "table"], ["y"])]
    found = find_bindings(conv(["N", 3, "H", "W"], *further, initializers=(weights("table", 1, 8, 14, 14),)))
    assert shapes(found) == [(1, 3, 14, 14), (3, 3, 14, 14)]


def test_a_classifier_implies_the_usual_size_that_fits() -> None:
    further = [
        node("MaxPool", ["c"], ["p"], kernel_shape=[32, 32], strides=[32, 32]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g"], ["y"]),
    ]
    found = find_bindings(conv(["N", 3, "H", "W"], *further, initializers=(weights("g", 392, 2),)))
    assert shapes(found) == [(1, 3, 224, 224), (3, 3, 224, 224)]


def test_where_nothing_fits_the_problems_are_told() -> None:
    further = [node("Reshape", ["c", "t"], ["y"])]
    target = tensor("t", np.array([7, 11, 13, 17, 19], np.int64))
    (found, _) = find_bindings(conv(["N", 3, "H", "W"], *further, initializers=(target,)))
    assert len(found.bound.problems) == 1
    assert "cannot turn" in found.bound.problems[0]


def test_several_inputs_share_named_sizes() -> None:
    inputs = [value("a", ["N", "L", "D"]), value("b", ["N", "L", "E"]), value("c", ["L"]), value("d", ["M", "N"])]
    made = Model.load(model([node("Relu", ["a"], ["y"])], inputs, [value("y", None)]))
    one, three = find_bindings(made)
    assert one.shapes == {"a": (1, 67, 71), "b": (1, 67, 73), "c": (67,), "d": (1, 1)}
    assert three.shapes == {"a": (3, 94, 106), "b": (3, 94, 118), "c": (94,), "d": (3, 3)}


def test_more_free_axes_than_primes() -> None:
    made = model([node("Relu", ["x"], ["y"])], [value("x", ["N", None, None, None, None, None])], [value("y", None)])
    assert find_bindings(Model.load(made))[0].shapes["x"] == (1, *PRIMES, PRIMES[-1])


def test_volumes_get_small_sizes() -> None:
    made = model([node("Relu", ["x"], ["y"])], [value("x", ["N", 3, "D", "H", "W"])], [value("y", None)])
    assert find_bindings(Model.load(made))[0].shapes["x"] == (1, 3, *SMALL_PRIMES[:3])


def test_inputs_that_are_no_tensors_or_have_no_rank_get_no_shape() -> None:
    (found,) = find_bindings(Model.load(exotic_model()))
    assert found.shapes == {"x": (2, 8, 12, 12), "flag": ()}
    made = model([node("Relu", ["x"], ["y"])], [value("x", None)], [value("y", None)])
    (unknown,) = find_bindings(Model.load(made))
    assert (unknown.shapes, unknown.chosen, unknown.bound.shape("y")) == ({}, {}, None)
    assert find_bindings(Model.load(made), {"x": (2, 5)})[0].bound.shape("y") == (2, 5)


def test_initializers_are_no_inputs() -> None:
    (found,) = find_bindings(Model.load(several_convs_ir3()))
    assert found.shapes == {"x": (2, 8, 6, 6)}
    for name in ("w", "shape"):
        with pytest.raises(BadInput, match=f"names '{name}', which is no input of the model; its inputs are 'x'"):
            find_bindings(Model.load(several_convs_ir3()), {name: (1,)})


# What the user gives.


def test_a_given_shape_wins() -> None:
    (found,) = find_bindings(conv(["N", 3, "H", "W"]), {"x": (5, 3, 20, 30)})
    assert (found.shapes, found.chosen) == ({"x": (5, 3, 20, 30)}, {})
    assert found.bound.shape("c") == (5, 8, 20, 30)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"z": (1,)}, "--input-shape names 'z', which is no input of the model; its inputs are 'x'."),
        ({"x": (1, 3, 20)}, "--input-shape x:1,3,20 does not fit the declared [N, 3, 20, ?]."),
        ({"x": (1, 4, 20, 30)}, "--input-shape x:1,4,20,30 does not fit the declared [N, 3, 20, ?]."),
        ({"x": (1, 3, 21, 30)}, "--input-shape x:1,3,21,30 does not fit the declared [N, 3, 20, ?]."),
        ({"x": (0, 3, 20, 30)}, "--input-shape x:0,3,20,30 does not fit the declared [N, 3, 20, ?]."),
        ({"x": (1, 3, 20, -1)}, "--input-shape x:1,3,20,-1 does not fit the declared [N, 3, 20, ?]."),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, Shape], words: str) -> None:
    with pytest.raises(BadInput) as error:
        find_bindings(conv(["N", 3, 20, None]), given)
    assert str(error.value) == words


def test_a_model_without_inputs_says_so() -> None:
    made = model([node("Relu", ["c"], ["y"])], [], [value("y", [1])], [tensor("c", np.zeros(1, np.float32))])
    assert [binding.shapes for binding in find_bindings(Model.load(made))] == [{}]
    with pytest.raises(BadInput, match="its inputs are none"):
        find_bindings(Model.load(made), {"x": (1,)})


def test_descriptions() -> None:
    assert describe(value("x", ["N", 3, None, -1])) == "[N, 3, ?, ?]"
    assert describe(value("x", [])) == "[]"
    assert describe(value("x", None)) == "unknown rank"
    assert describe(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])) == "unknown rank"


def test_bindings_are_found_once_and_are_the_same_each_time() -> None:
    made = conv(["N", 3, "H", "W"])
    assert find_bindings(made) is find_bindings(made)
    again = find_bindings(conv(["N", 3, "H", "W"]))
    assert [binding.shapes for binding in again] == [binding.shapes for binding in find_bindings(made)]


@pytest.mark.parametrize("name", ["tf_resnext50_depthwise_sum", "resnext50_32x4d_dyn", "keras_mobilenet"])
def test_zoo_graphs_with_an_open_batch(name: str) -> None:
    found = find_bindings(Model.load(FOLDER / f"{name}.onnx"), {}, (2, 3))
    assert [next(iter(binding.shapes.values()))[0] for binding in found] == [2, 3]
    assert all(binding.bound.problems == () for binding in found)
