"""Which runs of the original get a float64 reference, by what it costs.

The first of the user's inputs and the first two recipes always do; the others while the time spent stays small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from rewriter.constants import Array
from rewriter.equivalence.float64 import Float64, Float64Failed
from rewriter.equivalence.inputs import USERS
from rewriter.equivalence.records import Witness
from rewriter.model import Model

STAGE: Final = "float64 reference"
_RECIPES: Final = 2
"""Recipes that get a reference whatever it costs; the first of the user's inputs does, too."""
_BUDGET: Final = 12.0
"""Seconds in which the other runs get one."""
_LIMIT: Final = 90.0
"""Seconds after which one reference is given up."""
_INSISTED: Final = 3
"""Further runs that get one because the rewrite would be refused without."""
_KEPT: Final = 1 << 20
"""Elements of a run's outputs up to which its reference is kept."""

Progress = Callable[[str, int, int], None]


@dataclass(eq=False)
class References:
    """Float64 references of a model's outputs on the runs that get one."""

    model: Model
    outputs: Sequence[str]
    """Those that are held against them: floating-point ones."""
    problem: str = ""
    """Why there are none, as a clause."""
    spent: float = 0.0
    """Seconds so far."""
    seen: list[tuple[str, int | None, int]] = field(default_factory=list)
    """The runs that got one: recipe, seed, binding."""
    _last: float = 0.0
    _insisted: int = field(default_factory=lambda: _INSISTED)
    _known: dict[tuple[str, int | None, int], dict[str, Array]] = field(default_factory=dict)

    @cached_property
    def _evaluate(self) -> Float64:
        return Float64(self.model, self.outputs)

    def of(
        self, witness: Witness, binding: int, feeds: Mapping[str, Array], tell: Progress, *, insist: bool = False
    ) -> Mapping[str, Array]:
        """The outputs in float64 on this run; empty where it gets no reference.

        With `insist` a run gets one that would be too many, a few times: without it, the rewrite would be refused.
        """
        key = witness.recipe, witness.seed, binding
        if key in self._known:
            return self._known[key]
        if self.problem or not self.outputs:
            return {}
        if key not in self.seen and not self._is_wanted(binding):
            if not insist or not self._insisted:
                return {}
            self._insisted -= 1
        started = time.monotonic()
        try:
            found = self._evaluate(feeds, limit=_LIMIT, tell=lambda done, total: tell(STAGE, done, total))
        except Float64Failed as failure:
            self.problem = str(failure)
            return {}
        self._last = time.monotonic() - started
        self.spent += self._last
        self.seen += [] if key in self.seen else [key]
        if sum(value.size for value in found.values()) <= _KEPT:  # for a second comparison with the same original
            self._known[key] = found
        return found

    def _is_wanted(self, binding: int) -> bool:
        users = sum(of == USERS for _, _, of in self.seen)
        if binding == USERS and not users:
            return True
        if binding != USERS and len(self.seen) - users < _RECIPES:
            return True
        return self.spent + self._last <= _BUDGET
