"""Emit the nodes around a new convolution: its output's layout, channel shuffles, shapes others still ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from rewriter.build import Builder
from rewriter.constants import attribute
from rewriter.conv import Ints
from rewriter.proof import Layout, place_of
from rewriter.rule import require


def restore_layout(build: Builder, y: str, layout: Layout, sizes: Sequence[int | None], output: str) -> None:
    """Bring a conv output `[N, M, *S]` into `layout` under the name `output`; `sizes` are those known, else None.

    Adds no node when y already has the layout (`needs_layout`): then the caller must have named y `output`.
    """
    perm = _complete(layout)
    plain = len(layout.channels) == 1
    if not _is_in_order(perm):
        y = build.transpose(y, perm, "to_layout", output if plain and not layout.dropped else None)
    if not plain:
        build.reshape(y, _target(build, y, layout, perm, sizes), "to_channels", output)
    elif layout.dropped:
        build.squeeze(y, [perm.index(place_of(role)) for role in layout.dropped], "to_rank", output)


def needs_layout(layout: Layout) -> bool:
    """Whether `restore_layout` adds nodes."""
    in_order = _is_in_order(_complete(layout))
    return not in_order or len(layout.channels) != 1 or bool(layout.dropped)


def _is_in_order(perm: tuple[int, ...]) -> bool:
    return perm == tuple(sorted(perm))


def _complete(layout: Layout) -> tuple[int, ...]:
    """The permutation of `[N, M, *S]` before axes are dropped and channels split; declines unless these are adjacent.

    Dropped axes stay where they are when that needs no Transpose, else they go last, as channels do where none is left.
    """
    places = [axis for axis, role in enumerate(layout.axes) if role == "c"]
    adjacent = not places or places[-1] - places[0] == len(places) - 1
    require(adjacent, "its channels end up in axes that are not next to each other")
    kept = layout.perm if places else (*layout.perm, 1)
    whole = (*kept, *map(place_of, layout.dropped))
    return tuple(sorted(whole)) if _is_in_order(kept) else whole


def _target(
    build: Builder, y: str, layout: Layout, perm: tuple[int, ...], sizes: Sequence[int | None]
) -> list[int | str]:
    """Reshape target from the permuted conv output to the layout: 0 copies while axes line up, run-time sizes after."""
    target: list[int | str] = []
    channels = iter(layout.channels)
    for axis, role in enumerate(layout.axes):
        if role == "c":
            target.append(next(channels))
            continue
        place = place_of(role)
        known = sizes[place]
        if axis < len(perm) and perm[axis] == place:
            target.append(0)
        elif known is not None:
            target.append(known)
        else:
            target.append(build.sizes_of(y, [perm.index(place)], "size")[0])
    return target


def shuffle(
    build: Builder, x: str, order: Ints, how: str, sizes: Sequence[int | None], output: str | None = None
) -> str:
    """`y[:, k] = x[:, order[k]]` by Gather, or by Reshape-Transpose-Reshape where the order is a regular interleave.

    `sizes` are those of x that are known, None elsewhere; the latter needs all of x's channels.
    """
    if how != "reshape":
        return build.gather(x, order, 1, "shuffle", output)
    parts = interleave(order) if sizes[1] == len(order) else None
    require(parts is not None, "its channel order is no regular interleave, so no Reshape-Transpose-Reshape makes it")
    assert parts is not None
    space = [
        size if size is not None else build.sizes_of(x, [axis], "size")[0]
        for axis, size in enumerate(sizes)
        if axis > 1
    ]
    split = build.reshape(x, [0, *parts, *space], "split_channels")
    swapped = build.transpose(split, [0, 2, 1, *range(3, 3 + len(space))], "swap")
    return build.reshape(swapped, [0, len(order), *space], "shuffled", output)


def interleave(order: Ints) -> tuple[int, int] | None:
    """(a, b) when the order is `arange(a*b).reshape(a, b).T`, else None."""
    if len(order) < 2:
        return None
    stride = int(order[1])  # channels 0, b, 2b ... come first
    if stride <= 0 or len(order) % stride:
        return None
    a, b = len(order) // stride, stride
    regular = np.arange(a * b).reshape(a, b).T.reshape(-1)
    return (a, b) if np.array_equal(order, regular) else None


def reissue_shape(build: Builder, node: onnx.NodeProto, layout: Layout, y: str) -> None:
    """Give a Shape node's output from the new conv output y `[N, M, *S]`, for a removed tensor of the given layout."""
    channels = iter(layout.channels)
    # Channel axes as numbers; the others as None for now, with the axis of y that has their size.
    dims = [(next(channels), 0) if role == "c" else (None, place_of(role)) for role in layout.axes]
    begin, end = attribute(node, "start"), attribute(node, "end")
    picked = dims[begin.i if begin else 0 : end.i if end else len(dims)]
    require(picked, f"Shape '{node.output[0]}' asks for none of the sizes of a tensor inside the region")
    places = [place for size, place in picked if size is None]
    sizes = iter(build.sizes_of(y, places, "shape") if places else [])
    build.shape([next(sizes) if size is None else size for size, _ in picked], "shape", output=node.output[0])
