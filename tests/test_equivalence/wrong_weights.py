"""Wrong rewrites of the convolution itself: its weight, its attributes, its depthwise-sum spelling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from test_equivalence import rewrites as rw
from test_equivalence.nets import Array, net
from test_equivalence.wrong_cases import Case, wrong


def regrouped_then(change: Callable[[Array], Array], **options: object) -> Case:
    """A correct regrouping whose new weight was then spoilt."""
    before = net(**options)  # type: ignore[arg-type]
    after = rw.regrouped(before, "t", 2)
    rw.set_weight(after, "t.regrouped", change(rw.weight_of(after, "t.regrouped").copy()))
    return before, after


def on_tap(change: Callable[[np.float32], object]) -> Case:
    def spoil(weight: Array) -> Array:
        weight[3, 2, 1, 1] = change(weight[3, 2, 1, 1])
        return weight

    return regrouped_then(spoil)


def on_conv(change: Callable[[onnx.NodeProto, onnx.ModelProto], None], **options: object) -> Case:
    """A correct regrouping whose new node was then spoilt."""
    before = net(**options)  # type: ignore[arg-type]
    after = rw.regrouped(before, "t", 2)
    change(rw.node_of(after, "t"), after)
    return before, after


def on_sum(change: Callable[[onnx.ModelProto], None], **options: object) -> Case:
    """A correct depthwise-sum whose nodes or constants were then spoilt."""
    before = net(**options)  # type: ignore[arg-type]
    after = rw.depthwise_summed(before, "t", (2, 8, 6, 7))
    change(after)
    return before, after


@wrong("L1")
def dropped_tap() -> Case:
    """One tap of the weight is zero."""
    return on_tap(lambda value: 0)


@wrong("L1")
def tap_times_1_001() -> Case:
    """One tap of the weight is multiplied by 1.001."""
    return on_tap(lambda value: value * np.float32(1.001))


@wrong("L1")
def one_ulp_on_one_tap() -> Case:
    """One tap of the weight is one unit in the last place off."""
    return on_tap(lambda value: np.nextafter(value, np.float32(9)))


@wrong("L1")
def negated_tap() -> Case:
    """One tap of the weight has the other sign."""
    return on_tap(lambda value: -value)


@wrong("L1")
def nan_tap() -> Case:
    """One tap of the weight is NaN."""
    return on_tap(lambda value: np.nan)


@wrong("L1")
def inserted_weight_where_zero_belongs() -> Case:
    """Where groups were merged, one of the zeros between them is 1e-30."""

    def spoil(weight: Array) -> Array:
        assert weight[0, 3, 0, 0] == 0
        weight[0, 3, 0, 0] = 1e-30
        return weight

    return regrouped_then(spoil)


@wrong("L1")
def inserted_minus_zero() -> Case:
    """Where groups were merged, one of the zeros between them is -0.0."""

    def spoil(weight: Array) -> Array:
        weight[0, 3, 0, 0] = -0.0
        return weight

    return regrouped_then(spoil)


@wrong("L1")
def two_output_channels_swapped() -> Case:
    """Two output channels are swapped."""
    return regrouped_then(lambda weight: weight[[1, 0, *range(2, len(weight))]])


@wrong("L1")
def two_input_channels_swapped() -> Case:
    """Two input channels are swapped."""
    return regrouped_then(lambda weight: weight[:, [1, 0, 2, 3]])


@wrong("L1")
def kernel_transposed() -> Case:
    """The kernel is transposed in space."""
    return regrouped_then(lambda weight: weight.swapaxes(2, 3))


@wrong("L1")
def kernel_flipped() -> Case:
    """The kernel is flipped in space."""
    return regrouped_then(lambda weight: weight[:, :, ::-1, ::-1])


@wrong("L1")
def channel_zeroed() -> Case:
    """The weight of one output channel is zero."""

    def spoil(weight: Array) -> Array:
        weight[5] = 0
        return weight

    return regrouped_then(spoil)


@wrong("L1")
def group_boundary_off_by_one() -> Case:
    """The groups begin one channel further on."""
    return regrouped_then(lambda weight: np.roll(weight, 1, axis=1))


@wrong("L1")
def rows_in_another_order() -> Case:
    """The output channels are in reverse order."""
    return regrouped_then(lambda weight: weight[::-1])


@wrong("L1")
def bias_dropped() -> Case:
    """The bias is left out."""
    return on_conv(lambda node, model: node.input.remove("b"))


@wrong("L1")
def bias_doubled() -> Case:
    """The bias is added twice."""

    def spoil(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        node.input[2] = "b2"
        rw.set_weight(model, "b2", 2 * rw.weight_of(model, "b"))

    return on_conv(spoil)


@wrong("L1")
def bias_on_other_channels() -> Case:
    """Every channel has its neighbour's bias."""

    def spoil(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        node.input[2] = "b2"
        rw.set_weight(model, "b2", np.roll(rw.weight_of(model, "b"), 1))

    return on_conv(spoil)


@wrong("L1")
def bias_off_by_one_ulp() -> Case:
    """The bias of one channel is one unit in the last place off."""

    def spoil(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        node.input[2] = "b2"
        bias = rw.weight_of(model, "b").copy()
        bias[2] = np.nextafter(bias[2], np.float32(9))
        rw.set_weight(model, "b2", bias)

    return on_conv(spoil)


@wrong("L1")
def pads_shifted_by_one() -> Case:
    """The padding is shifted by one, at the same output shape."""
    return on_conv(lambda node, model: rw.set_attribute(node, "pads", [0, 1, 2, 1]))


@wrong("L1")
def pads_of_the_axes_swapped() -> Case:
    """The paddings of height and width are swapped."""
    return on_conv(lambda node, model: rw.set_attribute(node, "pads", [0, 2, 0, 2]), pads=[2, 0, 2, 0], size=(7, 7))


@wrong("L1")
def same_lower_for_same_upper() -> Case:
    """auto_pad is SAME_LOWER instead of SAME_UPPER."""

    def spoil(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        rw.set_attribute(node, "auto_pad", "SAME_LOWER")

    return on_conv(spoil, auto_pad="SAME_UPPER", strides=[2, 2], size=(6, 8))


@wrong("L1")
def strides_swapped() -> Case:
    """The strides of height and width are swapped."""
    return on_conv(lambda node, model: rw.set_attribute(node, "strides", [1, 2]), strides=[2, 1], size=(7, 7))


@wrong("L1")
def stride_and_dilation_swapped() -> Case:
    """The dilation is taken for the stride."""

    def spoil(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        rw.set_attribute(node, "strides", [2, 2])
        rw.set_attribute(node, "dilations", None)

    return on_conv(spoil, dilations=[2, 2], size=(9, 9))


@wrong("L1")
def dilation_dropped_at_equal_shape() -> Case:
    """The dilation is left out, and the padding adapted to the same output shape."""

    def spoil(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        rw.set_attribute(node, "dilations", None)
        rw.set_attribute(node, "pads", [1, 1, 1, 1])

    return on_conv(spoil, dilations=[2, 2], pads=[2, 2, 2, 2])


@wrong("L1")
def group_attribute_wrong_for_depthwise() -> Case:
    """The convolution has half as many groups, its weight repeated to fit."""
    before = net(groups=4, inputs=2, outputs=2, bias=False)
    after = rw.clone(before)
    weight = rw.weight_of(before, "w")
    rw.set_weight(after, "w_wide", np.concatenate([weight, weight], axis=1))
    node = rw.node_of(after, "t")
    node.input[1] = "w_wide"
    rw.set_attribute(node, "group", 2)
    return before, after


@wrong("L1")
def classic_wrong_reshape() -> Case:
    """A depthwise convolution is summed over its multiplier instead of over the inputs of a group."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.set_weight(model, "t.split", np.asarray([2, 8, 2, 6, 7], np.int64))

    return on_sum(spoil)


@wrong("L1")
def interleaved_taken_for_contiguous() -> Case:
    """The channels to sum are taken as interleaved, and are contiguous."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.set_weight(model, "t.split", np.asarray([2, 2, 4, 2, 6, 7], np.int64))
        rw.set_weight(model, "t.axes", np.asarray([1], np.int64))

    return on_sum(spoil)


@wrong("L1")
def wrong_axis_summed() -> Case:
    """The sum behind the depthwise convolution runs over the wrong axis."""
    return on_sum(lambda model: rw.set_weight(model, "t.axes", np.asarray([3], np.int64)))


@wrong("L1")
def mean_instead_of_sum() -> Case:
    """The products are averaged instead of summed."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.node_of(model, "t.sum").op_type = "ReduceMean"
        node = rw.node_of(model, "t.sum")
        node.input.remove("t.axes")
        rw.set_attribute(node, "axes", [2])

    return on_sum(spoil)


@wrong("L3")
def maximum_instead_of_sum() -> Case:
    """The largest product is taken instead of the sum."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.node_of(model, "t.sum").op_type = "ReduceMax"
        node = rw.node_of(model, "t.sum")
        node.input.remove("t.axes")
        rw.set_attribute(node, "axes", [2])

    return on_sum(spoil)


@wrong("L1")
def bias_added_before_the_sum() -> Case:
    """The bias is added to every summand instead of to the sum."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.node_of(model, "t.wide").input.append("t.wide_bias")
        bias = rw.weight_of(model, "t.bias").reshape(4, 1, 2)
        rw.set_weight(model, "t.wide_bias", np.broadcast_to(bias, (4, 2, 2)).reshape(-1))
        rw.set_weight(model, "t.bias", np.zeros((1, 8, 1, 1), np.float32))

    return on_sum(spoil)


@wrong("L1")
def bias_depends_on_the_position() -> Case:
    """The bias is another one at one position."""

    def spoil(model: onnx.ModelProto) -> None:
        bias = np.broadcast_to(rw.weight_of(model, "t.bias"), (1, 8, 6, 7)).copy()
        bias[0, 0, 5, 6] += 1
        rw.set_weight(model, "t.bias", bias)

    return on_sum(spoil)


@wrong("L1")
def batch_and_channels_mixed() -> Case:
    """A Reshape takes two images of one group for one image of two."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.set_weight(model, "t.split", np.asarray([1, 4, 2, 4, 6, 7], np.int64))

    return on_sum(spoil)


@wrong("L1")
def positions_mixed_into_channels() -> Case:
    """A Reshape takes positions for channels."""

    def spoil(model: onnx.ModelProto) -> None:
        rw.set_weight(model, "t.split", np.asarray([2, 8, 6, 7, 2], np.int64))
        rw.set_weight(model, "t.axes", np.asarray([4], np.int64))

    return on_sum(spoil)


@wrong("L1")
def batch_frozen_in_a_reshape() -> Case:
    """A Reshape inside has the batch of 1 written into it."""
    before = net(batch="N")
    return before, rw.depthwise_summed(before, "t", (1, 8, 6, 7))


@wrong("L0")
def batch_frozen_in_the_interface() -> Case:
    """The free batch of the input is fixed to 1."""
    before = net(batch="N")
    after = rw.clone(before)
    dim = after.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = 1
    return before, after
