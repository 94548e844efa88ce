"""Wrong rewrites: every one must be called different, at the latest by the level its case names, or stay unproven."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from test_equivalence import rewrites as rw
from test_equivalence.nets import audited, caught, chain, net
from test_equivalence.wrong_folds import folded, normalized
from test_equivalence.wrong_graphs import nan_for_negative_values
from test_equivalence.wrong_pairs import W
from test_equivalence.wrong_suite import CASES, family
from test_equivalence.wrong_values import one_ulp_in_a_matrix, one_ulp_in_place
from test_equivalence.wrong_weights import on_tap, one_ulp_on_one_tap


def test_the_right_fold_is_accepted() -> None:
    """The wrong folds differ from it in one thing each."""
    before, weights = normalized()
    result = audited(before, folded(weights, 1e-3))
    assert (result.verdict, result.grade) == ("equivalent", "rounding"), result.reason


@pytest.mark.parametrize("name", list(CASES))
def test_wrong_rewrite_is_rejected(name: str) -> None:
    kind = CASES[name]
    result = audited(*kind.make())
    found = [level.detail for region in result.regions for level in region.levels]
    assert not result.accepted, found
    assert len(result.reason) > 20
    assert result.reason.rstrip(")").endswith(".")
    if kind.level:
        assert result.verdict == "different", result.reason
        first = caught(result)
        assert first is not None
        assert first <= kind.level, found


def test_the_suite_is_whole() -> None:
    assert len(CASES) >= 170
    assert sum(bool(kind.level) for kind in CASES.values()) >= 150
    for name, kind in CASES.items():
        assert family(kind) != "Others", name
        assert kind.what.endswith("."), f"{name} needs a sentence"
        assert kind.what[0].isupper() or kind.what.split()[0] in ("auto_pad", "1"), name


def test_a_model_is_equivalent_to_itself() -> None:
    before = net(batch="n")
    result = audited(before, rw.clone(before))
    assert (result.verdict, result.grade, result.regions) == ("equivalent", "bitwise", ())
    assert "identical" in result.reason


def test_one_ulp_names_the_weight_and_the_channel() -> None:
    before, after = one_ulp_on_one_tap()
    result = audited(before, after)
    assert "'w' and 't.regrouped'" in result.reason
    assert "output channel 3, input channel 2" in result.reason


@pytest.mark.parametrize("make", [one_ulp_in_place, one_ulp_in_a_matrix])
def test_one_ulp_in_place_names_the_initializer(make: object) -> None:
    result = audited(*make())  # type: ignore[operator]
    assert (result.verdict, caught(result)) == ("different", "L1")
    assert "'w'" in result.reason
    assert "'w'" in str(result.to_dict()["regions"][0]["reason"])


@pytest.mark.parametrize(
    ("nodes", "values", "name"),
    [
        ([helper.make_node("Conv", ["x", "w", "b"], ["y"])], {"w": W, "b": W[:, 0, 0, 0].copy()}, "b"),
        (
            [
                helper.make_node("Transpose", ["v"], ["w"], perm=[1, 0, 2, 3]),
                helper.make_node("Conv", ["x", "w"], ["y"]),
            ],
            {"v": np.ascontiguousarray(W.swapaxes(0, 1))},
            "v",
        ),
        (
            [helper.make_node("Conv", ["x", "w"], ["t"]), helper.make_node("PRelu", ["t", "s"], ["y"])],
            {"w": W, "s": W[:, 0, :1, :1].copy()},
            "s",
        ),
    ],
)
def test_one_ulp_of_whatever_constant_is_named(
    nodes: list[onnx.NodeProto], values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], name: str
) -> None:
    moved = values[name].copy()
    moved.reshape(-1)[1] = np.nextafter(moved.reshape(-1)[1], np.float32(9))
    shape: list[int | str] = ["n", 4, 7, 8]
    result = audited(chain(nodes, values, shape), chain(nodes, {**values, name: moved}, shape))
    assert (result.verdict, caught(result)) == ("different", "L1")
    assert f"'{name}'" in result.reason


def test_constants_that_make_up_for_each_other_are_not_refuted() -> None:
    """A scale moved out of a normalization into the matrix behind it: no operator changes."""
    rng = np.random.default_rng(0)
    scale, matrix = rng.uniform(0.5, 2, 8).astype(np.float32), rng.standard_normal((8, 5)).astype(np.float32)

    def model(scale: object, matrix: object, name: str) -> onnx.ModelProto:
        nodes = [
            helper.make_node("LayerNormalization", ["x", "s"], [name]),
            helper.make_node("MatMul", [name, "m"], ["y"]),
        ]
        values = {"s": np.asarray(scale, np.float32), "m": np.asarray(matrix, np.float32)}
        return chain(nodes, values, ["n", 3, 8])

    for name in ("t", "other"):
        before, after = model(scale, matrix, "t"), model(np.ones(8), scale[:, None] * matrix, name)
        assert audited(before, after).verdict == "approximate"


def test_nan_at_other_places_is_said() -> None:
    assert "NaN at other places" in audited(*nan_for_negative_values()).reason


def test_weights_beyond_float_range_do_not_crash_the_auditor() -> None:
    before, after = on_tap(lambda value: np.inf)
    assert audited(before, after).verdict == "different"


def test_a_tensor_in_another_format_is_not_a_wrong_rewrite() -> None:
    """The same values as raw bytes or as float_data are the same weight."""
    before = net()
    after = rw.clone(before)
    for tensor in after.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, value.shape, value.reshape(-1).tolist()))
    result = audited(before, after)
    assert (result.verdict, result.grade, result.regions) == ("equivalent", "bitwise", ())
