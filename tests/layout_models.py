"""Small models with changes of layout that undo each other around convolutions: what the laws try passes on."""

from __future__ import annotations

import onnx

from funnel import Sizes
from programs import program

TO_LAST = "Transpose <perm = [0, 2, 3, 1]>"
TO_FIRST = "Transpose <perm = [0, 3, 1, 2]>"
_RESIDUAL = (
    f"c = Conv <pads = [1, 1, 1, 1]> (x, w) t = {TO_LAST} (c) a = Add (t, b) r = Relu (a) u = {TO_FIRST} (r) "
    f"d = Conv <group = 8> (u, v) s = {TO_LAST} (d) e = Add (r, s) q = Relu (e) y = {TO_FIRST} (q)"
)
_FLAT = "c = Conv <pads = [1, 1, 1, 1]> (x, w) s = Shape (c) f = Reshape (c, k) g = Reshape (f, s) y = Relu (g)"
_UP = f"c = ConvTranspose <strides = [2, 2]> (x, w) t = {TO_LAST} (c) r = Relu (t) y = {TO_FIRST} (r)"


def layout_models() -> dict[str, tuple[onnx.ModelProto, tuple[Sizes, ...]]]:
    """By name, each with shapes to run it at."""
    sizes: tuple[Sizes, ...] = ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 7, 9)})
    free: tuple[Sizes, ...] = ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 4, 6)})
    residual = program(_RESIDUAL, x="float[N,8,7,9]", opset=17, w=(8, 8, 3, 3), v=(8, 1, 1, 1), b=(8,))
    flat = program(_FLAT, x="float[N,8,H,W]", opset=17, w=(8, 8, 3, 3), k=[0, 8, -1])
    up = program(_UP, x="float[N,8,7,9]", opset=17, w=(8, 4, 2, 2))
    return {"layout residual": (residual, sizes), "layout flat": (flat, free), "layout up": (up, sizes)}


PAIRED = frozenset({"cancel-layout-pairs"})
"""Passes that apply to these models, where the laws' own have nothing for them."""
