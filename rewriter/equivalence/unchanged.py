"""Regions in which no operator changed: the same operators, joined in the same way, on both sides.

Only constants can differ there, and each has its counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewriter.constants import Array, constant
from rewriter.equivalence.fused import is_conv, is_transposed
from rewriter.equivalence.operators import Operators
from rewriter.equivalence.regions import Region, Side

_KERNEL: Final = 1  # which input of a convolution


@dataclass(frozen=True, eq=False)
class Changed:
    """A constant of numbers and its counterpart, of other bits; as text, a clause saying what differs."""

    names: tuple[str, str]
    values: tuple[Array, Array]
    initializers: tuple[str, ...] = ()
    """The first model's initializers that it is computed of, where it is none itself."""
    kernel: bool = False
    """Whether nothing but convolutions reads it, as their weight."""

    def __str__(self) -> str:
        old, new = self.values
        now = f" (now '{self.names[1]}')" if self.names[1] != self.names[0] else ""
        made = f" (made of {', '.join(map(repr, self.initializers))})" if self.initializers else ""
        name = f"the constant '{self.names[0]}'{made}{now}"
        if old.dtype != new.dtype or old.shape != new.shape:
            return f"{name} was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}"
        at = int(np.argmax(_bits(old) != _bits(new)))
        return f"{name} was {old.reshape(-1)[at]:.9g} and is {new.reshape(-1)[at]:.9g} at element {at}"

    @property
    def same_values(self) -> bool:
        """Whether the elements are the same bits, in another order, zeros that were added or left out aside."""
        old, new = self.values
        if old.dtype != new.dtype:
            return False
        first, second = (np.sort(bits[bits != 0]) for bits in map(_bits, (old, new)))
        return np.array_equal(first, second)

    @property
    def may_be_neutral(self) -> bool:
        """Whether values only moved, as equal channels may, or only signs differ, which an even function hides."""
        old, new = self.values
        signs = old.dtype == new.dtype and np.array_equal(np.abs(old), np.abs(new)) and not np.array_equal(old, new)
        return bool(signs) or self.same_values

    @property
    def only_signs_of_zero(self) -> bool:
        """Whether the values compare equal, though their bits differ."""
        old, new = self.values
        return bool(old.dtype == new.dtype and np.array_equal(old, new))

    @property
    def cleared(self) -> bool:
        """Whether zeros of a kernel lost their minus sign, and nothing else differs.

        So does what is dropped as a zero and filled in again: for finite inputs only a sum of zeros has another sign.
        """
        old, new = self.values
        return self.kernel and self.only_signs_of_zero and not bool((np.signbit(new) & ~np.signbit(old)).any())


def unexplained(changed: Changed) -> str:
    """The sentence that refutes, where no operator and nothing else changed that could make up for it."""
    return f"No operator changed, but {changed}, and no weights were combined."


def naming(reason: str, changed: Sequence[Changed]) -> str:
    """The sentence that refutes, with the constant that changed where it is not named yet."""
    if not changed or any(f"'{name}'" in reason for name in (changed[0].initializers or changed[0].names)):
        return reason
    return f"{reason} No operator changed, but {changed[0]}."


def changed_constants(region: Region, before: Side, after: Side, operators: Operators) -> list[Changed] | None:
    """The constants that differ, when nothing but constants does; None when an operator or the wiring differs."""
    todo = [((name, name), False) for name in region.outputs]
    seen: set[tuple[str, str]] = set()
    constants: dict[tuple[str, str], bool] = {}
    while todo:
        pair, kernel = todo.pop()
        old, new = pair
        if before.constant(old) or after.constant(new):
            if not (before.constant(old) and after.constant(new)):
                return None
            constants[pair] = kernel and constants.get(pair, True)
            continue
        if pair in seen:
            continue
        seen.add(pair)
        if old in region.inputs or new in region.inputs or not (old and new):
            if old != new:
                return None
            continue
        makers = before.maker(old), after.maker(new)
        if makers[0] not in region.before or makers[1] not in region.after:
            return None
        a, b = (side.model.nodes[maker or 0] for side, maker in zip((before, after), makers, strict=True))
        same_place = list(a.output).index(old) == list(b.output).index(new)
        if not same_place or len(a.input) != len(b.input) or not operators.same(a, b):
            return None
        convolves = is_conv(a, before.functions) or is_transposed(a, before.functions)
        operands = zip(a.input, b.input, strict=True)
        todo.extend((names, convolves and place == _KERNEL) for place, names in enumerate(operands))
    return [found for names, kernel in constants.items() for found in _compared(names, before, after, kernel=kernel)]


def _compared(names: tuple[str, str], before: Side, after: Side, *, kernel: bool) -> list[Changed]:
    old, new = constant(before.model, names[0]), constant(after.model, names[1])
    assert old is not None and new is not None
    if "f" not in str(old.dtype) and "f" not in str(new.dtype):  # shapes and indices: the effective weights tell
        return []
    if (old.dtype, old.shape) == (new.dtype, new.shape) and np.array_equal(_bits(old), _bits(new)):
        return []
    return [Changed(names, (old, new), _initializers(before, names[0]), kernel)]


def _initializers(side: Side, name: str) -> tuple[str, ...]:
    """The initializers that a constant is computed of; none for one that is an initializer or a Constant node."""
    todo, seen = [name], dict[str, None]()
    while todo:
        at = side.model.wiring.producer(todo.pop())
        read = side.model.nodes[at].input if at is not None else ()
        todo += [found for found in read if found not in seen]
        seen |= dict.fromkeys(read)
    return tuple(found for found in seen if found in side.model.headers)


def _bits(value: Array) -> Array:
    return np.frombuffer(value.tobytes(), np.dtype(f"u{value.dtype.itemsize}"))
