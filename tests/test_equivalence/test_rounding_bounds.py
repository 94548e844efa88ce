"""The bounds on rounding are bounds, and allow no more than they must: depth, tiny numbers, long sums, integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fake_cuda import CUDA, faulty_cuda
from rewriter.equivalence import AuditOptions, cross
from rewriter.equivalence.forms import Unsupported
from rewriter.equivalence.inexact import is_rounding
from rewriter.equivalence.kernels import gamma, within
from rewriter.equivalence.numeric import _underflow, mismatch, own_terms
from rewriter.equivalence.oracle import Oracle, cut_of
from rewriter.equivalence.rounding import Rounding, bound_in, convs_in, estimate, roundings_in
from rewriter.model import Model
from rewriter.session import Runtime, open_session, run
from test_equivalence.nets import audited, chain

HALF = Rounding(2.0**-11, 2.0**-24)
Array = np.ndarray[Any, Any]


def model(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], shape: Sequence[int], dtype: type = np.float32
) -> onnx.ModelProto:
    """`x` of `shape` → nodes → `y`."""
    return chain(nodes, {name: np.asarray(value, dtype) for name, value in weights.items()}, shape)


def branches(count: int, dtype: type = np.float32) -> onnx.ModelProto:
    """`count` 1×1 convolutions side by side, concatenated and moved."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Conv", ["x", f"w{i}"], [f"t{i}"]) for i in range(count)]
    nodes.append(helper.make_node("Concat", [f"t{i}" for i in range(count)], ["c"], axis=1))
    nodes.append(helper.make_node("Transpose", ["c"], ["y"], perm=[0, 1, 3, 2]))
    return model(nodes, {f"w{i}": rng.standard_normal((2, 4, 1, 1)) for i in range(count)}, [1, 4, 3, 5], dtype)


def test_what_runs_side_by_side_rounds_once() -> None:
    """Counted one after another, 128 branches would have a bound of 14 % in TF32."""
    few, many = (cut_of(branches(count)) for count in (1, 128))
    assert convs_in(many) == convs_in(few) == 1
    assert roundings_in(many) == roundings_in(few) == 1
    tf32 = Rounding(2.0**-24, 2.0**-24, 2.0**-11)
    assert bound_in(many, tf32, 12) == bound_in(few, tf32, 12) < 1.1 * 2.0**-10


def test_one_after_another_and_both_factors_count() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["w", "s"], ["v"]),
        helper.make_node("Conv", ["a", "v"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "g", "g", "g", "g"], ["n"]),
        helper.make_node("Add", ["n", "x"], ["y"]),
    ]
    weights = {"w": np.ones((4, 4, 1, 1)), "s": np.ones(1), "g": np.ones(4)}
    found = cut_of(model(nodes, weights, [1, 4, 3, 3]))
    assert convs_in(found) == 2
    assert roundings_in(found) == 1 + 1 + 1 + 4 + 1
    nodes[-1] = helper.make_node("Mul", ["n", "n"], ["y"])
    assert roundings_in(cut_of(model(nodes, weights, [1, 4, 3, 3]))) == 2 * (1 + 1 + 1 + 4) + 1


def test_only_graphs_that_agree_exactly_are_excused() -> None:
    """4,096 products of 100: kernels may be off by hundreds there, graphs by nothing."""
    weights = {"w": np.full((1, 4096, 1, 1), 10.0), "b": np.zeros(1)}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    right = cut_of(model([node], weights, [1, 4096, 1, 1]))
    wrong = cut_of(model([node], {**weights, "b": np.ones(1)}, [1, 4096, 1, 1]))
    feeds = {"x": np.full((1, 4096, 1, 1), 10, np.float32)}
    exact = {"y": np.full((1, 1, 1, 1), 409600, np.float32)}
    rounded = {"y": exact["y"] + 1}
    on = Runtime()
    assert is_rounding([(right, on), (right, on)], (exact, rounded), feeds)
    assert not is_rounding([(right, on), (wrong, on)], (exact, rounded), feeds)
    assert not is_rounding([(right, on), (right, on)], (exact, {"y": exact["y"] * 1.01}), feeds)


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_in_float16_holds(seed: int) -> None:
    """Scaled, summed over an axis and convolved again: the error of the runtime never exceeds it."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["a", "s"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    sizes = {"w": (16, 16, 3, 3), "s": (1, 16, 1, 1), "v": (3, 16, 1, 1)}
    made = model(nodes, {n: rng.standard_normal(s) for n, s in sizes.items()}, [1, 16, 6, 6], np.float16)
    x = rng.standard_normal((1, 16, 6, 6)).astype(np.float16)
    cut = cut_of(made)
    exact, scale = (Oracle(cut, absolute=absolute)({"x": x}, cut.weights)["y"] for absolute in (False, True))
    found = run(open_session(made, Runtime(level="disable")), {"x": x})["y"]
    error = np.abs(found.astype(np.float64) - exact)
    assert (error <= bound_in(cut, HALF, estimate(cut)) * scale + 2.0**-24).all()
    assert error.max() > 0


def test_a_bound_that_allows_anything_is_none() -> None:
    assert gamma(1000, 2.0**-11) == np.inf
    assert gamma(24, 2.0**-8) < 0.11
    assert HALF.bound(100, 2000, 1) == np.inf
    with pytest.raises(Unsupported, match="too many constants"):
        within(np.asarray([0.0, 0.1]), gamma(np.asarray([1000.0, 1000.0]), 2.0**-11), 2.0**-11, str)
    assert within(np.zeros(1), gamma(np.asarray([1000.0]), 2.0**-11), 2.0**-11, str) == 0


def test_many_combined_biases_are_not_proven_by_a_bound_that_allows_anything() -> None:
    """1,024 float16 biases summed at run time, or before by a rewrite that is off by a tenth."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((1024, 1, 1, 1)), rng.uniform(0.001, 0.002, 1024)
    before = model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["t"], group=1024),
            helper.make_node("ReduceSum", ["t", "axes"], ["y"]),
        ],
        {"w": weight, "b": bias},
        [1, 1024, 2, 2],
        np.float16,
    )
    before.graph.initializer.append(numpy_helper.from_array(np.asarray([1]), "axes"))
    total = before.graph.initializer[1]
    right = numpy_helper.to_array(total).astype(np.float64).sum()
    after = model(
        [helper.make_node("Conv", ["x", "v", "c"], ["y"])],
        {"v": weight.reshape(1, 1024, 1, 1), "c": np.asarray([1.1 * right])},
        [1, 1024, 2, 2],
        np.float16,
    )
    (region,) = audited(before, after).regions
    assert region.levels[0].outcome != "pass"


@pytest.mark.parametrize("off", [1.2, 1.5])
def test_small_float16_outputs_are_held_to_one_rounding(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 products, but one rounding to float16: 256 of its smallest number would be all of the output."""
    weight = np.random.default_rng(0).standard_normal((8, 256, 1, 1)) * 1e-6
    made = model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": weight}, [2, 256, 3, 3], np.float16)
    faulty_cuda(monkeypatch, outputs=lambda value: np.asarray(value * off, value.dtype))
    (region,) = cross(Model.load(made), Runtime(), CUDA, AuditOptions()).regions
    assert region.levels[2].outcome == "fail"


def test_bfloat16_has_smaller_numbers_than_float16() -> None:
    cut = cut_of(branches(1, ml_dtypes.bfloat16))
    lost = [_underflow(cut, HALF, 100, np.ones(1, dtype)) for dtype in (np.float16, ml_dtypes.bfloat16, np.int64)]
    assert lost[0] == 100 * 2.0**-24
    assert lost[1] == 100 * 2.0**-133
    assert lost[2] == 0


def test_whole_numbers_inside_a_region_are_equal_or_wrong() -> None:
    """Sums that are negative, off by one: a fraction of them is no bound."""

    def shifted(by: int) -> onnx.ModelProto:
        nodes = [helper.make_node("Add", ["x", "c"], ["t"]), helper.make_node("Cast", ["t"], ["y"], to=1)]
        x = helper.make_tensor_value_info("x", TensorProto.INT32, [3, 12])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 12])
        graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.full(12, by, np.int32), "c")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    (region,) = audited(shifted(-50), shifted(-49)).regions
    assert region.outputs == ("t",)
    assert (region.verdict, region.levels[-1].level) == ("different", "L3")


def test_other_places_of_nan_are_allowed_as_often_as_the_original_has_them() -> None:
    old = np.zeros(100, np.float32)
    control, all_nan = old.copy(), np.full(100, np.nan, np.float32)
    control[0] = np.nan
    assert mismatch(old, all_nan, control) == "is NaN at other places"
    assert mismatch(old, np.where(np.arange(100) == 7, np.nan, old).astype(np.float32), control) == ""


def test_a_limit_that_no_draw_reaches_is_not_proven() -> None:
    """Min(y, 3.2 · 3.2 · …): integers in place of the factors make a limit that integer outputs stay far below."""
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    factors = {f"k{i}": np.asarray(3.2 + i / 100) for i in range(10)}
    first = [helper.make_node("Conv", ["x", "w"], ["t"], pads=[1] * 4)]
    before = model([*first, helper.make_node("Relu", ["t"], ["y"])], {"w": weight}, [2, 4, 6, 7])
    nodes = [helper.make_node("Conv", ["x", "w"], ["u"], pads=[1] * 4), helper.make_node("Relu", ["u"], ["r"])]
    nodes.append(helper.make_node("Mul", ["k0", "k1"], ["p1"]))
    nodes += [helper.make_node("Mul", [f"p{i - 1}", f"k{i}"], [f"p{i}"]) for i in range(2, 10)]
    after = model([*nodes, helper.make_node("Min", ["r", "p9"], ["y"])], {"w": weight, **factors}, [2, 4, 6, 7])
    assert audited(before, after).verdict == "approximate"


def test_an_error_is_said_to_be_of_sums_that_cancel_only_where_these_explain_all_of_it() -> None:
    rest, original = np.asarray([1e-6, 2e-5]), np.asarray([1.0, 1.0])
    said = own_terms(rest, 1e-7, np.asarray([10.0, 300.0]), original)
    assert "300 times as large as the original's" in said
    assert own_terms(rest, 1e-7, np.asarray([9.0, 300.0]), original) == ""
    assert "larger than the original's" in own_terms(rest, 1e-7, np.asarray([10.0, 300.0]), original * 0)
    assert own_terms(rest, 1e-7, np.asarray([300.0]), original) == ""
