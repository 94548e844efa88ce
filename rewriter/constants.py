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


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    """The attribute of that name, or None."""
    return next((entry for entry in node.attribute if entry.name == name), None)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """All attributes as Python values."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def is_constant(model: Model, tensor: str) -> bool:
    """Whether the tensor is a constant source; reads no weights."""
    node = _source(model, tensor)
    return node is not None


def why_not_constant(model: Model, tensor: str) -> str:
    """One clause saying what the tensor is instead of a constant."""
    if tensor in model.overridable:
        return f"'{tensor}' is an initializer that callers may override (it is a graph input too)"
    if any(value.name == tensor for value in model.skeleton.graph.input):
        return f"'{tensor}' is a graph input"
    maker = model.wiring.producer(tensor)
    if maker is None:
        return f"'{tensor}' has no producer that is a constant"
    return f"'{tensor}' is computed at run time by {model.nodes[maker].op_type}"


def constant(model: Model, tensor: str) -> Array | None:
    """The value of a constant source, or None when the tensor is not one; treat it as read-only.

    Raises BadInput when the value lies in external data that cannot be read.
    """
    source = _source(model, tensor)
    if source is None:
        return None
    if isinstance(source, str):
        return tensor_value(model, model.initializer(source))
    return _EVALUATE[source.op_type](model, source)


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


def _source(model: Model, tensor: str) -> str | onnx.NodeProto | None:
    """The initializer name or the node that gives a constant; None when the tensor is not constant."""
    if tensor in model.headers:
        return None if tensor in model.overridable else tensor
    maker = model.wiring.producer(tensor)
    if maker is None:
        return None
    node = model.nodes[maker]
    if node.domain not in ("", "ai.onnx") or node.op_type not in _EVALUATE:
        return None
    if node.op_type == "Constant":
        return node if _constant_attribute(node) is not None else None
    if node.op_type == "Cast" and not _is_plain_cast(node):
        return None
    if len(node.input) != 1:
        return None
    before = model.wiring.producer(node.input[0])
    if before is not None and before >= maker:  # no valid order; a cycle would never end
        return None
    return node if is_constant(model, node.input[0]) else None


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


def _constant_of_shape(model: Model, node: onnx.NodeProto) -> Array:
    shape = constant(model, node.input[0])
    assert shape is not None
    entry = attribute(node, "value")
    fill = np.zeros(1, np.float32) if entry is None else tensor_value(model, entry.t).reshape(1)
    return np.full(tuple(int(size) for size in shape), fill[0])


def _identity(model: Model, node: onnx.NodeProto) -> Array:
    value = constant(model, node.input[0])
    assert value is not None
    return value


def _cast(model: Model, node: onnx.NodeProto) -> Array:
    value = constant(model, node.input[0])
    to = attribute(node, "to")
    assert value is not None and to is not None
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float16 is infinity, as in ONNX
        result: Array = value.astype(onnx.helper.tensor_dtype_to_np_dtype(to.i))
    return result


_EVALUATE: dict[str, Callable[[Model, onnx.NodeProto], Array]] = {
    "Constant": _constant_node,
    "ConstantOfShape": _constant_of_shape,
    "Identity": _identity,
    "Cast": _cast,
}
