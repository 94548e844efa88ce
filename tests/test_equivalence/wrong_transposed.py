"""Wrong rewrites of transposed convolutions; `deconv`, `dense` and `apart` make the right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from test_equivalence.nets import Array, chain
from test_equivalence.wrong_cases import Case, wrong

GROUP, I_PER, O_PER = 4, 2, 2
X = (2, GROUP * I_PER, 5, 6)


def weights(kernel: tuple[int, ...] = (3, 3)) -> dict[str, Array]:
    """[C, M/G, *K] and [M]."""
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((GROUP * I_PER, O_PER, *kernel)).astype(np.float32),
        "b": rng.standard_normal(GROUP * O_PER).astype(np.float32),
    }


def net(nodes: list[onnx.NodeProto], values: dict[str, Array]) -> onnx.ModelProto:
    """Nodes that make `t` of `x`, then a Relu."""
    return chain([*nodes, helper.make_node("Relu", ["t"], ["y"])], values, X)


def deconv(values: dict[str, Array] | None = None, group: int = GROUP, **attributes: Any) -> onnx.ModelProto:
    found = values or weights()
    names = list(found)
    return net([helper.make_node("ConvTranspose", ["x", *names], ["t"], group=group, **attributes)], found)


def block_diagonal(weight: Array, shift: int = 0) -> Array:
    """[C, M, *K] of [C, M/G, *K]; with `shift`, the outputs of another group."""
    wide = np.zeros((weight.shape[0], GROUP * O_PER, *weight.shape[2:]), weight.dtype)
    for channel in range(weight.shape[0]):
        first = (channel // I_PER + shift) % GROUP * O_PER
        wide[channel, first : first + O_PER] = weight[channel]
    return wide


def dense(change: Callable[[Array], Array] = lambda wide: wide, shift: int = 0, **attributes: Any) -> onnx.ModelProto:
    """One group, filled with zeros."""
    found = weights()
    return deconv({"v": change(block_diagonal(found["w"], shift)), "b": found["b"]}, 1, **attributes)


def apart(inputs: tuple[int, ...], outputs: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """One per group: which part of x each reads, and the order in which they are concatenated."""
    found = weights()
    values: dict[str, Array] = {"b": found["b"]}
    nodes = [helper.make_node("Split", ["x"], [f"x{g}" for g in range(GROUP)], axis=1)]
    for g in range(GROUP):
        values[f"w{g}"] = found["w"][g * I_PER : (g + 1) * I_PER]
        nodes.append(helper.make_node("ConvTranspose", [f"x{inputs[g]}", f"w{g}"], [f"t{g}"], **attributes))
    nodes.append(helper.make_node("Concat", [f"t{g}" for g in outputs], ["u"], axis=1))
    values["c"] = found["b"].reshape(1, -1, 1, 1)
    del values["b"]
    return net([*nodes, helper.make_node("Add", ["u", "c"], ["t"])], values)


STRIDED: dict[str, Any] = {"strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0]}


def touched(at: tuple[int, ...], by: Callable[[np.float32], np.float32]) -> Callable[[Array], Array]:
    def change(wide: Array) -> Array:
        wide[at] = by(wide[at])
        return wide

    return change


@wrong("L1")
def transposed_one_ulp() -> Case:
    """One tap of a transposed convolution is one unit in the last place off."""
    return deconv(**STRIDED), dense(touched((2, 3, 1, 2), lambda v: np.nextafter(v, np.float32(9))), **STRIDED)


@wrong("L1")
def transposed_tiny_weight_between_groups() -> Case:
    """Where groups of a transposed convolution were merged, one zero is 1e-30."""
    return deconv(**STRIDED), dense(touched((0, 7, 0, 0), lambda _: np.float32(1e-30)), **STRIDED)


@wrong("L1")
def transposed_weight_between_groups_not_a_number() -> Case:
    """Where groups of a transposed convolution were merged, one zero is NaN."""
    return deconv(**STRIDED), dense(touched((0, 7, 0, 0), lambda _: np.float32(np.nan)), **STRIDED)


@wrong("L1")
def transposed_groups_off_by_one() -> Case:
    """Every group of a transposed convolution writes the next one's outputs."""
    return deconv(**STRIDED), dense(shift=1, **STRIDED)


@wrong("L1")
def transposed_kernel_flipped() -> Case:
    """The kernel of a transposed convolution is flipped in space."""
    return deconv(**STRIDED), dense(lambda wide: wide[:, :, ::-1, ::-1].copy(), **STRIDED)


@wrong("L1")
def transposed_kernel_height_for_width() -> Case:
    """The kernel of a transposed convolution is transposed in space."""
    return deconv(strides=[2, 2]), dense(lambda wide: wide.swapaxes(2, 3).copy(), strides=[2, 2])


@wrong("L1")
def transposed_inputs_for_outputs() -> Case:
    """The layout of Conv, [M, C], is taken for that of ConvTranspose, [C, M]."""
    return deconv(**STRIDED), dense(lambda wide: wide.swapaxes(0, 1).copy(), **STRIDED)


@wrong("L1")
def transposed_neighbours_read_each_others_channels() -> Case:
    """Two groups of a transposed convolution read each other's channels."""
    return deconv(**STRIDED), apart((1, 0, 2, 3), (0, 1, 2, 3), **STRIDED)


@wrong("L1")
def transposed_concat_in_another_order() -> Case:
    """The groups of a transposed convolution are concatenated in another order."""
    return deconv(**STRIDED), apart((0, 1, 2, 3), (0, 2, 1, 3), **STRIDED)


@wrong("L1")
def transposed_pads_shifted() -> Case:
    """The padding of a transposed convolution is shifted by one."""
    return deconv(pads=[1, 1, 1, 1]), dense(pads=[0, 1, 2, 1])


@wrong("L1")
def transposed_pads_forgotten() -> Case:
    """The padding of a transposed convolution is left out."""
    return deconv(pads=[1, 1, 1, 1]), dense()


@wrong("L1")
def transposed_output_padding_forgotten() -> Case:
    """The output padding of a transposed convolution is left out."""
    return deconv(**STRIDED), dense(**{**STRIDED, "output_padding": [0, 0]})


@wrong("L1")
def transposed_output_padding_moves_the_output() -> Case:
    """Output padding beside a given output shape moves the output of a transposed convolution."""
    given: dict[str, Any] = {"strides": [3, 3], "output_shape": [13, 16]}
    return deconv(**given), dense(**given, output_padding=[2, 2])


@wrong("L1")
def transposed_same_upper_for_lower() -> Case:
    """auto_pad of a transposed convolution is SAME_LOWER instead of SAME_UPPER."""
    return deconv(strides=[2, 2], auto_pad="SAME_UPPER"), dense(strides=[2, 2], auto_pad="SAME_LOWER")


@wrong("L1")
def transposed_dilation_changed() -> Case:
    """The dilation of a transposed convolution is another, at the same output shape."""
    return deconv(dilations=[2, 1], output_shape=[7, 8]), dense(dilations=[1, 1], output_shape=[7, 8])


@wrong("L3")
def transposed_stride_changed() -> Case:
    """The stride of a transposed convolution is another, at the same output shape."""
    return deconv(strides=[2, 1], output_shape=[7, 8]), dense(strides=[1, 1], output_shape=[7, 8])


@wrong("L1")
def transposed_strides_exchanged_with_the_shape_kept() -> Case:
    """The strides of a transposed convolution are swapped."""
    return deconv(strides=[2, 1]), dense(strides=[1, 2])


@wrong("L1")
def transposed_bias_of_the_neighbour() -> Case:
    """Every channel of a transposed convolution has its neighbour's bias."""
    after = weights()
    return deconv(**STRIDED), deconv({"w": after["w"], "c": np.roll(after["b"], 1)}, **STRIDED)


@wrong("L1")
def transposed_bias_forgotten() -> Case:
    """The bias of a transposed convolution is left out."""
    return deconv(**STRIDED), deconv({"w": weights()["w"]}, **STRIDED)


@wrong("L1")
def transposed_as_a_convolution_unflipped() -> Case:
    """A transposed convolution becomes a Conv whose kernel was not flipped."""
    return deconv(), as_convolution(flip=False)


def as_convolution(*, flip: bool) -> onnx.ModelProto:
    """The convolution that a transposed one of stride 1 is, its kernel flipped."""
    found = weights()
    wide = found["w"].reshape(GROUP, I_PER, O_PER, 3, 3).swapaxes(1, 2).reshape(-1, I_PER, 3, 3)
    turned = np.ascontiguousarray(wide[:, :, ::-1, ::-1] if flip else wide)
    node = helper.make_node("Conv", ["x", "v", "b"], ["t"], group=GROUP, pads=[2, 2, 2, 2])
    return net([node], {"v": turned, "b": found["b"]})
