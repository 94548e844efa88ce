"""Finds the passes: every Pass in the modules of each package that the entry-point group `rewriter.passes` names.

`passes` is a generic import name, so this is the only module that spells it, and a package of that name that is not
ours is refused with a message instead of being imported by accident.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points
from types import ModuleType

from rewriter.base import Pass
from rewriter.errors import BadInput

GROUP = "rewriter.passes"
OWN = "passes"
MARKER = "REWRITER_PASSES"
"""Every package in the group carries this attribute; its value is the distribution that ships it."""


@lru_cache(maxsize=1)
def all_passes() -> dict[str, Pass]:
    """Every installed pass by name, in order of name.  Raises BadInput when a package or a name is in conflict."""
    found: dict[str, Pass] = {}
    packages = dict.fromkeys([OWN, *sorted(entry.value for entry in entry_points(group=GROUP))])
    for package in packages:
        for rule in _scan(_package(package)):
            if rule.name in found:
                raise BadInput(f"two installed passes are called '{rule.name}': uninstall one of their packages.")
            found[rule.name] = rule
    return dict(sorted(found.items()))


def pass_named(name: str) -> Pass:
    """The pass of that name; raises BadInput naming those there are."""
    known = all_passes()
    if name not in known:
        raise BadInput(f"there is no pass '{name}'; there are: {', '.join(known)}.")
    return known[name]


def _package(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if not hasattr(module, MARKER):
        where = getattr(module, "__file__", None) or "a namespace package"
        raise BadInput(
            f"Python finds another package called '{name}' ({where}) before the one with the passes: run from a folder "
            f"that has no '{name}' in it, or rename that package."
        )
    return module


def _scan(package: ModuleType) -> list[Pass]:
    rules: list[Pass] = []
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        rules += [
            member()
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, Pass) and member.__module__ == module.__name__ and not inspect.isabstract(member)
        ]
    return rules
