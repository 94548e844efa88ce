"""The model as passes see it: nodes, wiring, constants, and the shapes that can be known before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rewriter.activations import Activations
from rewriter.bindings import Binding, find_bindings
from rewriter.model import Model
from rewriter.providers import PROVIDERS, Provider
from rewriter.shapes import Bound, Shape, bind

PROOF_BATCHES = (2, 3)
"""Batch sizes at which shape claims are proved: neither is 1, where a batch axis looks like any other."""
PROOF_SIZES = ((61, 59, 53, 47), (86, 98, 102, 110))
"""Sizes of free axes at which they are proved: none that the audit uses."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A model with `given` input shapes, which choose sizes for proofs and never end up in the output.

    What is worth measuring may depend on `provider`, where the model will run; what a rewrite makes never does.
    """

    model: Model
    given: Mapping[str, Shape] = field(default_factory=dict)
    provider: Provider = "cpu"
    activations: Activations | None = None
    """What its convolutions read on the user's inputs; only where a pass may approximate."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per group worth a measurement on the provider, ascending; empty where only this machine tells."""
        return PROVIDERS[self.provider].widths

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """Concrete shapes to prove at: two where any dimension is free, else one."""
        return find_bindings(self.model, self.given, PROOF_BATCHES, PROOF_SIZES, vary_given=True)

    @cached_property
    def declared(self) -> Bound:
        """Shapes that hold for every input: what follows from the declared inputs.

        What value_info and the defaults of overridable inputs say is not believed here: exporters leave the sizes of
        their example input in them, and a size that ends up in a new Reshape must hold for every input the model takes.
        """
        return bind(self.model, {}, for_every_input=True)

    def bound_at(self, shapes: Mapping[str, Shape]) -> Bound:
        """Every tensor's shape for inputs of these shapes."""
        return bind(self.model, shapes)

    def sizes(self, tensor: str) -> tuple[int | None, ...] | None:
        """The tensor's sizes that hold for every input, None for a free axis; None when not even the rank is known."""
        kind = self.declared.types.get(tensor)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dims = kind.tensor_type.shape.dim
        return tuple(int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims)
