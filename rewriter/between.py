"""Which nodes stand between two others because they need what the first makes."""

from __future__ import annotations

from collections.abc import Collection

from rewriter.model import Model
from rewriter.rule import require


def dependents(model: Model, tensors: Collection[str], before: int) -> tuple[int, ...]:
    """Nodes at positions before `before` that need one of the tensors, directly or through others; in order.

    Declines where one of these tensors is read inside a subgraph: which node that is, the graph view does not say.
    """
    found: set[int] = set()
    todo = list(tensors)
    while todo:
        name = todo.pop()
        require(name not in model.wiring.captured, f"'{name}' is read inside a subgraph, which cannot move", name)
        for index in model.wiring.readers(name):
            if index < before and index not in found:
                found.add(index)
                todo += [output for output in model.nodes[index].output if output]
    return tuple(sorted(found))
