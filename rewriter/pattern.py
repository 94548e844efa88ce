"""Patterns: the nodes a pass looks for, written as a plain function that calls operators.

    def pattern(op, x, w, b):
        return op.Relu(op.Conv(x, w, maybe(b)))

Calling it once with recording arguments gives the pattern as a record.  A parameter is a variable: the same one in two
places must be the same tensor.  Keyword arguments are attributes that must have exactly that value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Var:
    """Any tensor, remembered by name; an optional one may be missing."""

    name: str
    optional: bool = False


@dataclass(frozen=True)
class NodePattern:
    """A node of the default operator domain with one output, whose inputs fit `inputs` in order."""

    op_type: str
    inputs: tuple[Var | NodePattern, ...]
    attributes: tuple[tuple[str, object], ...] = ()

    @property
    def size(self) -> int:
        """Number of nodes."""
        return 1 + sum(entry.size for entry in self.inputs if isinstance(entry, NodePattern))


class Op:
    """`op.Conv(x, w)` is the pattern of a Conv that reads x and w."""

    def __getattr__(self, op_type: str) -> Callable[..., NodePattern]:
        def record(*inputs: Var | NodePattern, **attributes: object) -> NodePattern:
            return NodePattern(op_type, inputs, tuple(sorted(attributes.items())))

        return record


PatternFunction = Callable[..., NodePattern]


def maybe(variable: Var) -> Var:
    """The same variable, allowed to be missing."""
    return replace(variable, optional=True)


def trace(function: PatternFunction) -> NodePattern:
    """The pattern a function describes: its first parameter is `op`, the others are variables."""
    _, *names = inspect.signature(function).parameters
    return function(Op(), *(Var(name) for name in names))
