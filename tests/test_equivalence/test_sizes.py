"""Sizes that are not tried: what is right at two sizes of a free dimension, and wrong at others, is not accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from test_equivalence.nets import Array, audited, caught, chain
from test_equivalence.wrong_pairs import W

node = helper.make_node
FREE = ("n", 4, "h", "w")


def model(nodes: list[onnx.NodeProto], shape: tuple[int | str, ...] = FREE, **more: Array) -> onnx.ModelProto:
    return chain(nodes, {"w": W, **more}, list(shape))


def conv(**attributes: Any) -> onnx.ModelProto:
    return model([node("Conv", ["x", "w"], ["y"], **attributes)])


def pooled(**attributes: Any) -> onnx.ModelProto:
    pool = node("MaxPool", ["t"], ["y"], kernel_shape=[2, 2], strides=[2, 2], **attributes)
    return model([node("Conv", ["x", "w"], ["t"], pads=[1] * 4), pool])


SAME = conv(auto_pad="SAME_UPPER", strides=[2, 2])


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [
        (SAME, conv(pads=[0, 0, 1, 1], strides=[2, 2]), 32),
        (SAME, conv(pads=[1, 1, 1, 1], strides=[2, 2]), 9),
        (pooled(), pooled(ceil_mode=1), 8),
        (pooled(auto_pad="SAME_UPPER"), pooled(), 8),
    ],
)
def test_what_is_right_for_one_parity_only(before: onnx.ModelProto, after: onnx.ModelProto, size: int) -> None:
    result = audited(before, after, input_shapes={"x": (1, 4, size, size)})
    assert result.verdict == "different", result.reason


def test_a_size_that_the_model_fixes_has_one_parity() -> None:
    fixed = [model(list(made.graph.node), (1, 4, 32, 32)) for made in (SAME, conv(pads=[0, 0, 1, 1], strides=[2, 2]))]
    result = audited(*fixed)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


@pytest.mark.parametrize("axis", [0, 3])
def test_a_dimension_cut_off_beyond_the_sizes_tried(axis: int) -> None:
    ends: dict[str, Any] = {"lo": np.asarray([0]), "hi": np.asarray([1000]), "axis": np.asarray([axis])}
    after = model([node("Slice", ["x", "lo", "hi", "axis"], ["q"]), node("Conv", ["q", "w"], ["y"])], **ends)
    result = audited(conv(), after)
    assert (result.verdict, caught(result)) == ("different", "L1"), result.reason
    assert "1009" in result.reason


def _sized(operator: str, other: int, to: int = TensorProto.FLOAT) -> list[onnx.NodeProto]:
    """`f`, a number made of the batch; y is the convolution times 1 + f."""
    return [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Constant", [], ["k"], value_int=other),
        node(operator, ["n", "k"], ["g"]),
        node("Cast", ["g"], ["f"], to=to),
        node("Conv", ["x", "w"], ["t"]),
        node("Mul", ["t", "f"], ["m"]),
        node("Add", ["t", "m"], ["y"]),
    ]


@pytest.mark.parametrize(("operator", "other"), [("Equal", 16), ("Greater", 16), ("Div", 16), ("Less", 0)])
def test_a_factor_that_depends_on_the_batch(operator: str, other: int) -> None:
    """The last of them is right, and cannot be told from the others by two batches."""
    result = audited(conv(), model(_sized(operator, other), zero=np.asarray(0)))
    assert result.verdict == "approximate", result.reason
    assert "on the sizes of the inputs is not determined" in str([one.detail for one in result.regions[0].levels])


def numbers(constants: dict[str, Any]) -> dict[str, Any]:
    """The constants as arrays."""
    return {name: np.asarray(value) for name, value in constants.items()}


GATHERED = node("Gather", ["r", "zero"], ["g"])
TABLE = np.asarray([1, 1, 1, 1, 2, 2, 2, 2] + [3] * 2040)


@pytest.mark.parametrize(
    "factor",
    [
        [node("Gather", ["table", "n"], ["g"])],
        [node("Slice", ["x", "from", "to", "axis", "step"], ["p"]), node("Shape", ["p"], ["r"]), GATHERED],
        [node("Min", ["n", "four"], ["i"]), node("Sub", ["i", "three"], ["g"])],
    ],
    ids=["a table", "the size of a part", "a minimum"],
)
def test_a_factor_that_is_1_at_the_sizes_tried(factor: list[onnx.NodeProto]) -> None:
    """Each is 1 for a batch of 1 and of 3, and another number for larger ones."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), *factor]
    nodes += [node("Cast", ["g"], ["f"], to=TensorProto.FLOAT), node("Conv", ["x", "w"], ["t"])]
    constants = {
        "zero": [0],
        "table": TABLE,
        "four": [4],
        "three": [3],
        "from": [0],
        "to": [4000],
        "axis": [0],
        "step": [4],
    }
    made = model([*nodes, node("Mul", ["t", "f"], ["y"])], **numbers(constants))
    assert audited(conv(), made).verdict != "equivalent"


def test_a_target_that_depends_on_the_batch() -> None:
    """Expand makes 1 + n // 4 of each element, whose sum is that many times as much."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Div", ["n", "four"], ["q"]),
        node("Add", ["q", "one"], ["k"]),
        node("Concat", ["k", "one", "one", "one", "one"], ["to"], axis=0),
        node("Conv", ["x", "w"], ["t"]),
        node("Unsqueeze", ["t", "zero"], ["u"]),
        node("Expand", ["u", "to"], ["e"]),
        node("ReduceSum", ["e", "zero"], ["y"], keepdims=0),
    ]
    constants: dict[str, Any] = {"zero": [0], "one": [1], "four": [4]}
    made = model(nodes, **numbers(constants))
    assert audited(conv(), made).verdict != "equivalent"


def test_a_factor_that_both_have_is_none_of_the_rewrite() -> None:
    """The convolution says how large its kernel is, the factor is computed as before."""
    nodes = _sized("Greater", 16)
    other = [
        *nodes[:5],
        node("Conv", ["x", "v"], ["u"], kernel_shape=W.shape[2:]),
        node("Mul", ["u", "f"], ["m"]),
        node("Add", ["u", "m"], ["y"]),
    ]
    after = chain(other, {"v": W, "zero": np.asarray(0)}, list(FREE))
    result = audited(model(nodes, zero=np.asarray(0)), after)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_affine_arithmetic_on_sizes_is_determined_by_two_of_them() -> None:
    """Reshape to [n, 6, h', -1] and back, the sizes read at run time."""
    shape = [
        node("Conv", ["x", "w"], ["t"]),
        node("Shape", ["t"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["flat"], axis=0),
        node("Reshape", ["t", "flat"], ["f"]),
        node("Reshape", ["f", "s"], ["y"]),
    ]
    after = model(shape, zero=np.asarray([0]), rest=np.asarray([6, -1]))
    result = audited(conv(), after)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_sizes_multiplied_for_a_target_shape_show_in_the_shapes() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["t"]),
        node("Shape", ["t"], ["s"]),
        node("Split", ["s", "parts"], ["n", "c", "h", "v"], axis=0),
        node("Mul", ["h", "v"], ["p"]),
        node("Concat", ["n", "c", "p"], ["flat"], axis=0),
        node("Reshape", ["t", "flat"], ["f"]),
        node("Reshape", ["f", "s"], ["y"]),
    ]
    result = audited(conv(), model(nodes, parts=np.asarray([1, 1, 1, 1])))
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason


def test_a_coarser_type_inside_is_not_proven_by_integers() -> None:
    """ONNX Runtime's CPU kernels undo the casts, so that every run agrees to the last bit."""
    half = W.astype(np.float16)
    cast = [
        node("Cast", ["x"], ["q"], to=TensorProto.FLOAT16),
        node("Conv", ["q", "v"], ["t"]),
        node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    before = chain([node("Conv", ["x", "w"], ["y"])], {"w": half.astype(np.float32)}, list(FREE))
    after = chain(cast, {"w": half.astype(np.float32), "v": half}, list(FREE))
    result = audited(before, after)
    assert result.verdict in ("approximate", "different"), result.reason
    finer = [node("Cast", ["x"], ["q"], to=TensorProto.DOUBLE), node("Cast", ["q"], ["r"], to=TensorProto.FLOAT)]
    after = chain([*finer, node("Conv", ["r", "w"], ["y"])], {"w": half.astype(np.float32)}, list(FREE))
    assert audited(before, after).verdict == "equivalent"


def test_arithmetic_that_reads_its_own_results_twice_over_and_over() -> None:
    """Each step reads the one before twice: what is looked at must not double, too."""
    steps = [node("Mul", [f"n{i}", f"n{i}"], [f"n{i + 1}"]) for i in range(60)]
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n0"]),
        *steps,
        node("Cast", ["n60"], ["f"], to=TensorProto.FLOAT),
        node("Conv", ["x", "w"], ["t"]),
        node("Mul", ["t", "f"], ["y"]),
    ]
    renamed = [*nodes[:-2], node("Conv", ["x", "w"], ["u"]), node("Mul", ["u", "f"], ["y"])]
    result = audited(model(nodes, zero=np.asarray(0)), model(renamed, zero=np.asarray(0)))
    assert result.verdict != "different", result.reason
