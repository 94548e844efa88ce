"""One small grouped convolution, in every spelling that exporters use: the generator for property tests.

    spec = GroupedConv("depthwise_sum", groups=4, layout="nhwc", shapes="dynamic")
    model = grouped_conv_model(spec)                      # the same function as with form "grouped"
    expected = reference_outputs(spec, example_input(spec))  # from the definition of convolution, in float64

`GroupedConv` (models/grouped_spec.py) explains the options and the equation between the two forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from models.emit import Array, GraphBuilder
from models.grouped_spec import (
    GroupedConv,
    Parameters,
    channel_order,
    depthwise_weight,
    example_input,
    parameters,
    reference_outputs,
)

__all__ = [
    "GroupedConv",
    "Parameters",
    "channel_order",
    "depthwise_weight",
    "example_input",
    "grouped_conv_model",
    "parameters",
    "reference_outputs",
]


def grouped_conv_model(spec: GroupedConv) -> onnx.ModelProto:
    """The model of `spec`: input `x`, output `y` (and `y_shared`), [N, channels, *S] or [N, *S, channels]."""
    builder = GraphBuilder(spec.opset, spec.ir_version)
    numbers = parameters(spec)
    weight = numbers.weight if spec.form == "grouped" else numbers.wide_weight
    emitter = _Emitter(builder, spec, numbers, _weight(builder, spec, weight))
    emitter.emit("x", "y", "")
    outputs = ["y"]
    if spec.weights == "shared":
        emitter.emit(builder.node("Neg", ["x"], "negated"), "y_shared", "shared.")
        outputs.append("y_shared")
    x_info = _value_info(spec, "x", spec.channels_in, spec.spatial, "")
    y_infos = [_value_info(spec, name, spec.channels_out, spec.output_spatial, "_out") for name in outputs]
    return builder.model("grouped_conv", [x_info], y_infos)


@dataclass(frozen=True)
class _Emitter:
    builder: GraphBuilder
    spec: GroupedConv
    numbers: Parameters
    weight: str

    def emit(self, x: str, y: str, prefix: str) -> None:
        """Add the nodes that compute `y` from `x`; `prefix` keeps the inner names of two copies apart."""
        if self.spec.form == "grouped":
            self._grouped(x, y, prefix)
        else:
            self._depthwise_sum(x, y, prefix)

    def _grouped(self, x: str, y: str, prefix: str) -> None:
        spec, builder = self.spec, self.builder
        x = self._channels_first(x, prefix)
        if spec.order == "interleaved":
            order = builder.integers(f"{prefix}channel_order", channel_order(spec).tolist())
            x = builder.node("Gather", [x, order], f"{prefix}shuffled", axis=1)
        added = spec.bias in ("before", "after")
        steps = ["conv"] + ["nhwc"] * (spec.layout == "nhwc") + ["bias"] * added
        names = [f"{prefix}{step}" for step in steps[:-1]] + [y]
        out = self._conv(x, names[0], spec.groups, self.numbers.bias, prefix)
        if spec.layout == "nhwc":
            out = builder.node("Transpose", [out], names[1], perm=[0, *range(2, spec.rank + 2), 1])
        if added:
            self._add(out, self.numbers.bias, y, prefix)

    def _depthwise_sum(self, x: str, y: str, prefix: str) -> None:
        spec, builder = self.spec, self.builder
        wide = self._conv(
            self._channels_first(x, prefix), f"{prefix}wide", spec.channels_in, self.numbers.wide_bias, prefix
        )
        if spec.layout == "nhwc":
            wide = builder.node("Transpose", [wide], f"{prefix}wide_nhwc", perm=[0, *range(2, spec.rank + 2), 1])
        if spec.bias == "before":
            wide = self._add(wide, self.numbers.wide_bias, f"{prefix}wide_biased", prefix)
        contiguous = spec.order == "contiguous"
        split = [spec.in_per_group, spec.channels_out]
        if contiguous:
            split = [spec.groups, spec.in_per_group, spec.out_per_group]
        axis = (1 if spec.layout == "nchw" else 1 + spec.rank) + contiguous
        shape = self._shape(wide, x, split, f"{prefix}split_shape", first=True)
        biased = spec.bias == "after"
        merged = contiguous or spec.keepdims
        reduced = f"{prefix}reduced" if merged or biased else y
        out = builder.reshape(wide, shape, f"{prefix}split", spec.allowzero)
        out = builder.reduce(spec.reduce, out, axis, reduced, spec.keepdims)
        if merged:
            shape = self._shape(wide, x, [spec.channels_out], f"{prefix}merged_shape", first=False)
            out = builder.reshape(out, shape, f"{prefix}merged" if biased else y, spec.allowzero)
        if biased:
            self._add(out, self.numbers.bias, y, prefix)

    def _channels_first(self, x: str, prefix: str) -> str:
        if self.spec.layout == "nchw":
            return x
        rank = self.spec.rank
        return self.builder.node("Transpose", [x], f"{prefix}nchw", perm=[0, rank + 1, *range(1, rank + 1)])

    def _conv(self, x: str, y: str, groups: int, bias: Array | None, prefix: str) -> str:
        spec = self.spec
        inputs = [x, self.weight]
        if spec.bias == "conv" and bias is not None:
            inputs.append(self.builder.initializer(f"{prefix}bias", bias))
        attributes: dict[str, Any] = {"group": groups, "kernel_shape": spec.kernel}
        optional = {"strides": spec.strides, "dilations": spec.dilations, "pads": spec.pads}
        attributes |= {name: value for name, value in optional.items() if value}
        if spec.auto_pad != "NOTSET":
            attributes["auto_pad"] = spec.auto_pad
        return self.builder.node("Conv", inputs, y, **attributes)

    def _add(self, x: str, bias: Array | None, y: str, prefix: str) -> str:
        assert bias is not None
        shape = (-1,) if self.spec.layout == "nhwc" else (1, -1, *[1] * self.spec.rank)
        return self.builder.node("Add", [x, self.builder.initializer(f"{prefix}bias", bias.reshape(shape))], y)

    def _shape(self, wide: str, x: str, channels: list[int], name: str, first: bool) -> str:
        """A tensor with the shape [N, *channels, *S] (or [N, *S, *channels]), constant or computed at run time."""
        if self.spec.shapes == "dynamic":
            return self._runtime_shape(wide, wide if first else x, channels, name)
        if self.spec.shapes == "static":
            batch = self.spec.batch
        else:  # The two ways to leave the batch open: 0 copies it (not with allowzero), -1 is worked out.
            batch = 0 if first and self.spec.layout == "nchw" and not self.spec.allowzero else -1
        spatial = list(self.spec.output_spatial)
        middle = [*channels, *spatial] if self.spec.layout == "nchw" else [*spatial, *channels]
        return self.builder.integers(name, [batch, *middle])

    def _runtime_shape(self, wide: str, batch_source: str, channels: list[int], name: str) -> str:
        """Shape, Cast, Slice (batch), Gather (spatial sizes), Concat, Cast: as exporters compute shapes.

        The batch size comes from the shape of `batch_source`, which may lie before the convolution.
        """
        builder, rank = self.builder, self.spec.rank
        axes = range(2, rank + 2) if self.spec.layout == "nchw" else range(1, rank + 1)
        shape = self._int32_shape(batch_source, f"{name}.batch_source")
        batch = builder.first(shape, f"{name}.batch")
        if batch_source != wide:
            shape = self._int32_shape(wide, f"{name}.wide")
        indices = builder.integers(f"{name}.axes", axes)
        spatial = builder.node("Gather", [shape, indices], f"{name}.spatial", axis=0)
        constant = builder.integers(f"{name}.channels", channels, np.int32)
        parts = [batch, constant, spatial] if self.spec.layout == "nchw" else [batch, spatial, constant]
        joined = builder.node("Concat", parts, f"{name}.int32", axis=0)
        return builder.node("Cast", [joined], name, to=onnx.TensorProto.INT64)

    def _int32_shape(self, x: str, name: str) -> str:
        shape = self.builder.node("Shape", [x], f"{name}.int64")
        return self.builder.node("Cast", [shape], name, to=onnx.TensorProto.INT32)


def _weight(builder: GraphBuilder, spec: GroupedConv, value: Array) -> str:
    if spec.weights == "constant":
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(value), "weight")
        return builder.node("Constant", [], "weight", value=tensor)
    if spec.weights == "constant_of_shape":
        shape = builder.integers("weight_shape", value.shape)
        fill = onnx.numpy_helper.from_array(value.reshape(-1)[:1], "fill")
        return builder.node("ConstantOfShape", [shape], "weight", value=fill)
    if spec.weights == "identity":
        return builder.node("Identity", [builder.initializer("stored_weight", value)], "weight")
    if spec.weights == "cast":
        # float64 holds every value of the narrower types, so that nothing is lost on the way back.
        stored = builder.initializer("stored_weight", value.astype(np.float64))
        return builder.node("Cast", [stored], "weight", to=_element_type(spec))
    return builder.initializer("weight", value)


def _element_type(spec: GroupedConv) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)))


def _value_info(
    spec: GroupedConv, name: str, channels: int, spatial: tuple[int, ...], suffix: str
) -> onnx.ValueInfoProto:
    batch: int | str = spec.batch if spec.shapes == "static" else "N"
    sizes: list[int | str] = list(spatial)
    if spec.shapes == "dynamic":
        sizes = [f"{axis}{suffix}" for axis in "DHW"[-spec.rank :]]
    middle = [channels, *sizes] if spec.layout == "nchw" else [*sizes, channels]
    return helper.make_tensor_value_info(name, _element_type(spec), [batch, *middle])
