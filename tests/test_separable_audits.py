"""Rewrites of `fuse-separable` and `split-separable` audited: equivalent, up to rounding where anything is rounded."""

from __future__ import annotations

import pytest

import rewriter
from separable_models import separable_models
from test_seeds import model

EXACT = {"fuse-separable": {"border": "exact"}}


@pytest.mark.parametrize("name", ["separable convs", "a border"])
def test_fused_convolutions_are_proven(name: str) -> None:
    report = rewriter.rewrite(separable_models()[name], ["fuse-separable"], settings=EXACT).report
    assert (report.verdict, report.grade) == ("equivalent", "rounding"), report.reason


@pytest.mark.parametrize("name", ["low rank", "low rank in space"])
def test_split_convolutions_are_proven(name: str) -> None:
    report = rewriter.rewrite(separable_models()[name], ["split-separable"]).report
    assert (report.verdict, report.grade) == ("equivalent", "rounding"), report.reason


@pytest.mark.parametrize(
    ("name", "rule", "grade"),
    [
        ("seed3_separable_ones", "fuse-separable", "exact"),  # sums of ones
        ("seed3_separable_random", "fuse-separable", "rounding"),
        ("seed3_separable_multiplier2", "fuse-separable", "rounding"),
        ("seed3_regular_ones", "split-separable", "exact"),
        ("seed2_conv2d", "split-separable", "finite"),  # whole numbers, and zeros among the factors
    ],
)
def test_tensorflows_programs_are_proven(name: str, rule: str, grade: str) -> None:
    report = rewriter.rewrite(model(name), [rule]).report
    assert (report.verdict, report.grade) == ("equivalent", grade), report.reason
