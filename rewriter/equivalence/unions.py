"""Disjoint sets (union-find), for grouping nodes into regions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Unions(Generic[T]):
    """Sets that only ever grow together."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}

    def add(self, item: T) -> None:
        """Make the item known, in a set of its own if it is new."""
        self._parent.setdefault(item, item)

    def join(self, *items: T) -> None:
        """Merge the sets of all the items; unknown items are added."""
        roots = [self._root(item) for item in items]
        for root in roots[1:]:
            self._parent[self._root(root)] = self._root(roots[0])

    def groups(self) -> list[list[T]]:
        """The sets, members in order of addition."""
        found: dict[T, list[T]] = {}
        for item in self._parent:
            found.setdefault(self._root(item), []).append(item)
        return list(found.values())

    def _root(self, item: T) -> T:
        self.add(item)
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item
