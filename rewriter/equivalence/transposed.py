"""Transposed convolutions for the auditor: their geometry at concrete sizes, and a direct evaluation in float64.

    Y[n, g·O + q, p] = Σ_{i, k} W[g·I + i, q, k] · X[n, g·I + i, j]   over all j with j·stride + k·dilation − pad = p

for W [C, M/G, *K], I = C/G inputs and O = M/G outputs per group (ONNX, ConvTranspose).  It is a convolution of stride 1
with the flipped kernel over the input with stride − 1 zeros between its elements: that is how L1 compares two of them.
ONNX's own reference operator is not used: it mixes up channels where there are groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from rewriter.constants import Array
from rewriter.equivalence.forms import Floats
from rewriter.shapes import Shape


@dataclass(frozen=True)
class TransposedGeometry:
    """Attributes of a ConvTranspose, resolved at the sizes of its input."""

    group: int
    strides: Shape
    dilations: Shape
    begin: Shape
    """Elements cut off at the beginning of each spatial axis."""
    sizes: Shape
    """Of the output, per spatial axis."""


def transposed_geometry(
    attributes: Mapping[str, object], size: Sequence[int], kernel: Sequence[int]
) -> TransposedGeometry:
    """The geometry for an input of these spatial sizes.

    With an output size given, or SAME (then it is size · stride), the total padding is what is left over; its smaller
    half comes first for SAME_UPPER only (ONNX, ConvTranspose).  Raises ValueError for attributes that do not fit.
    """
    axes = len(size)
    strides, dilations = (_ints(attributes, name, (1,) * axes) for name in ("strides", "dilations"))
    more = _ints(attributes, "output_padding", (0,) * axes)
    pads = _ints(attributes, "pads", (0,) * 2 * axes)
    wanted: Sequence[int | None] = _ints(attributes, "output_shape", ()) or (None,) * axes
    if [len(strides), len(dilations), len(more), len(pads), len(wanted)] != [axes] * 3 + [2 * axes, axes]:
        raise ValueError(f"the attributes of a ConvTranspose do not fit its {axes} spatial axes")
    if min((*pads, *more, 0)) < 0 or min((*strides, *dilations)) < 1:
        raise ValueError("a ConvTranspose has negative padding or a stride or dilation below 1")
    auto = attributes.get("auto_pad") or b"NOTSET"
    auto = auto.decode() if isinstance(auto, bytes) else str(auto)
    begin, sizes = [], []
    for axis in range(axes):
        whole = (size[axis] - 1) * strides[axis] + more[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        target = wanted[axis]
        if target is None and auto in ("SAME_UPPER", "SAME_LOWER"):
            target = size[axis] * strides[axis]
        if target is not None:
            total = whole - target
            if total < 0:  # ONNX Runtime refuses it, or makes an output of another size than ONNX says
                raise ValueError(f"a ConvTranspose cannot fill {target} elements along spatial axis {axis}")
            begin.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
            sizes.append(target)
            continue
        first, last = (0, 0) if auto == "VALID" else (pads[axis], pads[axes + axis])
        begin.append(first)
        sizes.append(whole - first - last)
    if min(sizes, default=1) < 1:
        raise ValueError("a ConvTranspose has no output: its padding takes all of it")
    group = attributes.get("group") or 1
    assert isinstance(group, int)
    return TransposedGeometry(group, strides, dilations, tuple(begin), tuple(sizes))


def mirrored(weight: Array, group: int) -> Array:
    """Weight `[C, M/G, *K]` as that of the convolution it is: `[M, C/G, *K]`, every spatial axis reversed."""
    inputs, o_per, *kernel = weight.shape
    if group < 1 or inputs % group:
        raise ValueError(f"{inputs} input channels do not divide into {group} groups")
    turned = weight.reshape(group, inputs // group, o_per, *kernel).swapaxes(1, 2)
    flipped = turned.reshape(group * o_per, inputs // group, *kernel)
    return np.ascontiguousarray(flipped[(slice(None), slice(None), *[slice(None, None, -1)] * len(kernel))])


def convolve_transposed(
    x: NDArray[Any], w: Floats, b: Floats | None, geometry: TransposedGeometry
) -> NDArray[np.float64]:
    """X [N, C, *S], W [C, M/G, *K], B [M] → Y [N, M, *S'], one product of matrices per kernel element."""
    batch, channels, *size = x.shape
    group, o_per, kernel = geometry.group, w.shape[1], w.shape[2:]
    if group < 1 or w.shape[0] != channels or channels % group:
        raise ValueError(f"a ConvTranspose with weights {list(w.shape)} in {group} groups is given {channels} channels")
    seen = x.reshape(batch, group, channels // group, -1)
    taps = w.reshape(group, channels // group, o_per, *kernel)
    reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in _zipped(size, geometry, kernel)]
    ends = [max(r, b + n) for r, b, n in zip(reach, geometry.begin, geometry.sizes, strict=True)]
    total = np.zeros((batch, group, o_per, *ends))
    for step in np.ndindex(*kernel):
        window = tuple(
            slice(at * d, at * d + (n - 1) * s + 1, s)
            for at, (n, s, _, d) in zip(step, _zipped(size, geometry, kernel), strict=True)
        )
        product = np.matmul(taps[(..., *step)].swapaxes(1, 2), seen)
        total[(slice(None), slice(None), slice(None), *window)] += product.reshape(batch, group, o_per, *size)
    kept = tuple(slice(b, b + n) for b, n in zip(geometry.begin, geometry.sizes, strict=True))
    y = total.reshape(batch, group * o_per, *ends)[(slice(None), slice(None), *kept)]
    return y if b is None else y + np.reshape(b, (-1, *[1] * len(kernel)))


class ConvTranspose(OpRun):
    """ONNX's ConvTranspose in float64; see the module."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Floats]:
        given = {name: value for name, value in attributes.items() if value is not None}
        return (convolve_transposed(x, w, b, transposed_geometry(given, x.shape[2:], w.shape[2:])),)


def _zipped(size: Sequence[int], geometry: TransposedGeometry, kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """(input size, stride, kernel, dilation) per spatial axis."""
    return list(zip(size, geometry.strides, kernel, geometry.dilations, strict=True))


def _ints(attributes: Mapping[str, object], name: str, default: Shape) -> Shape:
    value = attributes.get(name)
    return default if value is None or not np.size(np.asarray(value)) else tuple(int(entry) for entry in value)  # type: ignore[attr-defined]  # a sequence
