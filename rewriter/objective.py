"""What `optimize` is to make better, in the words of `--objective`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Objective = Literal["latency", "throughput", "size", "memory"]

OBJECTIVES: Final[Mapping[str, str]] = {
    "latency": "the time of one run",
    "throughput": "runs a second on all cores, of a whole batch where the model takes one",
    "size": "the bytes of the file, at no loss of speed",
    "memory": "the peak memory of loading and running it, at no loss of speed",
}
"""Each with what is compared.  In all of them the model is never slower than the original."""

USUAL_BATCH: Final = 8
"""Of an unknown batch size, where the objective is throughput and nobody gave one."""
