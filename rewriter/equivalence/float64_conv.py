"""Convolutions of the float64 reference: ONNX's Conv and ONNX Runtime's FusedConv, by products of matrices.

    Y[n, g·O + q, p] = Σ_{i, k} W[g·O + q, i, k] · X[n, g·I + i, p·stride − pad + k·dilation] + B[g·O + q]

For each group this is the matrix W [O, I·K] times the columns of X [I·K, P] (im2col).  The columns are made for a part
of the groups and of the output rows at a time, so that they stay small.  1×1 convolutions need no columns; with one
input and one output per group, one product of vectors per kernel element is less work than columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from rewriter import contrib
from rewriter.equivalence.forms import Floats
from rewriter.equivalence.geometry import pads_of
from rewriter.shapes import Shape

_COLUMNS = 1 << 21  # elements of the columns made at once: 16 MiB
_DEPTHWISE = 1 << 15  # output elements summed at once: what a core's cache holds


def convolve(x: NDArray[Any], w: Floats, b: Floats | None, attributes: Mapping[str, object]) -> Floats:
    """X [N, C, *S], W [M, C/G, *K], B [M] → Y [N, M, *S'].  Raises ValueError for operands that do not fit."""
    axes = x.ndim - 2
    strides, dilations = (axis_values(attributes.get(name), (1,) * axes) for name in ("strides", "dilations"))
    group, kernel = int(attributes.get("group") or 1), w.shape[2:]  # type: ignore[call-overload]  # an integer
    if axes < 1 or w.ndim != x.ndim or group < 1 or w.shape[0] % group or w.shape[1] * group != x.shape[1]:
        raise ValueError(f"weights {list(w.shape)} in {group} groups do not fit an input {list(x.shape)}")
    begin, end = pads_of(with_text(attributes), x.shape[2:], kernel, strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)]) if any((*begin, *end)) else x
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    sizes = tuple(
        (size - span) // stride + 1 for size, span, stride in zip(padded.shape[2:], spans, strides, strict=True)
    )
    if min(sizes) < 1:
        raise ValueError(f"a kernel {list(kernel)} does not fit an input {list(x.shape)}")
    each, inputs = w.shape[0] // group, w.shape[1]
    y = np.empty((x.shape[0], group, each, *sizes))
    steps = tuple(slice(None, None, stride) for stride in strides)
    for n in range(x.shape[0]):
        seen = padded[n].reshape(group, inputs, *padded.shape[2:])
        if math.prod(kernel) == 1:
            part = np.ascontiguousarray(seen[(slice(None), slice(None), *steps)]).reshape(group, inputs, -1)
            np.matmul(w.reshape(group, each, inputs), part, out=y[n].reshape(group, each, -1))
        elif inputs == 1 and each == 1:
            _depthwise(seen[:, 0], w.reshape(group, *kernel), strides, dilations, y[n, :, 0])
        else:
            _by_columns(seen, w.reshape(group, each, -1), spans, strides, dilations, y[n])
    found = y.reshape(x.shape[0], w.shape[0], *sizes)
    if b is not None:
        found += np.reshape(b, (-1, *(1,) * axes))
    return found


def _by_columns(
    x: NDArray[Any], w: Floats, spans: Shape, strides: Shape, dilations: Shape, y: NDArray[np.float64]
) -> None:
    """Padded X [G, I, *S] and W [G, O, I·K] into Y [G, O, *S'], by columns."""
    group, axes = x.shape[0], x.ndim - 2
    windows = sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    windows = windows[
        (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    ]
    # [G, I, *S', *K] → [G, I, *K, *S']: then each row of columns is a row of the input
    windows = windows.transpose(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    taps, sizes = w.shape[2], y.shape[2:]
    per_row = taps * math.prod(sizes[1:])
    rows = min(sizes[0], max(1, _COLUMNS // per_row))
    groups = max(1, _COLUMNS // (per_row * rows))
    for first in range(0, group, groups):
        chosen = slice(first, first + groups)
        for row in range(0, sizes[0], rows):
            part = windows[(chosen, slice(None), *(slice(None),) * axes, slice(row, row + rows))]
            columns = np.ascontiguousarray(part).reshape(part.shape[0], taps, -1)
            made = np.matmul(w[chosen], columns)
            y[chosen, :, row : row + rows] = made.reshape(*made.shape[:2], -1, *sizes[1:])


def _depthwise(x: NDArray[Any], w: NDArray[Any], strides: Shape, dilations: Shape, y: NDArray[np.float64]) -> None:
    """Padded X [C, *S] and W [C, *K] into Y [C, *S'], channel by channel."""
    channels, sizes = y.shape[0], y.shape[1:]
    step = max(1, _DEPTHWISE // math.prod(sizes))
    for first in range(0, channels, step):
        chosen = slice(first, first + step)
        total = np.zeros((min(step, channels - first), *sizes))
        scratch = np.empty_like(total)
        for tap in np.ndindex(*w.shape[1:]):
            window = tuple(
                slice(k * d, k * d + (n - 1) * s + 1, s)
                for k, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
            )
            factor = w[(chosen, *tap)].reshape(-1, *(1,) * len(sizes))
            total += np.multiply(x[(chosen, *window)], factor, out=scratch)
        y[chosen] = total


def axis_values(value: object, default: Shape) -> Shape:
    """An attribute with one entry per spatial axis; the default where it is missing or empty."""
    if value is None or not np.size(np.asarray(value)):
        return default
    return tuple(int(entry) for entry in np.asarray(value))


def with_text(attributes: Mapping[str, object]) -> dict[str, object]:
    """The attributes with auto_pad as bytes, as a NodeProto has it."""
    text = attributes.get("auto_pad") or "NOTSET"
    return {**attributes, "auto_pad": text if isinstance(text, bytes) else str(text).encode()}


class Conv(OpRun):
    """ONNX's Conv; see the module."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Floats]:
        return (convolve(x, w, b, attributes),)


class FusedConv(OpRun):
    """ONNX Runtime's FusedConv: act(Conv(x, w, b) + z).  Raises ValueError for an activation it does not know."""

    op_domain = contrib.DOMAIN

    def _run(self, x: Any, w: Any, b: Any = None, z: Any = None, **attributes: Any) -> tuple[Floats]:
        y = convolve(x, w, b, attributes)
        if z is not None:
            y = y + z
        name = attributes.get("activation") or b""
        given = [float(value) for value in attributes.get("activation_params") or ()]
        return (_activated(y, name.decode() if isinstance(name, bytes) else str(name), given),)


def _activated(y: Floats, name: str, given: list[float]) -> Floats:
    if not name:
        return y
    if name == "Relu":
        return np.maximum(y, 0)
    if name == "Sigmoid":
        return 1 / (1 + np.exp(-y))
    if name == "Tanh":
        return np.tanh(y)
    if name == "LeakyRelu" and len(given) == 1:
        return np.where(y < 0, given[0] * y, y)
    if name == "Clip" and len(given) == 2:
        return np.clip(y, given[0], given[1])
    if name == "HardSigmoid" and len(given) == 2:
        return np.clip(given[0] * y + given[1], 0, 1)
    raise ValueError(f"the activation '{name}' with the parameters {given} is not known")
