"""align-concat: keep the fast layout where channels are concatenated, split and sliced.

ONNX Runtime computes convolutions on blocks of B channels (16 with AVX-512).  A Concat stays in that layout if each of
its inputs has a multiple of B channels; Split, Slice and Gather of channels never do.  Four ways around:

    pad      z = Concat(Conv(x, W), Conv(x, V)) [N, C + D, ...]     becomes     Concat(Conv(x, W'), Conv(x, V'))
             with zero rows in W' [C', ...] and V' [D', ...], C' and D' multiples of B, and zero columns in what reads z
    pieces   y_1, y_2 = Split(f(Conv(x, W)))                        becomes     f(Conv(x, W_1)), f(Conv(x, W_2))
             with W_p some rows of W; of f(Concat(a, b)) likewise, and a part that is a or b costs nothing; a Slice that
             takes everything goes
    columns  y = Conv(Slice(x), W)                                  becomes     y = Conv(x, W')
             with zero columns in W' [M, C, *K] for the channels that were not sliced
    repeat   y = Concat(r, Relu(D(r))), r = Relu(Conv(x, W))        becomes     y = Relu(D'(Relu(Conv(x, W'))))
             with every row of W twice in W' [2*M, ...], and in the depthwise D' a one among zeros for what is passed on

All tensors of a channel component are padded together, and what is picked from them as well: no operator is added.

Settings: `way` = pad | pieces | columns | repeat.  `block` = channels that the fast path computes together; 0 is this
machine's.
Conditions: 2-D, constant weights.  pad: float32; nothing else reads the channels (`rewriter inspect --channels` shows
that); no tensor gets more than twice its blocks.  pieces: nobody else reads what is taken apart.  columns: only dense
convolutions read what is picked, and need at most four times the multiplications.  repeat: the depthwise convolution
keeps positions, and nobody else reads what is between; both activations are Relu, or there is none behind it.
What `optimize` measures: on the CPU, every way that applies.
Safety: EXACT for pieces; FINITE for the others, which insert zeros.
Source: ONNX Runtime's NCHWc transformer, which converts what has whole blocks of channels.
"""

from __future__ import annotations

from collections.abc import Callable

from rewriter import (
    Alignment,
    Channels,
    Declined,
    Graph,
    Link,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Taken,
    Var,
    aligned_concats,
    channel_components,
    check_one_of,
    closure_of_reads,
    lift,
    maybe,
    nchwc_block,
    picks_near,
    read_everything,
    relabel,
    repeat_channels,
    require,
    take_pieces,
)

Make = Callable[[Graph, Channels, list[list[Link]], str], Taken]
_WAYS = ("pad", "pieces", "columns", "repeat")


class AlignConcat(Pass):
    """Concat, Split and Slice of channels -> in blocks, or nothing."""

    name = "align-concat"
    safety = Safety.FINITE
    defaults = {"way": "pad", "block": 0}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution: the first that reads what is picked, or the first of the Concats' component."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        check_one_of(settings["way"], f"{self.name}.way", _WAYS)

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        start = graph.model.nodes[found.node].output[0]
        require(graph.provider == "cpu", "only the CPU's kernels compute channels in blocks", start, matched=0)
        ways: list[Settings] = []
        nearest: Declined | None = None
        for way in _WAYS:
            try:
                self.rewrite(graph, found, {**self.defaults, "way": way})
            except Declined as no:
                nearest = no if nearest is None or no.matched > nearest.matched else nearest
                continue
            ways.append({"way": way})
        if not ways and nearest is not None:
            raise nearest
        return tuple(ways)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = lift(graph.model, found.node)
        require(len(site.kernel) == 2, "only 2-D convolutions have a fast path", site.y, matched=0)
        if settings["way"] == "pad":
            return self._padded(graph, found.node, int(settings["block"]) or nchwc_block())
        if settings["way"] == "pieces":
            return self._without(graph, found.node, take_pieces, Safety.EXACT, "rows")
        if settings["way"] == "columns":
            return self._without(graph, found.node, read_everything, Safety.FINITE, "columns")
        taken = repeat_channels(graph, found.node, f"{site.y}/repeated")
        summary = f"Concat of {site.m} channels and their depthwise Conv -> depthwise Conv of {2 * site.m}"
        return self._spread(graph, taken, Safety.FINITE, summary)

    def _padded(self, graph: Graph, node: int, block: int) -> Rewrite:
        start = graph.model.nodes[node].output[0]
        require(block > 1, "this machine has no fast path for a block of channels", start, matched=0)
        alignment = aligned_concats(graph, node, block)
        channels = channel_components(graph)
        made = relabel(graph, channels, alignment.embeddings, {}, f"{start}/aligned")
        kinds = [entry.op_type for entry in made.added]
        gathers = kinds.count("Gather") - sum(graph.model.nodes[at].op_type == "Gather" for at in made.removed)
        require(gathers <= 0, "what is picked from its channels would have to be gathered", start)
        return Rewrite(
            self.name,
            made.site,
            Safety.FINITE,
            closure_of_reads(graph.model, made.removed, made.added),
            min(made.places),
            made.added,
            made.initializers,
            _summary(alignment),
            places=made.places,
        )

    def _without(self, graph: Graph, node: int, make: Make, safety: Safety, became: str) -> Rewrite:
        """Without the picks that a convolution stands for, as far as they can be made otherwise."""
        channels = channel_components(graph)
        start = graph.model.nodes[node].output[0]
        near = picks_near(graph, channels, node)
        require(near, "no Split, Slice or Gather of channels that it is the first to read", start, matched=0)
        fitting: list[list[Link]] = []
        nearest: Declined | None = None
        for picks in near:
            try:
                make(graph, channels, [picks], f"{start}/aligned")
            except Declined as no:
                nearest = no if nearest is None or no.matched > nearest.matched else nearest
                continue
            fitting.append(picks)
        if not fitting and nearest is not None:
            raise nearest
        taken = make(graph, channels, fitting, f"{start}/aligned")
        kinds = sorted({graph.model.nodes[pick.node].op_type for picks in fitting for pick in picks})
        convs = f"{became} of {taken.convs} Conv{'s' if taken.convs > 1 else ''}"
        summary = f"{' and '.join(kinds)} -> {convs if taken.convs else 'what is there already'}"
        return self._spread(graph, taken, safety, summary)

    def _spread(self, graph: Graph, taken: Taken, safety: Safety, summary: str) -> Rewrite:
        gone = {name for index in taken.removed for name in graph.model.nodes[index].output}
        added = tuple(entry for _, entry in taken.added)
        return Rewrite(
            self.name,
            [name for entry in added for name in entry.output if name in gone][-1],
            safety,
            closure_of_reads(graph.model, taken.removed, added),
            taken.added[0][0],
            added,
            taken.initializers,
            summary,
            places=tuple(at for at, _ in taken.added),
        )


def _summary(alignment: Alignment) -> str:
    sizes = ", ".join(f"{before} channels -> {after}" for before, after in alignment.sizes)
    return f"{alignment.concats} Concat{'s' if alignment.concats > 1 else ''} of {sizes}"
