"""What ONNX Runtime's own optimizer makes of a model, and which fast path this machine has.

ONNX Runtime is asked, never imitated: the model is loaded, the optimized graph saved, and its operators are counted.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rewriter.session import Runtime, open_session

_NCHWC_CONV: Final = "com.microsoft.nchwc:Conv"


@dataclass(frozen=True)
class Census:
    """How many nodes of each kind run: "Conv", or "com.microsoft.nchwc:Conv" outside the default domain."""

    counts: Mapping[str, int]

    def __getitem__(self, kind: str) -> int:
        """The number of nodes of `kind`; 0 for what is not there."""
        return self.counts.get(kind, 0)

    @property
    def total(self) -> int:
        """The number of nodes, those in subgraphs included."""
        return sum(self.counts.values())


def census(model: bytes | Path | onnx.ModelProto, runtime: Runtime, *, external_folder: Path | None = None) -> Census:
    """Count the operators of `model` as ONNX Runtime optimizes it for `runtime`. Raises as `open_session` does."""
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(model, runtime, external_folder=external_folder, optimized_to=optimized)
        graph = onnx.load(optimized, load_external_data=False).graph
    kinds = Counter(map(kind_of, _nodes(graph)))
    return Census(dict(sorted(kinds.items())))


@lru_cache(maxsize=1)
def nchwc_block() -> int:
    """Channels per block of this machine's NCHWc convolutions: 16 with AVX-512F, 8 on other x64, 0 where there is none.

    Found out with two grouped convolutions: a group takes the fast path only when its width is a multiple of the block.
    """
    if _takes_fast_path(channels_per_group=8):
        return 8
    return 16 if _takes_fast_path(channels_per_group=16) else 0


def _takes_fast_path(channels_per_group: int) -> bool:
    channels = 2 * channels_per_group
    weight = np.ones((channels, channels_per_group, 1, 1), np.float32)
    shape = [1, channels, 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    # An old opset and IR version, so that every supported ONNX Runtime loads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return census(model, Runtime())[_NCHWC_CONV] > 0


def kind_of(node: onnx.NodeProto) -> str:
    """Its operator, with the domain where that is not the default one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
