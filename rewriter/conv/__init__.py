"""The conv map and its weight algebra: pure NumPy, no ONNX.

A conv map has a weight `[M, C/G, *K]` and G groups: output channel m reads input channels
`(m // (M/G)) * C/G + 0 .. C/G-1`.  Functions here move or combine weights; they never round unless they say so.
"""

from __future__ import annotations

from rewriter.conv.groups import grouped_to_depthwise, regroup
from rewriter.conv.mixing import ChannelMix, Grouped, NotGrouped, mix
from rewriter.conv.types import Array, Floats, Ints

__all__ = [
    "Array",
    "ChannelMix",
    "Floats",
    "Grouped",
    "Ints",
    "NotGrouped",
    "grouped_to_depthwise",
    "mix",
    "regroup",
]
