"""Which tensors are taken for each other decides what the regions are: the first way that proves everything is taken.

Names of the second model count as long as they lead to a proof.  Where they do not (a tool numbers its tensors anew, or
gave a name to another value), values count more than names, and then the wiring.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, get_args

from rewriter.bindings import Binding
from rewriter.equivalence.counterparts import Trust, named_alike
from rewriter.equivalence.regions import Diff, Region
from rewriter.equivalence.static import StaticResult
from rewriter.model import Model
from rewriter.shapes import bind

Proven = tuple[tuple[Region, ...], list[StaticResult]]
TRUSTS: Final[tuple[Trust, ...]] = get_args(Trust)


def attempts(before: Model, after: Model, bindings: Sequence[Binding], keep: Collection[str]) -> list[list[Diff]]:
    """The comparison under each of the bindings, once for every way to name the second model's tensors."""
    bounds = [(found.bound, bind(after, found.shapes)) for found in bindings]

    def fits(old: str, new: str) -> bool:
        shapes = ((one.shape(old), other.shape(new)) for one, other in bounds)
        return all(one is None or other is None or one == other for one, other in shapes)

    named = named_alike(before, after, keep, TRUSTS, fits)
    return [[Diff(before, after, bound, found) for bound in bounds] for found in named]


def settled(
    tried: Sequence[Sequence[Diff]],
    prove: Callable[[Sequence[Diff]], Proven],
    holds: Callable[[Region, Sequence[Diff]], bool],
    exact: Callable[[Region, StaticResult, Sequence[Diff]], bool],
) -> tuple[Sequence[Diff], Proven]:
    """The comparison that proves most, and its regions and their L1.

    A further attempt that refutes counts only where the tensors it refutes do stand for the same contents (`holds`);
    one that refutes nothing, while the first does, where integers agree in what it does not prove (`exact`): what
    enters a region may be tied (equal channels), which L1 does not know of a tensor that parts regions.
    """
    chosen: tuple[Sequence[Diff], Proven] | None = None
    least, wrong = 0, False
    for diffs in tried:
        proven = prove(diffs)
        found = list(zip(*proven, strict=True))
        unsure = [(region, static) for region, static in found if static.result.outcome != "pass"]
        left = sum(len(region.before) + len(region.after) for region, _ in unsure)
        refuted = [region for region, static in unsure if static.result.outcome == "fail"]
        if chosen is None or not left:
            better = True
        elif refuted:
            better = left < least and all(holds(region, diffs) for region in refuted)
        elif wrong:
            better = all(exact(region, static, diffs) for region, static in unsure)
        else:
            better = left < least
        if better:
            chosen, least, wrong = (diffs, proven), left, bool(refuted)
        if not least:
            break
    assert chosen is not None
    return chosen
