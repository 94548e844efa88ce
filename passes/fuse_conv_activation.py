"""fuse-conv-activation: a convolution, the residual added to it and its Relu as one operator of ONNX Runtime.

    y = Relu(Conv(x, W, b))        becomes   y = FusedConv(x, W, b, activation="Relu")
    y = Relu(Conv(x, W, b) + z)    becomes   y = FusedConv(x, W, b, z, activation="Relu")

FusedConv (domain com.microsoft, version 1) is ONNX Runtime's own operator: other runtimes do not have it, so it is made
only with `--allow contrib-ops`.  The model then imports that operator set.

Conditions: opset 7 or later; 2-D or 3-D; float32, the one type that its CUDA kernel has; z has the shape of the
convolution's output, proven, for FusedConv broadcasts nothing; what is in between has no other reader.  The weight may
be computed at run time.  A residual needs a bias, which the CUDA kernel reads whether it is there or not: where there
is none, zeros are put in.  Other activations (Tanh, Sigmoid, LeakyRelu, Clip, HardSigmoid) are left alone, as is a sum
without a Relu: the kernels for CPU and CUDA have Relu in common.
What `optimize` measures: each fused convolution, when the other passes have had their turn.
Safety: EXACT.  The products summed are the same; b and z are added in the order that the kernel likes, so that float
results may differ by rounding.  Where an activation is NaN, Relu gives NaN on the CPU; cuDNN is told not to keep it.
Source: ONNX Runtime's contrib operators.  Its own optimizer makes the same operator from level `extended` on, for the
CPU in this form and for CUDA in float32; in the file it is there at every level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter import (
    Builder,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    closure,
    element_type,
    maybe,
    only_reader,
    require,
    why_other_shape,
)

_AXES = (4, 5)
"""Axes of the tensors that cuDNN describes as they are: 1-D convolutions are padded to 2-D, their residuals are not."""


class FuseConvActivation(Pass):
    """Conv (+ residual Add) + Relu -> com.microsoft.FusedConv."""

    name = "fuse-conv-activation"
    safety = Safety.EXACT
    needs = frozenset({"contrib-ops"})
    finishes = True

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias; what follows it is followed, not matched."""
        return op.Conv(x, w, maybe(b))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has no settings
        model = graph.model
        conv = model.nodes[found.node]
        t = conv.output[0]
        require(model.opset >= 7, f"the model's opset {model.opset} is below 7, the oldest one supported", t)
        end = _follow(graph, t)
        _require_kernels(graph, t)
        build = Builder(model, f"{end.y}/fused")
        bias = found.tensors.get("b")
        if end.residual is not None:
            other = why_other_shape(graph, t, end.residual)
            require(not other, f"FusedConv broadcasts nothing, and {other}", t, end.residual, matched=3)
            bias = bias or build.constant(np.zeros(_channels(graph, t, conv.input[1]), np.float32), "bias")
        build.fused_conv(conv, bias, end.residual, "Relu", end.y)
        return Rewrite(
            self.name,
            end.y,
            Safety.EXACT,
            closure(model, [found.node, *end.nodes], build.reads),
            end.nodes[-1],
            tuple(build.nodes),
            tuple(build.initializers),
            f"Conv{'' if end.residual is None else ' + Add'} + Relu -> FusedConv",
            build.imports,
        )


@dataclass(frozen=True)
class _End:
    """What follows a convolution: the nodes up to its Relu, the Relu's output, and the tensor added in between."""

    nodes: tuple[int, ...]
    y: str
    residual: str | None


def _follow(graph: Graph, t: str) -> _End:
    """The chain of single readers from the Conv's output to its Relu."""
    nodes = [only_reader(graph, t, matched=0)]
    kind, inputs, outputs = _read(graph, nodes[-1])
    residual = None
    if kind == "Add":
        others = [name for name in inputs if name != t]
        require(len(others) == 1, "it is added to itself, which FusedConv cannot do", t, matched=2)
        residual = others[0]
        nodes.append(only_reader(graph, outputs[0], matched=2))
        kind, _, outputs = _read(graph, nodes[-1])
        require(kind == "Relu", f"the sum goes into {kind}, not Relu: CUDA has no FusedConv without one", t, matched=2)
    require(kind == "Relu", f"it goes into {kind}, neither Relu nor Add", t, matched=0)
    return _End(tuple(nodes), outputs[0], residual)


def _read(graph: Graph, position: int) -> tuple[str, list[str], list[str]]:
    """A node's operator, with its domain unless that is the default one, its inputs and its outputs."""
    node = graph.model.nodes[position]
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    require(len(node.output) == 1 and node.output[0], f"it goes into {kind}, which has not one output", matched=0)
    return kind, list(node.input), list(node.output)


def _require_kernels(graph: Graph, t: str) -> None:
    """Decline types and ranks that the kernels for CPU and CUDA do not both take."""
    shape, kind = graph.bindings[0].bound.shape(t), element_type(graph, t)
    require(shape is not None, "the shape of its output cannot be derived: give --input-shape", t)
    require(kind == "float", f"its type is {kind}, and ONNX Runtime's CUDA provider has FusedConv for float only", t)
    axes = len(shape or ())
    require(axes in _AXES, f"it is {axes - 2}-D: FusedConv is for 2-D and 3-D convolutions", t)


def _channels(graph: Graph, t: str, weight: str) -> int:
    """Output channels M, of the weight [M, C/G, *K]."""
    sizes = graph.sizes(weight)
    known = sizes is not None and len(sizes) > 2 and sizes[0] is not None
    require(known, "it needs a bias of zeros, and its number of channels is not known", t, matched=3)
    return int((sizes or (0,))[0] or 0)
