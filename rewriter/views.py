"""Views: a run computed in another layout, with a change of layout wherever a tensor comes in or is needed outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from rewriter.alike import broadcasts, data_operands
from rewriter.build import Builder
from rewriter.constants import Array, constant
from rewriter.delimit import closure
from rewriter.graph import Graph
from rewriter.lifting import ConvSite, lift
from rewriter.rule import Rewrite, Safety
from rewriter.runs import Run

_UNSQUEEZE_INPUT = 13
"""The first opset whose Unsqueeze takes its axes as an input."""
_END = 2**63 - 1
"""As the end of a Slice: whatever the size."""


class View(ABC):
    """How a run's tensors lie in the other layout."""

    @abstractmethod
    def enter(self, build: Builder, x: str) -> str:
        """The tensor x in the layout."""

    @abstractmethod
    def leave(self, build: Builder, inner: str, output: str) -> None:
        """Give a tensor of the layout as it was, under the name `output`."""

    @abstractmethod
    def weight(self, weight: Array) -> Array:
        """A convolution's weight in the layout."""

    @abstractmethod
    def attribute(self, name: str, values: Sequence[int]) -> list[int]:
        """A convolution's list of numbers of that name in the layout."""

    @abstractmethod
    def operand(self, value: Array) -> Array:
        """A constant that is broadcast against the run's tensors, for those of the layout."""


@dataclass(frozen=True)
class Sampled:
    """A convolution on a part of its input: the tensor that is that part, and the node that reads it."""

    tensor: str
    node: onnx.NodeProto


def sampled(build: Builder, site: ConvSite, axes: Sequence[int]) -> Sampled:
    """Every so many positions of what a Conv reads along those spatial axes, and it with stride 1 there.

    Its kernel is 1 along them and its padding 0; it has strides, and Slice has steps from opset 10 on.
    """
    node = onnx.NodeProto()
    node.CopyFrom(site.node)
    (strides,) = [entry for entry in node.attribute if entry.name == "strides"]
    steps = {axis: strides.ints[axis] for axis in axes if strides.ints[axis] > 1}
    strides.ints[:] = [1 if axis in axes else stride for axis, stride in enumerate(strides.ints)]
    operands = {
        "starts": [0] * len(steps),
        "ends": [_END] * len(steps),
        "axes": [2 + axis for axis in steps],
        "steps": list(steps.values()),
    }
    names = [build.shape_constant(values, f"part/{hint}") for hint, values in operands.items()]
    return Sampled(build.node("Slice", [site.x, *names], "part"), node)


def rewrite_run(
    pass_name: str,
    graph: Graph,
    run: Run,
    view: View,
    build: Builder,
    summary: str,
    sampled: Mapping[int, Sampled] | None = None,
) -> Rewrite:
    """The run in a view, as a rewrite that moves weights and computes nothing anew; `sampled` by position."""
    model = graph.model
    replay = _Replay(graph, run, view, build, sampled or {})
    for name in run.entering:
        replay.inner[name] = view.enter(build, name)
    for index in run.nodes:
        replay.node(index)
    for name in run.leaving:
        view.leave(build, replay.inner[name], name)
    removed = closure(model, run.nodes, build.reads)
    nodes, tensors = tuple(build.nodes), tuple(build.initializers)
    return Rewrite(pass_name, run.leaving[-1], Safety.EXACT, removed, run.anchor, nodes, tensors, summary)


def unsqueeze(build: Builder, graph: Graph, x: str, axes: Sequence[int], hint: str, output: str | None = None) -> str:
    """Unsqueeze; axes are an input from opset 13 on."""
    if graph.model.opset < _UNSQUEEZE_INPUT:
        return build.node("Unsqueeze", [x], hint, output, axes=list(axes))
    return build.node("Unsqueeze", [x, build.shape_constant(axes, f"{hint}/axes")], hint, output)


@dataclass
class _Replay:
    """Emits a run's nodes one after the other; `inner` are the layout's tensors by what they were."""

    graph: Graph
    run: Run
    view: View
    build: Builder
    sampled: Mapping[int, Sampled]
    inner: dict[str, str] = field(default_factory=dict)
    _constants: dict[tuple[str, bool], str] = field(default_factory=dict)

    def node(self, index: int) -> None:
        """The node on the layout's tensors."""
        node = self.graph.model.nodes[index]
        if node.op_type == "Conv":
            self.inner[node.output[0]] = self._conv(index)
            return
        moving = data_operands(self.graph, node)
        follow = broadcasts(node)
        inputs = [self.inner[name] if name in moving else self._constant(name, follow) for name in node.input]
        made = self.build.replay(node, inputs)
        for entry in self.build.nodes[-1].attribute:
            if entry.name == "axis":
                entry.i = 1  # of Concat and Split, where it may be counted from the end
        self.inner |= {name: new for name, new in zip(node.output, made, strict=True) if name}

    def _conv(self, index: int) -> str:
        site = lift(self.graph.model, index)
        part = self.sampled.get(index)
        node = onnx.NodeProto()
        node.CopyFrom(site.node if part is None else part.node)
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.INTS:
                entry.ints[:] = self.view.attribute(entry.name, list(entry.ints))
        weight = self.build.constant(self.view.weight(site.weight), "weight")
        bias = self._constant(site.bias_name or "", follow=False) or None
        x = self.inner[site.x] if part is None else self.view.enter(self.build, part.tensor)
        return self.build.conv(node, x, weight, bias, site.group, None)

    def _constant(self, name: str, follow: bool) -> str:
        """A constant: the same tensor, unless it must `follow` the layout or is made behind the run's new place."""
        if not name:
            return ""
        if (name, follow) not in self._constants:
            value = constant(self.graph.model, name)
            assert value is not None
            wanted = self.view.operand(value) if follow else value
            maker = self.graph.model.wiring.producer(name)
            stays = wanted.shape == value.shape and (maker is None or maker < self.run.anchor)
            self._constants[name, follow] = name if stays else self.build.constant(wanted, "constant")
        return self._constants[name, follow]
