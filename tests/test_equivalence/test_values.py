"""What counts as the same value: types that NumPy does not know itself, operators that draw, numbers of small types."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rewriter
from programs import program
from rewriter.equivalence.numbering import content
from test_equivalence.nets import audited, chain

SMALL = [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2]


def test_equal_bytes_of_different_types_are_different_constants() -> None:
    made = [content(np.ones(3, np.uint8).view(dtype)) for dtype in SMALL]
    assert len(set(made)) == len(SMALL)
    assert content(np.ones(3, ml_dtypes.int4)) == content(np.ones(3, ml_dtypes.int4))
    assert content(np.ones(3, ml_dtypes.int4)) != content(np.ones((3, 1), ml_dtypes.int4))


def test_two_dropouts_that_drop_are_not_one() -> None:
    head = "c = Conv (x, w) d = Dropout (c, half, yes) "
    constants: dict[str, Any] = {"w": (8, 8, 1, 1), "half": np.float32(0.5), "yes": np.asarray(True)}
    before = program(f"{head} e = Dropout (c, half, yes) y = Sub (d, e)", opset=17, **constants)
    after = program(f"{head} y = Sub (d, d)", opset=17, **constants)
    assert rewriter.audit(before, after).verdict != "equivalent"


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16])
def test_a_change_in_a_small_type_is_no_crash(dtype: Any) -> None:
    values = np.linspace(-2, 2, 64).astype(dtype).reshape(8, 8, 1, 1)
    other = values.copy()
    other[0, 0] = dtype(0.5)

    def model(weights: Any) -> onnx.ModelProto:
        made = program("q = Cast <to = 1> (k) y = Conv (x, q)", opset=19, k=(1,))
        del made.graph.initializer[:]
        made.graph.initializer.append(numpy_helper.from_array(weights, "k"))
        return made

    assert model(values).graph.initializer[0].data_type == helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    assert rewriter.audit(model(values), model(values)).verdict == "equivalent"
    assert rewriter.audit(model(values), model(other)).verdict == "different"
    assert TensorProto.FLOAT == 1


def test_a_factor_taken_through_an_operator_is_rounding_unless_it_is_a_power_of_two() -> None:
    for factor, grade in ((0.3535, "rounding"), (0.25, "exact")):
        constants: dict[str, Any] = {"w": (8, 8, 1, 1), "v": (8, 8, 1, 1), "k": np.float32(factor)}
        head = "a = Conv (x, w) b = Conv (x, v) "
        before = program(f"{head} s = Mul (a, k) m = MatMul (s, b) y = Relu (m)", opset=17, **constants)
        after = program(f"{head} m = MatMul (a, b) s = Mul (m, k) y = Relu (s)", opset=17, **constants)
        found = rewriter.audit(before, after)
        assert (found.verdict, found.grade) == ("equivalent", grade), found.reason


def test_integers_that_differ_are_counted_among_all() -> None:
    """A Floor before the Cast: what is negative is rounded to the other side."""
    cast, floor = (helper.make_node(kind, ["x"], ["y"]) for kind in ("Cast", "Floor"))
    cast.attribute.append(helper.make_attribute("to", TensorProto.INT32))
    floor.output[0] = "t"
    later = helper.make_node("Cast", ["t"], ["y"], to=TensorProto.INT32)
    models = [chain(nodes, {"w": np.zeros(1, np.float32)}, (1, 8)) for nodes in ([cast], [floor, later])]
    for model in models:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    found = audited(*models)
    (said,) = [level.detail for region in found.regions for level in region.levels if level.level == "L3"]
    assert found.verdict == "different"
    assert re.fullmatch(r"On captured activations, 'y' differs in [1-8] of 8 elements\.", said)
