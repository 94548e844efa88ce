"""Which members of a set make it fail, found with few probes: a pure search that knows nothing of models.

A probe says whether a subset fails.  Failing is taken to be monotone: what fails, fails with more added to it.  Where
it is not, every answer is still a set that was seen to fail, only perhaps not a smallest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Subset = frozenset[int]
"""Members by their position in the set."""
Fails = Callable[[Subset], bool]


@dataclass(frozen=True)
class Group:
    """Members that fail together, in ascending order; `minimal` says that without any one of them they do not."""

    members: tuple[int, ...]
    minimal: bool


@dataclass(frozen=True)
class Culprits:
    """Disjoint groups that fail, what is left without them, and the number of probes made.

    `settled` says that what is left was seen to pass, or that nothing is left; otherwise the probes did not suffice.
    """

    groups: tuple[Group, ...]
    rest: tuple[int, ...]
    probes: int
    settled: bool


class _Spent(Exception):
    """No probe is left."""


class _Probes:
    """Counts the probes, and makes none twice."""

    def __init__(self, fails: Fails, most: int) -> None:
        self._fails = fails
        self._most = most
        self._known: dict[Subset, bool] = {}

    @property
    def made(self) -> int:
        return len(self._known)

    def __call__(self, members: Iterable[int]) -> bool:
        subset = frozenset(members)
        if not subset:
            return False  # nothing changed, so nothing fails
        if subset not in self._known:
            if self.made >= self._most:
                raise _Spent
            self._known[subset] = self._fails(subset)
        return self._known[subset]


def find_culprits(count: int, fails: Fails, most: int) -> Culprits:
    """Groups of members, each minimal, without which what is left of `count` members does not fail.

    The whole set is known to fail and the empty one not to: neither is probed.  At most `most` probes are made; when
    they are spent, the last group is what was still under suspicion.
    """
    probe = _Probes(fails, most)
    groups: list[Group] = []
    rest = tuple(range(count))
    failing = bool(rest)
    while failing:
        group = _smallest(rest, probe)
        groups.append(group)
        rest = tuple(member for member in rest if member not in group.members)
        try:
            failing = probe(rest)
        except _Spent:
            return Culprits(tuple(groups), rest, probe.made, settled=False)
    return Culprits(tuple(groups), rest, probe.made, settled=True)


def _smallest(members: tuple[int, ...], probe: _Probes) -> Group:
    """A minimal group within members that fail.

    The last member of the shortest prefix that fails is in every group within that prefix: it is needed, and the search
    goes on among those before it, with it.  About log2(n) probes for each member of the group.
    """
    needed: list[int] = []
    left = list(members)  # `needed` and `left` together were seen to fail at every step
    try:
        while left and not probe(needed):
            passing = 0
            while len(left) - passing > 1:
                half = (passing + len(left)) // 2
                if probe([*needed, *left[:half]]):
                    left = left[:half]
                else:
                    passing = half
            needed.append(left.pop())
    except _Spent:
        return Group(tuple(sorted([*needed, *left])), minimal=len(needed) + len(left) == 1)
    return Group(tuple(sorted(needed)), minimal=True)
