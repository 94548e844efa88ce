"""A constant that is nearly what it was, in a region that is otherwise made of the same numbers.

L1 may not be able to follow a region from end to end.  Where every other constant of it is still there, in whatever
order or shape, and of one constant few of many elements are off by little, nothing could make up for that.  More than a
little may have a reason: a shortcut that went into the weights, a bias beneath an activation that hides it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from rewriter.constants import Array, constant
from rewriter.equivalence.numbering import content
from rewriter.equivalence.precision import significand_bits
from rewriter.equivalence.regions import Region, Side

_FEWEST: Final = 4
_SHARE: Final = 4
"""A sign or a factor that was moved elsewhere changes all elements: at most one in so many is a change by itself."""
_NEAR: Final = 2.0**-10


def lone_change(region: Region, before: Side, after: Side) -> str:
    """A sentence naming the one constant that differs, and how; empty where none or several do, or most of it does."""
    old, new = (_numbers(side, nodes) for side, nodes in ((before, region.before), (after, region.after)))
    kept = Counter(one.key for one in old) & Counter(one.key for one in new)
    gone, come = (_without(found, kept) for found in (old, new))
    if len(gone) != 1 or len(come) != 1:
        return ""
    name, other, was, now = gone[0].name, come[0].name, gone[0].bits, come[0].bits
    if gone[0].kind != come[0].kind or was.size != now.size or was.size < _FEWEST:
        return ""
    missing, added = (Counter(one.tolist()) - Counter(two.tolist()) for one, two in ((was, now), (now, was)))
    changed = sum(missing.values())
    if not 0 < changed <= max(1, was.size // _SHARE):
        return ""
    lost, found = (
        np.sort(np.asarray(list(entry.elements()), was.dtype).view(gone[0].kind).astype(np.float64))
        for entry in (missing, added)
    )
    if not (np.abs(found - lost) <= _NEAR * np.abs(lost)).all():
        return ""
    called = f"'{name}'" if name == other else f"'{name}' (now '{other}')"
    return (
        f"All numbers of the region are still there, but for {changed} of {was.size} in the constant {called}: "
        f"{lost[0]:.9g} is gone and {found[0]:.9g} is new."
    )


def same_numbers(region: Region, before: Side, after: Side) -> bool:
    """Whether both sides read the same finite constants, each in whatever order and shape."""
    old, new = (_numbers(side, nodes) for side, nodes in ((before, region.before), (after, region.after)))
    finite = all(one.finite for one in (*old, *new))
    return finite and Counter(one.key for one in old) == Counter(one.key for one in new)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The numbers of a constant, in order: those that are not 0, by their bits."""

    name: str
    bits: NDArray[np.unsignedinteger]
    kind: np.dtype[Any]
    finite: bool

    @cached_property
    def key(self) -> Hashable:
        """Equal for the same numbers of the same type."""
        return self.kind.name, content(self.bits)


def _numbers(side: Side, nodes: Sequence[int]) -> list[_Numbers]:
    """The floating-point constants that the nodes read: name, bits of what is not 0 in order, and a key of these."""
    names = dict.fromkeys(name for index in nodes for name in side.model.nodes[index].input if name)
    found: list[_Numbers] = []
    for name in names:
        value = constant(side.model, name) if side.constant(name) else None
        if value is not None and significand_bits(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)):
            finite = bool(np.isfinite(value.astype(np.float64)).all())
            found.append(_Numbers(name, _sorted_bits(value), value.dtype, finite))
    return found


def _sorted_bits(value: Array) -> NDArray[np.unsignedinteger]:
    bits: NDArray[np.unsignedinteger] = np.frombuffer(value.tobytes(), np.dtype(f"u{value.dtype.itemsize}"))
    return np.sort(bits[bits != 0])


def _without(found: Sequence[_Numbers], kept: Counter[Hashable]) -> list[_Numbers]:
    left = Counter(kept)
    rest = []
    for entry in found:
        if left[entry.key] > 0:
            left[entry.key] -= 1
            continue
        rest.append(entry)
    return rest
