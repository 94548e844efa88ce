"""Small models of 1-D and 3-D convolutions, and with affine nodes around 2-D ones: what the laws try passes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from funnel import Sizes
from programs import program

_SERIES = (
    "a = Conv <pads = [1, 1]> (x, w) r = Relu (a) m = Mul (r, k) d = Conv <group = 8, pads = [2, 2]> (m, v) "
    "y = Add (d, x)"
)
_VIDEO = (
    "a = Conv <pads = [0, 1, 1, 0, 1, 1]> (x, w) r = Relu (a) b = Conv <pads = [1, 0, 0, 1, 0, 0]> (r, v) "
    "s = Add (b, x) y = Relu (s)"
)
_AFFINE = (
    "n = Mul (k, x) a = Conv <pads = [1, 1, 1, 1]> (n, w) b = Conv (x, v) c = Concat <axis = 1> (a, b) "
    "d = Sub (c, l) r = Relu (d) e = Pad (r, p) f = Conv <group = 4> (e, u) y = Add (f, k)"
)


def ranked_models() -> dict[str, tuple[onnx.ModelProto, tuple[Sizes, ...]]]:
    """By name, each with shapes to run it at."""
    series = program(_SERIES, x="float[N,8,L]", w=(8, 8, 3), k=(8, 1), v=(8, 1, 5))
    video = program(_VIDEO, x="float[N,4,D,H,W]", w=(6, 4, 1, 3, 3), v=(4, 6, 3, 1, 1))
    pads = np.array([0, 0, 1, 0, 0, 0, 1, 2], np.int64)
    weights: dict[str, Any] = {
        "w": (5, 8, 3, 3),
        "v": (3, 8, 1, 1),
        "u": (8, 2, 3, 3),
        "k": (8, 1, 1),
        "l": (1, 8, 1, 1),
    }
    return {
        "series": (series, ({"x": (1, 8, 9)}, {"x": (3, 8, 14)})),
        "video": (video, ({"x": (1, 4, 3, 5, 6)}, {"x": (2, 4, 4, 6, 3)})),
        "affine": (program(_AFFINE, x="float[N,8,7,9]", p=pads, **weights), ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 7, 9)})),
    }


RANKED = frozenset({"conv1d-to-conv2d", "conv3d-to-conv2d", "fold-affine"})
"""Passes that apply to these models, where the laws' own have nothing for them."""
