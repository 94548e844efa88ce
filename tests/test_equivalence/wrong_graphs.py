"""Wrong rewrites around the convolution: order, space, batch, activations, interface."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from test_equivalence import rewrites as rw
from test_equivalence.nets import chain, net
from test_equivalence.wrong_cases import Case, wrong


@wrong("L1")
def concat_in_another_order() -> Case:
    """The outputs of two branches are concatenated in the wrong order."""
    before = net()
    after = rw.split_concat(before, "t")
    node = rw.node_of(after, "t")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return before, after


@wrong("L1")
def branches_read_each_others_channels() -> Case:
    """Two branches of a split convolution read each other's input channels."""
    before = net()
    after = rw.split_concat(before, "t")
    first, second = rw.node_of(after, "t.out0"), rw.node_of(after, "t.out1")
    first.input[0], second.input[0] = second.input[0], first.input[0]
    return before, after


@wrong("L1")
def channel_shuffle_forgotten() -> Case:
    """A channel shuffle in front of a grouped convolution is left out."""
    before = net()
    shuffled = rw.clone(before)
    rw.set_weight(shuffled, "order", np.asarray([0, 2, 4, 6, 1, 3, 5, 7], np.int64))
    rw.node_of(shuffled, "t").input[0] = "s"
    rw.splice(
        shuffled,
        ["a"],
        [helper.make_node("Relu", ["h"], ["a"]), helper.make_node("Gather", ["a", "order"], ["s"], axis=1)],
    )
    return shuffled, before


@wrong("L1")
def height_and_width_swapped() -> Case:
    """The output of the convolution is transposed in space."""
    before = net(size=(6, 6))
    after = rw.clone(before)
    old = rw.node_of(after, "t")
    conv = rw.conv_like(old, list(old.input), "t.raw", 4)
    rw.splice(after, ["t"], [conv, helper.make_node("Transpose", ["t.raw"], ["t"], perm=[0, 1, 3, 2])])
    return before, after


@wrong("L1")
def batch_entries_reversed() -> Case:
    """The entries of the batch come out in reverse order."""
    before = net()
    after = rw.clone(before)
    old = rw.node_of(after, "t")
    rw.set_weight(after, "back", np.asarray([1, 0], np.int64))
    conv = rw.conv_like(old, list(old.input), "t.raw", 4)
    rw.splice(after, ["t"], [conv, helper.make_node("Gather", ["t.raw", "back"], ["t"], axis=0)])
    return before, after


@wrong("L1")
def shared_initializer_edited_in_place() -> Case:
    """A weight that two convolutions share is scaled for the one, and the other reads it, too."""
    before = net()
    before.graph.node.append(helper.make_node("Conv", ["h", "w"], ["z"], group=4, pads=[1, 1, 1, 1]))
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 8, 6, 7]))
    after = rw.clone(before)
    rw.set_weight(after, "w", rw.weight_of(before, "w") * np.float32(2))
    node = rw.node_of(after, "t")
    scaled = rw.conv_like(node, [node.input[0], "w", "b2"], "t.double", 4)
    rw.set_weight(after, "b2", rw.weight_of(before, "b") * np.float32(2))
    rw.set_weight(after, "half", np.asarray(0.5, np.float32))
    rw.splice(after, ["t"], [scaled, helper.make_node("Mul", ["t.double", "half"], ["t"])])
    return before, after


@wrong("L0")
def outputs_in_another_order() -> Case:
    """The model gives its outputs in another order."""
    before = net()
    before.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 8, 6, 7]))
    after = rw.clone(before)
    values = [after.graph.output[1], after.graph.output[0]]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
    del after.graph.output[:]
    after.graph.output.extend(kept)
    return before, after


@wrong("L1")
def contents_of_two_outputs_swapped() -> Case:
    """Two outputs keep their names and exchange what they hold."""
    before = net()
    before.graph.node.append(helper.make_node("Neg", ["h"], ["u"]))
    before.graph.node.append(helper.make_node("Identity", ["h"], ["v"]))
    for name in "uv":
        before.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8, 6, 7]))
    after = rw.clone(before)
    rw.node_of(after, "u").op_type, rw.node_of(after, "v").op_type = "Identity", "Neg"
    return before, after


@wrong("L0")
def output_type_changed() -> Case:
    """The output is float16 instead of float32."""
    before = net()
    after = rw.clone(before)
    rw.node_of(after, "y").output[0] = "y32"
    after.graph.node.append(helper.make_node("Cast", ["y32"], ["y"], to=TensorProto.FLOAT16))
    after.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return before, after


@wrong("L3")
def precision_lost_inside() -> Case:
    """A tensor inside is rounded to float16 and back."""
    before = net()
    after = rw.clone(before)
    rw.node_of(after, "t").output[0] = "t.raw"
    low = helper.make_node("Cast", ["t.raw"], ["t.low"], to=TensorProto.FLOAT16)
    high = helper.make_node("Cast", ["t.low"], ["t"], to=TensorProto.FLOAT)
    rw.splice(after, ["r"], [low, high, rw.node_of(before, "r")])
    return before, after


@wrong("L3")
def relu_dropped() -> Case:
    """The Relu behind the convolution is left out."""
    before = net()
    after = rw.clone(before)
    rw.node_of(after, "y").input[0] = "t"
    rw.splice(after, ["r"], [])
    return before, after


@wrong("L3")
def relu_made_leaky() -> Case:
    """The Relu is a LeakyRelu of slope 0.001."""
    before = net()
    after = rw.clone(before)
    rw.splice(after, ["r"], [helper.make_node("LeakyRelu", ["t"], ["r"], alpha=1e-3)])
    return before, after


@wrong("L3")
def constant_instead_of_the_convolution() -> Case:
    """The convolution is replaced by a constant tensor."""
    before = net()
    after = rw.clone(before)
    rw.set_weight(after, "t", np.ones((2, 8, 6, 7), np.float32))
    rw.splice(after, ["t"], [])
    return before, after


@wrong("L1")
def nan_added() -> Case:
    """NaN is added to the output of the convolution."""
    before = net(bias=False)
    after = rw.clone(before)
    rw.node_of(after, "t").output[0] = "t.raw"
    rw.set_weight(after, "nan", np.asarray(np.nan, np.float32))
    rw.splice(after, ["r"], [helper.make_node("Add", ["t.raw", "nan"], ["t"]), rw.node_of(before, "r")])
    return before, after


def behind_conv(*nodes: onnx.NodeProto, **constants: object) -> Case:
    """The convolution as it was, as `c`, and nodes that make `t` of it."""
    before = net(size=(6, 6), bias=False)  # a bias would give some of these away
    after = rw.clone(before)
    old = rw.node_of(after, "t")
    for name, value in constants.items():
        rw.set_weight(after, name, np.asarray(value, np.int64 if isinstance(value, list) else np.float32))
    rw.splice(after, ["t"], [rw.conv_like(old, list(old.input), "c", 4), *nodes])
    return before, after


BACKWARDS = {"lo": [-1], "hi": [-99], "axis": [2], "step": [-1]}


@wrong("L1")
def one_channel_upside_down() -> Case:
    """One output channel is flipped in space."""
    return behind_conv(
        helper.make_node("Split", ["c", "sizes"], ["c0", "c1"], axis=1),
        helper.make_node("Slice", ["c1", "lo", "hi", "axis", "step"], ["c2"]),
        helper.make_node("Concat", ["c0", "c2"], ["t"], axis=1),
        sizes=[7, 1],
        **BACKWARDS,
    )


@wrong("L1")
def channels_swapped_in_the_lower_rows() -> Case:
    """Two output channels are swapped in the lower half of the image only."""
    return behind_conv(
        helper.make_node("Split", ["c", "sizes"], ["c0", "c1"], axis=2),
        helper.make_node("Gather", ["c1", "order"], ["c2"], axis=1),
        helper.make_node("Concat", ["c0", "c2"], ["t"], axis=2),
        sizes=[3, 3],
        order=[1, 0, 2, 3, 4, 5, 6, 7],
    )


@wrong("L1")
def scaled_at_one_position() -> Case:
    """The output is scaled by 1.001 at one position."""
    scale = np.ones((1, 1, 6, 6))
    scale[0, 0, 5, 5] = 1.001
    return behind_conv(helper.make_node("Mul", ["c", "scale"], ["t"]), scale=scale)


@wrong("L1")
def averaged_with_its_mirror_image() -> Case:
    """The output is averaged with its mirror image."""
    return behind_conv(
        helper.make_node("Slice", ["c", "lo", "hi", "axis", "step"], ["m"]),
        helper.make_node("Add", ["c", "m"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["t"]),
        half=0.5,
        **BACKWARDS,
    )


@wrong("L1")
def reshaped_to_another_shape() -> Case:
    """The output keeps its elements and gets another shape."""
    return behind_conv(helper.make_node("Reshape", ["c", "shape"], ["t"]), shape=[2, 8, 4, 9])


@wrong("L1")
def input_turned_in_space() -> Case:
    """The convolution reads its input transposed in space."""
    before = net(size=(6, 6))
    after = rw.clone(before)
    old = rw.node_of(after, "t")
    turn = helper.make_node("Transpose", ["a"], ["turned"], perm=[0, 1, 3, 2])
    rw.splice(after, ["t"], [turn, rw.conv_like(old, ["turned", "w", "b"], "t", 4)])
    return before, after


@wrong("L3")
def nan_for_negative_values() -> Case:
    """Negative values become NaN where the Relu made them zero."""
    before = net()
    after = rw.clone(before)
    nodes = [
        helper.make_node("Relu", ["t"], ["r0"]),
        helper.make_node("Sqrt", ["t"], ["r1"]),
        helper.make_node("Sub", ["r1", "r1"], ["r2"]),
        helper.make_node("Add", ["r0", "r2"], ["r"]),
    ]
    rw.splice(after, ["r"], nodes)
    return before, after


@wrong("L0")
def output_renamed() -> Case:
    """The output has another name."""
    before = net()
    after = rw.clone(before)
    rw.node_of(after, "y").output[0] = "z"
    after.graph.output[0].name = "z"
    return before, after


@wrong("L0")
def default_of_an_overridable_input_changed() -> Case:
    """The default value of an input that the caller may override is another."""
    before = net()
    before.graph.input.append(helper.make_tensor_value_info("w_tail", TensorProto.FLOAT, [5, 8, 1, 1]))
    after = rw.clone(before)
    rw.set_weight(after, "w_tail", rw.weight_of(before, "w_tail") + np.float32(1))
    return before, after


@wrong("L0")
def node_that_is_no_onnx() -> Case:
    """An operator has a name that ONNX does not know."""
    before = net()
    after = rw.clone(before)
    rw.node_of(after, "r").op_type = "Rellu"
    return before, after


@wrong("L1")
def direct_elements_moved() -> Case:
    """A transposition without any convolution is left out."""
    weights = {"one": np.ones(1, np.float32)}
    before = chain([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])], weights, (2, 3, 3))
    after = chain([helper.make_node("Identity", ["x"], ["y"])], weights, (2, 3, 3))
    return before, after
