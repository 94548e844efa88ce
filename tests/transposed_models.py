"""Transposed convolutions for tests: evaluated directly from ONNX's definition, and small models of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from models.emit import Array
from programs import program


def direct(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    group: int = 1,
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    auto_pad: str = "NOTSET",
) -> Array:
    """Every product added where it belongs, one at a time: x [N, C, *S], weight [C, M/G, *K] → [N, M, *S']."""
    rank = weight.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    output_padding, pads = output_padding or [0] * rank, pads or [0] * 2 * rank
    begin, sizes = [], []
    for axis, (n, k) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True)):
        whole = strides[axis] * (n - 1) + output_padding[axis] + (k - 1) * dilations[axis] + 1
        if output_shape or auto_pad.startswith("SAME"):
            size = output_shape[axis] if output_shape else n * strides[axis]
            total = whole - size
            begin.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
        else:
            first, last = (0, 0) if auto_pad == "VALID" else (pads[axis], pads[rank + axis])
            size = whole - first - last
            begin.append(first)
        sizes.append(size)
    batch, channels, *space = x.shape
    i_per, o_per = channels // group, weight.shape[1]
    y = np.zeros((batch, group * o_per, *sizes), np.result_type(x, weight))
    for c, q in product(range(channels), range(o_per)):
        m = c // i_per * o_per + q
        for at in product(*map(range, space)):
            for tap in product(*map(range, weight.shape[2:])):
                spot = tuple(
                    a * s + t * d - b for a, s, t, d, b in zip(at, strides, tap, dilations, begin, strict=True)
                )
                if all(0 <= place < size for place, size in zip(spot, sizes, strict=True)):
                    target: Any = (slice(None), m, *spot)
                    source: Any = (slice(None), c, *at)
                    y[target] += weight[c, q][tap] * x[source]
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


class ConvTranspose(OpRun):
    """For ONNX's evaluator, whose own mixes up channels where there are groups."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        given = {name: value for name, value in attributes.items() if value is not None and name != "kernel_shape"}
        return (direct(x, w, b, **given),)


def transposed(
    options: str = "",
    *,
    group: int = 4,
    i_per: int = 2,
    o_per: int = 3,
    kernel: Sequence[int] = (3, 3),
    bias: bool = True,
    **settings: Any,
) -> onnx.ModelProto:
    """x [N, C, *S] → ConvTranspose → y; `options` are further attributes in ONNX's text syntax."""
    c = group * i_per
    space = ",".join(str(4 + axis) for axis in range(len(kernel)))
    kind = {np.dtype(np.float16): "float16", np.dtype(np.float64): "double"}
    name = kind.get(np.dtype(settings.get("dtype", np.float32)), "float")
    attributes = ", ".join(filter(None, [f"group = {group}", options]))
    operands = "x, w, b" if bias else "x, w"
    weights: dict[str, Any] = {"w": (c, o_per, *kernel)} | ({"b": (group * o_per,)} if bias else {})
    body = f"y = ConvTranspose <{attributes}> ({operands})"
    return program(body, **{"x": f"{name}[N,{c},{space}]", **weights, **settings})


def transposed_models() -> dict[str, onnx.ModelProto]:
    """What the laws try passes on, by name; x is [N, 8, 7, 9]."""
    x = "float[N,8,7,9]"
    one = "<strides = [2, 2], pads = [1, 1, 0, 1]>"
    return {
        "grouped transposed": program(
            "r = Relu (x) t = ConvTranspose <group = 4, strides = [2, 1], output_padding = [1, 0]> (r, w, b) "
            "y = Relu (t)",
            x=x,
            w=(8, 3, 3, 2),
            b=(12,),
        ),
        "transposed side by side": program(
            f"p, q = Split <axis = 1> (x, s) a = ConvTranspose {one} (p, v, b) c = ConvTranspose {one} (q, w) "
            "y = Concat <axis = 1> (a, c)",
            x=x,
            s=[4, 4],
            v=(4, 2, 3, 3),
            w=(4, 2, 3, 3),
            b=(2,),
        ),
    }


TRANSPOSED = frozenset({"merge-transposed", "regroup-transposed", "split-transposed"})
"""Passes that apply to these models, where the laws' own have nothing for them."""
