"""Operators that keep channels apart: what stands between convolutions, and whether a convolution is near."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from rewriter.model import Model

ELEMENTWISE = frozenset(
    """Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Softplus Softsign Mish Gelu Clip Identity Dropout
    ThresholdedRelu Celu Erf Exp Sqrt Abs Neg Swish""".split()  # noqa: SIM905 - readable
)
"""Operators of one data operand that treat every element alike, with parameters that are scalars."""
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
"""Operators of one operand that reduce within channels, which are axis 1."""
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "PRelu", "BatchNormalization"})
_CONV = frozenset({"Conv"})
_FAR = 8
"""Nodes to look at on the way to a convolution."""


def is_plain(node: onnx.NodeProto) -> bool:
    """Whether a node is of the default domain, with one output, and no Dropout that may be training."""
    one = node.domain in ("", "ai.onnx") and len([name for name in node.output if name]) == 1
    return one and not (node.op_type == "Dropout" and len(node.input) > 2)


def nearest_conv(model: Model, made: Iterable[str], given: Iterable[str]) -> int | None:
    """The Conv that reads one of the tensors `given`, or else makes one of `made`; None where there is none.

    Elementwise nodes may be between.  Of several the nearest, and of these the first in the graph.
    """
    found = reach(model, given, _CONV, up=False) or reach(model, made, _CONV, up=True)
    return found[0] if found else None


def reach(
    model: Model, tensors: Iterable[str], stops: frozenset[str], through: frozenset[str] = frozenset(), *, up: bool
) -> list[int]:
    """Nodes of the operators `stops` that make (`up`) or read the tensors, the nearest first, then in graph order.

    Elementwise nodes and those of `through` may be between.  A Conv reads its data only, no weight.
    """
    todo = list(tensors)
    seen, found = set(todo), dict[int, None]()
    for _ in range(_FAR):
        here: set[int] = set()
        following: list[str] = []
        for name in todo:
            maker = model.wiring.producer(name)
            for index in model.wiring.readers(name) if not up else () if maker is None else (maker,):
                node = model.nodes[index]
                if not is_plain(node):
                    continue
                if node.op_type in stops:
                    here |= {index} if up or node.op_type != "Conv" or node.input[0] == name else set()
                elif node.op_type in ELEMENTWISE | _BINARY | through:
                    following += [other for other in (node.input if up else node.output) if other]
        found.update(dict.fromkeys(sorted(here)))
        todo = [name for name in dict.fromkeys(following) if name not in seen]
        seen.update(todo)
    return list(found)
