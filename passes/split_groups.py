"""split-groups: compute a grouped convolution as one convolution per group, side by side.

    y = Conv(x, W [M, C/G, *K], b, group=G)   becomes

    x_p = Split(x, axis 1)                    P parts of C/P channels
    y_p = Conv(x_p, W_p [M/P, C/G, *K], b_p, group=G/P)
    y   = Concat(y_1, ..., y_P)               axis 1

where W_p and b_p are the rows p*M/P to (p+1)*M/P - 1 of W and b.

Settings: `parts` P, a divisor of G; 0 is G, which leaves no grouped convolution.
Conditions: G > 1; constant weight and bias.  Any rank, stride, dilation, padding and float type.
What `optimize` measures: one convolution per group where there are at most 8 of at least 2 channels.
Safety: EXACT, weights only move.
Source: the form of AlexNet on two devices (Krizhevsky, Sutskever, Hinton 2012), and what TensorFlow users wrote before
it had grouped convolutions.
Use: for runtimes and devices that refuse grouped convolutions.  A few groups whose widths miss ONNX Runtime's fast path
on the CPU may be faster apart, since a dense convolution of any width is on it.
"""

from __future__ import annotations

from rewriter import (
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    grouped,
    in_parts,
    lift,
    maybe,
    parts_to_measure,
)
from rewriter.conv import split_groups


class SplitGroups(Pass):
    """Conv(group=G) -> Split + G Convs + Concat."""

    name = "split-groups"
    safety = Safety.EXACT
    defaults = {"parts": 0}  # noqa: RUF012 - never mutated
    gives = "split_concat"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias."""
        return op.Conv(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One convolution per group, where these are few and wide."""
        return parts_to_measure(self, grouped(lift(graph.model, found.node), "split"))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = grouped(lift(graph.model, found.node), "split")
        return in_parts(self, site, int(settings["parts"]), split_groups)
