"""Give a convolution its input channels in another order: by the weights before it, a Gather, or a Transpose."""

from __future__ import annotations

from rewriter.build import Builder
from rewriter.conv import Ints
from rewriter.emit import shuffle
from rewriter.errors import BadInput
from rewriter.fold import fold_into_producer
from rewriter.graph import Graph
from rewriter.rule import Declined, require

WAYS = ("auto", "producer", "gather", "reshape", "none")


def check_way(way: object, setting: str) -> None:
    """Raise BadInput unless `way`, the value of that setting, is one of WAYS."""
    if way not in WAYS:
        raise BadInput(f"the setting {setting} is '{way}': it must be one of {', '.join(WAYS)}.")


def shuffled_input(
    build: Builder, graph: Graph, x: str, channels: int, rank: int, order: Ints, way: str, region: frozenset[int]
) -> tuple[str, frozenset[int], str]:
    """`x[:, order]` of a tensor of that many channels: its name, the nodes that took the shuffle in, what does it.

    `way` is one of WAYS: `auto` folds it into the weights of the Conv before where that feeds the `region` alone, else
    gathers; `none` declines.
    """
    require(way != "none", "its groups need a channel shuffle, and its setting shuffle is none", x)
    if way in ("auto", "producer"):
        try:
            return *fold_into_producer(build, graph.model, x, order, region), "in the weights before"
        except Declined:
            if way == "producer":
                raise
    sizes = graph.sizes(x) or (None,) * rank
    how = "reshape" if way == "reshape" else "gather"
    y = shuffle(build, x, order, how, (sizes[0], channels, *sizes[2:]))
    return y, frozenset(), "Reshape-Transpose-Reshape" if how == "reshape" else "Gather"
