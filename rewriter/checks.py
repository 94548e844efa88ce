"""Check the value of a setting before any work."""

from __future__ import annotations

from collections.abc import Iterable

from rewriter.errors import BadInput


def check_one_of(value: object, setting: str, allowed: Iterable[str]) -> None:
    """Raise BadInput unless `value`, that of the setting (`pass.key`), is one of `allowed`."""
    known = tuple(allowed)
    if value not in known:
        raise BadInput(f"the setting {setting} is '{value}': it must be one of {', '.join(known)}.")
