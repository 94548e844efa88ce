"""The graph view: producers, consumers, what subgraphs capture, and which names are taken."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from graphs import exotic_model, grouped_conv, model, node, tensor, value
from models.zoo.refill import FOLDER
from rewriter.model import Model
from rewriter.names import Names
from rewriter.wiring import Wiring, used_names


def branch(nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [value(output, None)])


def choice(then: onnx.GraphProto, otherwise: onnx.GraphProto) -> onnx.ModelProto:
    """x -> Relu -> mid -> Neg -> y, and an If beside them."""
    nodes = [
        node("Relu", ["x"], ["mid"]),
        node("Neg", ["mid"], ["y"]),
        node("If", ["flag"], ["picked"], then_branch=then, else_branch=otherwise),
    ]
    inputs = [value("x", [4]), value("flag", [], onnx.TensorProto.BOOL)]
    return model(nodes, inputs, [value("y", [4]), value("picked", None)], [tensor("c", [1.0])])


def test_producers_and_readers() -> None:
    wiring = Wiring.of(grouped_conv())
    assert [wiring.producer(name) for name in ("c", "y", "x", "w", "nothing")] == [0, 1, None, None, None]
    assert [wiring.readers(name) for name in ("x", "w", "b", "c", "y", "nothing")] == [(0,), (0,), (0,), (1,), (), ()]
    assert wiring.escapes("y") == "'y' is a graph output"
    assert wiring.escapes("c") is None


def test_a_node_that_reads_a_tensor_twice_is_one_reader() -> None:
    made = model([node("Add", ["x", "x"], ["y"]), node("Mul", ["x", "y"], ["z"])], [value("x", [2])], [value("z", [2])])
    assert Wiring.of(made).readers("x") == (0, 1)


def test_optional_inputs_and_outputs_are_no_tensors() -> None:
    nodes = [node("Dropout", ["x"], ["y", ""]), node("Clip", ["y", "", ""], ["z"])]
    wiring = Wiring.of(model(nodes, [value("x", [2])], [value("z", [2])]))
    assert wiring.producer("") is None
    assert wiring.readers("") == ()
    assert wiring.producer("z") == 1


@pytest.mark.parametrize(
    ("then", "captured"),
    [
        (branch([node("Relu", ["mid"], ["t"])], "t"), True),
        (branch([], "mid"), True),  # given out directly: no node reads it
        (branch([node("Relu", ["other"], ["t"])], "t"), False),
        (
            branch(
                [
                    node(
                        "If",
                        ["flag"],
                        ["t"],
                        then_branch=branch([node("Relu", ["mid"], ["u"])], "u"),
                        else_branch=branch([], "mid"),
                    )
                ],
                "t",
            ),
            True,
        ),
        (branch([node("If", ["flag"], ["t"], then_branch=branch([], "mid"), else_branch=branch([], "x"))], "t"), True),
    ],
)
def test_what_a_subgraph_reads_cannot_go(then: onnx.GraphProto, captured: bool) -> None:
    wiring = Wiring.of(choice(then, branch([node("Neg", ["c"], ["e"])], "e")))
    assert ("mid" in wiring.captured) == captured
    assert wiring.escapes("mid") == ("'mid' is read inside a subgraph" if captured else None)
    assert wiring.readers("mid") == (1,)


def test_a_subgraphs_own_tensors_are_not_captured() -> None:
    then = branch([node("Neg", ["x"], ["inner"]), node("Relu", ["inner"], ["t"])], "t")
    made = choice(then, branch([node("Neg", ["c"], ["e"])], "e"))
    assert not {"inner", "t", "e"} & Wiring.of(made).captured
    assert used_names(made.graph.node) >= {"x", "mid", "flag", "c"}


def test_names_avoid_every_graph() -> None:
    made = Model.load(exotic_model())
    names = Names(made)
    for taken in ("x", "a_weight", "nobody_reads", "sparse", "a/regroup/weight", "inner", "conv a", "wide", "r"):
        assert names.fresh(taken) == f"{taken}_2", taken
    assert [names.fresh("new") for _ in range(3)] == ["new", "new_2", "new_3"]
    assert Names(made).fresh("new") == "new"


def test_types_and_attributes_that_graphsurgeon_cannot_read_do_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    wiring = Wiring.of(exotic_model())
    assert wiring.producer("m") == 0
    assert wiring.escapes("shared_two") == "'shared_two' is read inside a subgraph"
    assert wiring.readers("shared") == (6, 7)
    made = exotic_model()
    del made.opset_import[0]
    assert Wiring.of(made).producer("m") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.onnx")))
def test_zoo_graphs(name: str) -> None:
    made = onnx.load(FOLDER / f"{name}.onnx")
    wiring = Wiring.of(made)
    for index, entry in enumerate(made.graph.node):
        assert all(wiring.producer(output) == index for output in entry.output if output)
        assert all(index in wiring.readers(read) for read in entry.input if read)
    assert sum(len(wiring.readers(n)) for n in wiring.consumers) == sum(
        len({read for read in entry.input if read}) for entry in made.graph.node
    )
