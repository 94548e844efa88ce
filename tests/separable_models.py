"""Small separable networks: what `fuse-separable` takes, and what `split-separable` does."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from models.emit import Array
from programs import program

X = "float[N,8,7,9]"


def separable_models() -> dict[str, ModelProto]:
    """By name: rows of convolutions, some with a border that two do not share; and dense ones of low rank."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    mobile = """
        a = Conv <group=8, pads=[1,1,1,1]> (x, v, b) b1 = Conv (a, w, c) r = Relu (b1)
        d = Conv <group=6, pads=[1,1,1,1], strides=[2,2]> (r, u) y = Conv (d, q)
    """
    depthwise: dict[str, Any] = {"v": weights(8, 1, 3, 3), "b": weights(8), "w": weights(6, 8, 1, 1), "c": weights(6)}
    border = "a = Conv (x, v, b) y = Conv <pads=[1,1,1,1]> (a, w)"
    low = np.einsum("mc,chw->mchw", weights(6, 8), weights(8, 3, 3))
    thin = np.einsum("cha,amw->mchw", weights(8, 3, 1), weights(1, 6, 3))
    return {
        "separable convs": program(mobile, x=X, **depthwise, u=weights(6, 1, 3, 3), q=weights(4, 6, 1, 1)),
        "a border": program(border, x=X, v=weights(4, 8, 1, 1), b=weights(4), w=weights(5, 4, 3, 3)),
        "low rank": program("a = Conv <pads=[1,1,1,1]> (x, v) y = Relu (a)", x=X, v=low),
        "low rank in space": program("y = Conv <pads=[1,0,1,0], strides=[1,2]> (x, v, b)", x=X, v=thin, b=weights(6)),
    }
