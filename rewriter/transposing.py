"""Lift a ConvTranspose node to its map."""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.constants import attribute
from rewriter.lifting import Site, lift_as
from rewriter.model import Model
from rewriter.rule import require


@dataclass(frozen=True)
class TransposedSite(Site):
    """A ConvTranspose with weight `[C, M/G, *K]`."""

    op_type = "ConvTranspose"
    outer = "input"

    @property
    def c(self) -> int:
        """Input channels C."""
        return self.weight_shape[0]

    @property
    def m(self) -> int:
        """Output channels M."""
        return self.weight_shape[1] * self.group


def lift_transposed(model: Model, index: int) -> TransposedSite:
    """The map at a ConvTranspose node; declines when weight or bias are not constant or do not fit together."""
    site = lift_as(TransposedSite, model, index)
    sizes = attribute(site.node, "output_shape")
    spatial = len(site.kernel)
    # Some runtimes also take all of the output's sizes there: its channels would change with the groups.
    plain = sizes is None or len(sizes.ints) in (0, spatial)
    require(plain, f"its output_shape does not have one size for each of its {spatial} spatial axes", site.y)
    return site
