"""What a model computes in exact arithmetic, nearly: its float64 twin, evaluated node by node.

Operators are those of `onnx.reference`, and own ones where these are slow, or round to float32 inside.  Constants,
inputs and the types that operators name become float64.  Only what shapes are computed from stays as it is: there, a
float32 is part of what is computed (`floor(0.7 · 10)` is 7 in float32 and 6 in float64), not of how well.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from rewriter.constants import Array, constant, is_constant, tensor_value
from rewriter.equivalence import float64_conv, float64_elementwise, float64_pool, float64_resize
from rewriter.equivalence.float64_twin import is_narrow, twin, twin_function, widened
from rewriter.equivalence.fused import functions
from rewriter.equivalence.oracle import BatchNormalization
from rewriter.equivalence.transposed import ConvTranspose
from rewriter.model import Model
from rewriter.session import reason
from rewriter.wiring import subgraphs

OPERATORS: Final[tuple[type[OpRun], ...]] = (
    BatchNormalization,
    ConvTranspose,
    float64_conv.Conv,
    float64_conv.FusedConv,
    float64_elementwise.DequantizeLinear,
    float64_elementwise.Erf,
    float64_elementwise.Gelu,
    float64_elementwise.GroupNormalization,
    float64_elementwise.HardSwish,
    float64_elementwise.LRN,
    float64_elementwise.Sigmoid,
    float64_pool.AveragePool,
    float64_pool.GlobalAveragePool,
    float64_pool.GlobalMaxPool,
    float64_pool.MaxPool,
    float64_resize.Resize,
    float64_resize.Upsample,
)
"""Own operators, in place of onnx's."""
_SHAPES: Final = frozenset({"Shape", "Size"})
_SINGLE: Final = frozenset(
    ["AffineGrid", "CausalConvWithState", "DynamicQuantizeLinear", "GridSample", "LinearAttention", "MelWeightMatrix"]
)
"""Operators that onnx's reference computes in float32 inside, whatever its operands are."""
_RANDOM: Final = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)

Tell = Callable[[int, int], None]
"""Told (operators done, operators in all)."""


class Float64Failed(Exception):
    """The model cannot be evaluated; the message is a clause saying why."""


class Float64:
    """Evaluates the floating-point outputs of a model in float64."""

    def __init__(self, model: Model, outputs: Sequence[str]) -> None:
        self.model = model
        self.outputs = tuple(outputs)
        self._evaluators: dict[int, ReferenceEvaluator] = {}

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """Positions of the nodes to evaluate, in an order in which they can be (a file's need not be one).

        Those that the outputs need, and that no constant stands for.
        """
        found: dict[int, None] = {}
        waiting = [(name, False) for name in reversed(self.outputs)]
        entered: set[int] = set()
        while waiting:  # a loop, since networks may be deeper than Python's stack
            name, done = waiting.pop()
            maker = self.model.wiring.producer(name)
            if maker is None or maker in found or is_constant(self.model, name):
                continue
            if done:
                found[maker] = None
            elif maker not in entered:
                entered.add(maker)
                waiting.append((name, True))
                waiting += [(operand, False) for operand in read_from_outside(self.model.nodes[maker])]
        return tuple(found)

    @cached_property
    def single(self) -> frozenset[int]:
        """Positions of nodes that only compute with shapes: they stay in the model's own types."""
        shapes: set[str] = set()
        found = set()
        for index in self.nodes:
            node = self.model.nodes[index]
            read = read_from_outside(node)
            derived = bool(read & shapes) and all(name in shapes or is_constant(self.model, name) for name in read)
            if derived or (node.op_type in _SHAPES and node.domain in ("", "ai.onnx")):
                shapes.update(filter(None, node.output))
                found.add(index)
        return frozenset(found)

    def __call__(
        self, feeds: Mapping[str, Array], *, limit: float = float("inf"), tell: Tell | None = None
    ) -> dict[str, Array]:
        """The outputs by name, floating-point ones in float64.

        Raises Float64Failed for an operator that is not covered, and when it takes longer than `limit` seconds.
        """
        started = time.monotonic()
        values: dict[str, Any] = dict(feeds)
        reads = {index: read_from_outside(self.model.nodes[index]) for index in self.nodes}
        waiting = Counter(name for names in reads.values() for name in names)
        waiting.update(self.outputs)
        for done, index in enumerate(self.nodes):
            if tell is not None:
                tell(done, len(self.nodes))
            if time.monotonic() - started > limit:
                raise Float64Failed(
                    f"it takes more than {limit:.0f} s (stopped after {done} of {len(self.nodes)} operators)"
                )
            node = self.model.nodes[index]
            found = self._evaluate(index, node, {name: self._value(name, values) for name in reads[index]})
            for name in reads[index]:
                waiting[name] -= 1
                if not waiting[name]:
                    values.pop(name, None)
            values.update((name, value) for name, value in found.items() if waiting[name])
        if tell is not None:
            tell(len(self.nodes), len(self.nodes))
        return {name: np.asarray(widened(self._value(name, values))) for name in self.outputs}

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in values:
            return values[name]
        known = constant(self.model, name)
        if known is None and name in self.model.overridable:
            known = tensor_value(self.model, self.model.initializer(name))
        if known is None:
            raise Float64Failed(f"the tensor '{name}' is neither computed nor a dense constant")
        return known

    def _evaluate(self, index: int, node: onnx.NodeProto, values: Mapping[str, Any]) -> dict[str, Any]:
        single = index in self.single
        kind = _kind(node)
        if not single and kind in _SINGLE:
            raise Float64Failed(f"{_named(node)} is computed in float32 by onnx's reference")
        if kind in _RANDOM:
            raise Float64Failed(f"{_named(node)} gives random numbers")
        given = values if single else {name: widened(value) for name, value in values.items()}
        try:
            if index not in self._evaluators:
                self._evaluators[index] = self._evaluator(node, given, single)
            with np.errstate(all="ignore"):
                found = self._evaluators[index].run(None, dict(given))
        except Exception as error:  # the reference operators raise whatever NumPy raises
            raise Float64Failed(f"{_named(node)} is not covered ({reason(error)})") from error
        outputs = dict(zip(filter(None, node.output), found, strict=True))
        narrow = next((name for name, value in outputs.items() if is_narrow(value)), None)
        if narrow is not None and not single and any(_is_wide(value) for value in given.values()):
            raise Float64Failed(f"{_named(node)} is not computed in float64 by onnx's reference")
        return outputs

    def _evaluator(self, node: onnx.NodeProto, values: Mapping[str, Any], single: bool) -> ReferenceEvaluator:
        """The node as a model of its own, its operands (those that its subgraphs read, too) as inputs."""
        own = functions(self.model)
        skeleton = self.model.skeleton
        graph = onnx.helper.make_graph(
            [node if single else twin(self.model, node)],
            "node",
            [_declared(name, value) for name, value in values.items()],
            [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        inner = skeleton.functions if single else [twin_function(self.model, entry) for entry in skeleton.functions]
        proto = onnx.helper.make_model(graph, opset_imports=list(skeleton.opset_import), functions=list(inner))
        operators = [entry for entry in OPERATORS if (entry.op_domain, entry.__name__) not in own]
        return ReferenceEvaluator(proto, new_ops=None if single else operators)


def _declared(name: str, value: Any) -> onnx.ValueInfoProto:
    """The operand as a graph input; its type tells operators that are defined by functions what to do."""
    if not isinstance(value, np.ndarray):
        return onnx.helper.make_empty_tensor_value_info(name)
    code = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, code, value.shape)


def read_from_outside(node: onnx.NodeProto) -> set[str]:
    """The tensors of the graph around it that a node reads, itself or in its subgraphs."""
    inside: set[str] = set()
    for graph in subgraphs(node):
        made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        made |= {name for inner in graph.node for name in inner.output}
        outputs = {value.name for value in graph.output}
        inside |= (outputs.union(*(read_from_outside(inner) for inner in graph.node))) - made
    return {name for name in (*node.input, *inside) if name}


def _is_wide(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _kind(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"


def _named(node: onnx.NodeProto) -> str:
    output = next(filter(None, node.output), "")
    return f"{_kind(node)} '{output}'"
