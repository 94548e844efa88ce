"""Constant sources: which tensors are constant weights, and their values.

A constant source is an initializer that no caller can override, a Constant node, a ConstantOfShape of a constant shape,
and Identity or Cast of a constant source.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from rewriter import external
from rewriter.errors import BadInput
from rewriter.model import Model

Array = NDArray[np.generic]

_TYPES = onnx.TensorProto
_PLAIN = frozenset(
    [
        *(_TYPES.FLOAT, _TYPES.DOUBLE, _TYPES.FLOAT16, _TYPES.BFLOAT16, _TYPES.BOOL),
        *(_TYPES.INT8, _TYPES.INT16, _TYPES.INT32, _TYPES.INT64),
        *(_TYPES.UINT8, _TYPES.UINT16, _TYPES.UINT32, _TYPES.UINT64),
    ]
)

_RANDOM = frozenset(["RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"])


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    """The attribute of that name, or None."""
    return next((entry for entry in node.attribute if entry.name == name), None)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """All attributes as Python values."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def is_constant(model: Model, tensor: str) -> bool:
    """Whether the tensor is a constant source; reads no weights."""
    return _chain(model, tensor) is not None


def why_not_constant(model: Model, tensor: str) -> str:
    """One clause saying what the tensor is instead of a constant."""
    if tensor in model.overridable:
        return f"'{tensor}' is an initializer that callers may override (it is a graph input too)"
    if any(value.name == tensor for value in model.skeleton.graph.input):
        return f"'{tensor}' is a graph input"
    maker = model.wiring.producer(tensor)
    if maker is None:
        return f"'{tensor}' has no producer that is a constant"
    op_type = model.nodes[maker].op_type
    if not _is_foldable(model, tensor):
        return f"'{tensor}' is computed at run time by {op_type}"
    if op_type == "DequantizeLinear":  # to fold it would undo the quantization
        return f"'{tensor}' is computed by DequantizeLinear from quantized constants"
    return f"'{tensor}' is computed by {op_type} from constants; fold constants first, e.g. with onnxslim or onnxsim"


def _is_foldable(model: Model, tensor: str) -> bool:
    """Whether the tensor is computed from constants alone, by operators that give the same each time."""
    todo, seen = [tensor], set()
    while todo:
        name = todo.pop()
        if name in seen or is_constant(model, name):
            continue
        seen.add(name)
        maker = model.wiring.producer(name)
        node = None if maker is None else model.nodes[maker]
        if maker is None or node is None or node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM:
            return False
        operands = [operand for operand in node.input if operand]
        if not operands or any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            return False
        makers = [model.wiring.producer(operand) for operand in operands]
        if any(before is not None and before >= maker for before in makers):  # no valid order
            return False
        todo += operands
    return True


def constant(model: Model, tensor: str) -> Array | None:
    """The value of a constant source, or None when the tensor is not one; treat it as read-only.

    Raises BadInput when the value lies in external data that cannot be read.
    """
    chain = _chain(model, tensor)
    if chain is None:
        return None
    base, nodes = chain
    value = tensor_value(model, model.initializer(base)) if isinstance(base, str) else _constant_node(model, base)
    for node in nodes:
        value = _EVALUATE[node.op_type](model, node, value)
    return value


def tensor_value(model: Model, tensor: onnx.TensorProto) -> Array:
    """The value of a TensorProto, external data included; raises BadInput when it is missing or of the wrong size."""
    ref = external.reference(tensor)
    if ref is not None:
        inline = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        inline.raw_data = external.read(ref, model.folder, tensor.name)
        tensor = inline
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"the data of tensor '{tensor.name}' does not fit its shape {list(tensor.dims)}: {error}."
        ) from error


def _chain(model: Model, tensor: str) -> tuple[str | onnx.NodeProto, list[onnx.NodeProto]] | None:
    """The initializer or Constant node a constant comes from and the nodes it goes through; None when it is none.

    A loop, since chains may be longer than Python's stack.
    """
    nodes: list[onnx.NodeProto] = []
    last = len(model.nodes)
    while tensor not in model.headers:
        maker = model.wiring.producer(tensor)
        if maker is None or maker >= last:  # the second: no valid order; a cycle would never end
            return None
        last, node = maker, model.nodes[maker]
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            return (node, nodes[::-1]) if _constant_attribute(node) is not None else None
        if node.op_type not in _EVALUATE or len(node.input) != 1:
            return None
        if node.op_type == "Cast" and not _is_plain_cast(node):
            return None
        nodes.append(node)
        tensor = node.input[0]
    return None if tensor in model.overridable else (tensor, nodes[::-1])


def _is_plain_cast(node: onnx.NodeProto) -> bool:
    """Whether NumPy converts as ONNX does: not for strings, nor for the small types where ONNX saturates."""
    to = attribute(node, "to")
    return to is not None and to.i in _PLAIN


def _constant_attribute(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    kinds = ("value", "value_float", "value_floats", "value_int", "value_ints")
    return next((entry for entry in node.attribute if entry.name in kinds and not entry.ref_attr_name), None)


def _constant_node(model: Model, node: onnx.NodeProto) -> Array:
    entry = _constant_attribute(node)
    assert entry is not None
    if entry.name == "value":
        return tensor_value(model, entry.t)
    dtype = np.float32 if "float" in entry.name else np.int64
    return np.asarray(onnx.helper.get_attribute_value(entry), dtype=dtype)


def _constant_of_shape(model: Model, node: onnx.NodeProto, shape: Array) -> Array:
    entry = attribute(node, "value")
    fill = np.zeros(1, np.float32) if entry is None else tensor_value(model, entry.t).reshape(1)
    return np.full(tuple(int(size) for size in shape), fill[0])


def _identity(_model: Model, _node: onnx.NodeProto, value: Array) -> Array:
    return value


def _cast(_model: Model, node: onnx.NodeProto, value: Array) -> Array:
    to = attribute(node, "to")
    assert to is not None
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float16 is infinity, as in ONNX
        result: Array = value.astype(onnx.helper.tensor_dtype_to_np_dtype(to.i))
    return result


_EVALUATE: dict[str, Callable[[Model, onnx.NodeProto, Array], Array]] = {
    "ConstantOfShape": _constant_of_shape,
    "Identity": _identity,
    "Cast": _cast,
}
