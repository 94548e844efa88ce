"""What the rows of benchmarks/results/peers.json say: a figure or a word for each model and tool, and their means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.peer_check import RIGHT
from benchmarks.peer_tools import OPENVINO, OWN, REWRITERS, TOOLS

Row = dict[str, Any]
DENSE: Final = "dense"
SHOWN: Final = (*REWRITERS, OPENVINO, OWN)
"""The tools in the order of the tables."""
assert set(SHOWN) == set(TOOLS)


@dataclass(frozen=True)
class Figure:
    """How much faster than the original in plain ONNX Runtime, or why that is not known."""

    speedup: float | None
    interval: tuple[float, float] | None = None
    word: str = ""
    """In place of a figure; empty where there is one."""
    blind: bool = False
    """Whether the outputs that were compared hardly depend on the input."""

    @property
    def counted(self) -> float:
        """In a mean: who gets no faster model keeps the original."""
        return 1.0 if self.speedup is None else self.speedup

    def __str__(self) -> str:
        if self.speedup is None or self.word:
            return self.word
        mark = " †" if self.blind else ""
        if self.interval is None:
            return f"{self.speedup:.2f}× (no interval){mark}"
        return f"{self.speedup:.2f}× ({self.interval[0]:.2f} to {self.interval[1]:.2f}){mark}"


def figure(row: Row, tool: str) -> Figure:
    """The figure of a tool for the model of a row."""
    problem = row["tools"][tool]["problem"]
    if problem:
        return Figure(None, word="not installed" if problem == "not installed" else "failed")
    if tool == OWN and not row["own"]["changed"]:
        return Figure(1.0, word="unchanged")
    check, timing = row["checks"].get(tool), row["timings"].get(tool)
    if check is not None and check["verdict"] not in RIGHT:
        return Figure(None, word="**wrong outputs**" if check["verdict"] == "differs" else "**cannot be run**")
    if check is None or timing is None:
        return Figure(None, word="not timed")
    interval = timing["interval"]
    low_high = None if interval is None else (interval[0], interval[1])
    return Figure(timing["speedup"], low_high, blind=check["verdict"] == "blind")


def by_setting(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The rows by their number of threads, in the order they are in."""
    settings = dict.fromkeys(row["threads"] for row in rows)
    return {threads: [row for row in rows if row["threads"] == threads] for threads in settings}


def reasons(row: Row) -> Iterator[str]:
    """Why figures are missing, a clause each."""
    if row["problem"]:
        yield row["problem"]
    yield from (f"{tool}: {row['tools'][tool]['problem']}" for tool in SHOWN if row["tools"][tool]["problem"])
    differing = ((tool, check) for tool, check in row["checks"].items() if check["verdict"] not in RIGHT)
    yield from (f"{tool}: {check['reason']}" for tool, check in differing)


def is_irregular(row: Row) -> bool:
    """Whether the model has grouped convolutions, or some with channels that the fast path does not take."""
    return bool(row["work"]["grouped"] or row["work"]["unaligned"])


def mean(rows: Sequence[Row], tool: str) -> float:
    """The geometric mean of the speed-ups; 1 where there is none, as one then keeps the original."""
    return math.exp(math.fsum(math.log(figure(row, tool).counted) for row in rows) / len(rows))


def best_other(row: Row) -> tuple[str, Figure] | None:
    """Of the other tools that make files, the one with the greatest speed-up; None where none has a figure."""
    found = [(tool, figure(row, tool)) for tool in REWRITERS]
    timed = [(tool, one) for tool, one in found if one.speedup is not None]
    return max(timed, key=lambda pair: pair[1].counted) if timed else None


def roofline(row: Row, tool: str = "") -> float | None:
    """The model's useful multiplications a second as a part of the dense convolution's; of the original without a tool.

    From paired ratios only: (model's multiplications / dense's) · (dense's time / original's) · speed-up.
    """
    dense, useful = row["timings"].get(DENSE), row["work"]["multiplications"]
    gain = figure(row, tool).speedup if tool else 1.0
    if dense is None or useful is None or gain is None:
        return None
    return float(useful / row["dense"]["multiplications"] / dense["speedup"] * gain)


def dense_gflops(row: Row) -> float | None:
    """10⁹ multiplications and additions a second of the dense convolution, timed among the others."""
    dense = row["timings"].get(DENSE)
    return None if dense is None else float(2 * row["dense"]["multiplications"] / dense["ms"] / 1e6)
