"""Rewrites that are deliberately wrong, at chosen sites of a chain of convolutions, for the search for culprits.

Each is built on one that is right: Conv(x, w·s) / s, with s a power of two.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

import graphs
from rewriter.base import Pass
from rewriter.build import Builder
from rewriter.constants import Array, constant
from rewriter.graph import Graph
from rewriter.match import Match
from rewriter.model import Model
from rewriter.pattern import NodePattern, Op, Var
from rewriter.rule import Rewrite, Safety, Settings, require

OVERFLOWS = 2.0**122
"""As a scale: sums of the inputs that regions are run on stay finite, those of the large ones do not."""


def chain(length: int, *, batch: int | str = "n") -> Model:
    """x [n, 4, 6, 6] -> Conv c1 -> Relu r1 -> … -> Conv `c<length>` -> y = Relu."""
    nodes, weights = [], []
    rng = np.random.default_rng(0)
    for number in range(1, length + 1):
        last = "x" if number == 1 else f"r{number - 1}"
        nodes.append(graphs.node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(graphs.node("Relu", [f"c{number}"], ["y" if number == length else f"r{number}"]))
        weights.append(graphs.tensor(f"w{number}", (rng.standard_normal((4, 4, 3, 3)) / 4).astype(np.float32)))
    shape = [batch, 4, 6, 6]
    return Model.load(graphs.model(nodes, [graphs.value("x", shape)], [graphs.value("y", shape)], weights))


class Scaled(Pass):
    """Right everywhere; made everywhere, or at some sites only."""

    name = "scaled"
    safety = Safety.ROUNDING

    def __init__(self, only: Collection[str] = ()) -> None:
        self._only = only

    def scale(self, graph: Graph, site: str, value: Array) -> float:
        return 2.0

    def weight(self, site: str, value: Array) -> Array:
        return value

    @staticmethod
    def pattern(op: Op, x: Var, w: Var) -> NodePattern:
        return op.Conv(x, w)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        node = graph.model.nodes[found.node]
        site = node.output[0]
        require("/scaled" not in site, "it is scaled already")
        require(not self._only or site in self._only, "it is to be elsewhere")
        value = constant(graph.model, found.tensors["w"])
        assert value is not None
        scale = self.scale(graph, site, value)
        build = Builder(graph.model, site)
        scaled_weight = np.asarray(self.weight(site, value), np.float64) * scale
        weight = build.constant(scaled_weight.astype(np.float32), "w")
        scaled = build.node("Conv", [self.reads(graph, build, site, node), weight], "scaled", pads=[1, 1, 1, 1])
        by = build.constant(np.asarray(scale, np.float32), "by")
        build.node("Div", [scaled, by], "back", site)  # ONNX Runtime would put a Mul into the Conv
        return self.made(graph, build, site, found)

    def reads(self, graph: Graph, build: Builder, site: str, node: onnx.NodeProto) -> str:
        return str(node.input[0])

    def also(self, graph: Graph, build: Builder, node: int) -> Collection[int]:
        """Further nodes to remove."""
        return ()

    def made(self, graph: Graph, build: Builder, site: str, found: Match) -> Rewrite:
        gone = frozenset([found.node, *self.also(graph, build, found.node)])
        nodes, tensors = tuple(build.nodes), tuple(build.initializers)
        summary = "Conv -> Conv, Div"
        return Rewrite(self.name, site, self.safety, gone, found.node, nodes, tensors, summary)


class OneWeightOff(Scaled):
    """One weight is wrong at some sites: L1 sees it."""

    name = "one-weight-off"

    def __init__(self, wrong: Collection[str], only: Collection[str] = ()) -> None:
        super().__init__(only)
        self._wrong = wrong

    def weight(self, site: str, value: Array) -> Array:
        wrong = value.copy()
        wrong[1, 2, 0, 1] *= 1.5 if site in self._wrong else 1
        return wrong


class Overflowing(Scaled):
    """Right in exact arithmetic, but too large for float32 at some sites: only the whole model's large inputs show it.

    It is right for weights of 2 and more, which the integers are that a region is run on.  With `only_with`, it is
    wrong only where another site has been rewritten before: either is right alone.
    """

    name = "overflowing"

    def __init__(self, wrong: Collection[str], only_with: str = "", only: Collection[str] = ()) -> None:
        super().__init__(only)
        self._wrong = wrong
        self._only_with = only_with

    def scale(self, graph: Graph, site: str, value: Array) -> float:
        met = not self._only_with or f"{self._only_with}/scaled" in graph.model.wiring.names
        return OVERFLOWS if met and site in self._wrong and np.abs(value).max() < 2 else 2.0


class Invalid(Scaled):
    """ONNX's checker refuses what it makes at some sites: no region is even looked for."""

    name = "invalid"

    def __init__(self, wrong: Collection[str]) -> None:
        super().__init__()
        self._wrong = wrong

    def made(self, graph: Graph, build: Builder, site: str, found: Match) -> Rewrite:
        if site in self._wrong:
            build.nodes[-1].attribute.append(onnx.helper.make_attribute("no_attribute_of_div", 1))
        return super().made(graph, build, site, found)


class ReadsTheFormer(OneWeightOff):
    """At one site it computes anew what it reads from what the rewrite before made inside: one region for both.

    With `strictly`, it applies there only where there is a rewrite before; with `clean`, what that one made besides,
    which nobody reads any more, goes.
    """

    name = "reads-the-former"

    def __init__(
        self, site: str, before: str, wrong: Collection[str], *, strictly: bool = False, clean: bool = False
    ) -> None:
        super().__init__(wrong)
        self._site = site
        self._inside = f"{before}/scaled"
        self._strictly = strictly
        self._clean = clean

    def reads(self, graph: Graph, build: Builder, site: str, node: onnx.NodeProto) -> str:
        if site != self._site:
            return str(node.input[0])
        if self._inside not in graph.model.wiring.names:
            require(not self._strictly, "there is nothing before it that is scaled")
            return str(node.input[0])
        half = build.node("Mul", [self._inside, build.constant(np.asarray(0.5, np.float32), "half")], "anew")
        return build.node("Relu", [half], "anew/relu")

    def also(self, graph: Graph, build: Builder, node: int) -> Collection[int]:
        if not self._clean or self._inside not in build.reads:
            return ()
        wiring, gone = graph.model.wiring, [node]
        for index in gone:
            made = wiring.producer(graph.model.nodes[index].input[0])
            if made is not None and self._inside not in graph.model.nodes[made].output:
                gone.append(made)
        return gone[1:]
