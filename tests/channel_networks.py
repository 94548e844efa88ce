"""Random networks of the operators that channel components know, in which every value is exact in float32.

Weights are small integers, activations piecewise linear, means over powers of two: each tensor carries a bound on its
values and the bits behind the binary point, and is rounded and clipped before they could fill float32's 24.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2

import numpy as np
import onnx
from onnx import helper

from models.emit import Array, GraphBuilder

_BITS = 22
"""Bits that values and sums may take, of float32's 24."""
_SOON = 10
"""Bits from which a tensor is rounded and clipped before it is used further."""
_OPSETS = (9, 11, 13, 17, 18)


@dataclass(frozen=True)
class Tensor:
    """A tensor [N, channels, height, width] with |values| <= bound, in multiples of 2^-point."""

    name: str
    channels: int
    height: int
    width: int
    bound: float
    point: int = 0

    @property
    def bits(self) -> float:
        return log2(max(self.bound, 1)) + self.point

    @property
    def positions(self) -> int:
        return self.height * self.width


class Network:
    """Nodes, made one block after the other by a seeded draw."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.opset = self.rng.choice(_OPSETS)
        self.build = GraphBuilder(self.opset, 3 if self.opset < 11 and self.rng.random() < 0.5 else None)
        self.kinds: list[str] = []
        self._names = 0

    # Nodes and constants.

    def fresh(self) -> str:
        self._names += 1
        return f"t{self._names}"

    def node(self, op_type: str, inputs: Sequence[str], like: Tensor, **attributes: object) -> Tensor:
        self.kinds.append(op_type)
        return replace(like, name=self.build.node(op_type, inputs, self.fresh(), **attributes))

    def constant(self, value: Array) -> str:
        """An initializer, or behind a Constant node or an Identity."""
        name = self.fresh()
        kind = self.rng.choice(["plain", "plain", "identity", "node"])
        if kind == "node" and (value.dtype == np.float32 or self.opset >= 9):
            return self.build.node("Constant", [], name, value=onnx.numpy_helper.from_array(value))
        self.build.initializer(name, value)
        return name if kind == "plain" else self.build.node("Identity", [name], self.fresh())

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def values(self, *shape: int, most: int = 2) -> Array:
        """Integers without 0, so that each counts."""
        drawn = self.numbers.integers(1, most + 1, shape) * self.numbers.choice([-1, 1], shape)
        values: Array = drawn.astype(np.float32)
        return values

    # Keeping values exact.

    def small(self, x: Tensor, bits: float = _SOON) -> Tensor:
        """Whole numbers in ±3 where the tensor would take more bits than these."""
        if x.bits <= bits:
            return x
        whole = self.node("Floor", [x.name], replace(x, point=0)) if x.point else x
        return self.clip(whole, -3, 3)

    def clip(self, x: Tensor, least: float, most: float) -> Tensor:
        limits = {"min": float(least), "max": float(most)}
        y = replace(x, bound=max(-least, most))
        if self.opset < 11:
            return self.node("Clip", [x.name], y, **limits)
        return self.node(
            "Clip", [x.name, *(self.constant(np.asarray(limit, np.float32)) for limit in limits.values())], y
        )

    # Blocks: each from a tensor to the next one.

    def conv(self, x: Tensor, made: int, group: int = 1, kernel: int | None = None, stride: int = 1) -> Tensor:
        x = self.small(x)
        size = kernel or self.rng.choice([1, 1, 3] if min(x.height, x.width) >= 3 else [1])
        weight = self.values(made, x.channels // group, size, size)
        pads = [size // 2] * 4
        bound = float(np.abs(weight).sum(axis=(1, 2, 3)).max()) * x.bound
        operands = [x.name, self.constant(weight)]
        if self.rng.random() < 0.6:
            operands.append(self.constant(self.values(made)))
            bound += 2
        height, width = (-(-side // stride) for side in (x.height, x.width))
        y = Tensor("", made, height, width, bound, x.point)
        return self.node("Conv", operands, y, group=group, strides=[stride] * 2, pads=pads, kernel_shape=[size] * 2)

    def any_conv(self, x: Tensor) -> Tensor:
        stride = 2 if min(x.height, x.width) >= 4 and self.rng.random() < 0.2 else 1
        return self.conv(x, self.rng.randint(2, 9), 1, None, stride)

    def grouped(self, x: Tensor) -> Tensor:
        divisors = [number for number in range(2, x.channels + 1) if x.channels % number == 0]
        group = self.rng.choice(divisors) if divisors else 1
        return self.conv(x, group * self.rng.randint(1, 3), group)

    def depthwise(self, x: Tensor) -> Tensor:
        return self.conv(x, x.channels, x.channels, 3 if min(x.height, x.width) >= 3 else 1)

    def activation(self, x: Tensor) -> Tensor:
        x = self.small(x)
        kind = self.rng.choice(["Relu", "LeakyRelu", "HardSigmoid", "PRelu", "Abs", "Neg", "Identity", "Clip", "Sign"])
        if kind == "LeakyRelu":
            return self.node(kind, [x.name], replace(x, point=x.point + 1), alpha=0.5)
        if kind == "HardSigmoid":
            return self.node(kind, [x.name], replace(x, bound=1.0, point=x.point + 2), alpha=0.25, beta=0.5)
        if kind == "PRelu":
            slope = self.values(*self.rng.choice([(x.channels, 1, 1), (1, 1, 1)])) / np.float32(4)
            return self.node(kind, [x.name, self.constant(slope)], replace(x, point=x.point + 2))
        return self.clip(x, 0, 6) if kind == "Clip" else self.node(kind, [x.name], replace(x, bound=max(x.bound, 1)))

    def norm(self, x: Tensor) -> Tensor:
        x = self.small(x)
        variance = self.numbers.choice([0.25, 1.0, 4.0], x.channels).astype(np.float32)
        parts = [self.values(x.channels), self.values(x.channels), self.values(x.channels), variance]
        y = replace(x, bound=2 * (x.bound + 2) * 2 + 2, point=x.point + 1)
        return self.node("BatchNormalization", [x.name, *map(self.constant, parts)], y, epsilon=0.0)

    def affine(self, x: Tensor) -> Tensor:
        """With a constant per channel, or one for all."""
        x = self.small(x)
        kind = self.rng.choice(["Add", "Mul", "Sub", "Div", "Max", "Min"])
        value = self.values(*self.rng.choice([(x.channels, 1, 1), (1, x.channels, 1, 1), (), (1,), (x.height, 1)]))
        y = replace(x, bound=x.bound * 2 + 2, point=x.point + (kind == "Div"))
        operands = [x.name, self.constant(value)]
        return self.node(kind, operands if kind == "Div" else self.rng.sample(operands, 2), y)

    def pool(self, x: Tensor) -> Tensor:
        if min(x.height, x.width) < 4:
            return x
        x = self.small(x)
        if self.rng.random() < 0.3:
            return self.node("MaxPool", [x.name], x, kernel_shape=[3, 3], pads=[1] * 4)
        kind = self.rng.choice(["MaxPool", "AveragePool"])
        y = replace(x, height=x.height // 2, width=x.width // 2, point=x.point + 2 * (kind == "AveragePool"))
        return self.node(kind, [x.name], y, kernel_shape=[2, 2], strides=[2, 2])

    def resize(self, x: Tensor) -> Tensor:
        if x.positions > 64:
            return x
        y = replace(x, height=x.height * 2, width=x.width * 2)
        scales = self.constant(np.asarray([1, 1, 2, 2], np.float32))
        if self.opset < 11:
            return self.node("Upsample", [x.name, scales], y, mode="nearest")
        kinds = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}
        return self.node("Resize", [x.name, self.constant(np.zeros(0, np.float32)), scales], y, **kinds)

    def pad(self, x: Tensor) -> Tensor:
        if self.kinds[-1] == "Pad":  # ONNX Runtime moves both into a pool behind, and finds its padding too wide
            return x
        pads = [0, 0, *(self.rng.randint(0, 1) for _ in range(2)), 0, 0, *(self.rng.randint(0, 1) for _ in range(2))]
        y = replace(x, height=x.height + pads[2] + pads[6], width=x.width + pads[3] + pads[7])
        if self.opset < 11:
            return self.node("Pad", [x.name], y, pads=pads)
        return self.node("Pad", [x.name, self.integers(pads)], y)

    def crop(self, x: Tensor) -> Tensor:
        """A Slice of rows: channels stay."""
        return x if x.height < 3 else self.slice(x, 2, 1, x.height)

    def slice(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        y = replace(x, channels=stop - start) if axis == 1 else replace(x, height=stop - start)
        if self.opset < 10:
            return self.node("Slice", [x.name], y, starts=[start], ends=[stop], axes=[axis])
        return self.node("Slice", [x.name, *(self.integers([number]) for number in (start, stop, axis))], y)

    def gather(self, x: Tensor) -> Tensor:
        order = self.rng.choices(range(x.channels), k=self.rng.randint(1, x.channels + 1))
        if self.rng.random() < 0.6:
            order = self.rng.sample(range(x.channels), x.channels)
        return self.node("Gather", [x.name, self.integers(order)], replace(x, channels=len(order)), axis=1)

    def shuffle(self, x: Tensor) -> Tensor:
        divisors = [number for number in range(2, x.channels) if x.channels % number == 0]
        if not divisors:
            return x
        group = self.rng.choice(divisors)
        batch, space = self.rng.choice([0, -1]), [x.height, x.width]
        apart = self.node("Reshape", [x.name, self.integers([batch, group, x.channels // group, *space])], x)
        turned = self.node("Transpose", [apart.name], x, perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", [turned.name, self.integers([batch, x.channels, *space])], x)

    def residual(self, x: Tensor) -> Tensor:
        x = self.small(x)
        inner = self.conv(x, self.rng.randint(2, 8))
        for _ in range(self.rng.randint(0, 2)):
            inner = self.simple(inner)
        if (inner.height, inner.width) != (x.height, x.width):
            return inner
        back = self.small(self.conv(inner, x.channels))
        kind = self.rng.choice(["Add", "Add", "Sub", "Sum", "Max", "Mul"])
        point = x.point + back.point if kind == "Mul" else max(x.point, back.point)
        bound = x.bound * back.bound if kind == "Mul" else x.bound + back.bound
        return self.node(kind, [x.name, back.name], replace(x, bound=bound, point=point))

    def squeezed(self, x: Tensor) -> Tensor:
        """Squeeze-and-excitation: by convolutions or by products of matrices."""
        x = self.small(x)
        mean = x.positions & (x.positions - 1) == 0
        y = replace(x, height=1, width=1, point=x.point + (int(log2(x.positions)) if mean else 0))
        kind = self.rng.choice(["GlobalAveragePool", "mean"]) if mean else "GlobalMaxPool"
        s = self.reduce_mean(x, y) if kind == "mean" else self.node(kind, [x.name], y)
        s = self.small(s)
        if self.rng.random() < 0.5:
            inner = self.conv(s, self.rng.randint(1, 5))
            s = self.small(self.conv(self.node("Relu", [inner.name], inner), x.channels))
        else:
            s = self.matrices(s, x.channels)
        s = self.node("HardSigmoid", [s.name], replace(s, bound=1.0, point=s.point + 2), alpha=0.25, beta=0.5)
        return self.node("Mul", self.rng.sample([x.name, s.name], 2), replace(x, point=x.point + s.point))

    def reduce_mean(self, x: Tensor, y: Tensor) -> Tensor:
        if self.opset < 18:
            return self.node("ReduceMean", [x.name], y, axes=[2, 3], keepdims=1)
        return self.node("ReduceMean", [x.name, self.integers([2, 3])], y, keepdims=1)

    def matrices(self, s: Tensor, made: int) -> Tensor:
        """[N, C, 1, 1] -> [N, C] -> Gemm, or MatMul -> [N, made, 1, 1]."""
        flat = self.rng.choice(["Flatten", "Reshape", "Squeeze"])
        if flat == "Flatten":
            s = self.node("Flatten", [s.name], s)
        elif flat == "Reshape":
            s = self.node("Reshape", [s.name, self.integers(self.rng.choice([[0, -1], [-1, s.channels]]))], s)
        else:
            s = self.axes("Squeeze", s, [2, 3])
        s = self.small(self.product(s, made))
        if self.rng.random() < 0.5:
            return self.axes("Unsqueeze", s, [2, 3])
        return self.node("Reshape", [s.name, self.integers(self.rng.choice([[0, made, 1, 1], [-1, made, 1, 1]]))], s)

    def axes(self, kind: str, x: Tensor, axes: list[int]) -> Tensor:
        if self.opset < 13:
            return self.node(kind, [x.name], x, axes=axes)
        return self.node(kind, [x.name, self.integers(axes)], x)

    def product(self, s: Tensor, made: int) -> Tensor:
        matrix = self.values(s.channels, made)
        y = replace(s, channels=made, bound=float(np.abs(matrix).sum(axis=0).max()) * s.bound + 2)
        if self.rng.random() < 0.3:
            return self.node("MatMul", [s.name, self.constant(matrix)], y)
        turned = self.rng.random() < 0.5
        operands = [s.name, self.constant(np.ascontiguousarray(matrix.T) if turned else matrix)]
        bias = self.rng.choice([(made,), (1, made), (1,)])
        return self.node("Gemm", [*operands, self.constant(self.values(*bias))], y, transB=int(turned))

    def dense(self, x: Tensor) -> Tensor:
        """Concat with what a convolution makes of it."""
        x = self.small(x)
        more = self.small(self.simple(self.conv(x, self.rng.randint(1, 6))))
        return self.concat([x, more]) if (more.height, more.width) == (x.height, x.width) else more

    def concat(self, parts: list[Tensor]) -> Tensor:
        y = replace(
            parts[0],
            channels=sum(part.channels for part in parts),
            bound=max(part.bound for part in parts),
            point=max(part.point for part in parts),
        )
        return self.node("Concat", [part.name for part in self.rng.sample(parts, len(parts))], y, axis=1)

    def halves(self, x: Tensor) -> Tensor:
        """Split or Slices of the channels, some of them computed with, put together again."""
        if x.channels < 2:
            return x
        x = self.small(x)
        at = self.rng.randint(1, x.channels - 1)
        if self.rng.random() < 0.5:
            names = self.build.split(x.name, 1, [at, x.channels - at], [self.fresh(), self.fresh()])
            self.kinds.append("Split")
            parts = [replace(x, name=names[0], channels=at), replace(x, name=names[1], channels=x.channels - at)]
        else:
            parts = [self.slice(x, 1, 0, at), self.slice(x, 1, at, x.channels)]
        done = [self.small(self.branch(part)) for part in parts]
        one, two = done
        if self.rng.random() < 0.3 and one.channels == two.channels:  # as in Res2Net
            done[1] = self.node("Add", [one.name, two.name], replace(one, bound=6.0, point=max(one.point, two.point)))
        return self.concat(done) if (one.height, one.width) == (two.height, two.width) else one

    def branch(self, x: Tensor) -> Tensor:
        for _ in range(self.rng.randint(0, 2)):
            y = self.rng.choice([self.activation, self.depthwise, self.norm, self.same_conv])(x)
            x = y if (y.height, y.width) == (x.height, x.width) else x
        return x

    def same_conv(self, x: Tensor) -> Tensor:
        return self.conv(x, self.rng.randint(1, 6))

    def attention(self, x: Tensor) -> Tensor:
        """Of positions, by one channel that is broadcast."""
        x = self.small(x)
        s = self.small(self.conv(x, 1))
        s = self.node("HardSigmoid", [s.name], replace(s, bound=1.0, point=s.point + 2), alpha=0.25, beta=0.5)
        return self.node("Mul", [x.name, s.name], replace(x, point=x.point + s.point))

    def stacked(self, x: Tensor) -> Tensor:
        """A Concat of rows."""
        x = self.small(x)
        other = self.small(self.conv(x, x.channels))
        return self.node("Concat", [x.name, other.name], replace(x, height=2 * x.height, bound=max(x.bound, 3)), axis=2)

    def simple(self, x: Tensor) -> Tensor:
        return self.rng.choice([self.activation, self.norm, self.affine, self.depthwise, self.grouped])(x)

    def block(self, x: Tensor) -> Tensor:
        blocks: list[Callable[[Tensor], Tensor]] = [*[self.any_conv] * 3, *[self.simple] * 5, *[self.residual] * 2]
        blocks += [self.squeezed, self.dense, self.halves, self.shuffle, self.gather, self.pool, self.pad, self.crop]
        blocks += [self.resize, self.attention, self.stacked] if self.rng.random() < 0.4 else [self.dense, self.halves]
        y = self.rng.choice(blocks)(x)
        assert y.bits <= _BITS, f"{y} is not exact"
        return y

    def head(self, x: Tensor) -> tuple[Tensor, int]:
        """What the network gives out, and its rank."""
        if x.positions & (x.positions - 1) or self.rng.random() < 0.5:
            return self.conv(x, self.rng.randint(2, 4)), 4
        x = self.small(x)
        pooled = self.node("GlobalAveragePool", [x.name], replace(x, point=x.point + int(log2(x.positions))))
        return self.product(self.small(self.node("Flatten", [pooled.name], pooled)), self.rng.randint(2, 4)), 2


def random_network(seed: int, blocks: int = 6) -> onnx.ModelProto:
    """The network of a seed, `x` [N, C, 8, 8] to `y`; sometimes a tensor inside is an output too."""
    made = Network(seed)
    channels = made.rng.randint(1, 4)
    x = made.any_conv(Tensor("x", channels, 8, 8, 4.0))
    inside = []
    for _ in range(made.rng.randint(2, blocks)):
        x = made.block(x)
        inside.append(x.name)
    y, rank = made.head(x)
    made.build.node("Identity", [y.name], "y")
    outputs = {"y": rank}
    if made.rng.random() < 0.2:
        outputs[made.rng.choice(inside)] = 4
    given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", channels, 8, 8])]
    taken = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *[None] * (rank - 1)])
        for name, rank in outputs.items()
    ]
    return made.build.model("random", given, taken)
