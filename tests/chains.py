"""Chains of bookkeeping operators behind a tensor: built, followed, and run by ONNX's own evaluator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.emit import Array
from rewriter.model import Model
from rewriter.shapes import bind
from rewriter.track import State, Step, follow


@dataclass
class Chain:
    """A model `x → … → last` in the making, in float64; every tensor but `x` has one reader."""

    shape: tuple[int, ...]
    opset: int = 18
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    batch_is_free: bool = False

    @property
    def last(self) -> str:
        return str(self.nodes[-1].output[0]) if self.nodes else "x"

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op_type: str, *operands: Any, before: Any = None, **attributes: Any) -> Chain:
        """Append a node that reads the last tensor, then `operands` (or `before` it, then it)."""
        others = [self.constant(value) for value in operands]
        inputs = [self.last, *others] if before is None else [self.constant(before), self.last]
        self.nodes.append(helper.make_node(op_type, inputs, [f"t{len(self.nodes)}"], **attributes))
        return self

    def proto(self) -> onnx.ModelProto:
        shape: list[str | int | None] = [*self.shape]
        if self.batch_is_free:
            shape[0] = "N"
        infos = [
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape),
            helper.make_tensor_value_info(self.last, TensorProto.DOUBLE, None),
        ]
        # A Neg behind the last tensor, since a graph output ends the chain and a nonlinear reader does not prove more.
        end = helper.make_node("Relu", [self.last], ["end"])
        infos[1].name = "end"
        graph = helper.make_graph([*self.nodes, end], "chain", infos[:1], infos[1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def follow(self) -> tuple[list[Step], str]:
        model = Model.load(self.proto())
        return follow(model, bind(model, {"x": self.shape}), "x", self.shape)

    def run(self, x: Array) -> Array:
        probe = self.proto()
        probe.graph.output[0].name = self.last
        (value,) = ReferenceEvaluator(probe).run(None, {"x": x})
        return np.asarray(value)

    def data(self) -> Array:
        return np.random.default_rng(0).integers(-9, 10, self.shape).astype(np.float64)


def value_of(state: State, x: Array) -> Array:
    """The tensor that a state describes."""
    terms = x.reshape(-1)[state.index]
    terms = terms if state.coef is None else terms * state.coef
    return np.asarray(terms.sum(axis=-1) + (0 if state.offset is None else state.offset))


def assert_followed(chain: Chain) -> State:
    """Every node is followed, and the state is the tensor."""
    steps, ended = chain.follow()
    assert len(steps) == len(chain.nodes), ended
    state = steps[-1].state
    expected = chain.run(chain.data())
    assert state.shape == expected.shape
    np.testing.assert_allclose(value_of(state, chain.data()), expected, rtol=1e-12, atol=1e-12)
    return state
