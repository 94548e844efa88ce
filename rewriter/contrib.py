"""ONNX Runtime's own operators, as far as they are used here: FusedConv of the domain com.microsoft.

    y = FusedConv(x, w, b, z)   is   y = act(Conv(x, w, b) + z)

with the attributes of Conv, `activation` and `activation_params`; b and z may be left out.  z has the shape of the
convolution's output: nothing is broadcast.  ONNX has no definition of it, so shapes are inferred by way of Conv.
Source: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Final

import onnx

DOMAIN: Final = "com.microsoft"
VERSION: Final = 1
FUSED_CONV: Final = "FusedConv"
_OWN_ATTRIBUTES: Final = frozenset({"activation", "activation_params"})


def is_fused_conv(node: onnx.NodeProto) -> bool:
    """Whether the node is ONNX Runtime's FusedConv; one of that name in any other domain is not."""
    return bool(node.op_type == FUSED_CONV and node.domain == DOMAIN)


def conv_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """The convolution in a FusedConv, as a Conv that gives out its output's name; z and the activation left out."""
    conv = onnx.NodeProto(op_type="Conv", name=node.name, input=node.input[:3], output=node.output[:1])
    conv.attribute.extend(entry for entry in node.attribute if entry.name not in _OWN_ATTRIBUTES)
    return conv
