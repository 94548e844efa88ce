"""Programs that convolve 8 channels depthwise, two filters each (16 wide channels), and sum them in 2 groups of 4."""

from __future__ import annotations

from typing import Any

import onnx

from funnel import Sizes
from models.grouped import GroupedConv
from programs import program

PASS = "depthwise-sum-to-grouped"
WIDE = "wide = Conv <group = 8, pads = [1,1,1,1]> (x, w)"
W = (16, 1, 3, 3)
SPLIT, MERGED = [0, 2, 4, 2, 5, 5], [0, 4, 5, 5]  # [N, G, I, O, H, W] and [N, M, H, W]
SUM = f"{WIDE} split = Reshape (wide, s) sum = ReduceSum <keepdims = 0> (split, two)"
MERGE = "y = Reshape (sum, m)"
CONSTANTS: dict[str, Any] = {"w": W, "s": SPLIT, "m": MERGED, "two": [2]}
BATCHES: list[Sizes] = [{"x": (2, 8, 5, 5)}, {"x": (1, 8, 5, 5)}]


def plain(body: str = f"{SUM} {MERGE}", x: str = "float[N,8,5,5]", y: str = "y", **constants: Any) -> onnx.ModelProto:
    """A program with the usual constants, those it does not read left out."""
    model = program(body, x=x, y=y, **CONSTANTS | constants)
    read = {name for node in model.graph.node for name in node.input}
    unread = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    for tensor in unread:
        model.graph.initializer.remove(tensor)
    return model


def sizes(spec: GroupedConv) -> list[Sizes]:
    """Shapes of x to run at: the specified one, and others where the model leaves them open."""
    shapes = [(spec.batch, spec.spatial)]
    if spec.shapes != "static":
        shapes.append((4, spec.spatial))
    if spec.shapes == "dynamic":
        shapes.append((1, tuple(size + 3 for size in spec.spatial)))
    first = spec.layout == "nchw"
    return [{"x": (n, spec.channels_in, *space) if first else (n, *space, spec.channels_in)} for n, space in shapes]
