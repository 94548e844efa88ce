"""What all tests share: a run that has to use CUDA says once that it cannot, and fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cli_runs import ROOT


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "in processes"])
def test_a_run_that_has_to_use_cuda_ends_at_once_without(workers: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", *workers, "tests/test_timing_cuda.py"],
        cwd=ROOT,
        env={**os.environ, "REWRITER_REQUIRE_CUDA": "1", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    for stream in (done.stdout, done.stderr):
        assert stream.count("this run was asked to use CUDA, but: ") == 1
    assert "passed" not in done.stdout
