"""Draws specifications of grouped convolutions at random, for property tests: `draw_spec(rng, form)`."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any, get_args

from models.emit import OPSETS
from models.errors import ModelError
from models.grouped_spec import CHOICES, Form, GroupedConv


def draw_spec(rng: random.Random, form: Form) -> GroupedConv:
    """A specification of the given form whose options do not contradict each other; the same `rng` state, the same one.

    Sizes stay small (at most 4 groups of 3 channels, at most 9 positions per axis). Contradictory draws, such as
    `pads` together with `auto_pad`, are thrown away and drawn again.
    """
    while True:
        try:
            return GroupedConv(**(_draw(rng) | {"form": form}))
        except ModelError:
            continue


def _draw(rng: random.Random) -> dict[str, Any]:
    rank = rng.choice([1, 2, 2, 3])

    def per_axis(values: list[int], count: int = rank) -> tuple[int, ...]:
        return tuple(rng.choice(values) for _ in range(count))

    drawn: dict[str, Any] = {
        "groups": rng.randint(1, 4),
        "in_per_group": rng.randint(1, 3),
        "out_per_group": rng.randint(1, 4),
        "kernel": per_axis([1, 2, 3]),
        "spatial": per_axis([5, 6, 7, 8, 9]),
        "batch": rng.randint(1, 3),
        "strides": rng.choice([(), per_axis([1, 2, 3])]),
        "dilations": rng.choice([(), per_axis([1, 2])]),
        "pads": rng.choice([(), per_axis([0, 1, 2], 2 * rank)]),
        "keepdims": rng.random() < 0.3,
        "allowzero": rng.random() < 0.2,
        "integers": rng.random() < 0.5,
        "opset": rng.choice(OPSETS),
        "ir_version": rng.choice([None, None, 3]),
        "seed": rng.randrange(1000),
    }
    drawn |= {name: rng.choice(get_args(choices)) for name, choices in CHOICES.items()}
    assert set(drawn) == {field.name for field in fields(GroupedConv)}, "a new option must be drawn as well"
    return drawn
