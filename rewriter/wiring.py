"""Who makes and who reads each tensor: the graph view, on onnx-graphsurgeon.

onnx-graphsurgeon is given the wiring alone (names, operators and subgraphs, no types, no other attributes), because its
importer stops at tensor types and string attributes it does not know, and the view needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Wiring:
    """Producers and consumers by tensor name; nodes are positions in the main graph."""

    producers: Mapping[str, int]
    consumers: Mapping[str, tuple[int, ...]]
    captured: frozenset[str]
    outputs: frozenset[str]
    names: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Wiring:
        """Read the wiring of a model's main graph."""
        graph = gs.import_onnx(_bare(model))
        position = {id(node): index for index, node in enumerate(graph.nodes)}
        for node, proto in zip(graph.nodes, model.graph.node, strict=True):
            if [tensor.name for tensor in node.outputs] != list(proto.output):
                raise AssertionError(f"onnx-graphsurgeon reordered the graph at node '{proto.name}'")
        producers: dict[str, int] = {}
        consumers: dict[str, tuple[int, ...]] = {}
        captured: set[str] = set()
        for tensor in graph.tensors().values():
            makers = [position[id(node)] for node in tensor.inputs if id(node) in position]
            if makers:
                producers[tensor.name] = makers[0]
            readers = [position.get(id(node)) for node in tensor.outputs]
            consumers[tensor.name] = tuple(dict.fromkeys(index for index in readers if index is not None))
            if None in readers:
                captured.add(tensor.name)
        captured |= _captured_outputs(model.graph)
        outputs = frozenset(value.name for value in model.graph.output)
        return cls(producers, consumers, frozenset(captured), outputs, frozenset(_all_names(model)))

    def producer(self, tensor: str) -> int | None:
        """Position of the node that makes the tensor; None for inputs and initializers."""
        return self.producers.get(tensor)

    def readers(self, tensor: str) -> tuple[int, ...]:
        """Positions of the main graph's nodes that read the tensor, each once."""
        return self.consumers.get(tensor, ())

    def escapes(self, tensor: str) -> str | None:
        """Why a tensor must stay even when its readers go: a graph output, or read in a subgraph; else None."""
        if tensor in self.outputs:
            return f"'{tensor}' is a graph output"
        if tensor in self.captured:
            return f"'{tensor}' is read inside a subgraph"
        return None


def used_names(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every tensor name the nodes read, those of their subgraphs (and what these give out) included."""
    used: set[str] = set()
    for node in nodes:
        used.update(node.input)
        for graph in subgraphs(node):
            used |= used_names(graph.node)
            used.update(value.name for value in graph.output)
    used.discard("")
    return used


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _captured_outputs(graph: onnx.GraphProto) -> set[str]:
    """Outer tensors that a subgraph hands out directly as its own output: no node in there reads them."""
    found: set[str] = set()
    for node in graph.node:
        for inner in subgraphs(node):
            local = {name for made in inner.node for name in made.output} | {value.name for value in inner.input}
            found |= {value.name for value in inner.output} - local
            found |= _captured_outputs(inner) - local
    return found


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with wiring only, and one operator set: onnx-graphsurgeon prints a warning where it finds none."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=[onnx.OperatorSetIdProto(version=1)])
    _bare_graph(model.graph, bare.graph)
    return bare


def _bare_graph(graph: onnx.GraphProto, into: onnx.GraphProto) -> None:
    initializers = {tensor.name for tensor in graph.initializer}
    into.input.extend(onnx.ValueInfoProto(name=v.name) for v in graph.input if v.name not in initializers)
    into.input.extend(onnx.ValueInfoProto(name=name) for name in sorted(initializers))
    into.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    for node in graph.node:
        copy = into.node.add(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
        for inner in subgraphs(node):
            attribute = copy.attribute.add(name=f"graph{len(copy.attribute)}", type=onnx.AttributeProto.GRAPH)
            _bare_graph(inner, attribute.g)


def _all_names(model: onnx.ModelProto) -> Iterator[str]:
    """Every tensor and node name in use, subgraphs included: new names must avoid them."""
    yield from graph_names(model.graph)


def graph_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor and node name of a graph and its subgraphs."""
    yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from graph_names(inner)
