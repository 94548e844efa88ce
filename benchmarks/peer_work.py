"""What a model has to compute, and what the machine can: multiplications, kinds of convolutions, the fastest dense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import onnx

from rewriter.model import Model
from rewriter.session import Runtime
from rewriter.shapes import Bound, Shape, bind
from rewriter.timing import Contender, latency

_PRODUCTS: Final = ("Conv", "Gemm", "MatMul")
_FEW: Final = 16
"""Channels below which ONNX Runtime's blocked layout takes any number of them: an image has 3."""
_BLOCKED: Final = 4
"""What the channels that enter a convolution are a multiple of, on ONNX Runtime's fast path."""


@dataclass(frozen=True)
class Work:
    """The useful work of one run."""

    multiplications: int | None
    """Of all Conv, Gemm and MatMul nodes, borders counted as the rest; None where a shape is not known."""
    grouped: int
    """Convolutions with groups that are not depthwise ones with as many channels out as in."""
    unaligned: int
    """Others whose channels ONNX Runtime's fast path does not take."""


def work(model: Model, shapes: Mapping[str, Shape]) -> Work:
    """The work at these input shapes."""
    bound = bind(model, shapes)
    found = [_multiplications(node, bound) for node in model.nodes if node.op_type in _PRODUCTS]
    known = [number for number in found if number is not None]
    kinds = [_kind(node, bound) for node in model.nodes if node.op_type == "Conv"]
    total = sum(known) if len(known) == len(found) else None
    return Work(total, kinds.count("grouped"), kinds.count("unaligned"))


def _multiplications(node: onnx.NodeProto, bound: Bound) -> int | None:
    """Of one node: as many for each number of the output as are summed for it."""
    left, right, output = (bound.shape(name) for name in (node.input[0], node.input[1], node.output[0]))
    if left is None or right is None or output is None:
        return None
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(right[1:])  # [M, C/G, *K]
    if node.op_type == "MatMul":
        return math.prod(output) * left[-1]
    return math.prod(output) * (math.prod(right) // output[-1])  # [K, N] or [N, K]


def _kind(node: onnx.NodeProto, bound: Bound) -> str:
    weight = bound.shape(node.input[1])
    if weight is None:
        return "unknown"
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    depthwise = groups > 1 and weight[0] == groups and weight[1] == 1
    if groups > 1 and not depthwise:
        return "grouped"
    channels = groups if depthwise else weight[1]
    small = channels < _FEW and not depthwise
    return "aligned" if small or channels % _BLOCKED == 0 else "unaligned"


@dataclass(frozen=True)
class Dense:
    """A chain of dense convolutions, what it is fed, and how fast it was by itself."""

    what: str
    proto: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    multiplications: int
    gflops: float
    """10⁹ multiplications and additions a second."""


PROBES: Final = ((256, 28, 3), (512, 14, 3), (1024, 14, 1), (256, 56, 1), (128, 56, 3))
"""Channels, size and kernel of dense convolutions, one of which should come near what the machine can do."""
_LENGTH: Final = 4
"""Convolutions in a row, so that changes of layout at both ends do not count for much."""


def fastest_dense(runtime: Runtime, probes: Sequence[tuple[int, int, int]] = PROBES, seconds: float = 2.0) -> Dense:
    """The fastest of the dense convolutions, each timed for so many seconds in ONNX Runtime."""
    return max((_dense(*probe, runtime, seconds) for probe in probes), key=lambda dense: dense.gflops)


def _dense(channels: int, size: int, kernel: int, runtime: Runtime, seconds: float) -> Dense:
    shape = [1, channels, size, size]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    weight = np.random.default_rng(0).standard_normal((channels, channels, kernel, kernel)).astype(np.float32)
    tensors = ["x", *(f"t{number}" for number in range(1, _LENGTH)), "y"]
    nodes = [
        onnx.helper.make_node("Conv", [before, "w"], [after], pads=[kernel // 2] * 4)
        for before, after in pairwise(tensors)
    ]
    graph = onnx.helper.make_graph(nodes, "dense", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "w")])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32) * np.float32(1e-6)}
    found = latency(Contender("dense", proto), feeds, runtime, budget_seconds=seconds)
    multiplications = _LENGTH * weight.size * size * size
    what = f"{channels} channels, {size}×{size}, kernel {kernel}×{kernel}"
    return Dense(what, proto, feeds, multiplications, 2 * multiplications / found.ms / 1e6)
