"""split-transposed: compute a grouped transposed convolution as one per group, side by side.

    y = ConvTranspose(x, W [C, M/G, *K], b, group=G)   becomes

    x_p = Split(x, axis 1)                    P parts of C/P channels
    y_p = ConvTranspose(x_p, W_p [C/P, M/G, *K], b_p, group=G/P)
    y   = Concat(y_1, ..., y_P)               axis 1

where W_p are the rows p*C/P to (p+1)*C/P - 1 of W, and b_p the elements p*M/P to (p+1)*M/P - 1 of b.

Settings: `parts` P, a divisor of G; 0 is G, which leaves no grouped transposed convolution.
Conditions: G > 1; constant weight and bias.  Any rank, stride, dilation, padding, output padding, output shape and
float type: they all stay as they are.
What `optimize` measures: one transposed convolution per group where there are at most 8 of at least 2 channels.
Safety: EXACT, weights only move.
Source: `split-groups` for the weight layout of ConvTranspose, whose groups are over the input channels.
Use: for runtimes and devices that refuse grouped transposed convolutions.
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
    lift_transposed,
    maybe,
    parts_to_measure,
)
from rewriter.conv import split_transposed


class SplitTransposed(Pass):
    """ConvTranspose(group=G) -> Split + G ConvTransposes + Concat."""

    name = "split-transposed"
    safety = Safety.EXACT
    defaults = {"parts": 0}  # noqa: RUF012 - never mutated
    gives = "split_concat_transposed"

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A transposed convolution with or without bias."""
        return op.ConvTranspose(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One transposed convolution per group, where these are few and wide."""
        return parts_to_measure(self, grouped(lift_transposed(graph.model, found.node), "split"))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = grouped(lift_transposed(graph.model, found.node), "split")
        return in_parts(self, site, int(settings["parts"]), split_transposed)
