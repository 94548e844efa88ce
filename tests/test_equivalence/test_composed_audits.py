"""Audits of convolutions of convolutions and of scaled and shifted inputs: proven where they are one convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.equivalence import Audit
from test_equivalence.nets import Array, audited, chain

SIZE = (9, 10)


def weights(seed: int, *shape: int) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def conv(x: str, w: str, y: str, *bias: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w, *bias], [y], **attributes)


def model(nodes: Sequence[onnx.NodeProto], values: dict[str, Array], channels: int) -> onnx.ModelProto:
    return chain(nodes, values, ["n", channels, *SIZE])


def separable(**changes: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Depthwise 3×3 with multiplier 2 on 4 channels, then pointwise to 6."""
    values = {"d": weights(0, 8, 1, 3, 3), "p": weights(1, 6, 8, 1, 1), "b": weights(2, 6)}
    first = {"group": 4, "pads": [1] * 4, "strides": [2, 1], **changes}
    return model([conv("x", "d", "t", **first), conv("t", "p", "y", "b")], values, 4), values


def dense(values: dict[str, Array]) -> Array:
    """`[6, 4, 3, 3]`: Σ over the multiplier of pointwise times depthwise weights."""
    each = values["d"].astype(np.float64).reshape(4, 2, 3, 3)
    mixed = values["p"].astype(np.float64).reshape(6, 4, 2)
    return np.asarray(np.einsum("mcr,crij->mcij", mixed, each), np.float32)


def fused(weight: Array, bias: Array, **changes: Any) -> onnx.ModelProto:
    attributes = {"pads": [1] * 4, "strides": [2, 1], **changes}
    return model([conv("x", "w", "y", "b", **attributes)], {"w": weight, "b": bias}, 4)


def l1(found: Audit) -> str:
    return " ".join(level.outcome for region in found.regions for level in region.levels if level.level == "L1")


def test_a_separable_pair_and_its_dense_convolution_are_equivalent_both_ways() -> None:
    pair, values = separable()
    whole = fused(dense(values), values["b"])
    for before, after in ((pair, whole), (whole, pair)):
        found = audited(before, after)
        assert (found.verdict, found.grade) == ("equivalent", "rounding"), found.reason
        assert l1(found) == "pass"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: w * np.where(np.arange(w.size).reshape(w.shape) == 77, 1.001, 1).astype(np.float32),
        lambda w: w[:, ::-1],
        lambda w: w[:, :, ::-1],
        lambda w: w.swapaxes(2, 3),
        lambda w: np.roll(w, 1, axis=0),
    ],
)
def test_wrong_dense_weights_are_found(wrong: Any) -> None:
    pair, values = separable()
    found = audited(pair, fused(np.ascontiguousarray(wrong(dense(values))), values["b"]))
    assert (found.verdict, l1(found)) == ("different", "fail"), found.reason


@pytest.mark.parametrize(
    "changes", [{"strides": [1, 2]}, {"pads": [0, 1, 2, 1]}, {"dilations": [2, 1], "pads": [2, 1, 2, 1]}]
)
def test_wrong_geometry_is_found(changes: dict[str, Any]) -> None:
    pair, values = separable()
    assert audited(pair, fused(dense(values), values["b"], **changes)).verdict == "different"


def spatial(
    first: Sequence[int], second: Sequence[int], bias: bool = False
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """3×1 then 1×3 on 3 channels; paddings given."""
    values = {"v": weights(3, 3, 3, 3, 1), "h": weights(4, 3, 3, 1, 3), "b": weights(5, 3)}
    extra = ["b"] if bias else []
    nodes = [conv("x", "v", "t", *extra, pads=list(first)), conv("t", "h", "y", pads=list(second))]
    return model(nodes, values if bias else {k: values[k] for k in "vh"}, 3), values


def joined(values: dict[str, Array]) -> Array:
    v, h = values["v"][..., 0].astype(np.float64), values["h"][:, :, 0].astype(np.float64)
    return np.asarray(np.einsum("mci,ckj->mkji", h, v), np.float32)


def test_column_then_row_is_one_square_kernel_with_the_padding_of_both() -> None:
    pair, values = spatial([1, 0, 1, 0], [0, 1, 0, 1])
    whole = model([conv("x", "w", "y", pads=[1] * 4)], {"w": joined(values)}, 3)
    found = audited(pair, whole)
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "rounding", "pass"), found.reason


def test_a_bias_between_them_gives_a_border_that_is_no_convolution() -> None:
    pair, values = spatial([1, 0, 1, 0], [0, 1, 0, 1], bias=True)
    b = np.einsum("mci,c->m", values["h"][:, :, 0].astype(np.float64), values["b"]).astype(np.float32)
    whole = model([conv("x", "w", "y", "s", pads=[1] * 4)], {"w": joined(values), "s": b}, 3)
    found = audited(pair, whole)
    assert (found.verdict, l1(found)) == ("different", "fail"), found.reason
    assert "bias" in found.reason


def test_the_same_with_the_border_corrected_is_equivalent() -> None:
    pair, values = spatial([1, 0, 1, 0], [0, 1, 0, 1], bias=True)
    h, b = values["h"][:, :, 0].astype(np.float64), values["b"].astype(np.float64)
    rows = np.zeros((3, SIZE[1]))
    for tap in range(3):
        inside = [0 <= at + tap - 1 < SIZE[1] for at in range(SIZE[1])]
        rows += np.einsum("mc,c->m", h[:, :, tap], b)[:, None] * np.asarray(inside)
    shift = np.broadcast_to(rows[None, :, None], (1, 3, 1, SIZE[1])).astype(np.float32)
    nodes = [conv("x", "w", "u", pads=[1] * 4), helper.make_node("Add", ["u", "s"], ["y"])]
    whole = model(nodes, {"w": joined(values), "s": np.ascontiguousarray(shift)}, 3)
    found = audited(pair, whole)
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "rounding", "pass"), found.reason


def test_padded_after_wide_is_not_proven_and_its_dense_form_is_different() -> None:
    values = {"v": weights(6, 3, 3, 3, 3), "h": weights(7, 3, 3, 3, 3)}
    pair = model([conv("x", "v", "t", pads=[1] * 4), conv("t", "h", "y", pads=[1] * 4)], values, 3)
    v, h = (values[name].astype(np.float64) for name in "vh")
    whole = np.zeros((3, 3, 5, 5))
    for i in range(3):
        for j in range(3):
            whole[:, :, i : i + 3, j : j + 3] += np.einsum("mc,ckab->mkab", h[:, :, i, j], v)
    one = model([conv("x", "w", "y", pads=[2] * 4)], {"w": whole.astype(np.float32)}, 3)
    assert audited(pair, one).verdict == "different"


def affine(shift: bool, pads: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A scale, and a shift if asked for, before a convolution; and both folded into it as if there were no border."""
    values = {"a": weights(8, 1, 4, 1, 1), "s": weights(9, 1, 4, 1, 1), "w": weights(10, 5, 4, 3, 3)}
    nodes = [helper.make_node("Mul", ["a", "x"], ["m"])]
    nodes += [helper.make_node("Add", ["m", "s"], ["t"])] if shift else []
    before = model([*nodes, conv(nodes[-1].output[0], "w", "y", pads=[pads] * 4)], values, 4)
    w = values["w"].astype(np.float64)
    folded = {"v": (w * values["a"].astype(np.float64)).astype(np.float32)}
    bias = np.einsum("mcij,c->m", w, values["s"].reshape(4).astype(np.float64)).astype(np.float32)
    folded |= {"b": bias} if shift else {}
    return before, model([conv("x", "v", "y", *(["b"] if shift else []), pads=[pads] * 4)], folded, 4)


@pytest.mark.parametrize(("shift", "pads"), [(False, 0), (False, 1), (True, 0)])
def test_an_affine_input_folded_into_the_weights_is_equivalent(shift: bool, pads: int) -> None:
    found = audited(*affine(shift, pads))
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "rounding", "pass"), found.reason


def test_a_shift_before_padding_is_not_the_same_as_a_bias() -> None:
    found = audited(*affine(True, 1))
    assert (found.verdict, l1(found)) == ("different", "fail"), found.reason


def test_three_in_a_row_and_branches_in_between() -> None:
    """Pointwise → two parallel convolutions, concatenated → pointwise, as one."""
    values = {
        "a": weights(11, 6, 4, 1, 1),
        "b": weights(12, 3, 3, 3, 3),
        "c": weights(13, 2, 3, 1, 1),
        "d": weights(14, 5, 5, 1, 1),
    }
    nodes = [
        conv("x", "a", "t"),
        helper.make_node("Split", ["t"], ["t0", "t1"], axis=1),
        conv("t0", "b", "u0", pads=[1] * 4),
        conv("t1", "c", "u1"),
        helper.make_node("Concat", ["u0", "u1"], ["u"], axis=1),
        conv("u", "d", "y"),
    ]
    before = model(nodes, values, 4)
    a, b, c, d = (values[name].astype(np.float64) for name in "abcd")
    inner = np.zeros((5, 6, 3, 3))
    inner[:3, :3] = b
    inner[3:, 3:, 1, 1] = c[..., 0, 0]
    whole = np.einsum("mu,uvij,vc->mcij", d[..., 0, 0], inner, a[..., 0, 0]).astype(np.float32)
    after = model([conv("x", "w", "y", pads=[1] * 4)], {"w": whole}, 4)
    found = audited(before, after)
    assert (found.verdict, found.grade, l1(found)) == ("equivalent", "rounding", "pass"), found.reason
