"""Random paddings and permutations of a model's channel components, put through `relabel`: one case, from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from channel_networks import random_network
from models.emit import Array
from rewriter.channelflow import channel_components
from rewriter.channels import Channels, Component, Link
from rewriter.conv import Ints, is_identity, joined, most_groups
from rewriter.delimit import closure_of_reads
from rewriter.graph import Graph
from rewriter.model import Edit, Model
from rewriter.relabelling import Relabelled, relabel

_LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)


@dataclass(frozen=True)
class Case:
    """What became of a case; `problem` is empty where all is well."""

    seed: int
    problem: str = ""
    moved: int = 0
    """Bands whose channels moved."""
    stuck: int = 0
    """Components for which no consistent embedding was drawn."""
    flat: bool = False
    """Whether an output is the same everywhere, and so shows little."""
    operators: tuple[str, ...] = ()
    """What was made again."""


def run_case(seed: int) -> Case:
    """A random network under random embeddings: equal to the bit, at two batch sizes."""
    model = random_network(seed)
    graph = Graph(Model.load(model), {})
    channels = channel_components(graph)
    rng = random.Random(seed + 10**9)
    embeddings, stuck = draw_embeddings(channels, rng)
    if not embeddings:
        return Case(seed, stuck=stuck)
    made = relabel(graph, channels, embeddings, draw_merges(channels, embeddings, rng), "new")
    after = spliced(graph, made)
    problem, flat = compare(model, after, seed)
    return Case(seed, problem, len(embeddings), stuck, flat, tuple(node.op_type for node in made.added))


def spliced(graph: Graph, made: Relabelled) -> onnx.ModelProto:
    """The model with the nodes made again in place of what they stand for; valid to the checker."""
    inserted: dict[int, tuple[onnx.NodeProto, ...]] = {}
    for place, node in zip(made.places, made.added, strict=True):
        inserted[place] = (*inserted.get(place, ()), node)
    removed = closure_of_reads(graph.model, made.removed, made.added)
    after = graph.model.splice(Edit(removed, inserted, made.initializers)).to_proto()
    onnx.checker.check_model(after, full_check=True)
    return after


def draw_embeddings(channels: Channels, rng: random.Random) -> tuple[dict[int, Ints], int]:
    """Embeddings of bands that are free to change, consistent over each component; and how many were given up."""
    moving = [component for component in channels.components if component.free and rng.random() < 0.9]
    links = [link for component in moving for link in component.links]
    numbers = channels.band_of
    behind = {numbers[link.leaving].number for link in links if link.kind == "concat"}
    groups = {numbers[link.entering[0]].number: link.group for link in links if link.kind == "groups"}
    bands = {band.number: band for component in moving for band in component.bands}
    found = {
        number: draw_embedding(band.channels, groups.get(number, 1), rng)
        for number, band in bands.items()
        if number not in behind
    }
    if rng.random() < 0.5:
        _follow_splits(channels, found)
        _follow_shuffles(channels, links, found)
    stuck = [component for component in moving if not _join(channels, component, found)]
    for component in stuck:
        for band in component.bands:
            found.pop(band.number, None)
    return {number: it for number, it in found.items() if not is_identity(it, bands[number].channels)}, len(stuck)


def _follow_splits(channels: Channels, found: dict[int, Ints]) -> None:
    """What is split has its parts' channels one behind the other, so that it stays a Split."""
    for node in {link.node for link in channels.picks}:
        picks = [link for link in channels.picks if link.node == node]
        whole = channels.band_of[picks[0].entering[0]]
        orders = [link.order for link in picks if link.order is not None]
        if whole.number in found and np.array_equal(np.concatenate(orders), np.arange(whole.channels)):
            parts = [channels.band_of[link.leaving] for link in picks]
            drawn = [(found.get(part.number, np.arange(part.channels)), part.channels) for part in parts]
            if all(part.number != whole.number for part in parts):
                found[whole.number] = joined(drawn)


def _follow_shuffles(channels: Channels, links: list[Link], found: dict[int, Ints]) -> None:
    """What is behind a channel shuffle has the order of what is before it, so that there is nothing to shuffle."""
    for link in links:
        before, after = channels.band_of[link.entering[0]].number, channels.band_of[link.leaving].number
        if link.kind == "shuffle" and link.order is not None and before in found and after in found:
            found[after] = np.where(found[before] >= 0, np.argsort(link.order)[found[before]], -1)


def _join(channels: Channels, component: Component, found: dict[int, Ints]) -> bool:
    """Add what Concats make of what they read; False where a band would need other places for each of two."""
    numbers = channels.band_of
    for link in sorted(component.links, key=lambda link: link.node):
        if link.kind != "concat":
            continue
        entering = [numbers[name] for name in link.entering]
        if any(band.number not in found for band in entering):
            return False
        leaving = joined([(found[band.number], band.channels) for band in entering])
        if not np.array_equal(found.setdefault(numbers[link.leaving].number, leaving), leaving):
            return False
    return True


def draw_embedding(channels: int, group: int, rng: random.Random) -> Ints:
    """Any places for the channels: all kept, others without content, some channels twice; whole groups now and then."""
    kind = rng.choice(["same", "tail", "front", "permuted", "scattered", "twice", "groups", "groups"])
    more = [-1] * rng.randint(1, 5)
    old = list(range(channels))
    if kind == "groups" and channels % group == 0:
        width = channels // group
        blocks = [old[first : first + width] + [-1] * (len(more) - 1) for first in range(0, channels, width)]
        blocks += [[-1] * len(blocks[0]) for _ in range(rng.randint(0, 2))]
        rng.shuffle(blocks)
        old = [channel for block in blocks for channel in block]
    elif kind == "tail":
        old = old + more
    elif kind == "front":
        old = more + old
    elif kind != "same":
        old += {"scattered": more, "twice": rng.choices(old, k=len(more))}.get(kind, [])
        rng.shuffle(old)
    return np.asarray(old, np.int64)


def draw_merges(channels: Channels, embeddings: Mapping[int, Ints], rng: random.Random) -> dict[int, int]:
    """For some of the grouped convolutions a number of groups that divides the most there can be."""
    found = {}
    for component in channels.components:
        for link in component.links:
            if link.kind != "groups" or rng.random() < 0.5:
                continue
            bands = [channels.band_of[name] for name in (link.entering[0], link.leaving)]
            sides = [embeddings.get(band.number, np.arange(band.channels)) for band in bands]
            o_per, i_per = bands[1].channels // link.group, bands[0].channels // link.group
            most = most_groups(o_per, i_per, *sides)
            found[link.node] = rng.choice([number for number in range(1, most + 1) if most % number == 0])
    return found


def compare(before: onnx.ModelProto, after: onnx.ModelProto, seed: int) -> tuple[str, bool]:
    """How the outputs differ, empty where they are the same to the bit; and whether one shows nothing."""
    rng = np.random.default_rng(seed)
    shape = [dim.dim_value for dim in before.graph.input[0].type.tensor_type.shape.dim]
    names = [value.name for value in before.graph.output]
    sessions = [_session(model, _LEVELS[seed % 2]) for model in (before, after)]
    flat = False
    for batch in (1, 2):
        x = rng.integers(-4, 5, (batch, *shape[1:])).astype(np.float32)
        one, two = (session.run(names, {"x": x}) for session in sessions)
        for name, expected, found in zip(names, one, two, strict=True):
            if not np.array_equal(expected, found):
                return f"'{name}' differs", flat
            flat |= bool(np.ptp(expected) == 0)
    return "", flat


def _session(model: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def integers(rng: np.random.Generator, *shape: int) -> Array:
    """Weights without a 0, so that each counts."""
    drawn: Array = rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)
    return drawn
