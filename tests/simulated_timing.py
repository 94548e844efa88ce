"""A machine without time of its own, to test timing on: its clock moves only when a model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from rewriter.session import Runtime
from rewriter.timing import Contender, Timing, compare


@dataclass
class Machine:
    """A clock that advances only when a model runs. `load(seconds)` multiplies what a run takes at that time."""

    noise: float = 0.0
    load: Callable[[float], float] = lambda _: 1.0
    seed: int = 0
    now: float = 0.0
    log: list[tuple[str, int]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def open(self, contender: Contender, runtime: Runtime, feeds: Mapping[str, np.ndarray]) -> Simulated:
        """The contender's "model" is its running time in seconds."""
        self.opened.append(contender.name)
        return Simulated(self, f"{contender.name}#{self.opened.count(contender.name)}", float(contender.name))


@dataclass
class Simulated:
    machine: Machine
    name: str
    seconds: float
    results: int = 0

    def repeat(self, runs: int) -> None:
        self.machine.log.append((self.name, runs))
        noise = math.exp(self.machine.noise * self.machine.rng.standard_normal())
        self.machine.now += runs * self.seconds * noise * self.machine.load(self.machine.now)

    def outputs(self) -> dict[str, np.ndarray]:
        return {"y": np.zeros(2, np.float32)}


def named(seconds: float) -> Contender:
    return Contender(str(seconds), b"")


def simulate(
    machine: Machine,
    *after_seconds: float,
    before: float = 0.01,
    budget: float = 60,
    half_width: float = 0.03,
    seed: int = 0,
) -> list[Timing]:
    return compare(
        named(before),
        [named(seconds) for seconds in after_seconds],
        {},
        Runtime(threads=2),
        budget_seconds=budget,
        half_width=half_width,
        seed=seed,
        clock=machine.clock,
        open_with=machine.open,
    )


def experiments(count: int, after: float, noise: float = 0.02, budget: float = 60) -> list[Timing]:
    return [simulate(Machine(noise, seed=seed), after, seed=seed, budget=budget)[0] for seed in range(count)]


def assert_interval(interval: tuple[float, float] | None, around: float, rel: float = 1e-6) -> None:
    assert interval is not None
    assert interval[0] == pytest.approx(around, rel=rel)
    assert interval[1] == pytest.approx(around, rel=rel)
