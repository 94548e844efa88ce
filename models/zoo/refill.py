"""Gives a stripped graph its weights back: seeded, clipped normal numbers with the moments of the originals.

A stripped tensor has shape and type but no data, and `normal MEAN STD MIN MAX` in its doc_string. Its numbers
are standard normals from NumPy's PCG64, times STD plus MEAN, in float32, clipped to [MIN, MAX]. The generator is
seeded with the CRC-32 of `NAME/INDEX` (INDEX counts all tensors of the graph, subgraphs included), so every
machine draws the same bytes, and two tensors never share a stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from models.emit import Array
from models.errors import ModelError

FOLDER = Path(__file__).parent
# 256 KB of float32: a block is drawn, scaled and clipped while it is still in the cache.
_BLOCK = 1 << 16


def zoo_names() -> list[str]:
    """Names of the graphs in this folder, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.onnx"))


def zoo_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """The graph `name` with its weights refilled; raises `ModelError` if there is no such graph."""
    if name not in zoo_names():
        raise ModelError(f"the zoo has no graph named {name}")
    model = onnx.load(FOLDER / f"{name}.onnx")
    refill(model, seed)
    return model


def refill(model: onnx.ModelProto, seed: int = 0) -> None:
    """Fill every stripped tensor of `model` in place, one after the other; nothing else changes.

    Seed 0 gives the reference weights; any other seed is mixed into each tensor's own.
    """
    if seed < 0:
        raise ModelError("the seed is at least 0")
    for index, tensor in enumerate(_tensors(model.graph)):
        if not tensor.doc_string.startswith("normal "):
            continue
        mean, std, low, high = (float(word) for word in tensor.doc_string.split()[1:])
        # SeedSequence drops trailing zeros: [name, 0] is the same stream as the name alone.
        rng = np.random.Generator(np.random.PCG64([zlib.crc32(f"{tensor.name}/{index}".encode()), seed]))
        values = _clipped_normal(rng, int(np.prod(tensor.dims, dtype=np.int64)), mean, std, low, high)
        tensor.raw_data = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type), copy=False).tobytes()
        tensor.ClearField("doc_string")


def _clipped_normal(rng: np.random.Generator, count: int, mean: float, std: float, low: float, high: float) -> Array:
    values = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        block = values[start : start + _BLOCK]
        rng.standard_normal(out=block, dtype=np.float32)
        block *= std
        block += mean
        np.clip(block, low, high, out=block)
    return values


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers, then the values of Constant nodes and of subgraphs, in the order of the file."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
