"""Build the nodes of a rewrite: fresh names, operators as the model's opset has them, constants as its IR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from rewriter import contrib
from rewriter.constants import Array
from rewriter.model import Model
from rewriter.names import Names

_INTEGER_CONSTANTS = 9
"""The first opset whose Constant may be of integers; before, float64 and a Cast hold every size."""
_RESIZE_WITH_MODES = 11
"""The first opset whose Resize says how positions are found; up to 12 it also needs a region, which may be empty."""
_BOUNDS = ("start", "stop", "axis")
_AXES_AS_INPUT = {"ReduceSum": 13, "Split": 13, "Squeeze": 13, "Unsqueeze": 13, "ReduceMean": 18, "Slice": 10}


class Builder:
    """Collects nodes and initializers for one rewrite; `prefix` starts every new name."""

    def __init__(self, model: Model, prefix: str) -> None:
        self._model = model
        self._names = Names(model)
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    @property
    def reads(self) -> frozenset[str]:
        """Every tensor that the new nodes read."""
        return frozenset(name for node in self.nodes for name in node.input)

    @property
    def imports(self) -> tuple[tuple[str, int], ...]:
        """The operator sets, (domain, version), that the new nodes need besides the default one."""
        used = any(contrib.is_fused_conv(node) for node in self.nodes)
        return ((contrib.DOMAIN, contrib.VERSION),) if used else ()

    def fresh(self, wanted: str) -> str:
        """A name that nothing has yet."""
        return self._names.fresh(wanted)

    def constant(self, value: Array, hint: str) -> str:
        """A constant tensor: an initializer; up to IR version 3, where those must be graph inputs, a Constant node."""
        name = self._names.fresh(f"{self._prefix}/{hint}")
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if self._model.ir_version >= 4:
            self.initializers.append(tensor)
            return name
        if value.dtype == np.int64 and self._model.opset < _INTEGER_CONSTANTS:
            held = self.constant(value.astype(np.float64), f"{hint}/float64")
            return self.node("Cast", [held], hint, name, to=onnx.TensorProto.INT64)
        node = onnx.helper.make_node("Constant", [], [name], name=self._names.fresh(f"{name}/node"))
        node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
        self.nodes.append(node)
        return name

    def shape_constant(self, sizes: Sequence[int], hint: str) -> str:
        return self.constant(np.asarray(sizes, np.int64), hint)

    def node(
        self, op_type: str, inputs: Sequence[str], hint: str, output: str | None = None, **attrs: int | list[int] | str
    ) -> str:
        """Add a node of the default domain; gives its output's name (`output`, or a fresh one from `hint`)."""
        result = output or self._names.fresh(f"{self._prefix}/{hint}")
        made = gs.Node(
            op=op_type,
            name=self._names.fresh(f"{self._prefix}/{hint}/node"),
            attrs=dict(attrs),
            inputs=[gs.Variable(name) for name in inputs],
            outputs=[gs.Variable(result)],
        )
        self.nodes.append(OnnxExporter.export_node(made))
        return result

    def conv(
        self, original: onnx.NodeProto, x: str, weight: str, bias: str | None, group: int, output: str | None
    ) -> str:
        """A copy of a Conv (its name, strides, dilations, pads, auto_pad, metadata) with other operands and group."""
        result = output or self._names.fresh(f"{self._prefix}/conv")
        copy = onnx.NodeProto()
        copy.CopyFrom(original)
        copy.input[:] = [x, weight] if bias is None else [x, weight, bias]
        copy.output[:] = [result]
        for entry in copy.attribute:
            if entry.name == "group":
                entry.i = group
                break
        else:
            if group != 1:
                copy.attribute.append(onnx.helper.make_attribute("group", group))
        if any(node.name == copy.name for node in self.nodes if node.name):
            copy.name = self._names.fresh(f"{self._prefix}/conv/node")
        self.nodes.append(copy)
        return result

    def fused_conv(
        self, original: onnx.NodeProto, bias: str | None, residual: str | None, activation: str, output: str
    ) -> str:
        """ONNX Runtime's FusedConv with a Conv's name, input, weight and attributes, its output `output`.

        Its CUDA kernel reads the bias wherever there is a residual: that needs a bias.
        """
        made = onnx.NodeProto()
        made.CopyFrom(original)
        made.op_type, made.domain = contrib.FUSED_CONV, contrib.DOMAIN
        operands = [*original.input[:2], bias or "", residual or ""]
        while not operands[-1]:
            operands.pop()
        made.input[:] = operands
        made.output[:] = [output]
        made.attribute.append(onnx.helper.make_attribute("activation", activation))
        self.nodes.append(made)
        return output

    def copy(self, original: onnx.NodeProto, x: str) -> str:
        """A copy of a one-output node that reads x first and gives a fresh tensor."""
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.input[0] = x
        node.output[:] = [self._names.fresh(f"{self._prefix}/{original.op_type.lower()}")]
        self.nodes.append(node)
        return str(node.output[0])

    def replay(self, original: onnx.NodeProto, inputs: Sequence[str], *, keep: bool = False) -> list[str]:
        """A copy of a node (its name, attributes, metadata) that reads `inputs`; gives its outputs' fresh names.

        With `keep` they are the original's: the copy takes its place.
        """
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.input[:] = inputs
        if keep:
            self.nodes.append(node)
            return list(node.output)
        hint = f"{self._prefix}/{original.op_type.lower()}"
        node.output[:] = [self._names.fresh(hint) if name else "" for name in original.output]
        self.nodes.append(node)
        return list(node.output)

    def reduce_sum(self, x: str, axis: int, hint: str, output: str | None = None) -> str:
        """ReduceSum over one axis without keeping it; axes are an input from opset 13 on."""
        if self._model.opset < _AXES_AS_INPUT["ReduceSum"]:
            return self.node("ReduceSum", [x], hint, output, axes=[axis], keepdims=0)
        return self.node("ReduceSum", [x, self.shape_constant([axis], f"{hint}/axes")], hint, output, keepdims=0)

    def squeeze(self, x: str, axes: Sequence[int], hint: str, output: str | None = None) -> str:
        """Squeeze of axes of size 1; axes are an input from opset 13 on."""
        if self._model.opset < _AXES_AS_INPUT["Squeeze"]:
            return self.node("Squeeze", [x], hint, output, axes=list(axes))
        return self.node("Squeeze", [x, self.shape_constant(axes, f"{hint}/axes")], hint, output)

    def transpose(self, x: str, perm: Sequence[int], hint: str, output: str | None = None) -> str:
        return self.node("Transpose", [x], hint, output, perm=list(perm))

    def reshape(self, x: str, sizes: Sequence[int | str], hint: str, output: str | None = None) -> str:
        """Reshape to `sizes`: numbers, or names of one-element int64 tensors; 0 copies the size of that axis."""
        return self.node("Reshape", [x, self.shape(sizes, f"{hint}/shape")], hint, output)

    def split(
        self, x: str, sizes: Sequence[int], axis: int, hint: str, outputs: Sequence[str] | None = None
    ) -> list[str]:
        """Split into pieces of these sizes along an axis; gives their names (`outputs`, or fresh ones from `hint`)."""
        fresh = (self._names.fresh(f"{self._prefix}/{hint}/{at}") for at in range(len(sizes)))
        names = list(fresh if outputs is None else outputs)
        if self._model.opset < _AXES_AS_INPUT["Split"]:
            self.node("Split", [x], hint, names[0], axis=axis, split=list(sizes))
        else:
            self.node("Split", [x, self.shape_constant(sizes, f"{hint}/sizes")], hint, names[0], axis=axis)
        self.nodes[-1].output[:] = names
        return names

    def shape(self, sizes: Sequence[int | str], hint: str, output: str | None = None) -> str:
        """A shape vector from numbers and names of int64 vectors, as a constant where it is one."""
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) == len(sizes) and output is None:
            return self.shape_constant(numbers, hint)
        parts: list[str] = []
        run: list[int] = []
        for size in [*sizes, ""]:
            if isinstance(size, int):
                run.append(size)
                continue
            if run:
                parts.append(self.shape_constant(run, f"{hint}/{len(parts)}"))
                run = []
            if size:
                parts.append(size)
        return self.node("Concat", parts, hint, output, axis=0)

    def gather(self, x: str, indices: Sequence[int] | Array, axis: int, hint: str, output: str | None = None) -> str:
        picks = self.constant(np.asarray(indices, np.int64), f"{hint}/indices")
        return self.node("Gather", [x, picks], hint, output, axis=axis)

    def slice(self, x: str, start: int, stop: int, axis: int, hint: str, output: str | None = None) -> str:
        """Slice of one axis; bounds are operands from opset 10 on."""
        if self._model.opset < _AXES_AS_INPUT["Slice"]:
            return self.node("Slice", [x], hint, output, starts=[start], ends=[stop], axes=[axis])
        bounds = [
            self.shape_constant([n], f"{hint}/{k}") for n, k in ((start, "start"), (stop, "stop"), (axis, "axis"))
        ]
        return self.node("Slice", [x, *bounds], hint, output)

    def repeat(self, x: str, factors: Sequence[int], hint: str, output: str | None = None) -> str:
        """Resize by whole factors, one per axis, that repeats every element; there is no Resize before opset 10."""
        scales = self.constant(np.asarray(factors, np.float32), f"{hint}/scales")
        if self._model.opset < _RESIZE_WITH_MODES:
            return self.node("Resize", [x, scales], hint, output, mode="nearest")
        region = "" if self._model.opset > _RESIZE_WITH_MODES + 1 else self.constant(np.zeros(0, np.float32), "region")
        modes = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
        return self.node("Resize", [x, region, scales], hint, output, **modes)

    def sizes_of(self, x: str, axes: Sequence[int], hint: str) -> list[str]:
        """Run-time sizes of the tensor's axes, each a one-element int64 vector."""
        shape = self.node("Shape", [x], f"{hint}/of")
        return [self.gather(shape, [axis], 0, f"{hint}/{axis}") for axis in axes]
