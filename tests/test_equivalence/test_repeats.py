"""Resize as the auditor sees it: data movement where it repeats whole elements, by any spelling; no proof elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import rewriter
from programs import program
from rewriter.equivalence.forms import Unsupported
from rewriter.equivalence.repeats import interpolates, repeated

HEAD = "c = Conv (x, w) g = GlobalAveragePool (c) s = Sigmoid (g) "
FLOOR = 'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
NODES = [
    (f'<mode = "nearest", {FLOOR}>', [1, 1, 2, 3], (1, 2, 2, 3)),
    ('<mode = "nearest">', [1, 1, 2, 3], (1, 2, 2, 3)),
    ('<mode = "nearest", nearest_mode = "round_prefer_ceil">', [1, 1, 4, 3], (1, 2, 2, 3)),
    ('<mode = "nearest", coordinate_transformation_mode = "align_corners">', [1, 1, 5, 5], (1, 2, 1, 1)),
    ('<mode = "nearest", nearest_mode = "ceil">', [1, 1, 5, 2.5], (1, 2, 1, 1)),
    (f'<mode = "nearest", {FLOOR}>', [1, 1, 1, 2], (1, 2, 3, 3)),
]
ROUNDED = [
    ('<mode = "linear">', [1, 1, 2, 2], (1, 2, 2, 2)),
    (f'<mode = "nearest", {FLOOR}>', [1, 1, 2.5, 1], (1, 2, 2, 2)),
    (f'<mode = "nearest", {FLOOR}>', [1, 1, 0.5, 1], (1, 2, 4, 2)),
    ('<mode = "nearest", nearest_mode = "ceil">', [1, 1, 2, 1], (1, 2, 2, 2)),
    ('<mode = "nearest", coordinate_transformation_mode = "align_corners">', [1, 1, 2, 1], (1, 2, 2, 2)),
]


def one(attributes: str, scales: list[float], shape: tuple[int, ...]) -> onnx.ModelProto:
    x = f"float[{','.join(map(str, shape))}]"
    return program(f'y = Resize {attributes} (x, "", f)', x=x, opset=18, f=np.array(scales, np.float32))


@pytest.mark.parametrize(("attributes", "scales", "shape"), NODES)
def test_it_is_what_the_reference_computes(attributes: str, scales: list[float], shape: tuple[int, ...]) -> None:
    model = one(attributes, scales, shape)
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    outputs: Any = ReferenceEvaluator(model).run(None, {"x": data})
    expected = np.asarray(outputs[0])
    node = model.graph.node[0]
    found = repeated(node, shape, expected.shape, [None, np.array(scales, np.float32)])
    assert np.array_equal(data.reshape(-1)[found - 1], expected)
    assert not interpolates(node)


@pytest.mark.parametrize(("attributes", "scales", "shape"), ROUNDED)
def test_what_rounds_positions_or_interpolates_is_not_followed(
    attributes: str, scales: list[float], shape: tuple[int, ...]
) -> None:
    model = one(attributes, scales, shape)
    sizes = [int(size * scale) for size, scale in zip(shape, scales, strict=True)]
    with pytest.raises(Unsupported):
        repeated(model.graph.node[0], shape, tuple(sizes), [None, np.array(scales, np.float32)])


def gated(resize: str, **constants: Any) -> onnx.ModelProto:
    shapes: dict[str, Any] = {"w": (8, 8, 1, 1), "v": (4, 8, 1, 1)}
    body = f"{HEAD} {resize} y = Conv (m, v)"
    return program(body, opset=18, x="float[N,8,4,4]", **shapes, **constants)


PLAIN = gated("m = Mul (c, s)")


@pytest.mark.parametrize(
    ("resize", "constants"),
    [
        ('t = Resize <mode = "nearest"> (s, "", f) m = Mul (c, t)', {"f": np.array([1, 1, 4, 4], np.float32)}),
        ('t = Resize <mode = "nearest", axes = [2, 3]> (s, "", "", f) m = Mul (t, c)', {"f": [4, 4]}),
        ('t = Resize <mode = "nearest"> (s, "", f) m = Mul (c, t)', {"f": np.array([1, 1, 1, 4], np.float32)}),
    ],
)
def test_right_gates_are_equivalent(resize: str, constants: dict[str, Any]) -> None:
    audit = rewriter.audit(PLAIN, gated(resize, **constants))
    assert audit.verdict == "equivalent", audit.reason


@pytest.mark.parametrize(
    "resize",
    [
        't = Resize <mode = "nearest"> (g, "", f) m = Mul (c, t)',  # not of the sigmoid
        't = Resize <mode = "nearest"> (s, "", f) q = Mul (t, t) m = Mul (c, q)',
        't = Resize <mode = "nearest"> (s, "", f) o = Transpose <perm = [0, 1, 3, 2]> (c) m = Mul (o, t)',
        'd = GlobalMaxPool (c) e = Sigmoid (d) t = Resize <mode = "nearest"> (e, "", f) m = Mul (c, t)',
    ],
)
def test_wrong_gates_are_not(resize: str) -> None:
    audit = rewriter.audit(PLAIN, gated(resize, f=np.array([1, 1, 4, 4], np.float32)))
    assert audit.verdict == "different", audit.reason


def test_another_weight_behind_a_gate_is_seen() -> None:
    other = gated('t = Resize <mode = "nearest"> (s, "", f) m = Mul (c, t)', f=np.array([1, 1, 4, 4], np.float32))
    for tensor in other.graph.initializer:
        if tensor.name == "w":
            value = numpy_helper.to_array(tensor).copy()
            value[3, 2] = np.nextafter(value[3, 2], 9)
            tensor.CopyFrom(numpy_helper.from_array(value, "w"))
    assert rewriter.audit(PLAIN, other).verdict == "different"
