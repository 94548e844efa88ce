"""What a convolution in a region reads: whole channels of what enters, scaled and shifted, or of other convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from rewriter.constants import Array, attributes
from rewriter.equivalence.composition import Mix, Stage, compose
from rewriter.equivalence.forms import NOTHING, Floats, Form, Impossible, Integers, Unsupported
from rewriter.equivalence.geometry import pads_of
from rewriter.equivalence.oracle import convolve
from rewriter.equivalence.transposed import mirrored, transposed_geometry
from rewriter.shapes import Shape


@dataclass(frozen=True, eq=False)
class Family:
    """Convolutions of one output grid `[N, *S]`; symbol of element (n, m, p) is `first + (n·P + p)·channels + m`."""

    grid: Shape
    first: int
    channels: int

    def __contains__(self, symbol: int) -> bool:
        return self.first <= symbol < self.first + math.prod(self.grid) * self.channels


@dataclass(frozen=True, eq=False)
class ConvUse:
    """One convolution: weight `[M, C/G, *K]`, its geometry with padding resolved, and what its input channels are."""

    output: str
    weight_name: str
    weight: Array
    group: int
    strides: Shape
    dilations: Shape
    pads: Shape
    """Begin padding per spatial axis, relative to the entering tensor's grid."""
    sources: Integers
    """`[C]`: symbol of each input channel at batch 0, position 0; NOTHING for a channel of zeros."""
    grid: Integers
    """`[N, *S]`: how far the symbol of (n, p) is from that of (0, 0), the same for all channels."""
    family: Family
    first: int
    """Its first channel within the family."""
    terms: Floats | None = None
    """`[M, C/G, *K]`: products summed in each weight, where these were computed; 0: none, the weight is not there."""
    magnitude: Floats | None = None
    """The same: Σ|·| of the products."""
    skips: bool = False
    """Whether it was composed of convolutions with weights of zero: an infinity would show there, here it does not."""
    upsampling: Shape = ()
    """Of a ConvTranspose, its strides: the input is read as if it had this less one zeros between its elements.

    Strides, dilations and pads are in steps of that wider grid, `grid` is the input's own.
    """

    @property
    def stage(self) -> Stage:
        """The same as a stage of a composition."""
        return Stage(
            self.weight,
            self.group,
            self.strides,
            self.dilations,
            self.pads,
            self.sources,
            self.terms,
            self.magnitude,
        )


@dataclass(frozen=True)
class Geometry:
    """Attributes of a Conv, resolved at the sizes of its input."""

    group: int
    strides: Shape
    dilations: Shape
    begin: Shape
    end: Shape


def geometry_of(node: onnx.NodeProto, data: Form, weight: Array) -> Geometry:
    """How a Conv with this weight moves over its input; raises Impossible where they do not fit."""
    found = attributes(node)
    ones = (1,) * (len(data.shape) - 2)
    strides, dilations = (_axes(found.get(name), ones) for name in ("strides", "dilations"))
    begin, end = pads_of(found, data.shape[2:], weight.shape[2:], strides, dilations)
    group = found.get("group", 1)
    assert isinstance(group, int)
    if weight.shape[1] * group != data.shape[1] or weight.shape[0] % group:
        where = f"Conv '{node.output[0]}'"
        raise Impossible(f"{where} has weights {list(weight.shape)} and {group} groups for {data.shape[1]} channels")
    return Geometry(group, strides, dilations, begin, end)


def offset_of(data: Form, weight: Array, geometry: Geometry, shape: Shape) -> Form | None:
    """What the offsets of a Conv's input add to its output, a form without symbols; None where there are none."""
    if data.offset is None:
        return None
    assert data.magnitude is not None
    settings = {
        "strides": geometry.strides,
        "dilations": geometry.dilations,
        "pads": (*geometry.begin, *geometry.end),
    }
    wide = weight.astype(np.float64)
    offset, magnitude = (
        convolve(np.asarray(values), kernel, None, settings, geometry.group)
        for values, kernel in ((data.offset, wide), (data.magnitude, np.abs(wide)))
    )
    terms = data.offset_terms * math.prod(weight.shape[1:])
    return Form(np.full((*shape, 1), NOTHING), None, offset, magnitude, terms + 1)


def conv_use(
    node: onnx.NodeProto,
    data: Form,
    weight: Array,
    geometry: Geometry,
    family: Family,
    first: int,
    others: Sequence[ConvUse],
) -> ConvUse:
    """The convolution as one of what enters the region; `others` are those before it.

    Raises Unsupported where it reads something else than whole channels, or is none together with what it reads.
    """
    where = f"Conv '{node.output[0]}'"
    inner = next((conv.family for conv in others if data.index.max(initial=NOTHING) in conv.family), None)
    if inner is not None:
        return _composed(node, data, weight, geometry, (family, first), [c for c in others if c.family is inner])
    if data.terms != 1:
        raise Unsupported(f"the input of {where} adds tensors that enter the region")
    if any(data.index.max(initial=NOTHING) >= conv.family.first for conv in others):
        raise Unsupported(f"the input of {where} comes from a convolution that is not covered")
    box, cropped = _border(data.index[..., 0] >= 0, where)
    index = data.index[..., 0][box]  # [N, C, *S]
    by_channel = index.swapaxes(0, 1).reshape(index.shape[1], -1) >= 0
    live = np.asarray(by_channel.all(axis=1))
    sources = np.where(live, index[0].reshape(index.shape[1], -1)[:, 0], NOTHING)
    if not live.any() or (by_channel.any(axis=1) & ~live).any():
        raise Unsupported(f"the input of {where} is partly padding")
    grid = index[:, int(np.argmax(live))] - int(sources[np.argmax(live)])
    column = (1, -1, *[1] * (index.ndim - 2))
    if not np.array_equal(index[:, live], grid[:, None] + sources[live].reshape(column)):
        raise Unsupported(f"the channels of the input of {where} are not whole channels of what enters the region")
    relative = tuple(pad + crop for pad, crop in zip(geometry.begin, cropped, strict=True))
    plain = ConvUse(
        node.output[0],
        node.input[1],
        weight,
        geometry.group,
        geometry.strides,
        geometry.dilations,
        relative,
        sources,
        grid,
        family,
        first,
    )
    if data.coef is None:
        return plain
    return _scaled(plain, _by_channel(data.coef[..., 0][box], where))


def upsampled_use(
    node: onnx.NodeProto, data: Form, weight: Array, family: Family, first: int, others: Sequence[ConvUse]
) -> ConvUse:
    """A ConvTranspose as a convolution of its input with zeros between (see `transposed`).

    Raises Unsupported as `conv_use`, and where its input is shifted or comes from another convolution.
    """
    where = f"ConvTranspose '{node.output[0]}'"
    if data.offset is not None:
        raise Unsupported(f"the input of {where} is shifted")
    if any(data.index.max(initial=NOTHING) >= conv.family.first for conv in others):
        raise Unsupported(f"the input of {where} comes from a convolution")
    try:
        found = transposed_geometry(attributes(node), data.shape[2:], weight.shape[2:])
        turned = mirrored(weight, found.group)
    except ValueError as error:
        raise Unsupported(f"{where} is not covered ({error})") from error
    if weight.shape[0] != data.shape[1]:
        raise Impossible(f"{where} has weights {list(weight.shape)} for {data.shape[1]} channels")
    if (*family.grid[1:],) != found.sizes:
        raise Unsupported(f"the output of {where} is {list(found.sizes)}, not {list(family.grid[1:])} as declared")
    if not bool((data.index[..., 0] >= 0).all()):
        raise Unsupported(f"the input of {where} is partly padding")
    reach = zip(turned.shape[2:], found.dilations, found.begin, strict=True)
    begin = tuple((k - 1) * d - b for k, d, b in reach)
    ones = (1,) * len(begin)
    plain = conv_use(node, data, turned, Geometry(found.group, ones, found.dilations, begin, ones), family, first, ())
    return replace(plain, upsampling=found.strides)


def _by_channel(coef: Floats, where: str) -> Floats:
    """`[C]` from `[N, C, *S]`; raises Unsupported where a channel is not scaled alike everywhere."""
    flat = coef.swapaxes(0, 1).reshape(coef.shape[1], -1)
    if (flat != flat[:, :1]).any():
        raise Unsupported(f"the input of {where} is scaled by position")
    return np.ascontiguousarray(flat[:, 0])


def _scaled(conv: ConvUse, factor: Floats) -> ConvUse:
    """The convolution with each input channel's scale in its weights; `factor` `[C]`."""
    outputs, per_group = conv.weight.shape[:2]
    groups = np.arange(outputs) // (outputs // conv.group)
    by = factor[groups[:, None] * per_group + np.arange(per_group)]
    weight = conv.weight.astype(np.float64) * by.reshape(*by.shape, *[1] * (conv.weight.ndim - 2))
    if (np.abs(np.frexp(by)[0]) == 0.5).all():  # powers of two: nothing is rounded
        return replace(conv, weight=weight)
    return replace(conv, weight=weight, terms=np.ones(weight.shape), magnitude=np.abs(weight))


def _composed(
    node: onnx.NodeProto,
    data: Form,
    weight: Array,
    geometry: Geometry,
    member: tuple[Family, int],
    inner: Sequence[ConvUse],
) -> ConvUse:
    """A convolution of convolutions as the effective one."""
    where = f"Conv '{node.output[0]}'"
    middle = inner[0].family
    if any(conv.upsampling for conv in inner):
        raise Unsupported(f"the input of {where} comes from a ConvTranspose")
    box, cropped = _border(np.asarray((data.index >= 0).any(axis=-1)), where)
    index = data.index[box]  # [N, C, *S, T]
    if (index.shape[0], *index.shape[2:-1]) != middle.grid:
        raise Unsupported(f"the input of {where} is part of a convolution's output")
    live = index >= 0
    local = index - middle.first
    positions = np.arange(math.prod(middle.grid)).reshape(middle.grid[0], 1, *middle.grid[1:], 1)
    if (live & (local // middle.channels != positions)).any():
        raise Unsupported(f"{where} reads something else than convolutions, or their outputs in another order")
    channel = np.where(live, local - positions * middle.channels, NOTHING)
    corner = (slice(0, 1), slice(None), *[slice(0, 1)] * (len(middle.grid) - 1))
    if (channel != channel[corner]).any():
        raise Unsupported(f"the input of {where} is mixed by position")
    picked = channel[corner].reshape(channel.shape[1], -1)  # [C, T]
    coef = None
    if data.coef is not None:
        by = data.coef[box]
        if (by != by[corner]).any():
            raise Unsupported(f"the input of {where} is scaled by position")
        coef = by[corner].reshape(picked.shape)
    number = np.full(picked.shape, NOTHING)
    within = np.zeros_like(picked)
    for at, conv in enumerate(inner):
        mine = (picked >= conv.first) & (picked < conv.first + conv.weight.shape[0])
        number[mine], within[mine] = at, picked[mine] - conv.first
    # Others of the family only have outputs of the same size.
    grids = [conv.grid for at, conv in enumerate(inner) if (number == at).any()] or [inner[0].grid]
    if any(not np.array_equal(grid, grids[0]) for grid in grids):
        raise Unsupported(f"the convolutions behind {where} read their inputs in different spatial orders")
    relative = tuple(pad + crop for pad, crop in zip(geometry.begin, cropped, strict=True))
    outer = Stage(weight, geometry.group, geometry.strides, geometry.dilations, relative, picked[:, 0])
    family, first = member
    sizes = grids[0].shape[1:], middle.grid[1:], family.grid[1:]
    made = compose(outer, [conv.stage for conv in inner], Mix(number, within, coef), sizes)
    return ConvUse(
        node.output[0],
        node.input[1],
        made.weight,
        made.group,
        made.strides,
        made.dilations,
        made.pads,
        made.sources,
        grids[0],
        family,
        first,
        made.terms,
        made.magnitude,
        not weight.all() or any(conv.skips or not conv.weight.all() for conv in inner),
    )


def _border(real: NDArray[np.bool_], where: str) -> tuple[tuple[slice, ...], Shape]:
    """The box without spatial borders of padding, and how much stood before it on each axis; `real` `[N, C, *S]`."""
    spatial = real.ndim - 2
    if real.all():
        return (slice(None),) * real.ndim, (0,) * spatial
    box: list[slice] = [slice(None), slice(None)]
    before: list[int] = []
    for axis in range(2, real.ndim):
        used = np.flatnonzero(real.any(axis=tuple(a for a in range(real.ndim) if a != axis)))
        if not used.size:
            raise Unsupported(f"the input of {where} is all padding")
        box.append(slice(int(used[0]), int(used[-1]) + 1))
        before.append(int(used[0]))
    return tuple(box), tuple(before)


def _axes(value: object, default: Shape) -> Shape:
    return tuple(int(entry) for entry in value) if isinstance(value, Sequence) and value else default
