"""A node's twin in float64: the same operator with float64 in place of narrower floating-point types.

Types are named in attributes (Cast's `to`, the tensors of Constant and ConstantOfShape) and in subgraphs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from rewriter.constants import Array, tensor_value
from rewriter.equivalence.precision import significand_bits
from rewriter.model import Model

_TYPE_ATTRIBUTES: Final = frozenset({"to", "dtype", "output_dtype", "output_datatype", "precision"})
"""Attributes that name an element type; LayerNormalization's stash_type is no such type: nothing is stashed here."""


def widened(value: object) -> object:
    """A floating-point tensor in float64; everything else (integers, 8-bit floats, sequences) as it is."""
    if not isinstance(value, np.ndarray) or value.dtype == np.float64 or not _is_float(value):
        return value
    return value.astype(np.float64)


def is_narrow(value: object) -> bool:
    """Whether it is a tensor of floating-point numbers of fewer than 64 bits."""
    return isinstance(value, np.ndarray) and value.dtype != np.float64 and _is_float(value)


def twin(model: Model, node: onnx.NodeProto) -> onnx.NodeProto:
    """The node in float64, its subgraphs included; itself where nothing in it names a type."""
    if not node.attribute and node.op_type != "ConstantOfShape":
        return node
    made = onnx.NodeProto()
    made.CopyFrom(node)
    _widen(model, made)
    return made


def twin_function(model: Model, function: onnx.FunctionProto) -> onnx.FunctionProto:
    """A model's own function with float64 inside."""
    made = onnx.FunctionProto()
    made.CopyFrom(function)
    for node in made.node:
        _widen(model, node)
    return made


def _widen(model: Model, node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:  # its default is a float32 zero
        node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for entry in node.attribute:
        if entry.name in _TYPE_ATTRIBUTES and entry.type == onnx.AttributeProto.INT and significand_bits(entry.i):
            entry.i = TensorProto.DOUBLE
        if node.op_type == "Constant" and entry.name in ("value_float", "value_floats"):
            value = np.asarray(onnx.helper.get_attribute_value(entry), np.float64)
            entry.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(value)))
        elif entry.type == onnx.AttributeProto.TENSOR and significand_bits(entry.t.data_type):
            _widen_tensor(model, entry.t)
        for graph in [entry.g] if entry.type == onnx.AttributeProto.GRAPH else entry.graphs:
            for tensor in graph.initializer:
                if significand_bits(tensor.data_type):
                    _widen_tensor(model, tensor)
            for inner in graph.node:
                _widen(model, inner)


def _widen_tensor(model: Model, tensor: TensorProto) -> None:
    wide = numpy_helper.from_array(tensor_value(model, tensor).astype(np.float64), tensor.name)
    tensor.CopyFrom(wide)


def _is_float(value: Array) -> bool:
    try:
        return bool(significand_bits(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)))
    except (KeyError, ValueError):  # a type that ONNX does not know
        return False
