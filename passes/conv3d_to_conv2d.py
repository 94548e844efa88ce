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
A convolution that has a stride where it is merged, as a 1x1x1 one that halves time and space, takes one of so many
positions of what comes in: a Slice with steps, then stride 1 there.

Settings: `kind` = any | temporal | spatial, which runs are rewritten.
Conditions: constant weights; kernel 1 and no padding along the axes that are merged (H and W, or D); where the stride
is not 1 along them, opset 10 or later, and what is read there comes from outside of the run.  Any group, dilation and
float type.  Pooling in time is left alone.
What `optimize` measures: each run as a whole, at its first convolution.
Safety: EXACT, weights only move.
Source: ONNX Runtime's blocked convolutions (NCHWc) are 2-D only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    sampled,
)
from rewriter import conv as algebra

_RANK = 5
_DEPTH, _WIDTH = 0, 2
"""Spatial axes of [N, C, D, H, W]."""
_SWAP = [0, 2, 1, 3, 4]
"""[N, C, D, H, W] to [N, D, C, H, W], and back."""
_MERGED = {"temporal": (1, 2), "spatial": (0,)}
"""The spatial axes that each layout merges, with each other or with the batch."""
_KINDS = ("any", *_MERGED)
_STEPS = 10
"""The first opset whose Slice has steps."""


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
        parts = {index: sampled(build, lift(graph.model, index), _MERGED[run.layout]) for index in run.sampled}
        sources = {part.tensor: graph.model.nodes[index].input[0] for index, part in parts.items()}
        view: View = (_Merged if run.layout == "temporal" else _Frames)(graph, run, sources)
        where = "over [N, C, D, H*W]" if run.layout == "temporal" else "over [N*D, C, H, W]"
        summary = f"{run.described('Conv3D')} -> Conv2D {where}"
        return rewrite_run(self.name, graph, run, view, build, summary, parts)


@dataclass(frozen=True)
class _View(View):
    """What both layouts have in common: one spatial axis, `flat`, is not there."""

    graph: Graph
    run: Run
    sources: Mapping[str, str]
    """Of a new tensor that is a part of one of the graph's, that one."""

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
        first = next(iter((*self.run.entering, *self.sources)))
        return next((size for size in known if size is not None), None), first, axis


class _Merged(_View):
    """`[N, C, D, H, W]` as `[N, C, D, H*W]`."""

    @property
    def flat(self) -> int:
        return _WIDTH

    def enter(self, build: Builder, x: str) -> str:
        if self._inferred:
            return build.reshape(x, [0, 0, 0, -1], "enter")
        height, width = self._sides(build)
        if isinstance(height, int) and isinstance(width, int):
            return build.reshape(x, [0, 0, 0, height * width], "enter")
        factors = [build.shape([size], "side") if isinstance(size, int) else size for size in (height, width)]
        return build.reshape(x, [0, 0, 0, build.node("Mul", factors, "positions")], "enter")

    def leave(self, build: Builder, inner: str, output: str) -> None:
        sizes = [self.common(3), self.common(4)]
        sides = _target(build, sizes) if self._inferred else self._sides(build)
        build.reshape(inner, [0, 0, 0, *sides], "leave", output)

    @property
    def _inferred(self) -> bool:
        """Whether Reshape may infer a size: not where what it copies may be a batch of none."""
        return self.common(0)[0] is not None

    def _sides(self, build: Builder) -> list[int | str]:
        """Height and width, or one-element vectors that are read where they are not known."""
        return [_said(build, self.common(axis)) for axis in (3, 4)]


class _Frames(_View):
    """`[N, C, D, H, W]` as `[N*D, C, H, W]`."""

    @property
    def flat(self) -> int:
        return _DEPTH

    def enter(self, build: Builder, x: str) -> str:
        frames = build.transpose(x, _SWAP, "frames")
        sizes = self.sizes(self.sources.get(x, x))
        target = _target(build, [(None, x, 0), *((sizes[axis], x, axis) for axis in (1, 3, 4))])
        return build.reshape(frames, target, "enter")

    def leave(self, build: Builder, inner: str, output: str) -> None:
        _, channels, _, *space = self.sizes(output)
        inside = [(size, inner, axis) for axis, size in enumerate([channels, *space], 1)]
        split = build.reshape(inner, _target(build, [self.common(0), self.common(2), *inside]), "split")
        build.transpose(split, _SWAP, "leave", output)


_Size = tuple[int | None, str, int]
"""A size where it is known, and the tensor and the axis to read it from where it is not."""


def _said(build: Builder, size: _Size) -> int | str:
    """The size, or the one-element vector that is read where it is not known."""
    known, tensor, axis = size
    return known if known is not None else build.sizes_of(tensor, [axis], "size")[0]


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
    what = f"its kernel {shape} with stride {list(_numbers(site, 'strides')) or 1}"
    require(_kinds(site), f"{what} and its pads join time and space", site.y)
    if graph.model.opset < _STEPS:
        require(
            not _is_sampled(site), f"{what} needs a Slice with steps, which there is from opset {_STEPS} on", site.y
        )
        return run_from(graph, site, _RANK, _whole, any_shape=False)
    return run_from(graph, site, _RANK, _kinds, any_shape=False, samples=_is_sampled)


def _kinds(site: ConvSite) -> tuple[str, ...]:
    """The layouts of all of its input, or where there is none of the positions that its stride takes."""
    return _whole(site) or _layouts(site, ())


def _is_sampled(site: ConvSite) -> bool:
    return not _whole(site)


def _whole(site: ConvSite) -> tuple[str, ...]:
    return _layouts(site, _numbers(site, "strides"))


def _layouts(site: ConvSite, strides: Sequence[int]) -> tuple[str, ...]:
    """Temporal where height and width are flat, spatial where the depth is; the first moves no data."""
    if len(site.kernel) != 3:
        return ()
    automatic = any(entry.name == "auto_pad" and entry.s not in (b"", b"NOTSET") for entry in site.node.attribute)
    pads = () if automatic else _numbers(site, "pads")  # where a kernel is 1, every auto_pad gives 0
    flat = [algebra.is_flat(axis, site.kernel, strides, pads) for axis in range(3)]
    return tuple(kind for kind, merged in _MERGED.items() if all(flat[axis] for axis in merged))


def _numbers(site: ConvSite, name: str) -> tuple[int, ...]:
    return next((tuple(entry.ints) for entry in site.node.attribute if entry.name == name), ())
