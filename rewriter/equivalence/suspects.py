"""A constant that is nearly what it was, in a region that is otherwise made of the same numbers.

L1 may not be able to follow a region from end to end.  Where every other constant of it is still there, in whatever
order or shape, and of one constant few of many elements are off by little, nothing could make up for that.  More than a
little may have a reason: a shortcut that went into the weights, a bias beneath an activation that hides it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rewriter.constants import Array, constant
from rewriter.equivalence.numbering import content
from rewriter.equivalence.regions import Region, Side

_FEWEST: Final = 4
_SHARE: Final = 4
"""A sign or a factor that was moved elsewhere changes all elements: at most one in so many is a change by itself."""
_NEAR: Final = 2.0**-10


def lone_change(region: Region, before: Side, after: Side) -> str:
    """A sentence naming the one constant that differs, and how; empty where none or several do, or most of it does."""
    old, new = (_numbers(side, nodes) for side, nodes in ((before, region.before), (after, region.after)))
    kept = Counter(key for _, _, key in old) & Counter(key for _, _, key in new)
    gone, come = (_without(found, kept) for found in (old, new))
    if len(gone) != 1 or len(come) != 1:
        return ""
    (name, was, _), (other, now, _) = gone[0], come[0]
    if was.dtype != now.dtype or was.size != now.size or was.size < _FEWEST:
        return ""
    missing, added = (Counter(one.tolist()) - Counter(two.tolist()) for one, two in ((was, now), (now, was)))
    changed = sum(missing.values())
    if not 0 < changed <= max(1, was.size // _SHARE):
        return ""
    lost, found = (np.sort(_floats(np.asarray(list(entry.elements()), was.dtype))) for entry in (missing, added))
    if not (np.abs(found.astype(np.float64) - lost) <= _NEAR * np.abs(lost.astype(np.float64))).all():
        return ""
    called = f"'{name}'" if name == other else f"'{name}' (now '{other}')"
    return (
        f"All numbers of the region are still there, but for {changed} of {was.size} in the constant {called}: "
        f"{lost[0]:.9g} is gone and {found[0]:.9g} is new."
    )


def same_numbers(region: Region, before: Side, after: Side) -> bool:
    """Whether both sides read the same finite constants, each in whatever order and shape."""
    old, new = (_numbers(side, nodes) for side, nodes in ((before, region.before), (after, region.after)))
    finite = all(np.isfinite(_floats(bits)).all() for _, bits, _ in (*old, *new))
    return finite and Counter(key for _, _, key in old) == Counter(key for _, _, key in new)


_Numbers = tuple[str, NDArray[np.unsignedinteger], object]


def _numbers(side: Side, nodes: Sequence[int]) -> list[_Numbers]:
    """The floating-point constants that the nodes read: name, bits of what is not 0 in order, and a key of these."""
    names = dict.fromkeys(name for index in nodes for name in side.model.nodes[index].input if name)
    found: list[_Numbers] = []
    for name in names:
        value = constant(side.model, name) if side.constant(name) else None
        if value is not None and value.dtype.kind == "f":
            bits = _sorted_bits(value)
            found.append((name, bits, content(bits)))
    return found


def _sorted_bits(value: Array) -> NDArray[np.unsignedinteger]:
    bits: NDArray[np.unsignedinteger] = np.frombuffer(value.tobytes(), np.dtype(f"u{value.dtype.itemsize}"))
    return np.sort(bits[bits != 0])


def _without(found: Sequence[_Numbers], kept: Counter[object]) -> list[_Numbers]:
    left = Counter(kept)
    rest = []
    for entry in found:
        if left[entry[2]] > 0:
            left[entry[2]] -= 1
            continue
        rest.append(entry)
    return rest


def _floats(bits: NDArray[np.unsignedinteger]) -> NDArray[np.floating]:
    return bits.view(f"f{bits.dtype.itemsize}")
