"""Convolutions in a row as one candidate: each alone pays for changes of layout, together they do not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from rewriter.choose import Place
from rewriter.findings import Findings
from rewriter.propose import Applied, label, overlap
from rewriter.rule import Rewrite, Safety

_LONGEST = 8  # convolutions in one chain
_HOPELESS = 0.75  # a speed-up by itself below which no layout explains the loss


def chained(found: Sequence[Place], won: Collection[str], findings: Findings) -> dict[str, list[Applied]]:
    """By the first convolution of each chain, what the same pass makes of all of it at once.

    `won` are the convolutions that have a winner by themselves, which are left alone.  Two are neighbours when what is
    rewritten at one is timed with the other: no other convolution stands between them.
    """
    places = [place for place in found if place.start not in won]
    joint: dict[str, list[Applied]] = {}
    for name in dict.fromkeys(label(one.step) for place in places for one in place.candidates):
        best = {place.start: one for place in places if (one := _best(place, name, findings))}
        for chain in _chains([place for place in places if place.start in best], best):
            some = [best[place.start] for place in chain]
            if len(some) > 1 and not any(overlap(one.rewrite, other.rewrite) for one, other in combinations(some, 2)):
                joint.setdefault(chain[0].start, []).append(_together(some))
    return joint


def _best(place: Place, name: str, findings: Findings) -> Applied | None:
    """The variant of a pass that was fastest there by itself; None where it was not measured, or is hopeless."""
    timed = [
        (timing.speedup, number)
        for number, one in enumerate(place.candidates)
        if label(one.step) == name
        and (timing := findings.of(place.start, one.step.rule.name, one.step.settings)) is not None
    ]
    speedup, number = max(timed, default=(0.0, 0))
    return place.candidates[number] if speedup >= _HOPELESS else None


def _chains(places: Sequence[Place], best: Mapping[str, Applied]) -> Iterable[list[Place]]:
    """Places that hang together, those of one chain in order."""
    left = list(places)
    while left:
        chain = [left.pop(0)]
        for place in chain:  # grows while it is walked through
            near = [
                other
                for other in left
                if place.nodes & best[other.start].rewrite.removed or other.nodes & best[place.start].rewrite.removed
            ]
            chain += near
            left = [other for other in left if all(other is not one for one in near)]
        if len(chain) <= _LONGEST:
            yield chain


def _together(parts: Sequence[Applied]) -> Applied:
    """One candidate of several rewrites of a pass; its parts are what is applied."""
    made = [one.rewrite for one in parts]
    inserted = [(place, node) for one in made for place, nodes in one.inserted.items() for node in nodes]
    first = parts[0]
    rewrite = Rewrite(
        pass_name=made[0].pass_name,
        site=made[0].site,
        safety=max((one.safety for one in made), key=list(Safety).index),
        removed=frozenset().union(*(one.removed for one in made)),
        anchor=min(one.anchor for one in made),
        added=tuple(node for _, node in inserted),
        initializers=tuple(tensor for one in made for tensor in one.initializers),
        summary=f"{made[0].summary}, and at {len(parts) - 1} more in a row",
        imports=tuple(dict.fromkeys(entry for one in made for entry in one.imports)),
        places=tuple(place for place, _ in inserted),
    )
    return replace(first, rewrite=rewrite, parts=tuple(parts))
