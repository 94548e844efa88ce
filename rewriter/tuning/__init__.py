"""Tuning records: what was measured on which machine, kept so that the next run need not measure it again."""

from __future__ import annotations

from rewriter.tuning.entries import Environment, Measured, PlaceEntry, PlanEntry, PlanStep, environment_of
from rewriter.tuning.memory import Memory, asked_digest
from rewriter.tuning.store import Store, default_path
from rewriter.tuning.transfer import dump, load

__all__ = [
    "Environment",
    "Measured",
    "Memory",
    "PlaceEntry",
    "PlanEntry",
    "PlanStep",
    "Store",
    "asked_digest",
    "default_path",
    "dump",
    "environment_of",
    "load",
]
