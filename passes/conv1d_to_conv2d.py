"""conv1d-to-conv2d: compute 1-D convolutions as 2-D ones, a whole run of them at a time.

    y = Conv(x [N, C, L], W [M, C/G, K])

becomes, for axis w,

    x' = Unsqueeze(x)                   [N, C, 1, L]
    y' = Conv(x', W [M, C/G, 1, K])     [N, M, 1, L']
    y  = Squeeze(y')                    [N, M, L']

and the same for the nodes of a run: its convolutions and all that lies between and behind them and does not care about
the rank: elementwise nodes, BatchNormalization, Concat and Split of channels, sums with other tensors.  What comes into
the run is unsqueezed once, what is needed outside is squeezed once, under its name.  No size is needed for that.

Settings: `axis` = w | h, which axis the long one becomes: [N, C, 1, L] or [N, C, L, 1].
Conditions: constant weights.  Any group, stride, dilation, padding (auto_pad as well) and float type; opset 7 or later.
What `optimize` measures: both axes, for each run as a whole, at its first convolution.
Safety: EXACT, weights only move.
Source: ONNX Runtime's blocked convolutions (NCHWc) are 2-D only; a depthwise Conv1D is a matrix product per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter import (
    BadInput,
    Builder,
    ConvSite,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Run,
    Safety,
    Settings,
    Var,
    View,
    lift,
    maybe,
    require,
    rewrite_run,
    run_from,
    unsqueeze,
)
from rewriter import conv as algebra

_RANK = 3
_NEW = {"h": 1, "w": 0}
"""The spatial axis before which the axis of size 1 goes: behind the long one, or before it."""


class Conv1dToConv2d(Pass):
    """Runs of Conv1D -> Unsqueeze, Conv2D, Squeeze."""

    name = "conv1d-to-conv2d"
    safety = Safety.EXACT
    defaults = {"axis": "w"}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        axis = settings["axis"]
        if axis not in _NEW:
            raise BadInput(f"the setting {self.name}.axis is '{axis}': it must be one of {', '.join(_NEW)}.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """Both axes, where a run begins."""
        _run(graph, found)
        return tuple({"axis": axis} for axis in ("w", "h"))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        run = _run(graph, found)
        axis = str(settings["axis"])
        build = Builder(graph.model, f"{run.leaving[-1]}/as_2d")
        view = _Flat(graph, _NEW[axis])
        summary = f"{run.described('Conv1D')} -> Conv2D along {axis.upper()}"
        return rewrite_run(self.name, graph, run, view, build, summary)


@dataclass(frozen=True)
class _Flat(View):
    """`[N, C, L]` as `[N, C, 1, L]` or `[N, C, L, 1]`: an axis of size 1 before spatial axis `at`."""

    graph: Graph
    at: int

    def enter(self, build: Builder, x: str) -> str:
        return unsqueeze(build, self.graph, x, [2 + self.at], "enter")

    def leave(self, build: Builder, inner: str, output: str) -> None:
        build.squeeze(inner, [2 + self.at], "leave", output)

    def weight(self, weight: algebra.Array) -> algebra.Array:
        return algebra.insert_weight_axis(weight, self.at)

    def attribute(self, name: str, values: Sequence[int]) -> list[int]:
        return algebra.insert_attribute_axis(name, values, self.at)

    def operand(self, value: algebra.Array) -> algebra.Array:
        """A scalar of any rank up to theirs needs no axis more."""
        return value if value.size == 1 else algebra.insert_axis(value, _RANK, 2 + self.at)


def _run(graph: Graph, found: Match) -> Run:
    """The run that begins at the convolution."""
    site = lift(graph.model, found.node)
    require(len(site.kernel) == 1, f"it is {len(site.kernel)}-D, not 1-D", site.y, matched=0)
    return run_from(graph, site, _RANK, _kinds, any_shape=True)


def _kinds(site: ConvSite) -> tuple[str, ...]:
    """Every 1-D convolution can be a 2-D one."""
    return ("flat",) if len(site.kernel) == 1 else ()
