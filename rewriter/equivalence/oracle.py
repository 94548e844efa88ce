"""A region's outputs in float64, by ONNX's reference operators and own convolutions: exact for integers below 2^53.

The same evaluation on absolute values gives S = Σ|w||x| + |b|, the scale of every rounding bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from rewriter.constants import Array
from rewriter.equivalence.cut import Cut
from rewriter.equivalence.fused import expanded
from rewriter.equivalence.geometry import pads_of
from rewriter.equivalence.precision import significand_bits
from rewriter.equivalence.transposed import ConvTranspose
from rewriter.session import reason

_Floats = NDArray[np.float64]
_BLOCK = 1 << 16  # output elements convolved at once: what a core's cache holds


class OracleFailed(Exception):
    """The reference operators refuse the region; the message is a clause saying why."""


class Oracle:
    """Evaluates a cut in float64; with `absolute`, every constant by its absolute value and subtraction as addition."""

    def __init__(self, cut: Cut, *, absolute: bool = False) -> None:
        self.cut = cut
        self.absolute = absolute
        proto = expanded(cut.with_fed_weights())
        if absolute:
            for node in proto.graph.node:
                node.op_type = {"Sub": "Add", "Neg": "Identity"}.get(node.op_type, node.op_type)
                for factor in node.attribute if node.op_type == "Gemm" else ():  # alpha, beta
                    factor.f = abs(factor.f)
        self._means = {node.input[3] for node in proto.graph.node if node.op_type == "BatchNormalization"}
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(v.name) for v in cut.proto.graph.output)
        try:
            self._evaluator = ReferenceEvaluator(proto, new_ops=[BatchNormalization, Conv, ConvTranspose])
        except Exception as error:  # it has exceptions of its own for operators it does not know
            raise _failure(error) from error

    def __call__(self, feeds: Mapping[str, Array], weights: Mapping[str, Array]) -> dict[str, _Floats]:
        """Outputs by name; raises OracleFailed."""
        values = {name: self._wide(value) for name, value in weights.items()}
        if self.absolute:
            # y = (x − mean)·s + b becomes (|x| + |mean|)·|s| + |b|
            values |= {name: -np.abs(values[name]) for name in self._means & values.keys()}
        inputs = {value.name: self._wide(feeds[value.name]) for value in self.cut.proto.graph.input}
        names = [value.name for value in self.cut.proto.graph.output]
        try:
            with np.errstate(all="ignore"):
                found = self._evaluator.run(None, {**inputs, **values})
        except Exception as error:  # the reference operators raise whatever NumPy raises
            raise _failure(error) from error
        return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}

    def _wide(self, value: Array) -> Any:
        if not significand_bits(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)):
            return value
        wide = value.astype(np.float64)
        return np.abs(wide) if self.absolute else wide


def cut_of(model: onnx.ModelProto) -> Cut:
    """A whole small model as a cut, with its own weights."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    floats = {n: v for n, v in values.items() if significand_bits(onnx.helper.np_dtype_to_tensor_dtype(v.dtype))}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    fixed = {name: value for name, value in values.items() if name not in floats}
    return Cut("", bare, floats, fixed, frozenset(node.op_type for node in bare.graph.node))


class Conv(OpRun):
    """ONNX's Conv in float64: Y[n, m, p] = Σ W[m, i, k] · X[n, g·I + i, p·stride − pad + k·dilation] + B[m]."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[_Floats]:
        text = attributes.get("auto_pad") or "NOTSET"
        found = {**attributes, "auto_pad": text if isinstance(text, bytes) else str(text).encode()}
        group = int(attributes.get("group") or 1)
        return (convolve(x, w, b, found, group),)


class BatchNormalization(OpRun):
    """ONNX's BatchNormalization as inference has it: (x − mean) / √(var + ε) · scale + bias per channel.

    ONNX's own reference mixes statistics of the batch in at opsets 9 to 13, and knows none before.
    """

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, **attributes: Any) -> tuple[_Floats]:
        if attributes.get("training_mode") or attributes.get("spatial") == 0:
            raise ValueError("BatchNormalization is in training mode, or not spatial")
        epsilon = attributes.get("epsilon")
        shape = (-1, *[1] * (x.ndim - 2))
        scale, bias, mean, var = (np.reshape(value, shape) for value in (scale, bias, mean, var))
        return ((x - mean) / np.sqrt(var + (1e-5 if epsilon is None else epsilon)) * scale + bias,)


def convolve(x: NDArray[Any], w: _Floats, b: _Floats | None, attributes: Mapping[str, object], group: int) -> _Floats:
    """X [N, C, *S], W [M, C/G, *K], B [M] → Y [N, M, *S'], one product of matrices per kernel element."""
    spatial = x.ndim - 2
    ones = (1,) * spatial
    strides, dilations = (_axes(attributes.get(name), ones) for name in ("strides", "dilations"))
    kernel = w.shape[2:]
    begin, end = pads_of(attributes, x.shape[2:], kernel, strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    sizes = tuple(
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(padded.shape[2:], kernel, dilations, strides, strict=True)
    )
    batch, outputs, inputs = x.shape[0], w.shape[0], w.shape[1]
    _require_channels(x.shape[1], outputs, inputs, group)
    each = outputs // group
    taps = w.reshape(group, each, inputs, -1)
    total = np.zeros((batch, group, each, *sizes))
    # Some groups at a time, so that neither sums nor products leave the cache.
    step = max(1, _BLOCK // max(1, each * int(np.prod(sizes))))
    for n, first in product(range(batch), range(0, group, step)):
        part = slice(first, first + step)
        seen = padded[n].reshape(group, inputs, *padded.shape[2:])[part]
        total[n, part] = _correlate(seen, taps[part], kernel, strides, dilations, sizes)
    y = total.reshape(batch, outputs, *sizes)
    if b is not None:
        y += np.reshape(b, (-1, *ones))
    return y


def _correlate(
    x: NDArray[Any],
    taps: _Floats,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    sizes: tuple[int, ...],
) -> _Floats:
    """Padded X [G, I, *S] and taps [G, M/G, I, K] → [G, M/G, *S']."""
    group, each, inputs, _ = taps.shape
    total = np.zeros((group, each, int(np.prod(sizes))))
    scratch = np.empty_like(total)
    for number, step in enumerate(product(*map(range, kernel))):
        window = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in zip(step, dilations, sizes, strides, strict=True)
        )
        seen = x[(slice(None), slice(None), *window)].reshape(group, inputs, -1)
        if inputs == 1:
            np.multiply(seen, taps[..., number], out=scratch)
        else:
            np.matmul(taps[..., number], seen, out=scratch)
        total += scratch
    return total.reshape(group, each, *sizes)


def _require_channels(channels: int, outputs: int, inputs: int, group: int) -> None:
    if group < 1 or outputs % group or inputs * group != channels:
        raise ValueError(f"a Conv of {group} groups with {inputs} inputs each is given {channels} channels")


def _failure(error: Exception) -> OracleFailed:
    return OracleFailed(f"the reference operators refuse it: {reason(error)}")


def _axes(value: object, default: tuple[int, ...]) -> tuple[int, ...]:
    if value is None or not np.size(np.asarray(value)):
        return default
    return tuple(int(entry) for entry in np.asarray(value))
