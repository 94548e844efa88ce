"""Value numbers: tensors of two models that hold the same by construction get the same number, whatever their names.

A constant's number stands for its type, shape and bits; a node's for its operator, attributes and the numbers of what
it reads.  An Identity, or a Dropout that is not training, passes the number on.  Equal numbers mean equal bits;
different ones mean nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx

from rewriter.constants import Array, constant, is_constant
from rewriter.equivalence.fused import functions, is_default
from rewriter.equivalence.operators import Operators, operator_attributes, sparse_initializers
from rewriter.model import Model
from rewriter.wiring import used_names

RANDOM: Final = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial".split()  # noqa: SIM905
)
"""Operators that give something else each time."""
COMMUTATIVE: Final = frozenset({"Add", "Mul"})
"""Operators that give the same bits with their two operands in the other order."""
KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators, the random ones aside, give the same for the same."""


@dataclass(eq=False)
class Numbers:
    """The numbers of both models' tensors."""

    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    _known: dict[Hashable, int] = field(default_factory=dict)

    @classmethod
    def of(cls, before: Model, after: Model) -> Numbers:
        """Number the tensors of both; raises BadInput when external data cannot be read."""
        found = cls()
        operators = Operators(before, after)
        for model, into, name in ((before, found.before, "before"), (after, found.after, "after")):
            found._number(model, into, name, operators)
        return found

    def _number(self, model: Model, into: dict[str, int], side: str, operators: Operators) -> None:
        own = functions(model)
        for value in model.skeleton.graph.input:
            if not is_constant(model, value.name):
                into[value.name] = self._get(("input", value.name))
        for name, body in sparse_initializers(model).items():
            into.setdefault(name, self._get(("sparse", body)))
        for node in model.nodes:
            if all(is_constant(model, name) for name in node.output if name):
                continue
            source = copied(model, node, own)
            if source:
                into[node.output[0]] = self._of(model, into, side, source)
                continue
            key = self._key(model, node, into, side, operators)
            for place, name in enumerate(node.output):
                if name:
                    into[name] = self._get((key, place))

    def _of(self, model: Model, into: dict[str, int], side: str, name: str) -> int:
        if name not in into:
            value = constant(model, name)
            into[name] = self._get(("unknown", side, name) if value is None else content(value))
        return into[name]

    def _key(
        self, model: Model, node: onnx.NodeProto, into: dict[str, int], side: str, operators: Operators
    ) -> Hashable:
        domain = "" if node.domain == "ai.onnx" else node.domain
        operands = [self._of(model, into, side, name) if name else -1 for name in node.input]
        while operands and operands[-1] == -1:
            operands.pop()
        if node.op_type in COMMUTATIVE and is_default(node, functions(model)):
            operands.sort()
        inner = sorted(used_names([node]) - set(node.input))
        captured = tuple((name, self._of(model, into, side, name)) for name in inner if name in into)
        drops = node.op_type == "Dropout" and not copied(model, node, functions(model))
        repeats = domain in KNOWN_DOMAINS and node.op_type not in RANDOM and not inner and not drops
        called = (domain, node.op_type) in functions(model)
        return (
            (domain, node.op_type, node.overload, operators.version(node, side)),
            tuple(operator_attributes(node, model)),
            (tuple(operands), captured, tuple(bool(name) for name in node.output)),
            "" if repeats and not called else node.output[0],
            side if called and not operators.same_functions else "",
        )

    def _get(self, key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))


def copied(model: Model, node: onnx.NodeProto, own: frozenset[tuple[str, str]]) -> str:
    """The tensor that a node gives out as it is: Identity's, or that of a Dropout that drops nothing; else empty."""
    if not is_default(node, own) or sum(map(bool, node.output)) != 1 or not node.output[0] or not node.input:
        return ""
    if node.op_type == "Identity":
        return str(node.input[0])
    if node.op_type != "Dropout" or model.opset < 7:
        return ""
    if len(node.input) < 3 or not node.input[2]:
        return str(node.input[0])
    training = constant(model, node.input[2])
    return str(node.input[0]) if training is not None and not np.any(training) else ""


def content(value: Array) -> Hashable:
    """Equal for constants of one type, shape and bits."""
    if value.dtype.kind in "OSU":
        return ("text", value.shape, repr(value.tolist()))
    bits = np.ascontiguousarray(value)
    # By name: types that NumPy does not know itself, such as int4 and uint4, have the same code.
    return ("constant", value.dtype.name, value.shape, hashlib.blake2b(bits.tobytes()).digest())
