"""Fold a channel permutation into the weights of the convolution before, through elementwise nodes."""

from __future__ import annotations

import numpy as np
import onnx

from rewriter.build import Builder
from rewriter.conv import Ints
from rewriter.lifting import lift
from rewriter.model import Model
from rewriter.per_channel import ELEMENTWISE, is_plain
from rewriter.rule import require


def fold_into_producer(
    build: Builder, model: Model, x: str, order: Ints, region: frozenset[int]
) -> tuple[str, frozenset[int]]:
    """A tensor equal to `x[:, order]`, made by permuting the rows of the Conv before; and the nodes it replaces.

    Declines unless x comes from a dense Conv through elementwise nodes, and nobody but the `region`, which goes, reads
    anything on the way.
    """
    between: list[onnx.NodeProto] = []
    gone: list[int] = []
    tensor = x
    while True:
        escape = model.wiring.escapes(tensor)
        require(not escape, f"the shuffle cannot go into the convolution before: {escape}", tensor)
        require(
            set(model.wiring.readers(tensor)) <= region.union(gone),
            f"the shuffle cannot go into the convolution before: '{tensor}' has other readers",
            tensor,
        )
        maker = model.wiring.producer(tensor)
        require(maker is not None, f"no convolution comes before '{tensor}' to take the shuffle", tensor)
        assert maker is not None
        node = model.nodes[maker]
        gone.append(maker)
        if node.op_type == "Conv":
            break
        passes = node.op_type in ELEMENTWISE and is_plain(node)
        passes = passes and not (node.op_type == "Dropout" and len(node.input) > 2)  # it may be training
        require(passes, f"{node.op_type} at '{tensor}' stands between the shuffle and the convolution before", tensor)
        between.append(node)
        tensor = node.input[0]
    site = lift(model, gone[-1])
    require(site.group == 1, f"the convolution before has {site.group} groups: its rows cannot move freely", tensor)
    require(len(order) == site.m, "the shuffle drops channels of the convolution before", tensor)
    weight = build.constant(np.ascontiguousarray(site.weight[order]), "shuffled_weight")
    bias = None if site.bias is None else build.constant(np.ascontiguousarray(site.bias[order]), "shuffled_bias")
    y = build.conv(site.node, site.x, weight, bias, 1, None)
    for node in reversed(between):
        y = build.copy(node, y)
    return y, frozenset(gone)
