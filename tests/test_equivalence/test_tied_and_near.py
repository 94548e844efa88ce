"""What right rewrites of channels once failed on: near channels, tied inputs, slopes, BatchNormalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rewriter
from models.emit import Array
from programs import program
from rewriter.equivalence.oracle import Oracle, cut_of
from rewriter.equivalence.static import _nearest

RNG = np.random.default_rng(0)


def weights(*shape: int) -> Array:
    made: Array = RNG.standard_normal(shape).astype(np.float32)
    return made


def test_a_channel_is_found_by_the_nearest_signature() -> None:
    """Padding has the signature 0: a channel that nearly has it, too, is not taken for it, nor are twins for one."""
    many = np.array([-3.0, 0.0, 0.0, 1e-9, 1e-9, 2.0])
    assert _nearest(np.array([-3.0, 1e-9, 1e-9, 2.0]), many).tolist() == [0, 3, 4, 5]
    assert _nearest(np.array([0.0, 2.0]), many).tolist() == [1, 5]


def test_a_concat_that_stays_and_its_parts_are_not_independent() -> None:
    body = """
        a = Conv (x, w) b = Conv (x, v) r = Concat <axis = 1> (a, b) p, q = Split <axis = 1> (r, s)
        d = Conv (p, u) e = Conv (q, t) f = Conv (r, o) y = Sum (d, e, f)
    """
    shapes = {"w": (6, 8, 1, 1), "v": (3, 8, 1, 1), "u": (4, 6, 1, 1), "t": (4, 3, 1, 1), "o": (4, 9, 1, 1)}
    constants: dict[str, Any] = {name: weights(*shape) for name, shape in shapes.items()}
    model = program(body, s=np.array([6, 3]), **constants)
    found = rewriter.rewrite(model, ["align-concat"], settings={"align-concat": {"way": "pieces"}}).report
    assert (found.changed, found.verdict) == (True, "equivalent")


def test_slopes_go_with_their_channels() -> None:
    body = "c = Conv (x, w) s = Gather <axis = 1> (c, o) e = PRelu (s, n) y = Conv (e, v)"
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    model = program(body, w=weights(8, 8, 1, 1), v=weights(6, 8, 1, 1), n=weights(8, 1, 1), o=order)
    right = rewriter.rewrite(model, ["absorb-shuffle"])
    assert (right.changed, right.report.verdict) == (True, "equivalent")
    wrong = right.model
    (slopes,) = [entry for entry in wrong.graph.initializer if list(entry.dims) == [8, 1, 1]]
    slopes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(slopes)[[1, 0, *range(2, 8)]], slopes.name))
    found = rewriter.audit(model, wrong)
    assert found.verdict == "different"
    static = found.regions[0].level("L1")
    assert static is not None
    assert static.outcome != "pass"


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
def test_the_oracle_normalizes_as_inference_does(opset: int) -> None:
    """ONNX's own reference mixes statistics of the batch in at some of these."""
    values = {name: weights(8) for name in "sbm"} | {"v": np.full(8, 1e-2, np.float32)}
    x = weights(2, 8, 7, 9)
    inputs = [onnx.helper.make_tensor_value_info("x", 1, x.shape)]
    outputs = [onnx.helper.make_tensor_value_info("y", 1, x.shape)]
    node = onnx.helper.make_node("BatchNormalization", ["x", *values], ["y"], epsilon=1e-3)
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, tensors)
    cut = cut_of(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=7))
    found = Oracle(cut)({"x": x}, cut.weights)["y"]
    s, b, m, v = (value.astype(np.float64)[:, None, None] for value in values.values())
    assert np.allclose(found, (x - m) / np.sqrt(v + 1e-3) * s + b, rtol=1e-6, atol=1e-6)  # epsilon is a float32
