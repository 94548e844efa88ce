"""The records of a measurement: what is compared, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from rewriter.providers import Provider
from rewriter.session import Runtime
from rewriter.timing.clocks import ClockPair
from rewriter.timing.statistics import Verdict


@dataclass(frozen=True)
class Contender:
    """One of the models to be compared, with the name it has in messages.

    `runtime` is its own way to be run, None that of the measurement: so one model can be compared with itself under
    other provider options. Only these may differ from the measurement's.
    """

    name: str
    model: bytes | Path | onnx.ModelProto
    external_folder: Path | None = None
    runtime: Runtime | None = None


@dataclass(frozen=True)
class Timing:
    """How fast one model is compared with another, measured in the same run on the same inputs.

    All times are per run of the model. `speedup` is the median of the paired ratios before / after; it may differ in
    its last digits from the quotient of the two medians `before_ms` and `after_ms`.
    """

    before: str
    after: str
    verdict: Verdict
    reason: str
    """The verdict in one sentence."""
    before_ms: float
    after_ms: float
    speedup: float
    interval: tuple[float, float] | None
    """95 % interval of the speedup; None where the budget allowed too few pairs for one."""
    control_interval: tuple[float, float] | None
    """The same for the original against a second session of itself."""
    smallest_effect: float | None
    """Relative change that had to be exceeded: 0.013 means 1.3 % faster or slower."""
    pairs: int
    runs_per_block: tuple[int, int]
    """Runs of before and of after in each timed block; each pair has two blocks of either."""
    threads: int
    provider: Provider
    seconds: float
    """Time spent on the whole measurement, other models compared in it and loading included."""
    before_sha256: Mapping[str, str]
    after_sha256: Mapping[str, str]
    """Output name to `tensor_sha256` of what the timed session computed."""
    nondeterministic: tuple[str, ...] = ()
    """Outputs of which two runs on the same inputs differed in a bit, as "model: output"."""
    before_options: tuple[tuple[str, str], ...] = ()
    after_options: tuple[tuple[str, str], ...] = ()
    """The provider options that either was run with."""
    before_cuda_graph: bool = False
    cuda_graph: bool = False
    """Whether what was timed of before, and of after, were replays of a captured CUDA graph."""
    bound: bool = False
    """Whether inputs and outputs stayed on the device."""
    device: str = ""
    """The device's name, where it is known."""
    clocks: ClockPair = (None, None)
    """The device's clocks right before the first timed block and right after the last, where they are known."""


@dataclass(frozen=True)
class Latency:
    """How long one model takes by itself. `interval_ms` is the 95 % interval of the median time per run."""

    name: str
    ms: float
    interval_ms: tuple[float, float] | None
    blocks: int
    runs_per_block: int
    threads: int
    provider: Provider
    seconds: float
    sha256: Mapping[str, str]
    nondeterministic: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    cuda_graph: bool = False
    bound: bool = False
    device: str = ""
    clocks: ClockPair = (None, None)
