"""merge-transposed: compute transposed convolutions side by side, whose outputs are concatenated, as one.

    y = Concat(ConvTranspose(x_1, W_1, b_1), ..., ConvTranspose(x_P, W_P, b_P))   axis 1, each x_p channels of one x,

becomes   y = ConvTranspose(x, W, b, group=G)   with W put together from the W_p.

Each x_p may be an output of Split, a Slice or Gather on the channel axis, several of these, or x itself; each
ConvTranspose may have groups of its own.  Their groups become those of the new one, as many as there are:

    x_p disjoint, groups of one size        W [C, M/G, *K] is the W_p one after the other
    the same x_p                            one wide transposed convolution: W [C, M, *K], side by side

Conditions: constant weights and biases; kernels and all attributes but the groups are the same; every branch is read
by the Concat alone; the branches read all channels of x, in the order of the Concat; groups of one size.
Safety: EXACT, weights only move.
Source: `split-transposed` read backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewriter import (
    Builder,
    Declined,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Selection,
    Settings,
    TransposedSite,
    Var,
    closure,
    lift_transposed,
    maybe,
    only_reader,
    require,
    same_attributes,
    selections,
)
from rewriter.conv import Branch, Grouped, NotGrouped, merge_transposed


class MergeTransposed(Pass):
    """Split + ConvTransposes + Concat -> one ConvTranspose."""

    name = "merge-transposed"
    safety = Safety.EXACT
    takes = "split_concat_transposed"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """The first of the transposed convolutions, with or without bias."""
        return op.ConvTranspose(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """Itself, where it is possible."""
        _merged(*_branches(graph, lift_transposed(graph.model, found.node))[::2])
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has none
        sites, join, sources = _branches(graph, lift_transposed(graph.model, found.node))
        merged = _merged(sites, sources)
        output = graph.model.nodes[join].output[0]
        build = Builder(graph.model, f"{output}/merged")
        weight = build.constant(merged.weight, "weight")
        bias = None if merged.bias is None else build.constant(merged.bias, "bias")
        build.conv(sites[0].node, sources[0].tensor, weight, bias, merged.group, output)
        return Rewrite(
            self.name,
            output,
            Safety.EXACT,
            closure(graph.model, [*(site.index for site in sites), join], build.reads),
            min(site.index for site in sites),
            tuple(build.nodes),
            tuple(build.initializers),
            f"{len(sites)} ConvTransposes side by side + Concat -> ConvTranspose group {merged.group}",
        )


def _branches(graph: Graph, site: TransposedSite) -> tuple[list[TransposedSite], int, list[Selection]]:
    """The branches of the Concat that the first of them feeds, the Concat, and what each branch reads of one tensor."""
    model = graph.model
    index = only_reader(graph, site.y, matched=0)
    join = model.nodes[index]
    is_concat = join.op_type == "Concat" and join.domain in ("", "ai.onnx")
    require(is_concat, f"its output goes into {join.op_type} '{join.output[0]}', no Concat", site.y, matched=0)
    where = join.output[0]
    axis = next((entry.i for entry in join.attribute if entry.name == "axis"), 1)
    require(axis % (len(site.kernel) + 2) == 1, f"Concat '{where}' is along axis {axis}, not channels", site.y)
    first = join.input[0] == site.y
    require(first, f"it is a branch of Concat '{where}', looked at with the first one", site.y, matched=0)
    require(len(join.input) > 1, f"Concat '{where}' has no other branch", site.y)
    require(len(set(join.input)) == len(join.input), f"Concat '{where}' reads a branch twice", site.y)
    sites = [_branch(graph, site, where, name, at) for at, name in enumerate(join.input)]
    return sites, index, _sources(graph, sites)


def _branch(graph: Graph, first: TransposedSite, where: str, name: str, at: int) -> TransposedSite:
    """A branch of the Concat, if it is alike the first one in all but its groups and weights."""
    model = graph.model
    maker = model.wiring.producer(name)
    kind = "no node" if maker is None else model.nodes[maker].op_type
    made = f"branch {at} of Concat '{where}' is made by {kind}, no ConvTranspose"
    require(maker is not None and kind == "ConvTranspose", made, name, matched=1 + at)
    assert maker is not None
    only_reader(graph, name, matched=1 + at)
    site = lift_transposed(model, maker)
    sizes = f"the kernels of '{first.y}' and '{name}' differ"
    require(site.kernel == first.kernel, sizes, first.y, name, matched=1 + at)
    differ = f"strides, pads or other attributes of '{first.y}' and '{name}' differ"
    require(same_attributes(site.node, first.node), differ, first.y, name, matched=1 + at)
    types = f"the weights of '{first.y}' and '{name}' are of different types"
    require(site.weight.dtype == first.weight.dtype, types, first.y, name, matched=1 + at)
    return site


def _sources(graph: Graph, sites: Sequence[TransposedSite]) -> list[Selection]:
    """What each branch reads, as channels of the nearest tensor that they all have in common."""
    read = [selections(graph, site.x, site.c, len(site.kernel) + 2) for site in sites]
    for candidate in read[0]:
        common = [next((one for one in found if one.tensor == candidate.tensor), None) for found in read]
        same = [one for one in common if one is not None]
        if len(same) == len(sites) and len({one.width for one in same}) == 1:
            return same
    names = ", ".join(dict.fromkeys(f"'{found[-1].tensor}'" for found in read))
    what = f"its branches read different tensors, or channels known only at run time: {names}"
    raise Declined(what, sites[0].y, matched=2)


def _merged(sites: Sequence[TransposedSite], sources: Sequence[Selection]) -> Grouped:
    """The one transposed convolution."""
    parts = [
        Branch(site.weight, site.bias, site.group, read.channels) for site, read in zip(sites, sources, strict=True)
    ]
    try:
        return merge_transposed(parts, sources[0].width)
    except NotGrouped as no:
        raise Declined(str(no), sites[0].y, matched=len(sites)) from no
