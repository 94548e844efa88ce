"""Convolutions side by side, transposed or not: the branches of one Concat, and the tensor that they all read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rewriter.constants import attribute
from rewriter.following import only_reader
from rewriter.graph import Graph
from rewriter.lifting import S, Site
from rewriter.model import Model
from rewriter.rule import Declined, require
from rewriter.selection import Selection, selections


def joined_with(graph: Graph, first: S, lift: Callable[[Model, int], S]) -> tuple[list[S], int]:
    """The convolutions whose channels the Concat behind `first` joins, in its order, and the Concat.

    Declines unless `first` is the first of them, and where the Concat joins anything else or others read one.
    """
    model = graph.model
    index = only_reader(graph, first.y, matched=0)
    join = model.nodes[index]
    is_concat = join.op_type == "Concat" and join.domain in ("", "ai.onnx")
    require(is_concat, f"its output goes into {join.op_type} '{join.output[0]}', no Concat", first.y, matched=0)
    where = join.output[0]
    entry = attribute(join, "axis")
    axis = 1 if entry is None else entry.i
    require(axis % (len(first.kernel) + 2) == 1, f"Concat '{where}' is along axis {axis}, not channels", first.y)
    leads = join.input[0] == first.y
    require(leads, f"it is a branch of Concat '{where}', looked at with the first one", first.y, matched=0)
    require(len(join.input) > 1, f"Concat '{where}' has no other branch", first.y)
    require(len(set(join.input)) == len(join.input), f"Concat '{where}' reads a branch twice", first.y)
    sites = []
    for at, name in enumerate(join.input):
        maker = model.wiring.producer(name)
        op_type = "no node" if maker is None else model.nodes[maker].op_type
        made = f"branch {at} of Concat '{where}' is made by {op_type}, no {first.op_type}"
        require(maker is not None and op_type == first.op_type, made, name, matched=1 + at)
        assert maker is not None
        only_reader(graph, name, matched=1 + at)
        sites.append(lift(model, maker))
    return sites, index


def common_source(graph: Graph, sites: Sequence[Site]) -> list[Selection]:
    """What each of them reads, as channels of the nearest tensor that they all have in common; declines without one."""
    read = [selections(graph, site.x, site.c, len(site.kernel) + 2) for site in sites]
    for candidate in read[0]:
        common = [next((one for one in found if one.tensor == candidate.tensor), None) for found in read]
        same = [one for one in common if one is not None]
        if len(same) == len(sites) and len({one.width for one in same}) == 1:
            return same
    names = ", ".join(dict.fromkeys(f"'{found[-1].tensor}'" for found in read))
    what = f"its branches read different tensors, or channels known only at run time: {names}"
    raise Declined(what, sites[0].y, matched=2)
