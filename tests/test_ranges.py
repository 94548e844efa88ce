"""Ranges that generated inputs are drawn from, and tolerances that outputs are compared with."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from onnx import TensorProto, helper

from rewriter.equivalence.inputs import RECIPES, feeds
from rewriter.equivalence.tolerances import is_within, tolerance_of
from rewriter.errors import BadInput
from rewriter.feeds import check_names, representative
from rewriter.options import RunOptions, Tolerance, parse_ranges, parse_tolerances
from rewriter.ranges import check_ranges
from test_samples import add_model

KINDS = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.INT32,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_stays_in_the_range(kind: int, recipe: str) -> None:
    value = helper.make_tensor_value_info("x", kind, [4000])
    found = feeds([value], {"x": (4000,)}, recipe, 3, ranges={"x": (2.5, 9)})["x"]  # type: ignore[arg-type]
    assert found.dtype == helper.tensor_dtype_to_np_dtype(kind)
    values = found.astype(np.float64)
    assert values.min() >= 2.5
    assert values.max() <= 9
    assert values.max() > 8 > 5 > values.min()
    whole = recipe == "integers" or kind in (TensorProto.INT64, TensorProto.UINT8, TensorProto.INT32)
    if whole and recipe != "large":
        assert set(values) == {3, 4, 5, 6, 7, 8, 9}
    if recipe == "large":
        assert len(set(values)) == 2
    if recipe == "normal" and not whole:
        assert np.mean(np.abs(values - 5.75) < 6.5 / 6) == pytest.approx(0.683, abs=0.04)


def test_other_inputs_are_drawn_as_without_a_range() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [50]) for name in "ab"]
    shapes = {"a": (50,), "b": (50,)}
    ranged = feeds(values, shapes, "large", 0, ranges={"a": (0, 1)})
    assert np.abs(ranged["a"]).max() == 1
    assert np.abs(ranged["b"]).max() > 50
    general = feeds(values, shapes, "large", 0, ranges={"": (0, 1), "b": (2, 3)})
    assert set(general["a"]) == {0, 1}
    assert set(general["b"]) == {2, 3}


def test_the_inputs_that_models_are_timed_on_are_in_the_range() -> None:
    model = add_model()
    found = representative(model, RunOptions(ranges={"": (5, 9)})).feeds
    assert all(array.min() >= 5 and array.max() <= 9 for array in found.values())
    assert representative(model, RunOptions()).feeds["x"].max() < 5


@pytest.mark.parametrize(
    ("kind", "ranges", "sentence"),
    [
        (TensorProto.FLOAT, {"y": (0, 1)}, "names 'y', but the model's inputs are: 'x'"),
        (TensorProto.FLOAT16, {"x": (0, 1e6)}, "type float16"),
        (TensorProto.FLOAT16, {"": (0, 1e-9)}, "or give it one of its own (x:LOW,HIGH)."),
        (TensorProto.UINT8, {"x": (-1, 5)}, "type uint8"),
        (TensorProto.INT64, {"x": (0.2, 1.5)}, "at least two of its values."),
        (TensorProto.BOOL, {"x": (0, 1)}, "which is bool: there is no range of that"),
        (TensorProto.STRING, {"x": (0, 1)}, "which is string"),
    ],
)
def test_ranges_that_do_not_fit(kind: int, ranges: dict[str, tuple[float, float]], sentence: str) -> None:
    value = helper.make_tensor_value_info("x", kind, [2])
    with pytest.raises(BadInput) as caught:
        check_ranges([value], ranges)
    assert sentence in str(caught.value)


def test_a_general_range_is_not_for_what_has_none() -> None:
    check_ranges([helper.make_tensor_value_info("x", TensorProto.BOOL, [2])], {"": (0, 1)})


def test_ranges_are_read() -> None:
    assert parse_ranges(["0,1", "x:-2,3.5", "a:0:[1e-3, 2]"]) == {"": (0, 1), "x": (-2, 3.5), "a:0": (1e-3, 2)}


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["1,0"], "--val-range 1,0 is empty: the first number must be below the second"),
        (["x:2,2"], "--val-range x:2,2 is empty"),
        (["0,inf"], "--val-range 0,inf is not finite"),
        (["nan,1"], "is not finite"),
        (["0"], "not of the form [NAME:]LOW,HIGH"),
        (["x:0,1,2"], "not of the form"),
        (["x:0,b"], "not of the form"),
        (["0,1", "0,2"], "the range of all inputs twice"),
        (["x:0,1", "x:0,2"], "the range of 'x' twice"),
    ],
)
def test_ranges_that_are_none(texts: list[str], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_ranges(texts)
    assert sentence in str(caught.value)


def test_ranges_and_tolerances_are_checked_from_python_too() -> None:
    with pytest.raises(BadInput, match="the range of the input 'x' is empty"):
        RunOptions(ranges={"x": (1, 0)})
    with pytest.raises(BadInput, match="the tolerance -1 of all outputs"):
        RunOptions(tolerances={"": Tolerance(rtol=-1)})
    with pytest.raises(BadInput, match="a tolerance is for 'z', but the model's outputs are: 'x out', 'ids out'"):
        check_names(add_model(), RunOptions(tolerances={"z": Tolerance(rtol=1)}))


def test_tolerances_are_read_and_an_outputs_own_wins() -> None:
    found = parse_tolerances(["1e-3", "y:0:0.5"], ["y:0:1"])
    assert found == {"": Tolerance(1e-3, None), "y:0": Tolerance(0.5, 1.0)}
    assert tolerance_of(found, "y:0") == (0.5, 1.0)
    assert tolerance_of(found, "other") == (1e-3, 1e-5)
    assert tolerance_of({"": Tolerance(atol=3)}, "y") == (1e-5, 3)
    assert tolerance_of({"": Tolerance(atol=2), "y": Tolerance(rtol=1)}, "y") == (1, 2)
    assert tolerance_of({"y": Tolerance(1, 1)}, "other") is None
    for texts in (["-1"], ["y:nan"], ["inf"], ["y:"], ["1", "2"]):
        with pytest.raises(BadInput, match="--rtol"):
            parse_tolerances(texts, [])


def test_within_a_tolerance_is_as_in_numpy() -> None:
    special = [0.0, -0.0, 1.0, 1.1, -1.0, 100.0, 101.0, math.inf, -math.inf, math.nan]
    for old, new in itertools.product(special, special):
        for rtol, atol in itertools.product((0, 0.01, 0.2), (0, 0.5)):
            x, y = np.array([1, old]), np.array([1, new])
            expected = bool(np.allclose(y, x, rtol=rtol, atol=atol, equal_nan=True))
            assert is_within(x, y, rtol, atol) is expected, (old, new, rtol, atol)
    assert not is_within(np.zeros(2), np.zeros(3), 1, 1)
    assert is_within(np.zeros(0), np.zeros(0), 0, 0)
    large = np.zeros(1 << 18)
    wrong = large.copy()
    wrong[-1] = 1
    assert not is_within(large, wrong, 0, 0.5)
