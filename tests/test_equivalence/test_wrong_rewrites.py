"""Wrong rewrites: every one must be called different, by the level that its case names."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from test_equivalence import rewrites as rw
from test_equivalence import wrong_folds, wrong_fused, wrong_graphs, wrong_transposed, wrong_weights
from test_equivalence.nets import audited, caught, net
from test_equivalence.wrong_cases import CASES
from test_equivalence.wrong_folds import folded, normalized
from test_equivalence.wrong_graphs import nan_for_negative_values
from test_equivalence.wrong_weights import on_tap, one_ulp_on_one_tap

MODULES = (wrong_weights, wrong_graphs, wrong_folds, wrong_fused, wrong_transposed)  # importing them fills CASES


def test_the_right_fold_is_accepted() -> None:
    """The wrong folds differ from it in one thing each."""
    before, weights = normalized()
    result = audited(before, folded(weights, 1e-3))
    assert (result.verdict, result.grade) == ("equivalent", "rounding"), result.reason


@pytest.mark.parametrize("name", list(CASES))
def test_wrong_rewrite_is_rejected(name: str) -> None:
    level, make = CASES[name]
    before, after = make()
    result = audited(before, after)
    assert result.verdict == "different", result.reason
    assert caught(result) == level, [entry.detail for region in result.regions for entry in region.levels]
    assert len(result.reason) > 20
    assert result.reason.endswith(".")


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 60


def test_one_ulp_names_the_weight_and_the_channel() -> None:
    before, after = one_ulp_on_one_tap()
    result = audited(before, after)
    assert "'w' and 't.regrouped'" in result.reason
    assert "output channel 3, input channel 2" in result.reason


def test_nan_at_other_places_is_said() -> None:
    assert "NaN at other places" in audited(*nan_for_negative_values()).reason


def test_weights_beyond_float_range_do_not_crash_the_auditor() -> None:
    before, after = on_tap(lambda value: np.inf)
    assert audited(before, after).verdict == "different"


def test_a_tensor_in_another_format_is_not_a_wrong_rewrite() -> None:
    """The same values as raw bytes or as float_data are the same weight."""
    before = net()
    after = rw.clone(before)
    for tensor in after.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, value.shape, value.reshape(-1).tolist()))
    result = audited(before, after)
    assert (result.verdict, result.grade, result.regions) == ("equivalent", "bitwise", ())
