"""Which channels of which tensor a tensor holds: back through Split, Slice, Gather and Identity on the channel axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from rewriter.constants import Array, attribute
from rewriter.conv import Ints
from rewriter.graph import Graph

_CHANNELS = 1


@dataclass(frozen=True)
class Selection:
    """A tensor `[N, C', *S]` as channels of `tensor`, in that order, picked by `nodes`, the last one first."""

    tensor: str
    width: int
    """All channels of `tensor`."""
    channels: Ints
    nodes: tuple[int, ...] = ()


def selections(graph: Graph, tensor: str, channels: int, rank: int) -> list[Selection]:
    """Every reading of a tensor of that many channels and that rank, itself first, then what it was picked from.

    The channels hold for every input of the model: sizes and bounds that are not the same for all end the walk.
    """
    found = [Selection(tensor, channels, np.arange(channels))]
    while True:
        last = found[-1]
        maker = graph.model.wiring.producer(last.tensor)
        if maker is None:
            return found
        node = graph.model.nodes[maker]
        picked = picked_channels(graph, node, last.tensor, rank)
        if picked is None or picked[1].size != last.width:
            return found
        width, channels_of = picked
        found.append(Selection(node.input[0], width, channels_of[last.channels], (*last.nodes, maker)))


Picked = tuple[int, Ints]
"""How many channels the node's first input has, and which of them one of its outputs is."""


def picked_channels(graph: Graph, node: onnx.NodeProto, tensor: str, rank: int) -> Picked | None:
    """None where it picks no channels, or not the same for every input."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Split", "Slice", "Gather", "Identity"):
        return None
    sizes = graph.sizes(node.input[0])
    whole = sizes[_CHANNELS] if sizes is not None and len(sizes) == rank else None
    match node.op_type:
        case "Split":
            return _split(graph, node, tensor, rank, whole)
        case "Slice":
            return _slice(graph, node, rank, whole)
        case "Gather":
            return _gather(graph, node, rank, whole)
        case _:
            return None if whole is None else (whole, np.arange(whole))


def _split(graph: Graph, node: onnx.NodeProto, tensor: str, rank: int, whole: int | None) -> Picked | None:
    axis, given = attribute(node, "axis"), attribute(node, "split")
    if (axis.i if axis else 0) % rank != _CHANNELS:
        return None
    count = len(node.output)
    value = _value(graph, node, 1)
    if given is not None:
        parts = list(given.ints)
    elif len(node.input) > 1 and node.input[1]:
        if value is None:
            return None
        parts = [int(size) for size in value.reshape(-1)]
    elif whole is None:
        return None
    else:
        size = -(-whole // count)
        parts = [size] * (count - 1) + [whole - size * (count - 1)]
    at = list(node.output).index(tensor)
    if len(parts) != count or min(parts) < 1 or (whole is not None and sum(parts) != whole):
        return None
    first = sum(parts[:at])
    return sum(parts), np.arange(first, first + parts[at])


def _slice(graph: Graph, node: onnx.NodeProto, rank: int, whole: int | None) -> Picked | None:
    entries = {entry.name: np.asarray(entry.ints) for entry in node.attribute}
    if "starts" in entries:
        parts: list[Array | None] = [entries["starts"], entries["ends"], entries.get("axes"), None]
    else:
        parts = [_value(graph, node, position) for position in range(1, 5)]
        given = [position for position in range(1, 5) if len(node.input) > position and node.input[position]]
        if any(parts[position - 1] is None for position in given):
            return None
    numbers = [None if part is None else [int(number) for number in part.reshape(-1)] for part in parts]
    starts, ends, axes, steps = numbers
    if starts is None or ends is None or len(starts) != 1 or len(ends) != 1 or whole is None:
        return None
    if (axes[0] if axes else 0) % rank != _CHANNELS:
        return None
    step = steps[0] if steps else 1
    stop = None if step < 0 and ends[0] < -whole else ends[0]
    return whole, np.arange(whole)[slice(starts[0], stop, step)]


def _gather(graph: Graph, node: onnx.NodeProto, rank: int, whole: int | None) -> Picked | None:
    axis, picks = attribute(node, "axis"), _value(graph, node, 1)
    if (axis.i if axis else 0) % rank != _CHANNELS or picks is None or picks.ndim != 1 or whole is None:
        return None
    numbers = picks.astype(np.int64)
    if not numbers.size or numbers.min() < -whole or numbers.max() >= whole:
        return None
    return whole, numbers % whole


def _value(graph: Graph, node: onnx.NodeProto, position: int) -> Array | None:
    """An operand that is the same number for every input, else None."""
    name = node.input[position] if len(node.input) > position else ""
    if not name or not _is_fixed(graph, name):
        return None
    return graph.bindings[0].bound.value(name)


def _is_fixed(graph: Graph, name: str) -> bool:
    """Whether a tensor is computed from constants and fixed sizes alone.

    That a value is the same at a few input sizes would not show it: `H / 1000` is 0 at all of them.
    """
    if graph.declared.value(name) is not None:
        return True
    maker = graph.model.wiring.producer(name)
    if maker is None or graph.bindings[0].bound.value(name) is None:
        return False
    node = graph.model.nodes[maker]
    if node.op_type == "Gather" and (picks := graph.declared.value(node.input[1])) is not None:
        shape = graph.model.wiring.producer(node.input[0])
        source = None if shape is None else graph.model.nodes[shape]
        if source is not None and source.op_type == "Shape" and not source.attribute:
            sizes = graph.sizes(source.input[0])
            return sizes is not None and all(sizes[int(pick)] is not None for pick in picks.reshape(-1))
    return node.op_type != "Shape" and all(_is_fixed(graph, operand) for operand in node.input if operand)
