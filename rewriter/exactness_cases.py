"""The sums that the exactness probe gives to a provider: one operator each, on seeded integers, with the right answer.

The integers are as large as they may be.  No partial sum, in any order, leaves the integers that the type holds
exactly, so that an exact kernel has no excuse; but the largest come near that limit, where transforms (Winograd, FFT)
round, and the operands need more bits than a provider may silently cut them to.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import ceil, prod
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Shape = tuple[int, ...]
Integers = NDArray[np.int64]
Precision = Literal["float32", "tf32", "float16", "float64"]
"""What is computed in; "tf32" is float32 whose operands may be rounded to 11 bits."""

_TYPE: Final[Mapping[Precision, type[np.floating[Any]]]] = {
    "float32": np.float32,
    "tf32": np.float32,
    "float16": np.float16,
    "float64": np.float64,
}
SIGNIFICAND: Final[Mapping[Precision, int]] = {"float32": 24, "tf32": 24, "float16": 11, "float64": 53}
"""Bits p of the accumulated type: integers up to 2^p are exact."""
_OPERANDS: Final[Mapping[Precision, int]] = {"float32": 13, "tf32": 11, "float16": 11, "float64": 26}
"""Bits of the large factors: in float32 more than the 11 that TF32 keeps, in tf32 no more than those."""
_OPSET, _IR = 17, 8


@dataclass(frozen=True)
class Case:
    """One operator and its shapes.  x [N, C, *S], or x [N, K] and [B, N, K] of Gemm and MatMul; w as ONNX has it."""

    name: str
    op: str
    x: Shape
    w: Shape = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bias: bool = False
    then: tuple[str, ...] = ()
    """Operators behind it ("Add" of a fed tensor, "Relu"), which ONNX Runtime fuses into it."""

    @property
    def group(self) -> int:
        """Groups of the convolution."""
        return int(self.attributes.get("group", 1))

    @property
    def terms(self) -> int:
        """The most products that one output sums, and the offsets added to it."""
        return self._products() + self.bias + ("Add" in self.then)

    def _products(self) -> int:
        if self.op == "Conv":
            return prod(self.w[1:])
        if self.op == "ConvTranspose":
            taps = (ceil(k / int(s)) for k, s in zip(self.w[2:], self.attributes["strides"], strict=True))
            return self.x[1] // self.group * prod(taps)
        if self.op == "ReduceSum":
            return self.x[int(self.attributes["axis"])]
        return prod(self.x[2:]) if self.op == "GlobalAveragePool" else self.x[-1]


def _conv(name: str, x: Shape, w: Shape, bias: bool = True, then: tuple[str, ...] = (), **attributes: Any) -> Case:
    return Case(name, "Conv", x, w, attributes, bias, then)


CASES: Final[tuple[Case, ...]] = (
    _conv("conv 1x1", (2, 64, 14, 14), (64, 64, 1, 1)),
    # What Winograd is made for: stride 1, many channels.
    _conv("conv 3x3", (2, 64, 28, 28), (64, 64, 3, 3), pads=[1] * 4),
    _conv("conv 3x3 stride 2", (2, 32, 28, 28), (32, 32, 3, 3), pads=[1] * 4, strides=[2, 2]),
    _conv("conv 3x3 dilated", (2, 32, 14, 14), (32, 32, 3, 3), pads=[2] * 4, dilations=[2, 2]),
    _conv("conv 3x3 and Relu", (2, 32, 14, 14), (32, 32, 3, 3), then=("Relu",), pads=[1] * 4),
    _conv("conv 3x3, sum and Relu", (2, 32, 14, 14), (32, 32, 3, 3), then=("Add", "Relu"), pads=[1] * 4),
    _conv("conv 5x5", (2, 16, 28, 28), (16, 16, 5, 5), pads=[2] * 4),
    # What FFT is made for: a large kernel on a large map.
    _conv("conv 7x7", (2, 8, 64, 64), (8, 8, 7, 7), pads=[3] * 4),
    _conv("conv 3x3 of 4 per group", (2, 64, 14, 14), (64, 4, 3, 3), pads=[1] * 4, group=16),
    _conv("conv 3x3 of 8 per group", (2, 64, 14, 14), (64, 8, 3, 3), pads=[1] * 4, group=8),
    _conv("conv 3x3 of 16 per group", (2, 64, 14, 14), (64, 16, 3, 3), pads=[1] * 4, group=4),
    _conv("depthwise 3x3", (2, 64, 28, 28), (64, 1, 3, 3), pads=[1] * 4, group=64),
    _conv("depthwise 3x3 multiplier 2", (2, 32, 28, 28), (64, 1, 3, 3), pads=[1] * 4, group=32),
    _conv("conv1d 5", (2, 32, 64), (32, 32, 5), pads=[2] * 2),
    _conv("conv3d 3x3x3", (2, 8, 6, 10, 10), (8, 8, 3, 3, 3), pads=[1] * 6),
    Case("transposed conv 4x4", "ConvTranspose", (2, 16, 14, 14), (16, 16, 4, 4), {"strides": [2, 2]}, bias=True),
    Case("gemm", "Gemm", (64, 256), (256, 64), bias=True),
    Case("matmul batched", "MatMul", (4, 32, 128), (4, 128, 32)),
    Case("reduce first axis", "ReduceSum", (64, 8, 96), attributes={"axis": 0}),
    Case("reduce middle axis", "ReduceSum", (8, 64, 96), attributes={"axis": 1}),
    Case("reduce last axis", "ReduceSum", (8, 96, 64), attributes={"axis": 2}),
    Case("global average pool", "GlobalAveragePool", (4, 64, 16, 16)),
)


@dataclass(frozen=True, eq=False)
class Exercise:
    """A case on integers of one precision: the model to run, what to feed to it, and all operands."""

    case: Case
    model: onnx.ModelProto
    feeds: Mapping[str, NDArray[Any]]
    operands: Mapping[str, Integers]
    precision: Precision

    @cached_property
    def answer(self) -> NDArray[Any]:
        """The right output, computed in int64, in the type of the precision."""
        return evaluate(self.case, self.operands).astype(_TYPE[self.precision])

    def sums(self) -> NDArray[np.float64]:
        """Σ|w||x| + |b| of each output before it is divided: no partial sum is larger."""
        found = evaluate(self.case, {name: np.abs(value) for name, value in self.operands.items()})
        return np.asarray(found * (prod(self.case.x[2:]) if self.case.op == "GlobalAveragePool" else 1))


def exercise(case: Case, precision: Precision) -> Exercise:
    """The case with operands that are the same in every run and on every machine."""
    operands = _operands(case, precision)
    typed = {name: value.astype(_TYPE[precision]) for name, value in operands.items()}
    fed = {"x", "z"} | ({"w"} if case.op == "MatMul" else set())
    feeds = {name: value for name, value in typed.items() if name in fed}
    return Exercise(case, _model(case, typed, feeds), feeds, operands, precision)


def evaluate(case: Case, operands: Mapping[str, Integers]) -> NDArray[np.float64]:
    """The output, summed in int64 and below 2^53; that of the average pool is divided by its area, a power of two."""
    y = _summed(case, operands)
    if case.op == "GlobalAveragePool":
        return np.asarray(y / prod(case.x[2:]), np.float64)
    if case.bias:
        y = y + operands["b"].reshape(-1, *(1,) * (len(case.w) - 2))
    if "Add" in case.then:
        y = y + operands["z"]
    return np.asarray(np.maximum(y, 0) if "Relu" in case.then else y, np.float64)


def _summed(case: Case, operands: Mapping[str, Integers]) -> Integers:
    x = operands["x"]
    if case.op == "ReduceSum":
        return np.asarray(x.sum(case.attributes["axis"]))
    if case.op == "GlobalAveragePool":
        return np.asarray(x.sum((2, 3), keepdims=True))
    w = operands["w"]
    if case.op == "Conv":
        return _convolved(x, w, case.attributes, case.group)
    if case.op == "ConvTranspose":
        return _transposed(x, w, case.attributes["strides"])
    return np.asarray(np.einsum("...nk,...km->...nm", x, w))


def _convolved(x: Integers, w: Integers, attributes: Mapping[str, Any], group: int) -> Integers:
    """Y[n, m, p] = Σ W[m, i, k] · X[n, g·I + i, p·stride − pad + k·dilation], by one matrix of columns per group."""
    spatial = x.ndim - 2
    pads, strides, dilations = (
        attributes.get(name, default)
        for name, default in (("pads", [0] * 2 * spatial), ("strides", [1] * spatial), ("dilations", [1] * spatial))
    )
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    kernel = w.shape[2:]
    sizes = _output_sizes(x.shape[2:], kernel, strides, dilations)
    windows = [_window(tap, dilations, strides, sizes) for tap in product(*map(range, kernel))]
    columns = np.stack([x[window] for window in windows], axis=2).reshape(x.shape[0], group, -1, prod(sizes))
    y = np.einsum("gmk,ngkp->ngmp", w.reshape(group, w.shape[0] // group, -1), columns)
    return np.asarray(y.reshape(x.shape[0], w.shape[0], *sizes))


def _window(tap: Shape, dilations: Sequence[int], strides: Sequence[int], sizes: Shape) -> tuple[Any, ...]:
    """The elements that one tap of the kernel meets, as an index."""
    steps = zip(tap, dilations, strides, sizes, strict=True)
    return (..., *(slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, s, n in steps))


def _output_sizes(sizes: Shape, kernel: Shape, strides: Sequence[int], dilations: Sequence[int]) -> Shape:
    return tuple(
        (size - (k - 1) * d - 1) // s + 1 for size, k, d, s in zip(sizes, kernel, dilations, strides, strict=True)
    )


def _transposed(x: Integers, w: Integers, strides: Sequence[int]) -> Integers:
    """Y[n, m, p·stride + k] += Σ X[n, c, p] · W[c, m, k]."""
    sizes = tuple((n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, w.shape[2:], strict=True))
    y = np.zeros((x.shape[0], w.shape[1], *sizes), np.int64)
    for tap in product(*map(range, w.shape[2:])):
        at: tuple[Any, ...] = (..., *tap)
        y[_window(tap, [1] * len(tap), strides, x.shape[2:])] += np.einsum("nc...,cm->nm...", x, w[at])
    return y


def _operands(case: Case, precision: Precision) -> dict[str, Integers]:
    """x, and w, b, z where the case has them, such that `terms` products never exceed 2^p together.

    Each is between half its bound and the bound, so that sums come near 2^p wherever signs agree: in the first half of
    the outputs' channels of the first half of the samples all are positive.  Where factors are summed, even channels
    have a large x and a small w and odd ones the reverse: a kernel that cuts either operand is found out.
    """
    budget = 2 ** SIGNIFICAND[precision] // case.terms
    most = 2 ** _OPERANDS[precision] - 1
    draw = _Draw(zlib.crc32(case.name.encode()))
    if not case.w:
        # Nothing is multiplied: the operand alone has the budget, but tf32 must not be given more than it keeps.
        top = min(budget, most) if precision == "tf32" else budget
        return {"x": draw(case.x, np.array(top), 1 if case.attributes.get("axis") == 0 else 0)}
    small = min(most, max(1, ceil(budget / most)))
    large = min(most, budget // small)
    x_odd, w_odd, kept = _channel_parity(case)
    found = {
        "x": draw(case.x, np.where(x_odd, small, large), 0),
        "w": draw(case.w, np.where(w_odd, large, small), kept),
    }
    offset = np.array(min(most, budget))
    if case.bias:
        found["b"] = draw((case.w[kept],), offset, 0)
    if "Add" in case.then:
        found["z"] = draw((case.x[0], case.w[0], *case.x[2:]), offset, 0)
    return found


def _channel_parity(case: Case) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Whether the summed channel is odd, for each element of x and of w (to be broadcast), and w's axis of outputs."""
    if case.op == "Conv":
        channels = np.arange(case.x[1]).reshape(case.group, 1, -1)
        of_w = np.broadcast_to(channels, (case.group, case.w[0] // case.group, case.w[1]))
        return _along(case.x, 1), of_w.reshape(*case.w[:2], *(1,) * (len(case.w) - 2)) % 2 == 1, 0
    if case.op == "ConvTranspose":
        return _along(case.x, 1), _along(case.w, 0), 1
    return _along(case.x, len(case.x) - 1), _along(case.w, len(case.w) - 2), len(case.w) - 1


def _along(shape: Shape, axis: int) -> NDArray[np.bool_]:
    return np.asarray(np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - axis - 1)) % 2 == 1)


class _Draw:
    """Integers by the raw PCG64 stream, which NumPy promises never to change."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def __call__(self, shape: Shape, top: NDArray[np.int64], axis: int) -> Integers:
        """Of size ⌈top/2⌉ … top; positive in the first half along `axis`, of either sign in the second."""
        raw = self._stream.random_raw(prod(shape)).reshape(shape)
        top = top.astype(np.uint64)
        low = (top + np.uint64(1)) // np.uint64(2)
        size = (low + raw % (top - low + np.uint64(1))).astype(np.int64)
        second = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - axis - 1)) >= shape[axis] // 2
        return np.where(second & (raw >> np.uint64(63) == 1), -size, size)


def _model(case: Case, typed: Mapping[str, NDArray[Any]], feeds: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The case as a model from x (and z; MatMul's w) to y, all else constant."""
    constants = {name: value for name, value in typed.items() if name not in feeds}
    attributes = dict(case.attributes)
    if case.op == "ReduceSum":
        constants["axes"] = np.array([attributes.pop("axis")])
        attributes["keepdims"] = 0
    names = [name for name in ("x", "w", "b", "axes") if name in typed or name in constants]
    values = [f"y{step}" for step in range(len(case.then))] + ["y"]
    nodes = [helper.make_node(case.op, names, values[:1], **attributes)]
    for op, source, target in zip(case.then, values, values[1:], strict=False):
        nodes.append(helper.make_node(op, [source, "z"] if op == "Add" else [source], [target]))
    rank = len(case.x) - (case.op == "ReduceSum")
    graph = helper.make_graph(
        nodes,
        "exactness",
        [helper.make_tensor_value_info(name, _code(value), value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", _code(typed["x"]), [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _code(value: NDArray[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))
