"""Right rewrites, written by hand with plain NumPy on ModelProtos: what the auditor is tested with.

They share nothing with the passes, so that an error there cannot hide here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


def clone(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def weight_of(model: onnx.ModelProto, name: str) -> Array:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    node = node_of(model, name)
    return numpy_helper.to_array(next(entry.t for entry in node.attribute if entry.name == "value"))


def set_weight(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Replace or add an initializer."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    for entry in model.graph.initializer:
        if entry.name == name:
            entry.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = [helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name]
    return found[0] if found else default


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def splice(model: onnx.ModelProto, removed: Iterable[str], nodes: Sequence[onnx.NodeProto]) -> None:
    """Put `nodes` where the first node making one of `removed` stands, and take all of those away."""
    gone = set(removed)
    kept: list[onnx.NodeProto] = []
    at = None
    for node in model.graph.node:
        if gone.isdisjoint(node.output):
            kept.append(node)
        elif at is None:
            at = len(kept)
    assert at is not None
    kept[at:at] = nodes
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    while any(not used.intersection(node.output) for node in model.graph.node):
        kept = [node for node in model.graph.node if used.intersection(node.output)]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        used = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    infos = [info for info in model.graph.value_info if info.name in used]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)


def convs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def conv_like(node: onnx.NodeProto, inputs: Sequence[str], output: str, group: int) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    del copy.input[:]
    copy.input.extend(inputs)
    copy.output[0] = output
    set_attribute(copy, "group", group)
    return copy


def regrouped(model: onnx.ModelProto, output: str, groups: int) -> onnx.ModelProto:
    """The convolution with fewer, wider groups; zeros are inserted (`groups` 1: dense)."""
    result = clone(model)
    node = node_of(result, output)
    weight, old = weight_of(result, node.input[1]), attribute(node, "group", 1)
    wide = regrouped_weight(weight, old, groups)
    set_weight(result, f"{output}.regrouped", wide)
    inputs = [node.input[0], f"{output}.regrouped", *node.input[2:]]
    splice(result, [output], [conv_like(node, inputs, output, groups)])
    return result


def regrouped_weight(weight: Array, old: int, groups: int) -> Array:
    outputs, inputs, *kernel = weight.shape
    merged = old // groups
    wide = np.zeros((outputs, inputs * merged, *kernel), weight.dtype)
    for m in range(outputs):
        place = (m // (outputs // old)) % merged
        wide[m, place * inputs : (place + 1) * inputs] = weight[m]
    return wide


def depthwise_summed(model: onnx.ModelProto, output: str, shape: Sequence[int], **layout: Any) -> onnx.ModelProto:
    """Conv(group=G) as depthwise Conv → Reshape → ReduceSum → Reshape; `shape` is the output's, batch −1 if free."""
    result = clone(model)
    node = node_of(result, output)
    weight, group = weight_of(result, node.input[1]), attribute(node, "group", 1)
    outputs, inputs, *kernel = weight.shape
    each = outputs // group
    wide = weight.reshape(group, each, inputs, *kernel).swapaxes(1, 2).reshape(-1, 1, *kernel)
    set_weight(result, f"{output}.wide_weight", wide)
    spatial = list(shape[2:])
    set_weight(result, f"{output}.split", np.asarray([shape[0], group, inputs, each, *spatial], np.int64))
    set_weight(result, f"{output}.merge", np.asarray([shape[0], outputs, *spatial], np.int64))
    set_weight(result, f"{output}.axes", np.asarray([2], np.int64))
    biased = len(node.input) > 2 and bool(node.input[2])
    nodes = [
        conv_like(node, [node.input[0], f"{output}.wide_weight"], f"{output}.wide", group * inputs),
        helper.make_node("Reshape", [f"{output}.wide", f"{output}.split"], [f"{output}.parts"]),
        helper.make_node("ReduceSum", [f"{output}.parts", f"{output}.axes"], [f"{output}.sum"], keepdims=0),
    ]
    merged = f"{output}.merged" if biased else output
    nodes.append(helper.make_node("Reshape", [f"{output}.sum", f"{output}.merge"], [merged]))
    if biased:
        bias = weight_of(result, node.input[2])
        set_weight(result, f"{output}.bias", bias.reshape(1, -1, *[1] * len(spatial)))
        nodes.append(helper.make_node("Add", [merged, f"{output}.bias"], [output]))
    splice(result, [output], nodes)
    return result


def split_concat(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Conv(group=G) as Split → G convolutions → Concat."""
    result = clone(model)
    node = node_of(result, output)
    weight, group = weight_of(result, node.input[1]), attribute(node, "group", 1)
    inputs = weight.shape[1]
    set_weight(result, f"{output}.sizes", np.asarray([inputs] * group, np.int64))
    parts = [f"{output}.in{g}" for g in range(group)]
    nodes = [helper.make_node("Split", [node.input[0], f"{output}.sizes"], parts, axis=1)]
    for g, (part, rows) in enumerate(zip(parts, np.split(weight, group), strict=True)):
        set_weight(result, f"{output}.weight{g}", rows)
        names = [part, f"{output}.weight{g}"]
        if len(node.input) > 2:
            set_weight(result, f"{output}.bias{g}", np.split(weight_of(result, node.input[2]), group)[g])
            names.append(f"{output}.bias{g}")
        nodes.append(conv_like(node, names, f"{output}.out{g}", 1))
    nodes.append(helper.make_node("Concat", [f"{output}.out{g}" for g in range(group)], [output], axis=1))
    splice(result, [output], nodes)
    return result


def split_input(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """A dense convolution as the sum of two over half of the input channels each."""
    result = clone(model)
    node = node_of(result, output)
    halves = np.split(weight_of(result, node.input[1]), 2, axis=1)
    set_weight(result, f"{output}.sizes", np.asarray([half.shape[1] for half in halves], np.int64))
    parts = [f"{output}.in{i}" for i in range(2)]
    nodes = [helper.make_node("Split", [node.input[0], f"{output}.sizes"], parts, axis=1)]
    for i, (part, half) in enumerate(zip(parts, halves, strict=True)):
        set_weight(result, f"{output}.weight{i}", half)
        nodes.append(conv_like(node, [part, f"{output}.weight{i}"], f"{output}.out{i}", 1))
    nodes.append(helper.make_node("Add", [f"{output}.out0", f"{output}.out1"], [output]))
    splice(result, [output], nodes)
    return result


def tf_grouped(model: onnx.ModelProto, groups: int = 32) -> onnx.ModelProto:
    """Every Conv → Transpose → Reshape → ReduceSum → Reshape of TensorFlow's ResNeXt as Conv(group) → Transpose."""
    result = clone(model)
    for wide in [node for node in convs(result) if attribute(node, "group", 1) > 1]:
        chain = _followers(result, wide.output[0], ["Transpose", "Reshape", "ReduceSum", "Reshape"])
        weight = weight_of(result, wide.input[1])
        channels = attribute(wide, "group")
        inputs, each = channels // groups, weight.shape[0] // channels
        kernel = weight.shape[2:]
        moved = weight.reshape(groups, inputs, each, *kernel).swapaxes(1, 2).reshape(groups * each, inputs, *kernel)
        output = chain[-1].output[0]
        set_weight(result, f"{output}.grouped", moved)
        conv = conv_like(wide, [wide.input[0], f"{output}.grouped"], f"{output}.nchw", groups)
        back = helper.make_node("Transpose", [f"{output}.nchw"], [output], perm=[0, 2, 3, 1])
        shapes = [
            node.output[0] for node in result.graph.node if node.op_type == "Shape" and wide.output[0] in node.input
        ]
        splice(result, [wide.output[0], *(node.output[0] for node in chain)], [conv, back])
        _drop_dangling(result, shapes)
    return result


def _followers(model: onnx.ModelProto, tensor: str, kinds: Sequence[str]) -> list[onnx.NodeProto]:
    found = []
    for kind in kinds:
        node = next(node for node in model.graph.node if node.op_type == kind and node.input[0] == tensor)
        found.append(node)
        tensor = node.output[0]
    return found


def _drop_dangling(model: onnx.ModelProto, shapes: Sequence[str]) -> None:
    present = {name for node in model.graph.node for name in node.output}
    assert present.isdisjoint(shapes), "the shape of a removed tensor is still read"
