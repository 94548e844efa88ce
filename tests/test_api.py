"""The Python API: what it is given wrongly is answered in a sentence, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rewriter
from cli_runs import dense_model
from rewriter import BadInput, RunOptions, Runtime

api: Any = rewriter  # as callers without a type checker see it
BOTH = [Runtime(), Runtime("cuda")]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: api.RunOptions(allow="contrib-ops"), "allow is 'contrib-ops': give a list, even of one."),
        (lambda: api.cross_audit("model.onnx", BOTH), "models is 'model.onnx': give a list"),
        (lambda: api.cross_audit(Path("model.onnx"), BOTH), "models is .*model.onnx.*: give a list"),
        (lambda: api.cross_audit(b"model", BOTH), "models is one bytes: give a list"),
        (lambda: api.cross_audit(dense_model(), BOTH), "models is one ModelProto: give a list"),
        (lambda: api.cross_audit(["model.onnx"], Runtime()), "runtimes is one Runtime: give a list"),
        (lambda: api.cross_audit(["model.onnx"], ["cpu", "cuda"]), "'cpu' is no Runtime: give rewriter.Runtime"),
        (lambda: api.bench("model.onnx"), "models is 'model.onnx': give a list"),
        (lambda: api.rewrite("model.onnx", "regroup"), "passes is 'regroup': give a list"),
        (lambda: api.optimize("model.onnx", only="regroup"), "only is 'regroup': give a list"),
        (lambda: api.optimize("model.onnx", skip="regroup"), "skip is 'regroup': give a list"),
    ],
)
def test_one_in_place_of_several_is_bad_input(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        call()


@pytest.mark.parametrize("given", [["contrib-ops"], {"contrib-ops"}, ("contrib-ops",)])
def test_permissions_come_in_any_collection(given: Any) -> None:
    options = RunOptions(allow=given)
    assert options.allow == frozenset({"contrib-ops"})
