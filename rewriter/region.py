"""Cut a part of a model out as a model of its own: for auditing a rewrite, and for timing it among its neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from rewriter.constants import is_constant
from rewriter.model import Model
from rewriter.wiring import used_names


def extract(
    model: Model, nodes: Iterable[int], inputs: Mapping[str, onnx.TypeProto], outputs: Sequence[str]
) -> onnx.ModelProto:
    """A standalone model of the given nodes (positions), with `inputs` as graph inputs and `outputs` as graph outputs.

    Constant sources the nodes read (initializers, Constant nodes and what they derive from) come along; overridable
    initializers do too, as initializers.  External references stay references.  Output types are left for inference.
    """
    wanted = with_constants(model, nodes, set(inputs))
    protos = [model.nodes[index] for index in sorted(wanted)]
    read = used_names(protos) | set(outputs)
    made = {name for node in protos for name in node.output}
    graph = onnx.helper.make_graph(
        protos,
        "region",
        [onnx.helper.make_value_info(name, kind) for name, kind in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [model.initializer(name) for name in model.headers if name in read and name not in made and name not in inputs],
    )
    graph.sparse_initializer.extend(
        tensor for tensor in model.skeleton.graph.sparse_initializer if tensor.values.name in read
    )
    cut = onnx.helper.make_model(
        graph, opset_imports=list(model.skeleton.opset_import), functions=list(model.skeleton.functions)
    )
    cut.ir_version = max(model.ir_version, 4)  # so that initializers need not be inputs
    return cut


def with_constants(model: Model, nodes: Iterable[int], stop: set[str]) -> set[int]:
    """The nodes plus the constant nodes (Constant, ConstantOfShape, Identity, Cast of one) they read."""
    wanted = set(nodes)
    todo = [name for index in wanted for name in used_names([model.nodes[index]])]
    while todo:
        name = todo.pop()
        maker = model.wiring.producer(name)
        if maker is None or maker in wanted or name in stop or not is_constant(model, name):
            continue
        wanted.add(maker)
        todo.extend(model.nodes[maker].input)
    return wanted


def boundary(model: Model, nodes: Iterable[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Run-time tensors that enter the nodes, and tensors that others read from them, in graph order."""
    chosen = set(nodes)
    inside = {name for index in chosen for name in model.nodes[index].output if name}
    entering: dict[str, None] = {}
    leaving: dict[str, None] = {}
    for index in sorted(chosen):
        node = model.nodes[index]
        for name in sorted(used_names([node]) - set(node.input)) + list(node.input):
            if name and name not in inside and not is_constant(model, name) and name not in model.overridable:
                entering.setdefault(name)
        for name in node.output:
            if name and (model.wiring.escapes(name) or set(model.wiring.readers(name)) - chosen):
                leaving.setdefault(name)
    return tuple(entering), tuple(leaving)
