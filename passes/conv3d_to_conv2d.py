"""conv3d-to-conv2d: compute 3-D convolutions that are flat in time or in space as 2-D ones, a whole run at a time.

Temporal, kernel (k, 1, 1), all of space in one axis:

    y = Conv(x [N, C, D, H, W], W [M, C/G, k, 1, 1])   becomes
    x' = Reshape(x)                     [N, C, D, H*W]
    y' = Conv(x', W [M, C/G, k, 1])     [N, M, D', H*W]
    y  = Reshape(y')                    [N, M, D', H, W]

Spatial, kernel (1, k, k), every frame an image of the batch:

    y = Conv(x [N, C, D, H, W], W [M, C/G, 1, k, k])   becomes
    x' = Reshape(Transpose(x))          [N*D, C, H, W]
    y' = Conv(x', W [M, C/G, k, k])     [N*D, M, H', W']
    y  = Transpose(Reshape(y'))         [N, M, D, H', W']

and the same for the nodes of a run: convolutions of one of the two kinds (1x1x1 is of both), and all that lies between
and behind them and does not care about the layout: elementwise nodes, BatchNormalization, Concat and Split of
channels, sums with tensors of the same shape.  The layout changes once for each tensor that comes in or is needed
outside; in the temporal form that moves no data.  Sizes that are not known before the model runs are read with Shape.

Settings: `kind` = any | temporal | spatial, which runs are rewritten.
Conditions: constant weights; stride 1 and no padding along the axes where the kernel is 1 and that are merged (H and W,
or D).  Any group, dilation and float type.  Pooling in time is left alone.
What `optimize` measures: each run as a whole, at its first convolution.
Safety: EXACT, weights only move.
Source: ONNX Runtime's blocked convolutions (NCHWc) are 2-D only.
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
)
from rewriter import conv as algebra

_RANK = 5
_DEPTH, _WIDTH = 0, 2
"""Spatial axes of [N, C, D, H, W]."""
_SWAP = [0, 2, 1, 3, 4]
"""[N, C, D, H, W] to [N, D, C, H, W], and back."""
_KINDS = ("any", "temporal", "spatial")


class Conv3dToConv2d(Pass):
    """Runs of Conv3D with kernel (k, 1, 1) or (1, k, k) -> Conv2D."""

    name = "conv3d-to-conv2d"
    safety = Safety.EXACT
    defaults = {"kind": "any"}  # noqa: RUF012 - never mutated

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def check(self, settings: Settings) -> None:
        kind = settings["kind"]
        if kind not in _KINDS:
            raise BadInput(f"the setting {self.name}.kind is '{kind}': it must be one of {', '.join(_KINDS)}.")

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One way, where a run begins."""
        _run(graph, found)
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        run = _run(graph, found)
        wanted = str(settings["kind"])
        require(wanted in ("any", run.layout), f"it is {run.layout}, and {self.name}.kind is {wanted}", run.leaving[0])
        build = Builder(graph.model, f"{run.leaving[-1]}/as_2d")
        view: View = _Merged(graph, run) if run.layout == "temporal" else _Frames(graph, run)
        where = "over [N, C, D, H*W]" if run.layout == "temporal" else "over [N*D, C, H, W]"
        return rewrite_run(self.name, graph, run, view, build, f"{run.described('Conv3D')} -> Conv2D {where}")


@dataclass(frozen=True)
class _View(View):
    """What both layouts have in common: one spatial axis, `flat`, is not there."""

    graph: Graph
    run: Run

    @property
    def flat(self) -> int:
        raise NotImplementedError

    def weight(self, weight: algebra.Array) -> algebra.Array:
        return algebra.drop_weight_axis(weight, self.flat)

    def attribute(self, name: str, values: Sequence[int]) -> list[int]:
        return algebra.drop_attribute_axis(name, values, self.flat)

    def operand(self, value: algebra.Array) -> algebra.Array:
        """A constant per channel; one that is the same for all channels may be of any rank up to theirs."""
        if value.size == 1 and value.ndim < _RANK:
            return value
        channels = algebra.channel_constant(value, _RANK)
        assert channels is not None
        return channels.reshape(1, -1, 1, 1)

    def sizes(self, tensor: str) -> tuple[int | None, ...]:
        """Those that hold for every input, None elsewhere."""
        return self.graph.sizes(tensor) or (None,) * _RANK

    def common(self, axis: int) -> _Size:
        """The size of an axis that all tensors of the run have in common, and where to read it."""
        border = (*self.run.entering, *self.run.leaving)
        known = (self.sizes(tensor)[axis] for tensor in border)
        return next((size for size in known if size is not None), None), border[0], axis


class _Merged(_View):
    """`[N, C, D, H, W]` as `[N, C, D, H*W]`."""

    @property
    def flat(self) -> int:
        return _WIDTH

    def enter(self, build: Builder, x: str) -> str:
        return build.reshape(x, [0, 0, 0, -1], "enter")

    def leave(self, build: Builder, inner: str, output: str) -> None:
        build.reshape(inner, [0, 0, 0, *_target(build, [self.common(3), self.common(4)])], "leave", output)


class _Frames(_View):
    """`[N, C, D, H, W]` as `[N*D, C, H, W]`."""

    @property
    def flat(self) -> int:
        return _DEPTH

    def enter(self, build: Builder, x: str) -> str:
        frames = build.transpose(x, _SWAP, "frames")
        sizes = self.sizes(x)
        target = _target(build, [(None, x, 0), *((sizes[axis], x, axis) for axis in (1, 3, 4))])
        return build.reshape(frames, target, "enter")

    def leave(self, build: Builder, inner: str, output: str) -> None:
        _, channels, _, *space = self.sizes(output)
        inside = [(size, inner, axis) for axis, size in enumerate([channels, *space], 1)]
        split = build.reshape(inner, _target(build, [self.common(0), self.common(2), *inside]), "split")
        build.transpose(split, _SWAP, "leave", output)


_Size = tuple[int | None, str, int]
"""A size where it is known, and the tensor and the axis to read it from where it is not."""


def _target(build: Builder, sizes: Sequence[_Size]) -> list[int | str]:
    """A Reshape target: the first size that is not known follows from the others, only further ones are read."""
    target: list[int | str] = []
    for size, tensor, axis in sizes:
        if size is not None:
            target.append(size)
        elif -1 not in target:
            target.append(-1)
        else:
            target.append(build.sizes_of(tensor, [axis], "size")[0])
    return target


def _run(graph: Graph, found: Match) -> Run:
    """The run that begins at the convolution."""
    site = lift(graph.model, found.node)
    require(len(site.kernel) == 3, f"it is {len(site.kernel)}-D, not 3-D", site.y, matched=0)
    shape = "x".join(map(str, site.kernel))
    why = f"its kernel {shape} with stride {list(_numbers(site, 'strides')) or 1} and its pads join time and space"
    require(_kinds(site), why, site.y)
    return run_from(graph, site, _RANK, _kinds, any_shape=False)


def _kinds(site: ConvSite) -> tuple[str, ...]:
    """Temporal where height and width are flat, spatial where the depth is; the first moves no data."""
    if len(site.kernel) != 3:
        return ()
    automatic = any(entry.name == "auto_pad" and entry.s not in (b"", b"NOTSET") for entry in site.node.attribute)
    pads = () if automatic else _numbers(site, "pads")  # where an axis is flat, every auto_pad gives 0
    flat = [algebra.is_flat(axis, site.kernel, _numbers(site, "strides"), pads) for axis in range(3)]
    kinds = {"temporal": flat[1] and flat[2], "spatial": flat[0]}
    return tuple(kind for kind, fits in kinds.items() if fits)


def _numbers(site: ConvSite, name: str) -> tuple[int, ...]:
    return next((tuple(entry.ints) for entry in site.node.attribute if entry.name == name), ())
