"""Match a pattern against a model, backwards from the node that would be its last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from rewriter.constants import attribute
from rewriter.model import Model
from rewriter.pattern import NodePattern, Var
from rewriter.rule import Declined

_COMMUTATIVE = frozenset({"Add", "Mul"})


@dataclass(frozen=True)
class Match:
    """Where a pattern fits: positions of its nodes, the last one first, and the tensor of each variable given."""

    nodes: tuple[int, ...]
    tensors: Mapping[str, str]

    @property
    def node(self) -> int:
        """The last node, whose output names the site."""
        return self.nodes[0]


def starts(pattern: NodePattern, model: Model) -> Iterator[int]:
    """Positions of the nodes that could be the pattern's last."""
    for index, node in enumerate(model.nodes):
        if node.op_type == pattern.op_type and node.domain in ("", "ai.onnx") and node.output:
            yield index


def match(pattern: NodePattern, model: Model, node: int) -> Match:
    """The match that ends at a node; declines with the first thing that does not fit and how many nodes did."""
    return _fit(pattern, model, node, Match((), {}))


def _fit(pattern: NodePattern, model: Model, index: int, so_far: Match) -> Match:
    node = model.nodes[index]
    where = node.output[0]
    matched = len(so_far.nodes)
    if node.op_type != pattern.op_type or node.domain not in ("", "ai.onnx"):
        raise Declined(f"{node.op_type} stands where {pattern.op_type} is needed", where, matched=matched)
    for name, wanted in pattern.attributes:
        entry = attribute(node, name)
        value = None if entry is None else onnx.helper.get_attribute_value(entry)
        if value != wanted:
            raise Declined(f"{node.op_type} has {name} {value}, not {wanted}", where, matched=matched)
    found = Match((*so_far.nodes, index), so_far.tensors)
    orders = [pattern.inputs]
    if pattern.op_type in _COMMUTATIVE:
        orders.append(pattern.inputs[::-1])
    nearest: Declined | None = None
    for inputs in orders:
        try:
            return _fit_inputs(inputs, model, node, found)
        except Declined as no:
            nearest = no if nearest is None or no.matched > nearest.matched else nearest
    assert nearest is not None
    raise nearest


def _fit_inputs(inputs: tuple[Var | NodePattern, ...], model: Model, node: onnx.NodeProto, found: Match) -> Match:
    given = list(node.input)
    if len([name for name in given if name]) > len(inputs):
        raise Declined(f"{node.op_type} has more inputs than {len(inputs)}", node.output[0], matched=len(found.nodes))
    for wanted, name in zip(inputs, given + [""] * (len(inputs) - len(given)), strict=True):
        if isinstance(wanted, Var):
            found = _bind(wanted, name, node, found)
            continue
        maker = model.wiring.producer(name) if name else None
        if maker is None:
            what = f"'{name}' is no {wanted.op_type} but an input or initializer"
            raise Declined(what, node.output[0], matched=len(found.nodes))
        found = _fit(wanted, model, maker, found)
    return found


def _bind(variable: Var, name: str, node: onnx.NodeProto, found: Match) -> Match:
    if not name:
        if variable.optional:
            return found
        raise Declined(f"{node.op_type} lacks its input {variable.name}", node.output[0], matched=len(found.nodes))
    known = found.tensors.get(variable.name, name)
    if known != name:
        what = f"'{name}' and '{known}' would both have to be {variable.name}"
        raise Declined(what, node.output[0], matched=len(found.nodes))
    return Match(found.nodes, {**found.tensors, variable.name: name})
