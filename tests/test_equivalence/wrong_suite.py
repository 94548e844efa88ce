"""The wrong-rewrite suite in one: importing this fills wrong_cases.CASES from every file that registers kinds."""

from __future__ import annotations

from test_equivalence import (
    padded_pairs,
    wrong_folds,
    wrong_fused,
    wrong_graphs,
    wrong_padded,
    wrong_pairs,
    wrong_transposed,
    wrong_values,
    wrong_weights,
)
from test_equivalence.wrong_cases import CASES, Kind

_FAMILIES = {
    wrong_weights: "The convolution and its depthwise sum",
    wrong_graphs: "Order, space, batch, interface",
    wrong_values: "Constants in place, sizes, activations",
    wrong_pairs: "Fused pairs, borders, pools",
    wrong_folds: "Folded normalizations and scales",
    wrong_transposed: "Transposed convolutions",
    wrong_fused: "FusedConv",
    padded_pairs: "Padded and permuted channels, joined branches",
    wrong_padded: "Padded and permuted channels, joined branches",
}
_BY_MODULE = {module.__name__: title for module, title in _FAMILIES.items()}


def family(kind: Kind) -> str:
    """What the file that makes it is about."""
    return _BY_MODULE.get(kind.make.__module__, "Others")


__all__ = ["CASES", "family"]
