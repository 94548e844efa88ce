"""Where a model spends its time, by the kernels that ONNX Runtime runs: from its optimized graph and its profiler."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from rewriter.census import kind_of
from rewriter.session import Runtime, open_session, prepare

_RUNS: Final = 12
_WARM: Final = 2
_SUFFIX: Final = "_kernel_time"


@dataclass(frozen=True)
class KernelTime:
    """All nodes of one kind in a model: how many, and their milliseconds together in one run (median over runs)."""

    kind: str
    """"Conv", or "com.microsoft.nchwc:Conv" outside the default domain."""
    count: int
    ms: float


def profile(
    model: bytes | Path | onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    runtime: Runtime,
    *,
    external_folder: Path | None = None,
) -> tuple[KernelTime, ...]:
    """The kernels of a model, those that take most time first.  Raises SessionFailed where it cannot be run.

    With a profiler on, small nodes take longer than without: times are for comparing kernels, not for latency.
    """
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = open_session(
            model,
            runtime.plain(),
            external_folder=external_folder,
            optimized_to=optimized,
            profiled_to=Path(folder) / "profile",
        )
        once = prepare(session, feeds)
        for _ in range(_WARM + _RUNS):
            once()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(optimized, load_external_data=False).graph
    kinds = {node.name: kind_of(node) for node in graph.node if node.name}
    return _summed(_spent(events, kinds), Counter(kind_of(node) for node in graph.node))


def _spent(events: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> list[Counter[str]]:
    """Milliseconds by kind, of each run; warm-up runs are left out."""
    runs: list[Counter[str]] = [Counter()]
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == "model_run":
            runs.append(Counter())  # written when the run ends, behind its nodes
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        kind = kinds.get(name.removesuffix(_SUFFIX), str(event["args"]["op_name"]))
        runs[-1][kind] += event["dur"] / 1000
    full = [run for run in runs if run]
    return full[_WARM:] or full


def _summed(runs: Sequence[Mapping[str, float]], counts: Mapping[str, int]) -> tuple[KernelTime, ...]:
    kinds = dict.fromkeys([*counts, *(kind for run in runs for kind in run)])
    found = [
        KernelTime(kind, counts.get(kind, 0), float(np.median([run.get(kind, 0.0) for run in runs])) if runs else 0.0)
        for kind in kinds
    ]
    return tuple(sorted(found, key=lambda one: (-one.ms, one.kind)))
