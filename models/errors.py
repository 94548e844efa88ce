"""The one error this package raises on purpose: a model that cannot be built as asked."""

from __future__ import annotations


class ModelError(ValueError):
    """The name or the options do not describe a model; the message is one sentence that says what to change."""
