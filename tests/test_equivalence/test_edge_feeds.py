"""What L5 feeds to a region."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from rewriter.equivalence.edge_feeds import denormals, smallest_normal, with_special, zeros
from test_equivalence.nets import Array


def test_special_values_are_placed_at_corners_borders_and_inside() -> None:
    feeds: dict[str, Array] = {"x": np.ones((2, 4, 5, 6), np.float32), "i": np.ones(3, np.int64)}
    found = with_special(feeds, (np.nan, np.inf, -np.inf), 3)
    assert found["i"] is feeds["i"]
    places = [np.argwhere(found["x"] != found["x"]), *(np.argwhere(found["x"] == v) for v in (np.inf, -np.inf))]
    assert all(3 <= len(where) <= 5 for where in places)
    assert np.isnan(found["x"][0, 0, 0, 0])
    assert np.isnan(found["x"][-1, -1, -1, -1])
    assert np.isposinf(found["x"][0, 1, 0, 0])
    assert (feeds["x"] == 1).all()
    assert np.array_equal(
        with_special(feeds, (np.nan,), 3)["x"], with_special(feeds, (np.nan,), 3)["x"], equal_nan=True
    )
    assert with_special({"x": np.ones((0, 3), np.float32)}, (np.nan,), 3)["x"].shape == (0, 3)


TINY = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_denormal_numbers_of_every_type(dtype: Any) -> None:
    feeds: dict[str, Array] = {"x": np.random.default_rng(0).standard_normal((3, 40)).astype(dtype)}
    found = denormals(feeds, 0)["x"]
    assert found.dtype == feeds["x"].dtype
    size = np.abs(found.astype(np.float64))
    assert smallest_normal(found) == TINY[np.dtype(dtype).name]
    assert 0.8 * smallest_normal(found) < size.max() < smallest_normal(found)
    assert (size > 0).mean() > 0.9
    assert (np.sign(found.astype(np.float64)) == np.sign(feeds["x"].astype(np.float64)))[size > 0].all()
    assert np.any(denormals({"x": np.zeros((3, 4), dtype)}, 0)["x"] != 0)  # where nothing is captured but zeros


def test_of_large_tensors_a_slice_is_denormal() -> None:
    found = denormals({"x": np.ones((1, 16, 128, 128), np.float32)}, 0)["x"]
    assert 0 < (found != 0).mean() <= 0.26


def test_zeros_have_both_signs() -> None:
    found = zeros({"x": np.ones((4, 50), np.float32)}, 0)["x"]
    assert not found.any()
    assert 50 < np.signbit(found).sum() < 150
