"""Twins of a model: the same graph with small integers for weights, or with float64 for every float type.

With integer weights and inputs every sum is exact whatever its order, so two spellings of one computation must agree
bit for bit.  With float64 throughout, a model says what it means, free of its own rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from models.emit import Array

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_DOUBLE = TensorProto.DOUBLE


def integer_twin(model: ModelProto, seed: int = 0) -> ModelProto:
    """The model with every float weight replaced by integers from ±1 to ±3; never 0, so that each tap counts.

    Scalars keep their values: they are epsilons and limits rather than weights.  So do numbers that a Cast makes sizes.
    """
    rng = np.random.default_rng(seed)
    sizes = {
        node.input[0]
        for node in model.graph.node
        for entry in node.attribute
        if node.op_type == "Cast" and entry.name == "to" and entry.i not in FLOATS
    }

    def integers(name: str, value: Array) -> Array:
        if value.ndim == 0 or name in sizes:
            return value
        drawn: Array = rng.integers(1, 4, value.shape) * rng.choice([-1, 1], value.shape)
        return drawn.astype(value.dtype)

    return _with_tensors(model, integers)


def float64_twin(model: ModelProto) -> ModelProto:
    """The model with float64 in place of every other float type: weights, casts, inputs and outputs."""
    twin = _with_tensors(model, lambda _, value: value.astype(np.float64))
    for graph in _graphs(twin.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type in FLOATS:
                info.type.tensor_type.elem_type = _DOUBLE
        for node in graph.node:
            for entry in node.attribute:
                if node.op_type == "Cast" and entry.name == "to" and entry.i in FLOATS:
                    entry.i = _DOUBLE
    return twin


def feeds(model: ModelProto, sizes: Mapping[str, Sequence[int]], *, integers: bool, seed: int = 1) -> dict[str, Array]:
    """Seeded inputs in the model's own types: standard normal, or integers in ±4; `sizes` fills in free dimensions."""
    rng = np.random.default_rng(seed)
    initialized = {tensor.name for tensor in model.graph.initializer}
    made = {}
    for info in model.graph.input:
        if info.name in initialized:
            continue
        kind = info.type.tensor_type
        shape = sizes.get(info.name) or [dim.dim_value for dim in kind.shape.dim]
        assert min(shape, default=1) > 0, f"input '{info.name}' has free dimensions: give its sizes"
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.integers(-4, 5, shape) if integers else rng.standard_normal(shape)
        made[info.name] = (drawn > 0 if dtype == np.bool_ else drawn).astype(dtype)
    return made


def _with_tensors(model: ModelProto, change: Callable[[str, Array], Array]) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    for graph in _graphs(twin.graph):
        for tensor in graph.initializer:
            _replace(tensor, tensor.name, change)
        for node in graph.node:
            for entry in node.attribute:
                if entry.type == AttributeProto.TENSOR:
                    _replace(entry.t, node.output[0], change)
    return twin


def _replace(tensor: TensorProto, name: str, change: Callable[[str, Array], Array]) -> None:
    if tensor.data_type not in FLOATS:
        return
    value = change(name, numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), tensor.name))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == AttributeProto.GRAPH:
                yield from _graphs(entry.g)


def text(model: onnx.ModelProto) -> str:
    """The graph as a line: operators in order, convolutions with their group (`Conv/4`), Constant nodes left out."""
    return " ".join(_word(node) for node in model.graph.node if node.op_type != "Constant")


def _word(node: onnx.NodeProto) -> str:
    if node.op_type not in ("Conv", "ConvTranspose"):
        return str(node.op_type)
    group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return f"{node.op_type}/{group}"
