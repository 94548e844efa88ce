"""A picture of the speed-ups in benchmarks/results/peers.json: a row for each model, a mark for each tool, as SVG."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.peer_tools import OPENVINO, OWN
from benchmarks.peers_figures import SHOWN, Row, figure

_LOOKS: Final = {
    "onnxsim": ("#999999", "s"),
    "onnxslim": ("#56b4e9", "^"),
    "onnxoptimizer": ("#e69f00", "v"),
    "onnxscript": ("#cc79a7", "D"),
    OPENVINO: ("#0072b2", "o"),
    OWN: ("#d55e00", "*"),
}
"""Colours that colour-blind people tell apart (Okabe and Ito, 2008), and a shape each for who sees none."""
_SPREAD: Final = 0.66
"""Of a row's height, over which the tools' marks are spread."""


def digest(rows: Sequence[Row]) -> str:
    """What a picture says it is of, so that a stale one is found without drawing it."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()


def picture(rows: Sequence[Row], title: str) -> str:
    """The SVG of rows of one setting, the greatest speed-up of this tool on top; the same bytes for the same rows."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    ordered = sorted(rows, key=lambda row: (figure(row, OWN).counted, figure(row, OPENVINO).counted, row["model"]))
    settings = {"svg.hashsalt": "peers", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with matplotlib.rc_context(settings):
        drawing, axes = pyplot.subplots(figsize=(8.5, 1.4 + 0.46 * len(ordered)), layout="constrained")
        for place, tool in enumerate(SHOWN):
            _draw(axes, ordered, tool, _SPREAD * (0.5 - place / (len(SHOWN) - 1)))
        axes.axvline(1.0, color="black", linewidth=1)
        for edge in range(len(ordered) - 1):
            axes.axhline(edge + 0.5, color="#dddddd", linewidth=0.6)
        axes.set_xscale("log")
        _ticks(axes, matplotlib)
        axes.set_yticks(range(len(ordered)), [row["model"] for row in ordered])
        axes.set_ylim(-0.5, len(ordered) - 0.5)
        axes.set_xlabel("times as fast as plain ONNX Runtime, with 95 % interval (logarithmic)")
        drawing.suptitle(title)
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(SHOWN), frameon=False)
        drawing.get_layout_engine().set(w_pad=0.12)  # other fonts may be wider than the one it is laid out with
        buffer = io.BytesIO()
        about = {"Date": None, "Creator": None, "Description": f"benchmarks/results/peers.json {digest(rows)}"}
        drawing.savefig(buffer, format="svg", metadata=about)
        pyplot.close(drawing)
    lines = buffer.getvalue().decode("utf-8").splitlines()
    return "\n".join(text.rstrip() for text in lines) + "\n"


def _draw(axes: Any, rows: Sequence[Row], tool: str, offset: float) -> None:
    colour, shape = _LOOKS[tool]
    found = [(place + offset, figure(row, tool)) for place, row in enumerate(rows)]
    timed = [(place, one, one.speedup) for place, one in found if one.speedup is not None]
    gaps = [(0.0, 0.0) if one.interval is None else _gaps(value, one.interval) for _, one, value in timed]
    axes.errorbar(
        [value for _, _, value in timed],
        [place for place, _, _ in timed],
        xerr=[[low for low, _ in gaps], [high for _, high in gaps]] if gaps else None,
        fmt=shape,
        color=colour,
        markersize=8 if tool == OWN else 4,
        elinewidth=1.2,
        label={OPENVINO: "OpenVINO"}.get(tool, tool),
    )


def _gaps(value: float, interval: tuple[float, float]) -> tuple[float, float]:
    return max(0.0, value - interval[0]), max(0.0, interval[1] - value)


def _ticks(axes: Any, matplotlib: Any) -> None:
    """At round ratios, written out: the ends of the axis are powers of nothing."""
    low, high = axes.get_xlim()
    steps = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 4.0, 6.0)
    shown = [step for step in steps if low <= step <= high]
    axes.set_xticks(shown, [f"{step:g}" for step in shown])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
