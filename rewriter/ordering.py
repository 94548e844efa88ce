"""Where a new order of channels goes: into the weights of the convolution behind, or nowhere, to be restored."""

from __future__ import annotations

from rewriter.absorb import Consumer, find_consumer
from rewriter.conv import Ints
from rewriter.model import Model
from rewriter.rule import Declined

ORDERS = ("auto", "absorb", "shuffle")
"""What the setting `order` may be: `auto` absorbs where that can be done, else shuffles."""


def absorbing(model: Model, tensor: str, order: Ints, rank: int, way: str) -> Consumer | None:
    """The Conv that is to read `tensor[:, order]` in place of the tensor, of that rank; None where that is restored.

    `way` is one of ORDERS: `absorb` declines where no Conv can.
    """
    if way == "shuffle":
        return None
    try:
        return find_consumer(model, tensor, order, rank)
    except Declined:
        if way == "absorb":
            raise
        return None
