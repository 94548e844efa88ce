"""Fresh tensor and node names: deterministic, and free in the graph and all of its subgraphs."""

from __future__ import annotations

from rewriter.model import Model


class Names:
    """Hands out names; each at most once."""

    def __init__(self, model: Model) -> None:
        self._taken = set(model.wiring.names)

    def fresh(self, wanted: str) -> str:
        """`wanted`, or `wanted_2`, `wanted_3` ... when it is taken."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
