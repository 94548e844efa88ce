"""Attributes without what may as well be left out: a value that is the default anyway means nothing.

Tools write defaults out, or leave them out: `auto_pad = NOTSET`, dilations of 1, `axis = -1` of Softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import onnx

_ONES: Final = frozenset({"strides", "dilations"})
_SLIDING: Final = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})
"""Operators whose strides and dilations are 1, and whose pads are 0, where nothing is said of them."""


def meaningful(node: onnx.NodeProto, version: int | None) -> Iterable[onnx.AttributeProto]:
    """The attributes that say something; `version` is that of the default operator set, None for other operators."""
    if version is None:
        return node.attribute
    defaults = _defaults(node.op_type, version)
    padded = any(entry.name == "auto_pad" and entry.s not in (b"", b"NOTSET") for entry in node.attribute)
    return [
        entry
        for entry in node.attribute
        if _plain(entry) != defaults.get(entry.name) and not _is_usual(node.op_type, entry, padded=padded)
    ]


@lru_cache(maxsize=1024)
def _defaults(op_type: str, version: int) -> Mapping[str, bytes]:
    """Serialized default values by attribute, as ONNX's definition of the operator gives them."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return {}
    return {
        name: _plain(entry.default_value)
        for name, entry in schema.attributes.items()
        if entry.default_value.type != onnx.AttributeProto.UNDEFINED
    }


def _plain(entry: onnx.AttributeProto) -> bytes:
    plain = onnx.AttributeProto()
    plain.CopyFrom(entry)
    plain.ClearField("doc_string")
    return plain.SerializeToString(deterministic=True)


def _is_usual(op_type: str, entry: onnx.AttributeProto, *, padded: bool) -> bool:
    """Whether it says what holds for an operator of this kind that says nothing."""
    if op_type not in _SLIDING or entry.type != onnx.AttributeProto.INTS or entry.ref_attr_name:
        return False
    if entry.name in _ONES:
        return all(size == 1 for size in entry.ints)
    return entry.name == "pads" and not padded and not any(entry.ints)
