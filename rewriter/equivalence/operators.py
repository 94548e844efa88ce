"""Whether two nodes are the same operator: version, function, overload, attributes, and the weights inside attributes.

Subgraphs are attributes too: what their nodes mean and what their data files hold counts as much as the node's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import onnx

from rewriter import external
from rewriter.equivalence.defaults import meaningful
from rewriter.model import Model
from rewriter.wiring import subgraphs


class Operators:
    """Compares nodes of two models; what concerns whole models is looked at once."""

    def __init__(self, before: Model, after: Model) -> None:
        self.models = before, after
        functions = [function for model in self.models for function in model.skeleton.functions]
        self._called = frozenset((_named(entry.domain), entry.name) for entry in functions)
        old, new = (_functions(model) for model in self.models)
        self.same_functions = old == new
        self._versions = _versions(before), _versions(after)
        self.same_versions = _in_use(before, self._versions[0]) == _in_use(after, self._versions[1])

    def same(self, old: onnx.NodeProto, new: onnx.NodeProto) -> bool:
        """Whether the nodes apply the same operator; names of tensors and of the nodes are not looked at.

        Raises BadInput when an attribute's external data cannot be read.
        """
        if _kind(old) != _kind(new):
            return False
        before, after = self.models
        if operator_attributes(old, before) != operator_attributes(new, after):
            return False
        return all(self._same_meaning(node) for node in _nodes(old))

    def version(self, node: onnx.NodeProto, side: str) -> int:
        """The version that the operator has its definition from; that of its domain where ONNX does not know it."""
        domain = _named(node.domain)
        imported = self._versions[side == "after"].get(domain, 0)
        try:
            return int(onnx.defs.get_schema(node.op_type, imported, domain).since_version)
        except onnx.defs.SchemaError:
            return imported

    def _same_meaning(self, node: onnx.NodeProto) -> bool:
        """Same version of the operator's definition in both models, or the same function."""
        domain = _named(node.domain)
        if (domain, node.op_type) in self._called and not self.same_functions:
            return False
        versions = [found.get(domain, 0) for found in self._versions]
        if versions[0] == versions[1]:
            return True
        try:
            old, new = (onnx.defs.get_schema(node.op_type, version, domain) for version in versions)
        except onnx.defs.SchemaError:
            return False
        return bool(old.since_version == new.since_version)


def operator_attributes(node: onnx.NodeProto, model: Model) -> list[bytes]:
    """Attributes that say something, in an order of their own; raw and external data as digests of their bytes.

    Left out are documentation, and of ONNX's operators values that hold by default.
    """
    found = []
    named = _named(node.domain)
    own = any((_named(entry.domain), entry.name) == (named, node.op_type) for entry in model.skeleton.functions)
    for entry in meaningful(node, None if named or own else model.opset):
        plain = onnx.AttributeProto()
        plain.CopyFrom(entry)
        plain.ClearField("doc_string")
        holder = onnx.ModelProto()
        holder.graph.node.add().attribute.append(plain)
        _digest(holder, model)
        found.append(holder.graph.node[0].attribute[0].SerializeToString(deterministic=True))
    return sorted(found)


def sparse_initializers(model: Model) -> dict[str, bytes]:
    """Sparse initializers by name, as bytes that are equal when their contents are."""
    holder = onnx.ModelProto()
    holder.graph.sparse_initializer.extend(model.skeleton.graph.sparse_initializer)
    _digest(holder, model)
    return {entry.values.name: entry.SerializeToString(deterministic=True) for entry in holder.graph.sparse_initializer}


def _digest(holder: onnx.ModelProto, model: Model) -> None:
    """Put a digest in place of raw data, inline or in a file: where the bytes are kept does not matter."""
    for tensor in external.tensors(holder):
        reference = external.reference(tensor)
        if reference is None and not tensor.HasField("raw_data"):
            continue
        data = tensor.raw_data if reference is None else external.read(reference, model.folder, tensor.name)
        tensor.raw_data = hashlib.sha256(data).digest()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node and those of its subgraphs, at any depth."""
    yield node
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from _nodes(inner)


def _kind(node: onnx.NodeProto) -> tuple[str, str, str]:
    return _named(node.domain), node.op_type, node.overload


def _named(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _versions(model: Model) -> dict[str, int]:
    """Operator set versions by domain; of several entries for one domain the first."""
    found: dict[str, int] = {}
    for entry in model.skeleton.opset_import:
        found.setdefault(_named(entry.domain), int(entry.version))
    return found


def _in_use(model: Model, versions: Mapping[str, int]) -> dict[str, int]:
    """The versions of the domains that nodes are of, in functions as well: others mean nothing."""
    bodies = [entry.node for entry in model.skeleton.functions]
    used = {_named(inner.domain) for nodes in (model.nodes, *bodies) for node in nodes for inner in _nodes(node)}
    return {domain: version for domain, version in versions.items() if domain in used}


def _functions(model: Model) -> list[bytes]:
    holder = onnx.ModelProto()
    holder.functions.extend(model.skeleton.functions)
    _digest(holder, model)
    return sorted(entry.SerializeToString(deterministic=True) for entry in holder.functions)
