"""Convolutions of one rank against those of another: 1-D as 2-D, 3-D with its idle axes elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.equivalence import Audit
from test_equivalence.nets import Array, audited, chain


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def levels(found: Audit) -> list[str]:
    return [f"{level.level} {level.outcome}" for region in found.regions for level in region.levels]


ONE: dict[str, Any] = {"strides": [2], "pads": [3, 2], "dilations": [2], "group": 2}


def one_dimensional() -> tuple[onnx.ModelProto, dict[str, Array]]:
    values = {"w": weights(6, 2, 5), "b": weights(6)}
    return chain([helper.make_node("Conv", ["x", "w", "b"], ["y"], **ONE)], values, ["n", 4, 17]), values


def as_two(values: dict[str, Array], axis: int, **changes: Any) -> onnx.ModelProto:
    """Through [N, C, 1, L] (axis 2) or [N, C, L, 1] (axis 3): the new axis' place."""
    long = 1 - (axis - 2)

    def wide(value: Sequence[int], idle: int) -> list[int]:
        pair = [idle, idle]
        pair[long] = value[0]
        return pair

    settings = {**ONE, **changes}
    pads = [0] * 4
    pads[long], pads[2 + long] = settings["pads"]
    made = {
        "v": np.expand_dims(values["w"], axis),
        "b": values["b"],
        "axes": ints(axis),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["wide"]),
        helper.make_node(
            "Conv",
            ["wide", "v", "b"],
            ["flat"],
            group=settings["group"],
            strides=wide(settings["strides"], 1),
            dilations=wide(settings["dilations"], 1),
            pads=pads,
        ),
        helper.make_node("Squeeze", ["flat", "axes"], ["y"]),
    ]
    return chain(nodes, made, ["n", 4, 17])


@pytest.mark.parametrize("axis", [2, 3])
def test_one_dimension_as_two(axis: int) -> None:
    before, values = one_dimensional()
    found = audited(before, as_two(values, axis))
    assert (found.verdict, found.grade) == ("equivalent", "exact"), found.reason
    assert levels(found) == ["L1 pass", "L2 pass", "L3 pass"]
    back = audited(as_two(values, axis), before)
    assert (back.verdict, back.grade) == ("equivalent", "exact"), back.reason


def test_a_larger_kernel_over_an_axis_of_one() -> None:
    """3×5 over [1, L] with padding: the middle row is all that reads anything."""
    before, values = one_dimensional()
    wide = np.zeros((6, 2, 3, 5), np.float32)
    wide[:, :, 1] = values["w"]
    wide[:, :, 0] = 7.0
    made = {"v": wide, "b": values["b"], "axes": ints(2)}
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["wide"]),
        helper.make_node(
            "Conv", ["wide", "v", "b"], ["flat"], group=2, strides=[1, 2], dilations=[1, 2], pads=[1, 3, 1, 2]
        ),
        helper.make_node("Squeeze", ["flat", "axes"], ["y"]),
    ]
    found = audited(before, chain(nodes, made, ["n", 4, 17]))
    assert found.verdict == "equivalent", found.reason
    assert levels(found)[0] == "L1 pass"
    wide[:, :, 2, 1] = wide[:, :, 1, 1]
    wide[:, :, 1, 1] = 0
    nodes[1].attribute[-1].ints[:] = [1, 3, 1, 2]
    moved = audited(before, chain(nodes, {**made, "v": wide}, ["n", 4, 17]))
    assert moved.verdict == "different"


@pytest.mark.parametrize(
    "changes", [{"pads": [2, 3]}, {"strides": [2], "dilations": [1], "pads": [1, 0]}, {"group": 2, "pads": [3, 3]}]
)
def test_wrong_geometry_is_found(changes: dict[str, Any]) -> None:
    before, values = one_dimensional()
    assert audited(before, as_two(values, 2, **changes)).verdict == "different"


def three_dimensional(kernel: Sequence[int], pads: Sequence[int]) -> tuple[onnx.ModelProto, Array]:
    w = weights(5, 3, *kernel)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[*pads, *pads])]
    return chain(nodes, {"w": w}, ["n", 3, 4, 6, 7]), w


def test_a_temporal_kernel_with_height_and_width_as_one_axis() -> None:
    before, w = three_dimensional((3, 1, 1), (1, 0, 0))
    made = {"v": w.reshape(5, 3, 3, 1), "to": ints(0, 3, 4, 42), "back": ints(0, 5, 4, 6, 7)}
    nodes = [
        helper.make_node("Reshape", ["x", "to"], ["a"]),
        helper.make_node("Conv", ["a", "v"], ["b"], pads=[1, 0, 1, 0]),
        helper.make_node("Reshape", ["b", "back"], ["y"]),
    ]
    found = audited(before, chain(nodes, made, ["n", 3, 4, 6, 7]))
    assert (found.verdict, found.grade, levels(found)[0]) == ("equivalent", "exact", "L1 pass"), found.reason
    turned = {**made, "v": np.ascontiguousarray(w.reshape(5, 3, 3, 1)[:, :, ::-1])}
    assert audited(before, chain(nodes, turned, ["n", 3, 4, 6, 7])).verdict == "different"


def test_a_spatial_kernel_with_the_depth_in_the_batch() -> None:
    before, w = three_dimensional((1, 3, 3), (0, 1, 1))
    made = {"v": w.reshape(5, 3, 3, 3), "flat": ints(-1, 3, 6, 7), "deep": ints(-1, 4, 5, 6, 7)}

    def after(perm: Sequence[int]) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Reshape", ["a", "flat"], ["b"]),
            helper.make_node("Conv", ["b", "v"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["c", "deep"], ["d"]),
            helper.make_node("Transpose", ["d"], ["y"], perm=list(perm)),
        ]
        return chain(nodes, made, ["n", 3, 4, 6, 7])

    found = audited(before, after([0, 2, 1, 3, 4]))
    assert (found.verdict, found.grade, levels(found)[0]) == ("equivalent", "exact", "L1 pass"), found.reason


@pytest.mark.parametrize(("order", "why"), [((1, 0), "used before but not after"), ((0, 2, 1), "other batch entries")])
def test_batch_entries_in_another_order_are_found(order: tuple[int, ...], why: str) -> None:
    before, values = one_dimensional()
    after = as_two(values, 2)
    first = next(node for node in after.graph.node if node.op_type == "Unsqueeze")
    first.input[0] = "turned"
    after.graph.initializer.append(onnx.numpy_helper.from_array(ints(*order), "order"))
    after.graph.node.insert(0, helper.make_node("Gather", ["x", "order"], ["turned"], axis=0))
    fixed = [onnx.ModelProto() for _ in range(2)]
    for copy, source in zip(fixed, (before, after), strict=True):
        copy.CopyFrom(source)
        copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(order)
    found = audited(*fixed)
    assert (found.verdict, levels(found)[0]) == ("different", "L1 fail"), found.reason
    assert why in found.reason
