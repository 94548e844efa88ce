"""Shared by all tests: how hypothesis searches, and what happens to the tests marked `cuda` where there is no GPU."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

# No timed assertions, and the same examples in every run; `--hypothesis-profile=search` looks further, at new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


def pytest_sessionstart() -> None:
    """A run that was asked to use CUDA ends at once where it cannot, instead of saying so with each test."""
    if os.environ.get("REWRITER_REQUIRE_CUDA") != "1":
        return
    problem = cuda_problem()
    if problem is not None:
        pytest.exit(f"this run was asked to use CUDA, but: {problem}", returncode=pytest.ExitCode.TESTS_FAILED)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    problem = cuda_problem()
    if problem is None:
        return
    pytest.skip(f"{problem}; `make test-cuda` on a machine with a GPU runs it")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is stored per machine (the exactness of its providers) stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REWRITER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_look_at_memory_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """`optimize` in this process starts none to measure peak memory for the report; tests of that ask for it."""
    if "rewriter.compared" in sys.modules:
        monkeypatch.setattr("rewriter.compared._WORTH", math.inf)


@functools.cache
def cuda_problem() -> str | None:
    """Why nothing can run on CUDA here; None when a model was seen to run there."""
    from rewriter.diagnosis import problem  # here: tests of what importing costs must find nothing imported

    found = problem("cuda")
    return None if found is None else found.rstrip(".")
