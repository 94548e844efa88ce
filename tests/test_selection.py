"""Which channels of which tensor a tensor holds, and where the walk back ends."""

from __future__ import annotations

from typing import Any

import pytest

from programs import program
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.selection import selections

SPLIT = "a, b = Split <axis = 1> (x, s) y = Neg (b) z = Neg (a)"


@pytest.mark.parametrize(
    ("body", "channels", "found"),
    [
        (SPLIT, 5, [("b", [0, 1, 2, 3, 4]), ("x", [3, 4, 5, 6, 7])]),
        (SPLIT, 4, [("b", [0, 1, 2, 3])]),  # a reader that takes another number of channels is no valid one
        (SPLIT.replace("axis = 1", "axis = 2").replace("s)", "t)"), 8, [("b", [0, 1, 2, 3, 4, 5, 6, 7])]),
        ("k = Identity (x) b = Gather <axis = 1> (k, s) y = Neg (b)", 2, [("b", [0, 1]), ("k", [3, 5]), ("x", [3, 5])]),
        ("b = Relu (x) y = Neg (b)", 8, [("b", [0, 1, 2, 3, 4, 5, 6, 7])]),
    ],
)
def test_the_walk_back(body: str, channels: int, found: list[tuple[str, list[int]]]) -> None:
    constants: dict[str, Any] = {
        name: value for name, value in {"s": [3, 5], "t": [2, 3]}.items() if f", {name})" in body
    }
    model = program(body, y="y z" if "z =" in body else "y", **constants)
    graph = Graph(Model.load(model))
    assert [(one.tensor, one.channels.tolist()) for one in selections(graph, "b", channels, 4)] == found
