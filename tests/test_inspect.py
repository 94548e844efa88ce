"""`rewriter inspect` explains every convolution that nothing applies to, on real exports and on odd ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.zoo.refill import zoo_model, zoo_names
from rewriter.cli import main
from rewriter.cli_inspect import nothing_blocks, opinion_blocks
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.registry import all_passes
from rewriter.report.text import Table
from rewriter.survey import Opinion, Site, explanation, survey

COSTLY = frozenset({"depthwise-sum-to-grouped", "fuse-separable", "grouped-to-dense", "split-separable"})
"""They compute weights to answer: without them the zoo takes seconds, and more convolutions want an explanation."""
EMPTY = re.compile(r"It is \d-D, not|It is dense \(group 1\)( already|, not|: there)")
"""What only repeats the form."""


def opinion(name: str, reason: str = "No.", matched: int = 0, applies: bool = False) -> Opinion:
    return Opinion(name, applies, reason, matched)


def site(*passes: Opinion, form: str = "dense", name: str = "y") -> Site:
    return Site(name, form, 1, 4, 4, (3, 3), (1, 4, 5, 5), 100, passes)


def only_table(sites: list[Site]) -> Table:
    [table] = nothing_blocks(sites)
    assert isinstance(table, Table)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names())
def test_every_convolution_of_the_zoo_that_nothing_applies_to_is_explained(name: str) -> None:
    rules = {key: rule for key, rule in all_passes().items() if key not in COSTLY}
    sites, _ = survey(Graph(Model.load(zoo_model(name))), rules)
    unserved = [found for found in sites if not found.applies]
    for found in unserved:
        told = explanation(found)
        assert [entry for entry in told if not EMPTY.match(entry.reason)], f"{found.site}: {told}"
    if not unserved:
        assert nothing_blocks(sites) == []
        return
    counts = [int(row[0]) for row in only_table(sites).rows if row[0]]
    assert sum(counts) == len(unserved)


def test_what_could_be_done_to_the_form_comes_first_then_near_misses() -> None:
    telling = opinion("fold-affine", "No affine node.")
    near = opinion("of-your-own", "Nearly.", matched=3)
    far = opinion("regroup", "It is dense.")
    assert explanation(site(far, near, telling)) == (telling, near)
    assert explanation(site(far, near, telling, form="grouped")) == (near,)
    assert explanation(site(far, form="grouped")) == (far,), "where there is nothing else, all answers"
    assert explanation(site(far, near, opinion("split-groups", applies=True))) == ()


def test_a_sum_that_does_not_follow_says_nothing_of_a_dense_convolution() -> None:
    telling = opinion("fold-affine", "No affine node.")
    for matched, form, told in ((1, "dense", False), (2, "dense", True), (1, "depthwise", True)):
        asked = opinion("depthwise-sum-to-grouped", "No sum.", matched)
        assert (asked in explanation(site(telling, asked, form=form))) is told


def test_equal_explanations_are_one_row_and_what_all_say_is_said_once() -> None:
    one, two = (site(opinion("fold-affine", f"'{name}' is not constant.", 1), name=name) for name in "ab")
    assert only_table([one, two]).rows == (("2", "dense 3x3", "a and 1 more", "fold-affine", "'a' is not constant."),)
    every = site(*(opinion(f"pass-{number}", "It has 2 outputs.", 1) for number in range(7)))
    assert only_table([every]).rows == (("1", "dense 3x3", "y", "7 passes", "It has 2 outputs."),)
    assert only_table([site()]).rows == (("1", "dense 3x3", "y", "-", "No pass looks at it."),)


def test_an_explained_convolution_is_not_explained_twice() -> None:
    near = opinion("fold-affine", "Nearly.", 2)
    served = site(near, opinion("split-groups", "It would.", applies=True))
    [table] = opinion_blocks([served, site(near, name="z")], verbose=False)
    assert isinstance(table, Table)
    assert [row[1:4] for row in table.rows] == [("split-groups", "yes", "y"), ("fold-affine", "no", "y")]
    [table] = opinion_blocks([served, site(near, name="z")], verbose=True)
    assert isinstance(table, Table)
    assert [row[1:4] for row in table.rows if row[2] == "no"] == [("fold-affine", "no", "y and 1 more")]


def transposed(weight: np.ndarray | None, group: int) -> onnx.ModelProto:
    """One ConvTranspose, its weight an input where none is given."""
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])]
    if weight is None:
        values.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 2, 2]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=group)
    tensors = [] if weight is None else [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "transposed", values, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("constant", "group", "applies"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_transposed_convolutions_are_listed_and_explained(
    constant: bool, group: int, applies: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32) if constant else None
    path = tmp_path / "t.onnx"
    path.write_bytes(transposed(weight, group).SerializeToString())
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "transposed" in said
    assert said.splitlines()[-1].endswith(f"a pass applies to {int(applies)}")
    assert ("nothing applies to" in said) is not applies
    if not constant:
        assert "'w' is a graph input" in said
