"""onnx's own light models, as they are and with weights: networks of 2015 to 2018 in IR 3, inside the onnx package.

As they are, ConstantOfShape nodes make every weight, all of one value: channels cannot be told apart, and nothing of
what leaves a softmax or a normalization responds.  Filled, each of these nodes is a Constant node of seeded numbers.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

FOLDER: Final = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_PREFIX: Final = "light_"
_MOVES: Final = frozenset({"Unsqueeze", "Reshape"})
"""They only reshape a weight on its way to the operator that uses it."""


def light_names() -> list[str]:
    """Names of the models, sorted: `resnet50`; empty where the onnx package comes without them."""
    return sorted(path.stem.removeprefix(_PREFIX) for path in FOLDER.glob(f"{_PREFIX}*.onnx"))


def light_model(name: str, filled: bool) -> onnx.ModelProto:
    """The model, with or without weights."""
    model = onnx.load(FOLDER / f"{_PREFIX}{name}.onnx")
    if filled:
        fill(model)
    return model


def fill(model: onnx.ModelProto) -> None:
    """Replace each ConstantOfShape of a constant shape, in place, by a Constant of numbers that suit what reads it."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            readers.setdefault(name, (node, at))
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        name = node.output[0]
        _hold(node, _values(name, shape, *_use(name, readers)))
    _drop_unread(model.graph)
    _level(model)


def _hold(node: onnx.NodeProto, values: NDArray[np.float32]) -> None:
    """Make the node a Constant of these values under its own name."""
    name = node.output[0]
    node.CopyFrom(onnx.helper.make_node("Constant", [], [name], node.name, value=numpy_helper.from_array(values, name)))


def _level(model: onnx.ModelProto) -> None:
    """Scale the last Gemm so that what enters a softmax is about 1: a saturated one shows no difference before it."""
    makers = {name: node for node in model.graph.node for name in node.output}
    last = next((makers[n.input[0]] for n in model.graph.node if n.op_type == "Softmax" and n.input[0] in makers), None)
    if last is None or last.op_type != "Gemm":
        return
    logits = _run(model, last.output[0])
    for name in last.input[1:]:
        weight = makers[name]
        while weight.op_type in _MOVES:
            weight = makers[weight.input[0]]
        _hold(weight, (numpy_helper.to_array(weight.attribute[0].t) / logits.std()).astype(np.float32))


def _run(model: onnx.ModelProto, tensor: str) -> NDArray[np.float32]:
    """A tensor of the model, of a seeded image."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    quiet.intra_op_num_threads = 1
    session = ort.InferenceSession(asked.SerializeToString(), quiet, ["CPUExecutionProvider"])
    given = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.Generator(np.random.PCG64(0))
    feeds = {
        value.name: rng.standard_normal([dim.dim_value for dim in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
        if value.name not in given
    }
    found: NDArray[np.float32] = session.run([tensor], feeds)[0]
    return found


def _use(name: str, readers: dict[str, tuple[onnx.NodeProto, int]]) -> tuple[str, int]:
    """The operator that computes with the tensor, behind Unsqueeze and Reshape, and which of its inputs it is."""
    while name in readers and readers[name][0].op_type in _MOVES and readers[name][1] == 0:
        name = readers[name][0].output[0]
    if name not in readers:
        return "", 0
    node, at = readers[name]
    return node.op_type, at


def _values(name: str, shape: tuple[int, ...], op_type: str, at: int) -> NDArray[np.float32]:
    """Weights that keep the scale of what goes through; scales and variances about 1, shifts and means about 0."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if op_type in ("Conv", "Gemm") and at == 1:
        fan_in = math.prod(shape[1:]) or 1
        return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_in))
    if (op_type, at) in (("BatchNormalization", 1), ("BatchNormalization", 4)) or op_type == "Mul":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the initializers that only gave shapes, and the graph inputs that IR 3 wants for them."""
    read = {name for node in graph.node for name in node.input}
    left = {tensor.name for tensor in graph.initializer if tensor.name not in read}
    tensors = [tensor for tensor in graph.initializer if tensor.name not in left]
    inputs = [value for value in graph.input if value.name not in left]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(tensors)
    graph.input.extend(inputs)
