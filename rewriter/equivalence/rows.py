"""The elements of a leaving tensor by the position they read: huge arrays, taken a part at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rewriter.equivalence.forms import Integers

_PART = 1 << 17  # numbers looked at together: what a core's cache holds


def parts(rows: int, columns: int) -> Iterator[slice]:
    """Slices over rows, each of about as many numbers as stay in the cache."""
    step = max(1, _PART // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def same_rows(values: NDArray[np.generic], rows: Integers) -> bool:
    """Whether `values[rows[q]]` is the same for all q, NaN equal to NaN; `values` [E, T], `rows` [Q, J]."""
    first = values[rows[0]]
    numbers = values.dtype.kind == "f"
    for part in parts(len(rows), first.size):
        found = values[rows[part]]
        same = found == first
        if not same.all() and not (numbers and (same | ((found != found) & (first != first))).all()):
            return False
    return True


def rows_by_position(position: Integers, live: Integers, shape: Sequence[int]) -> Integers | None:
    """`[Q, J]`: elements grouped by the position they read, in their own order; None where the groups differ in size.

    `position` [E] belongs to a tensor of `shape`, `live` are the elements that read any.  Where one axis of the tensor
    holds exactly the channels, as is usual, no sorting is needed.
    """
    if live.size == position.size:
        for axis, size in enumerate(shape):
            grouped: Integers = position.reshape(math.prod(shape[:axis]), size, -1)
            places = grouped[:, 0]
            if size > 1 and _all_different(places) and bool((grouped == places[:, None]).all()):
                return np.arange(position.size).reshape(grouped.shape).swapaxes(1, 2).reshape(-1, size)
    order = live[np.argsort(position[live], kind="stable")]
    counts = np.unique(position[order], return_counts=True)[1]
    if (counts != counts[0]).any():
        return None
    return order.reshape(len(counts), -1)


def _all_different(places: Integers) -> bool:
    return bool(np.bincount(places.reshape(-1)).max(initial=0) <= 1)
