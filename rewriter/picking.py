"""Splits, Slices and Gathers of channels: which convolution each of them is looked at with."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

from rewriter.channels import Channels, Link
from rewriter.graph import Graph

_FOUND: WeakKeyDictionary[Graph, dict[int, list[list[Link]]]] = WeakKeyDictionary()
"""By graph and convolution, found once for each graph."""


def picks_near(graph: Graph, channels: Channels, node: int) -> list[list[Link]]:
    """The picks that a convolution stands for, by the tensor that they pick channels of.

    It is the first convolution that reads the channels picked, or where none does the last one before.  A pick of a
    pick is given as one of the first tensor, with both nodes.
    """
    if graph not in _FOUND:
        standing: dict[int, list[list[Link]]] = {}
        for found in _picks(graph, channels).values():
            standing.setdefault(_stands_for(graph, channels, found), []).append(found)
        _FOUND[graph] = standing
    return _FOUND[graph].get(node, [])


def _picks(graph: Graph, channels: Channels) -> dict[str, list[Link]]:
    """By tensor the picks of it that others than picks read."""
    wiring = graph.model.wiring
    composed: dict[str, Link] = {}
    for pick in sorted(channels.picks, key=lambda pick: pick.node):
        before = composed.get(pick.entering[0])
        if before is not None and before.order is not None and pick.order is not None:
            order, nodes = before.order[pick.order], (*before.nodes, *pick.nodes)
            pick = replace(pick, entering=before.entering, order=order, nodes=nodes)  # noqa: PLW2901 - the same, from there
        composed[pick.leaving] = pick
    picking = {pick.node for pick in channels.picks}
    found: dict[str, list[Link]] = {}
    for pick in composed.values():
        if wiring.escapes(pick.leaving) or not set(wiring.readers(pick.leaving)) <= picking:
            found.setdefault(pick.entering[0], []).append(pick)
    return found


def _stands_for(graph: Graph, channels: Channels, picks: list[Link]) -> int:
    model = graph.model
    first = min(pick.node for pick in picks)
    tensors = {name for pick in picks for name in channels.band_of[pick.leaving].tensors}
    convs = [index for index, node in enumerate(model.nodes) if node.op_type == "Conv" and node.output]
    readers = [index for index in convs if index > first and model.nodes[index].input[0] in tensors]
    return min(readers, default=max((index for index in convs if index < first), default=-1))
