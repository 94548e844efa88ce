"""Emit a wiring again as planned: slices of roots, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rewriter.build import Builder
from rewriter.channelflow import channel_components
from rewriter.emit import interleave, shuffle
from rewriter.graph import Graph
from rewriter.relabelling import Emit, Names
from rewriter.rewiring import Wiring
from rewriter.rewiring_plan import Made, Piece, Plan


def emit_wiring(graph: Graph, wiring: Wiring, plan: Plan) -> dict[int, Emit | None]:
    """For each node of a wiring what comes in its place, for `relabel`: the sinks that it makes, as planned."""
    alone = [made for made in plan.made if len(made.pieces) == 1 and made.order is None]
    named = {made.pieces[0].key: made.sink.tensor for made in reversed(alone)}
    rewiring = _Rewiring(graph, plan, plan.splits(), named)
    instead: dict[int, Emit | None] = dict.fromkeys(wiring.nodes)
    for node in {made.sink.node for made in plan.made}:
        instead[node] = partial(rewiring.emit, tuple(made for made in plan.made if made.sink.node == node))
    return instead


@dataclass(eq=False)
class _Rewiring:
    """Emits sinks; what several of them need is made once."""

    graph: Graph
    plan: Plan
    splits: dict[str, list[tuple[int, int]]]
    named: dict[tuple[str, bytes], str]
    """The sink that a piece is by itself; the first one."""
    parts: dict[object, str] = field(default_factory=dict)

    def emit(self, made: tuple[Made, ...], build: Builder, name: Names, output: Names) -> Mapping[str, str]:
        aliases = {}
        for entry in made:
            sink = entry.sink.tensor
            if entry.alias is None:
                self._sink(entry, build, name, output)
            elif channel_components(self.graph).band_of[sink].number in self.plan.embeddings:
                aliases[sink] = name(entry.alias)
            else:
                build.node("Identity", [name(entry.alias)], "same", output(sink))
        return aliases

    def _sink(self, made: Made, build: Builder, name: Names, output: Names) -> None:
        pieces, sink = made.pieces, made.sink.tensor
        if len(pieces) == 1 and made.order is None:
            self._alone(pieces[0], build, name, output, sink)
            return
        names = [self._part(piece, build, name, output) for piece in pieces]
        together, key = names[0], tuple(piece.key for piece in pieces)
        if made.order is None:
            build.node("Concat", names, "together", output(sink), axis=1)
            return
        if len(names) > 1:
            together = self.parts[key] = self.parts.get(key) or build.node("Concat", names, "together", axis=1)
        sizes = list(self.graph.sizes(pieces[0].root) or ())
        sizes[1] = sum(len(piece.picks) for piece in pieces)
        how = "reshape" if len(made.order) == sizes[1] and interleave(made.order) else "gather"
        shuffle(build, together, made.order, how, sizes, output(sink))

    def _alone(self, piece: Piece, build: Builder, name: Names, output: Names, sink: str) -> None:
        """A sink that is a piece: a Split may give it, under its name."""
        if piece.root in self.splits and self.named[piece.key] == sink:
            self._part(piece, build, name, output)
        elif piece.row is None:
            build.gather(name(piece.root), piece.picks, 1, "gather", output(sink))
        else:
            build.slice(name(piece.root), *piece.row, 1, "slice", output(sink))

    def _part(self, piece: Piece, build: Builder, name: Names, output: Names) -> str:
        """A piece of a root, made when it is first needed."""
        root = name(piece.root)
        if piece.whole or piece.key in self.parts:
            return root if piece.whole else self.parts[piece.key]
        if piece.root in self.splits:
            rows = self.splits[piece.root]
            keys = [(piece.root, np.arange(start, stop).tobytes()) for start, stop in rows]
            names = [output(self.named[key]) if key in self.named else build.fresh(f"{root}/piece") for key in keys]
            build.split(root, [stop - start for start, stop in rows], 1, "split", names)
            self.parts |= zip(keys, names, strict=True)
        elif piece.row is None:
            self.parts[piece.key] = build.gather(root, piece.picks, 1, "gather")
        else:
            self.parts[piece.key] = build.slice(root, *piece.row, 1, "slice")
        return self.parts[piece.key]
