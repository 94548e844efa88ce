"""L5 of the whole models: sizes of free dimensions that no other level tried, a batch of none among them."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from rewriter.bindings import find_bindings
from rewriter.equivalence.edge_sizes import cases, empty_case, free_dimensions
from rewriter.equivalence.empty_batch import Empty, _judged, run_empty
from rewriter.model import Model
from rewriter.session import Runtime
from test_equivalence import rewrites as rw
from test_equivalence.models import info, model, node, random
from test_equivalence.nets import Array, audited, net


def two_inputs() -> onnx.ModelProto:
    nodes = [node("Add", ["x", "z"], ["a"]), node("Relu", ["a"], ["y"])]
    return model(nodes, [info("x", ["N", 3, "T"]), info("z", ["M", 3, "T"])], [info("y", None)])


def test_dimensions_of_one_name_and_all_batches_vary_together() -> None:
    found = Model.load(two_inputs())
    assert free_dimensions(found) == {"N": (("x", 0), ("z", 0)), "T": (("x", 2), ("z", 2))}
    bindings = find_bindings(found)
    labels = [case.label for case in cases(found, bindings)]
    assert labels == ["N = 2", "T = 1", "T = 2", "T = 7", "all free sizes = 2", "all free sizes = 7"]
    assert all(len({shape[::2] for shape in case.shapes.values()}) == 1 for case in cases(found, bindings))
    empty = empty_case(found, bindings)
    assert empty is not None
    assert [shape[0] for shape in empty.shapes.values()] == [0, 0]
    assert cases(Model.load(net()), find_bindings(Model.load(net()))) == ()
    assert empty_case(Model.load(net()), find_bindings(Model.load(net()))) is None


def test_an_original_that_onnx_runtime_gets_wrong_is_no_reference() -> None:
    """ONNX Runtime's ReduceMean over nothing keeps an axis that it should take the mean over."""
    x, y = [info("x", ["N", 8, 4, 5])], [info("y", None)]
    before = model([node("ReduceMean", ["x"], ["y"], axes=[-1, 2], keepdims=1)], x, y)
    after = model([node("GlobalAveragePool", ["x"], ["y"])], x, y)
    result = audited(before, after, full=True)
    assert result.verdict == "equivalent", result.reason
    said = "N = 0 (ONNX Runtime gives the original's 'y' another shape than [0, 8, 1, 1])"
    assert said in result.flags["sizes"] or result.flags["sizes"].endswith("N = 0")  # once that is mended there


def test_sizes_that_the_original_refuses_say_nothing() -> None:
    before = net(batch=1, size=("H", "W"), kernel=(5, 5), pads=[0, 0, 0, 0])  # type: ignore[arg-type]
    result = audited(before, rw.regrouped(before, "t", 1), full=True)
    assert result.verdict == "equivalent", result.reason
    assert "H = 7" in result.flags["sizes"]
    assert "H = 1 (the original does not run)" in result.flags["sizes"]
    assert [level.level for level in result.levels] == ["L0", "L4", "L5"]


def recurrent(output: str) -> onnx.ModelProto:
    """A recurrent layer, which ends the process where the batch is empty, beside a convolution."""
    weights: dict[str, Array] = {"w": random(4, 4, 1), "r": random(1, 16, 3), "s": random(1, 16, 4)}
    nodes = [
        node("Conv", ["x", "w"], ["c"], group=1),
        node("Transpose", ["c"], ["q"], perm=[2, 0, 1]),
        node("LSTM", ["q", "s", "rr"], ["y"], hidden_size=4),
    ]
    weights["rr"] = random(1, 16, 4, seed=1)
    if output == "y":
        del nodes[1:]
        nodes[0].output[0] = "y"
    return model(nodes, [info("x", ["N", 4, 5])], [info("y", None)], weights)


def test_a_kernel_that_ends_the_process_ends_another_one() -> None:
    lstm, plain = Model.load(recurrent("c")), Model.load(recurrent("y"))
    assert run_empty((lstm, lstm), Runtime(), {"x": (0, 4, 5)}, 0, {}) == Empty(refused=True)
    found = run_empty((plain, lstm), Runtime(), {"x": (0, 4, 5)}, 0, {})
    assert found.problem == "The original runs, the rewritten model does not: ONNX Runtime ends the process."
    assert run_empty((plain, plain), Runtime(), {"x": (0, 4, 5)}, 0, {}) == Empty()


FINE: dict[str, Any] = {"error": "", "outputs": {"y": "float32 [0, 4]"}}
OTHER: dict[str, Any] = {"error": "", "outputs": {"y": "float32 [0, 5]"}}
BAD: dict[str, Any] = {"error": "It does not.", "outputs": {}}


@pytest.mark.parametrize(
    ("steps", "refused", "problem", "note"),
    [
        ([FINE, FINE, FINE, FINE], False, "", ""),
        ([BAD, FINE, FINE, FINE], True, "", ""),
        ([], True, "", ""),
        ([FINE, BAD, FINE, FINE], False, "does not: It does not.", ""),
        ([FINE], False, "ends the process", ""),
        ([FINE, OTHER, FINE, FINE], False, "'y' is float32 [0, 5] instead of float32 [0, 4]", ""),
        ([OTHER, FINE, FINE, FINE], False, "", "ONNX Runtime gives the original's 'y' another shape than [0, 4]"),
        ([FINE, FINE, FINE, BAD], False, "", "as deployed: The original runs, the rewritten model does not"),
        ([FINE, FINE, BAD, BAD], False, "", ""),
        ([FINE, FINE, BAD, FINE], False, "", ""),
        ([FINE, FINE], False, "", ""),
    ],
)
def test_what_an_empty_batch_says(steps: list[dict[str, Any]], refused: bool, problem: str, note: str) -> None:
    found = _judged(steps, {"y": (0, 4), "z": None})
    assert found.refused == refused
    for text, part in ((found.problem, problem), (found.note, note)):
        assert part in text
        assert bool(part) == bool(text)
