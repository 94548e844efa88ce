"""What one small grouped convolution is, and how it is to be spelled: the numbers behind models/grouped.py.

A `GroupedConv` says which convolution (groups, kernel, stride, …) and how it is spelled (form, layout, order,
shapes, where the bias sits, …). All spellings of one convolution draw the same weights from the same seed, so
`grouped` and `depthwise_sum` models of otherwise equal specifications compute the same function.

With C = G·I input and M = G·O output channels and the grouped weight W [M, I, *K], the depthwise form has
channel multiplier O and the weight Wd [C·O, 1, *K],

    Wd[c·O + q, 0] = W[g·O + q, i],   c = g·I + i (contiguous)   or   c = i·G + g (interleaved),

followed by a Reshape to [N, G, I, O, *S] (contiguous) or [N, I, G·O, *S] (interleaved) and a sum over I.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias, get_args

import numpy as np

from models.emit import Array, check_opset
from models.errors import ModelError
from models.reference import grouped_conv, same_pads

Form: TypeAlias = Literal["grouped", "depthwise_sum"]
AutoPad: TypeAlias = Literal["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]
Bias: TypeAlias = Literal["none", "conv", "before", "after"]
DType: TypeAlias = Literal["float16", "float32", "float64"]
Weights: TypeAlias = Literal["initializer", "constant", "constant_of_shape", "identity", "cast", "shared"]
Layout: TypeAlias = Literal["nchw", "nhwc"]
Order: TypeAlias = Literal["contiguous", "interleaved"]
Shapes: TypeAlias = Literal["static", "dynamic_batch", "dynamic"]
Reduce: TypeAlias = Literal["ReduceSum", "ReduceMean"]

CHOICES = {
    "form": Form,
    "auto_pad": AutoPad,
    "bias": Bias,
    "dtype": DType,
    "weights": Weights,
    "layout": Layout,
    "order": Order,
    "shapes": Shapes,
    "reduce": Reduce,
}


@dataclass(frozen=True)
class GroupedConv:
    """A grouped convolution and its spelling; raises `ModelError` if they contradict each other.

    `strides`, `dilations` and `pads` may be left empty: the attribute is then absent from the Conv node.
    `pads` is in ONNX order, all begins and then all ends. The model's input is `x`, its output `y`; with
    `weights="shared"` a second convolution reads the same weight, applied to `-x`, with output `y_shared`.
    """

    form: Form = "grouped"
    groups: int = 4
    in_per_group: int = 2
    out_per_group: int = 3
    kernel: tuple[int, ...] = (3, 3)
    spatial: tuple[int, ...] = (9, 8)
    batch: int = 2
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: AutoPad = "NOTSET"
    bias: Bias = "none"
    """`conv`: the convolution's own bias input; `before` and `after`: an Add before or after the reduction."""
    dtype: DType = "float32"
    weights: Weights = "initializer"
    layout: Layout = "nchw"
    order: Order = "contiguous"
    """`interleaved`: input channel i·G + g belongs to group g; the grouped form gathers the channels first."""
    shapes: Shapes = "static"
    reduce: Reduce = "ReduceSum"
    keepdims: bool = False
    allowzero: bool = False
    integers: bool = False
    """Draw small integer weights: every spelling is then exact, and equal bit for bit for integer inputs."""
    opset: int = 17
    ir_version: int | None = None
    """None: the lowest that fits the opset, at least 4; 3 lists every initializer among the graph's inputs."""
    seed: int = 0

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            _require(getattr(self, field) in get_args(choices), f"{field} must be one of {get_args(choices)}")
        check_opset(self.opset)
        positive = (self.groups, self.in_per_group, self.out_per_group, self.batch, *self.kernel, *self.spatial)
        _require(min((*positive, *self.strides, *self.dilations)) >= 1, "sizes, strides and dilations are at least 1")
        _require(self.seed >= 0, "the seed is at least 0")
        self._check_axes()
        self._check_versions()

    def _check_axes(self) -> None:
        rank = self.rank
        _require(1 <= rank <= 3, "kernel must have 1, 2 or 3 axes")
        _require(len(self.spatial) == rank, f"spatial must have {rank} axes like kernel")
        _require(len(self.strides) in (0, rank), f"strides must be empty or have {rank} axes like kernel")
        _require(len(self.dilations) in (0, rank), f"dilations must be empty or have {rank} axes like kernel")
        _require(len(self.pads) in (0, 2 * rank), f"pads must be empty or have {2 * rank} entries, begins then ends")
        _require(not self.pads or self.auto_pad == "NOTSET", "pads and auto_pad exclude each other")
        _require(not self.pads or min(self.pads) >= 0, "pads are at least 0")
        # ONNX allows it, ONNX Runtime does not ("Dilation not supported for AutoPadType::SAME_UPPER").
        dilated = any(d > 1 for d in self.dilations)
        _require(not (dilated and self.auto_pad.startswith("SAME")), "ONNX Runtime pads SAME only with dilation 1")
        _require(min(self.output_spatial) >= 1, "the kernel does not fit into the padded input")

    def _check_versions(self) -> None:
        _require(self.opset >= 9 or self.weights != "constant_of_shape", "ConstantOfShape needs opset 9 or newer")
        _require(self.opset >= 14 or not self.allowzero, "allowzero needs opset 14 or newer")
        _require(self.ir_version is None or self.ir_version >= 3, "ir_version is at least 3")

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def channels_in(self) -> int:
        """C = G·I."""
        return self.groups * self.in_per_group

    @property
    def channels_out(self) -> int:
        """M = G·O."""
        return self.groups * self.out_per_group

    @property
    def output_spatial(self) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        begins, ends = self.effective_pads
        return tuple(
            (size + begin + end - (k - 1) * d - 1) // s + 1
            for size, begin, end, k, d, s in zip(
                self.spatial,
                begins,
                ends,
                self.kernel,
                self.dilations or self._ones,
                self.strides or self._ones,
                strict=True,
            )
        )

    @property
    def effective_pads(self) -> tuple[list[int], list[int]]:
        """Begin and end padding per axis, with auto_pad resolved for the specified spatial sizes."""
        if self.auto_pad.startswith("SAME"):
            lower = self.auto_pad == "SAME_LOWER"
            return same_pads(self.spatial, self.kernel, self.strides or self._ones, lower)
        pads = list(self.pads) or [0] * (2 * self.rank)
        return pads[: self.rank], pads[self.rank :]

    @property
    def _ones(self) -> tuple[int, ...]:
        return (1,) * self.rank


@dataclass(frozen=True)
class Parameters:
    """The numbers of one `GroupedConv`, in its dtype: those of the grouped form and those of the depthwise form."""

    weight: Array
    """W [M, I, *K]."""
    bias: Array | None
    """b [M], the effective bias, or None."""
    wide_weight: Array
    """Wd [C·O, 1, *K], scaled by I where the reduction is a mean."""
    wide_bias: Array | None
    """[C·O]; reducing it over I gives `bias`."""


def depthwise_weight(weight: Array, groups: int, order: Order = "contiguous") -> Array:
    """The grouped weight [M, I, *K] as a depthwise weight with multiplier O, [C·O, 1, *K] (equation above)."""
    filters = weight.reshape(groups, -1, *weight.shape[1:])  # [G, O, I, *K]
    by_input_channel = {"contiguous": (0, 2, 1), "interleaved": (2, 0, 1)}[order]
    moved = filters.transpose(*by_input_channel, *range(3, filters.ndim))
    return moved.reshape(-1, 1, *weight.shape[2:])


def parameters(spec: GroupedConv) -> Parameters:
    """Draw the weights and biases of `spec`; they depend on its seed and sizes, not on its spelling."""
    rng = np.random.default_rng(spec.seed)
    shape = (spec.channels_out, spec.in_per_group, *spec.kernel)
    if spec.integers:
        weight = rng.integers(-3, 4, shape).astype(np.float64)
        terms = rng.integers(-2, 3, (spec.in_per_group, spec.channels_out)).astype(np.float64)
    else:
        weight = rng.standard_normal(shape) / np.sqrt(prod(shape[1:]))
        terms = 0.5 * rng.standard_normal((spec.in_per_group, spec.channels_out))
    if spec.weights == "constant_of_shape":
        weight = np.full(shape, 0.125)
    weight = weight.astype(spec.dtype)
    count = spec.in_per_group if spec.reduce == "ReduceMean" else 1
    wide_weight = depthwise_weight(weight * np.asarray(count, spec.dtype), spec.groups, spec.order)
    if spec.bias == "none":
        return Parameters(weight, None, wide_weight, None)
    # Each wide channel carries its own share of the bias: what is summed must be the sum, not I times one value.
    terms = terms.astype(spec.dtype)
    bias = terms.astype(np.float64).sum(axis=0).astype(spec.dtype)
    per_group = (terms * np.asarray(count, spec.dtype)).reshape(spec.in_per_group, spec.groups, spec.out_per_group)
    order = (1, 0, 2) if spec.order == "contiguous" else (0, 1, 2)
    return Parameters(weight, bias, wide_weight, per_group.transpose(order).reshape(-1))


def example_input(spec: GroupedConv, seed: int = 1) -> Array:
    """A seeded input for `x`, [N, C, *S] or [N, *S, C]: standard normal, or integers in ±4 if `spec.integers`."""
    rng = np.random.default_rng(seed)
    shape = (spec.batch, spec.channels_in, *spec.spatial)
    x = rng.integers(-4, 5, shape) if spec.integers else rng.standard_normal(shape)
    return (np.moveaxis(x, 1, -1) if spec.layout == "nhwc" else x).astype(spec.dtype)


def reference_outputs(spec: GroupedConv, x: Array) -> dict[str, Array]:
    """What the model of `spec` must compute for `x`, in float64, straight from the definition of convolution."""
    channels_first = np.moveaxis(x, -1, 1) if spec.layout == "nhwc" else x
    if spec.order == "interleaved":
        channels_first = channels_first[:, channel_order(spec)]
    numbers = parameters(spec)
    outputs = {}
    for name, value in {"y": channels_first, "y_shared": -channels_first}.items():
        y = grouped_conv(
            value,
            numbers.weight,
            numbers.bias,
            spec.groups,
            spec.strides or (1,) * spec.rank,
            spec.dilations or (1,) * spec.rank,
            *spec.effective_pads,
        )
        outputs[name] = np.moveaxis(y, 1, -1) if spec.layout == "nhwc" else y
    return outputs if spec.weights == "shared" else {"y": outputs["y"]}


def channel_order(spec: GroupedConv) -> Array:
    """Input channels in the order in which the grouped form reads them, [C]: entry g·I + i belongs to group g."""
    channels = np.arange(spec.channels_in)
    if spec.order == "contiguous":
        return channels
    return channels.reshape(spec.in_per_group, spec.groups).T.reshape(-1)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)
