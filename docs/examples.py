"""The tiny graph that each pass is shown with on its page: `EXAMPLES`.

A new pass needs an entry: a graph in the ONNX text format, the weights' shapes or values, and the settings.  The
picture of the graph after it is what the pass itself makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import numpy_helper

from rewriter import Settings

Array: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Value: TypeAlias = tuple[int, ...] | Array
"""A weight: its shape, filled at random, or its value."""


@dataclass(frozen=True)
class Example:
    """A graph (`(inputs) => (outputs) { nodes }` as text), its weights, and the settings the pass is applied with."""

    caption: str
    graph: str
    weights: Mapping[str, Value] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The model before the pass."""
        made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> example {self.graph}')
        rng = np.random.default_rng(0)
        for name, given in self.weights.items():
            value = rng.standard_normal(given, dtype=np.float32) if isinstance(given, tuple) else given
            made.graph.initializer.append(numpy_helper.from_array(value, name))
        return made


def _integers(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _block_diagonal() -> npt.NDArray[np.float32]:
    """[8, 8, 3, 3] of two blocks [4, 4, 3, 3]."""
    blocks = np.random.default_rng(0).standard_normal((2, 4, 4, 3, 3), dtype=np.float32)
    weight = np.zeros((8, 8, 3, 3), np.float32)
    weight[:4, :4], weight[4:, 4:] = blocks
    return weight


def _separable() -> npt.NDArray[np.float32]:
    """[16, 8, 3, 3] in which all filters of an input channel are multiples of one, in numbers that float32 holds."""
    rng = np.random.default_rng(0)
    depthwise, pointwise = rng.integers(1, 5, (8, 3, 3)), rng.integers(1, 5, (16, 8))
    product: npt.NDArray[np.float32] = np.einsum("ckl,mc->mckl", depthwise, pointwise).astype(np.float32)
    return product


_GROUPED = Example(
    "4 groups of 2 channels",
    "(float[1,8,8,8] x) => (float[1,8,8,8] y) { y = Conv <group = 4, pads = [1,1,1,1]> (x, w, b) }",
    {"w": (8, 2, 3, 3), "b": (8,)},
)
_TRANSPOSED = Example(
    "4 groups of 2 channels",
    "(float[1,8,8,8] x) => (float[1,12,16,16] y) { y = ConvTranspose <group = 4, strides = [2,2]> (x, w, b) }",
    {"w": (8, 3, 2, 2), "b": (12,)},
)
_MULTIPLIER = Example(
    "multiplier 2, and a convolution behind that takes the new order of channels in",
    """(float[1,4,8,8] x) => (float[1,6,8,8] y) {
        t = Conv <group = 4, pads = [1,1,1,1]> (x, w)
        y = Conv (t, v)
    }""",
    {"w": (8, 1, 3, 3), "v": (6, 8, 1, 1)},
)

EXAMPLES: Mapping[str, Example] = {
    "absorb-shuffle": Example(
        "a channel shuffle of 2 groups, and a Relu, between two convolutions",
        """(float[1,4,8,8] x) => (float[1,6,8,8] y) {
            c = Conv <pads = [1,1,1,1]> (x, w)
            apart = Reshape (c, groups)
            turned = Transpose <perm = [0, 2, 1, 3, 4]> (apart)
            s = Reshape (turned, together)
            r = Relu (s)
            y = Conv (r, v)
        }""",
        {
            "w": (8, 4, 3, 3),
            "v": (6, 8, 1, 1),
            "groups": _integers(1, 2, 4, 8, 8),
            "together": _integers(1, 8, 8, 8),
        },
    ),
    "align-concat": Example(
        "a GhostNet module of 12 + 12 channels, each half filled up to a block of 16",
        """(float[1,16,8,8] x) => (float[1,16,8,8] y) {
            a = Conv (x, w)
            r = Relu (a)
            d = Conv <group = 12, pads = [1,1,1,1]> (r, k)
            z = Concat <axis = 1> (r, d)
            y = Conv (z, v)
        }""",
        {"w": (12, 16, 1, 1), "k": (12, 1, 3, 3), "v": (16, 24, 1, 1)},
        {"block": 16},
    ),
    "cancel-layout-pairs": Example(
        "a bias per channel and a Relu in [N, H, W, C], as TensorFlow has them, between two convolutions",
        """(float[1,4,8,8] x) => (float[1,6,8,8] y) {
            c = Conv <pads = [1,1,1,1]> (x, w)
            last = Transpose <perm = [0, 2, 3, 1]> (c)
            a = Add (last, b)
            r = Relu (a)
            first = Transpose <perm = [0, 3, 1, 2]> (r)
            y = Conv (first, v)
        }""",
        {"w": (8, 4, 3, 3), "b": (8,), "v": (6, 8, 1, 1)},
    ),
    "conv1d-to-conv2d": Example(
        "two convolutions over 32 positions with a Relu between them: one run",
        """(float[1,4,32] x) => (float[1,6,32] y) {
            t = Conv <pads = [1,1]> (x, w)
            u = Relu (t)
            y = Conv <pads = [1,1]> (u, v)
        }""",
        {"w": (8, 4, 3), "v": (6, 8, 3)},
    ),
    "conv3d-to-conv2d": Example(
        "a temporal convolution, kernel (3, 1, 1)",
        "(float[1,4,8,6,6] x) => (float[1,8,8,6,6] y) { y = Conv <pads = [1,0,0,1,0,0]> (x, w) }",
        {"w": (8, 4, 3, 1, 1)},
    ),
    "dense-to-grouped": Example(
        "a dense convolution whose weight is two blocks, zeros elsewhere",
        "(float[1,8,8,8] x) => (float[1,8,8,8] y) { y = Conv <pads = [1,1,1,1]> (x, w) }",
        {"w": _block_diagonal()},
    ),
    "depthwise-sum-to-grouped": Example(
        "4 groups of 2 channels in and 3 out, the way TensorFlow users wrote them",
        """(float[1,8,8,8] x) => (float[1,12,8,8] y) {
            wide = Conv <group = 8, pads = [1,1,1,1]> (x, w)
            split = Reshape (wide, apart)
            sum = ReduceSum <keepdims = 0> (split, axis)
            y = Reshape (sum, together)
        }""",
        {
            "w": (24, 1, 3, 3),
            "apart": _integers(1, 4, 2, 3, 8, 8),
            "axis": _integers(2),
            "together": _integers(1, 12, 8, 8),
        },
    ),
    "expand-gate": Example(
        "squeeze and excitation",
        """(float[1,4,8,8] x) => (float[1,4,8,8] y) {
            m = GlobalAveragePool (x)
            t = Conv (m, w)
            s = Sigmoid (t)
            u = Mul (x, s)
            y = Conv (u, v)
        }""",
        {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)},
    ),
    "fold-affine": Example(
        "a scale before and a BatchNormalization behind",
        """(float[1,4,8,8] x) => (float[1,8,8,8] y) {
            s = Mul (x, scale)
            t = Conv <pads = [1,1,1,1]> (s, w)
            y = BatchNormalization (t, gamma, beta, mean, variance)
        }""",
        {
            "scale": (1, 4, 1, 1),
            "w": (8, 4, 3, 3),
            "gamma": (8,),
            "beta": (8,),
            "mean": (8,),
            "variance": np.ones(8, np.float32),
        },
    ),
    "fuse-conv-activation": Example(
        "a convolution, the residual added to it, and its Relu",
        """(float[1,8,8,8] x, float[1,8,8,8] z) => (float[1,8,8,8] y) {
            t = Conv <pads = [1,1,1,1]> (x, w, b)
            s = Add (t, z)
            y = Relu (s)
        }""",
        {"w": (8, 8, 3, 3), "b": (8,)},
    ),
    "fuse-separable": Example(
        "a depthwise and a pointwise convolution with nothing between them",
        """(float[1,4,8,8] x) => (float[1,6,8,8] y) {
            t = Conv <group = 4, pads = [1,1,1,1]> (x, w)
            y = Conv (t, v, b)
        }""",
        {"w": (4, 1, 3, 3), "v": (6, 4, 1, 1), "b": (6,)},
    ),
    "grouped-to-dense": _GROUPED,
    "grouped-to-depthwise-sum": _GROUPED,
    "merge-multiplier": Example(
        "two depthwise convolutions of one tensor, and a convolution behind that takes the order of channels in",
        """(float[1,4,8,8] x) => (float[1,6,8,8] y) {
            p = Conv <group = 4, pads = [1,1,1,1]> (x, w0)
            q = Conv <group = 4, pads = [1,1,1,1]> (x, w1)
            t = Concat <axis = 1> (p, q)
            y = Conv (t, v)
        }""",
        {"w0": (4, 1, 3, 3), "w1": (4, 1, 3, 3), "v": (6, 8, 1, 1)},
    ),
    "merge-split-groups": Example(
        "kernels of two sizes, as in MixNet: the smaller is padded with zeros",
        """(float[1,8,8,8] x) => (float[1,8,8,8] y) {
            p, q = Split <axis = 1> (x, sizes)
            s = Conv <group = 4, pads = [1,1,1,1]> (p, w0)
            t = Conv <group = 4, pads = [2,2,2,2]> (q, w1)
            y = Concat <axis = 1> (s, t)
        }""",
        {"sizes": _integers(4, 4), "w0": (4, 1, 3, 3), "w1": (4, 1, 5, 5)},
    ),
    "merge-transposed": Example(
        "two transposed convolutions, each of its half of the channels",
        """(float[1,8,8,8] x) => (float[1,6,16,16] y) {
            p, q = Split <axis = 1> (x, sizes)
            s = ConvTranspose <strides = [2,2]> (p, w0)
            t = ConvTranspose <strides = [2,2]> (q, w1)
            y = Concat <axis = 1> (s, t)
        }""",
        {"sizes": _integers(4, 4), "w0": (4, 3, 2, 2), "w1": (4, 3, 2, 2)},
    ),
    "pad-channels": Example(
        "4 groups of 6 channels, filled up to 8, in a bottleneck",
        """(float[1,8,8,8] x) => (float[1,8,8,8] y) {
            a = Conv (x, w)
            r = Relu (a)
            g = Conv <group = 4, pads = [1,1,1,1]> (r, k)
            s = BatchNormalization (g, gamma, beta, mean, variance)
            q = Relu (s)
            c = Conv (q, v)
            y = Add (c, x)
        }""",
        {
            "w": (24, 8, 1, 1),
            "k": (24, 6, 3, 3),
            "gamma": (24,),
            "beta": (24,),
            "mean": (24,),
            "variance": np.ones(24, np.float32),
            "v": (8, 24, 1, 1),
        },
        {"block": 8},
    ),
    "reduce-mean-to-global-pool": Example(
        "the head of a classifier",
        """(float[1,4,8,8] x) => (float[1,8] y) {
            t = Conv <pads = [1,1,1,1]> (x, w)
            u = Relu (t)
            y = ReduceMean <axes = [2,3], keepdims = 0> (u)
        }""",
        {"w": (8, 4, 3, 3)},
    ),
    "regroup": Example("4 groups of 2 channels in 2 of 4", _GROUPED.graph, _GROUPED.weights, {"groups": 2}),
    "regroup-transposed": Example(
        "4 groups of 2 channels as one", _TRANSPOSED.graph, _TRANSPOSED.weights, _TRANSPOSED.settings
    ),
    "split-groups": Example(
        "two groups, as in AlexNet",
        "(float[1,8,8,8] x) => (float[1,8,8,8] y) { y = Conv <group = 2, pads = [1,1,1,1]> (x, w, b) }",
        {"w": (8, 4, 3, 3), "b": (8,)},
    ),
    "split-multiplier": _MULTIPLIER,
    "split-separable": Example(
        "a dense convolution in which every input channel has one filter, times a number per output",
        "(float[1,8,8,8] x) => (float[1,16,8,8] y) { y = Conv <pads = [1,1,1,1]> (x, w, b) }",
        {"w": _separable(), "b": (16,)},
    ),
    "split-transposed": Example("4 groups in 2 parts of 2", _TRANSPOSED.graph, _TRANSPOSED.weights, {"parts": 2}),
    "sum-of-stack": Example(
        "two branches, stacked and summed",
        """(float[1,4,8,8] x) => (float[1,8,8,8] y) {
            p = Conv <pads = [1,1,1,1]> (x, w0)
            q = Conv <pads = [2,2,2,2]> (x, w1)
            s = Unsqueeze (p, one)
            t = Unsqueeze (q, one)
            stack = Concat <axis = 1> (s, t)
            y = ReduceSum <keepdims = 0> (stack, one)
        }""",
        {"w0": (8, 4, 3, 3), "w1": (8, 4, 5, 5), "one": _integers(1)},
    ),
}
