"""Wrong fusions of two convolutions, or of one with what is around it: borders, biases, pools, resizing, layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from test_equivalence.nets import Array, chain
from test_equivalence.wrong_cases import Case, wrong

node = helper.make_node
X: Sequence[int | str] = ("n", 4, 7, 8)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


W, V, P, B = random(6, 4, 3, 3), random(5, 6, 3, 3, seed=1), random(6, 4, 1, 1, seed=2), random(6, seed=3)
SAME = [1, 1, 1, 1]


def made(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str] = X, opset: int = 17, **weights: Any
) -> onnx.ModelProto:
    return chain(nodes, weights, shape, opset)


def composed(outer: Array, inner: Array) -> Array:
    """The kernel of a convolution behind another, both of stride 1: `[M, C, K + L − 1, …]`."""
    size = [k + other - 1 for k, other in zip(outer.shape[2:], inner.shape[2:], strict=True)]
    whole = np.zeros((outer.shape[0], inner.shape[1], *size))
    for i, j in np.ndindex(*inner.shape[2:]):
        part = np.einsum("mkij,kc->mcij", outer.astype(np.float64), inner[:, :, i, j].astype(np.float64))
        whole[:, :, i : i + outer.shape[2], j : j + outer.shape[3]] += part
    return whole.astype(np.float32)


@wrong("L3", combines=True)
def border_of_a_fused_pair() -> Case:
    """Two padded 3×3 convolutions become one padded 5×5: wrong at the border, where the first one's padding was cut."""
    two = [node("Conv", ["x", "w"], ["t"], pads=SAME), node("Conv", ["t", "v"], ["y"], pads=SAME)]
    one = [node("Conv", ["x", "u"], ["y"], pads=[2, 2, 2, 2])]
    return made(two, w=W, v=V), made(one, u=composed(V, W))


@wrong("L1", combines=True)
def border_of_a_fused_pair_with_a_bias_between() -> Case:
    """A 1×1 convolution with a bias goes into the padded 3×3 behind it: the padding is zero, not that bias."""
    two = [node("Conv", ["x", "w", "b"], ["t"]), node("Conv", ["t", "v"], ["y"], pads=SAME)]
    one = [node("Conv", ["x", "u", "c"], ["y"], pads=SAME)]
    shift = np.einsum("mkij,k->m", V.astype(np.float64), B.astype(np.float64)).astype(np.float32)
    return made(two, w=P, b=B, v=V), made(one, u=composed(V, P), c=shift)


@wrong("L1", combines=True)
def bias_of_a_fused_pair_forgotten() -> Case:
    """Two convolutions without padding are fused, and the bias between them is lost."""
    two = [node("Conv", ["x", "w", "b"], ["t"]), node("Conv", ["t", "v"], ["y"])]
    return made(two, w=P, b=B, v=V), made([node("Conv", ["x", "u"], ["y"])], u=composed(V, P))


@wrong("L3", combines=True)
def fused_over_a_relu() -> Case:
    """Two convolutions are fused as if no Relu stood between them."""
    two = [node("Conv", ["x", "w"], ["t"]), node("Relu", ["t"], ["r"]), node("Conv", ["r", "v"], ["y"])]
    return made(two, w=P, v=V), made([node("Conv", ["x", "u"], ["y"])], u=composed(V, P))


@wrong("L1", combines=True)
def strided_pair_fused_without_its_stride() -> Case:
    """A strided 1×1 convolution and the 3×3 behind it are fused without spreading the taps apart."""
    two = [node("Conv", ["x", "w"], ["t"], strides=[2, 2]), node("Conv", ["t", "v"], ["y"], pads=SAME)]
    one = [node("Conv", ["x", "u"], ["y"], strides=[2, 2], pads=SAME)]
    return made(two, w=P, v=V), made(one, u=composed(V, P))


@wrong("L3")
def padding_of_zeros_for_reflection() -> Case:
    """A Pad by reflection is taken into the convolution's padding, which is by zeros."""
    pads = np.asarray([0, 0, 1, 1, 0, 0, 1, 1])
    before = made([node("Pad", ["x", "p"], ["q"], mode="reflect"), node("Conv", ["q", "w"], ["y"])], w=W, p=pads)
    return before, made([node("Conv", ["x", "w"], ["y"], pads=SAME)], w=W)


@wrong("L1", combines=True)
def shift_taken_over_the_padding() -> Case:
    """A constant added in front of a padded convolution goes into its bias, and is missing nowhere at the border."""
    shift = random(1, 4, 1, 1, seed=4)
    before = made([node("Add", ["x", "s"], ["q"]), node("Conv", ["q", "w"], ["y"], pads=SAME)], w=W, s=shift)
    bias = np.einsum("mcij,c->m", W.astype(np.float64), shift.reshape(-1).astype(np.float64)).astype(np.float32)
    return before, made([node("Conv", ["x", "w", "c"], ["y"], pads=SAME)], w=W, c=bias)


@wrong("L1")
def strided_slice_from_one() -> Case:
    """A stride becomes a Slice behind the convolution that begins at 1 instead of 0, at the same output shape."""
    ends: dict[str, Any] = {
        "lo": np.asarray([1, 0]),
        "hi": np.asarray([99, 99]),
        "axes": np.asarray([2, 3]),
        "by": np.asarray([2, 2]),
    }
    shape = ("n", 4, 8, 8)
    before = made([node("Conv", ["x", "w"], ["y"], pads=SAME, strides=[2, 2])], shape, w=W)
    nodes = [node("Conv", ["x", "w"], ["t"], pads=SAME), node("Slice", ["t", "lo", "hi", "axes", "by"], ["y"])]
    return before, made(nodes, shape, w=W, **ends)


@wrong("L1")
def stride_off_by_one() -> Case:
    """The stride is 2 instead of 1."""
    return (
        made([node("Conv", ["x", "w"], ["y"], pads=SAME)], w=W),
        made([node("Conv", ["x", "w"], ["y"], pads=SAME, strides=[2, 2])], w=W),
    )


@wrong("L1")
def padding_off_by_one() -> Case:
    """The padding is 2 at all ends instead of 1: the output is larger."""
    return (
        made([node("Conv", ["x", "w"], ["y"], pads=SAME)], w=W),
        made([node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2])], w=W),
    )


@wrong("L1")
def reduced_axis_kept() -> Case:
    """The reduced axes are kept (keepdims), so that the shape has more of them."""
    axes: dict[str, Any] = {"axes": np.asarray([2, 3])}
    nodes = [node("Conv", ["x", "w"], ["t"]), node("ReduceSum", ["t", "axes"], ["y"], keepdims=0)]
    others = [node("Conv", ["x", "w"], ["t"]), node("ReduceSum", ["t", "axes"], ["y"], keepdims=1)]
    return made(nodes, w=W, **axes), made(others, w=W, **axes)


@wrong("L3")
def average_pool_counts_the_padding() -> Case:
    """AveragePool divides by the whole window at the border, too (count_include_pad)."""
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": SAME}
    nodes = [node("Conv", ["x", "w"], ["t"]), node("AveragePool", ["t"], ["y"], **attributes)]
    others = [node("Conv", ["x", "w"], ["t"]), node("AveragePool", ["t"], ["y"], **attributes, count_include_pad=1)]
    return made(nodes, w=W), made(others, w=W)


@wrong("L3")
def average_for_maximum() -> Case:
    """MaxPool becomes AveragePool."""
    nodes = [node("Conv", ["x", "w"], ["t"]), node("MaxPool", ["t"], ["y"], kernel_shape=[2, 2])]
    others = [node("Conv", ["x", "w"], ["t"]), node("AveragePool", ["t"], ["y"], kernel_shape=[2, 2])]
    return made(nodes, w=W), made(others, w=W)


@wrong("L3")
def resized_by_another_rule() -> Case:
    """Resize takes pixels from their corners instead of their centres."""
    scales: dict[str, Any] = {"scales": np.asarray([1, 1, 2, 2], np.float32)}

    def resized(rule: str) -> list[onnx.NodeProto]:
        attributes = {"mode": "linear", "coordinate_transformation_mode": rule}
        return [node("Conv", ["x", "w"], ["t"]), node("Resize", ["t", "", "scales"], ["y"], **attributes)]

    return made(resized("half_pixel"), w=W, **scales), made(resized("asymmetric"), w=W, **scales)


@wrong("L1")
def depth_to_space_in_the_other_order() -> Case:
    """DepthToSpace takes columns before rows (CRD) instead of rows before columns (DCR)."""
    w = random(8, 4, 3, 3)

    def moved(mode: str) -> list[onnx.NodeProto]:
        return [node("Conv", ["x", "w"], ["t"]), node("DepthToSpace", ["t"], ["y"], blocksize=2, mode=mode)]

    return made(moved("DCR"), w=w), made(moved("CRD"), w=w)


@wrong("L1")
def half_a_unit_of_float16() -> Case:
    """One tap of a float16 weight is one unit in the last place off."""
    w = W.astype(np.float16)
    other = w.copy()
    other[1, 2, 0, 1] = np.nextafter(other[1, 2, 0, 1], np.float16(9))
    nodes = [node("Conv", ["x", "w"], ["y"])]
    return made(nodes, w=w), made(nodes, w=other)


@wrong("L1")
def matrix_transposed() -> Case:
    """The weight of a square matrix product is transposed."""
    w = random(8, 8)
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    return made(nodes, ("n", 8), w=w), made(nodes, ("n", 8), w=np.ascontiguousarray(w.T))


@wrong("L3")
def tensor_of_another_type_inside() -> Case:
    """A weight and what it makes are float16 instead of float32, the output cast back."""
    cast = [
        node("Cast", ["x"], ["q"], to=TensorProto.FLOAT16),
        node("Conv", ["q", "v"], ["t"]),
        node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    return made([node("Conv", ["x", "w"], ["y"])], w=W), made(cast, w=W, v=W.astype(np.float16))
