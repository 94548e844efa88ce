"""Random networks whose channels are padded and permuted at random give the same bits: hundreds here.

`make channels-campaign` runs thousands of the same cases; a case is a seed, in `channel_draws.run_case`.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.channels import campaign
from channel_draws import run_case
from channel_networks import random_network
from models.emit import Array
from rewriter.conv import Ints, embed, embed_weight

CASES = 600
MADE_AGAIN = frozenset(
    """Add AveragePool BatchNormalization Clip Concat Conv Div Flatten Floor Gather Gemm GlobalAveragePool HardSigmoid
    LeakyRelu MatMul Max MaxPool Min Mul Neg PRelu Pad ReduceMean Relu Reshape Resize Slice Split Squeeze Sub Sum
    Unsqueeze""".split()  # noqa: SIM905 - readable
)
"""Operators that must be among those with moved channels, or a case tries less than it says."""


def test_any_embedding_of_any_network_changes_nothing() -> None:
    result = campaign(range(CASES))
    assert result.failures == []
    assert result.cases == CASES
    assert result.moved >= 0.8 * CASES
    assert result.flat <= 0.03 * CASES
    assert result.stuck <= 0.03 * CASES
    assert result.operators.keys() >= MADE_AGAIN


def test_a_case_is_its_seed() -> None:
    assert random_network(7).SerializeToString() == random_network(7).SerializeToString()
    assert run_case(7) == run_case(7)


def _failures(seeds: range) -> list[str]:
    return [problem for _, problem in campaign(seeds).failures]


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight for a channel without content, a constant in the old order: some case shows each."""

    def one_more(weight: Array, group: int, inputs: Ints, outputs: Ints, new_group: int) -> Array:
        new = embed_weight(weight, group, inputs, outputs, new_group)
        new[-1].flat[-1] += 1
        return new

    assert _failures(range(40)) == []
    with monkeypatch.context() as broken:
        broken.setattr("rewriter.relabelling.embed_weight", one_more)
        assert len(_failures(range(40))) > 20
    with monkeypatch.context() as broken:
        broken.setattr("rewriter.relabelling.embed", lambda v, e, axis, fill: embed(v, np.sort(e), axis, fill))
        assert len(_failures(range(40))) > 4
    assert Counter(_failures(range(40))) == {}
