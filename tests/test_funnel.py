"""The funnel stops wrong rewrites: one of each kind, each a small change to a rewrite that is right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from funnel import check, check_graph, declines
from models.grouped import GroupedConv, grouped_conv_model
from rewriter import Builder, ConvSite, Graph, Match, NodePattern, Op, Pass, Rewrite, Safety, Settings, Var, lift, maybe
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.rule import Declined

Change = Callable[[Builder, ConvSite], Rewrite | None]


class Wrong(Pass):
    """A pass that puts a Conv in the place of a Conv of two groups or more, as `change` says.

    A new Conv is told from an old one by its doc_string, so that the pass is done after one turn.
    """

    name = "wrong"
    safety = Safety.EXACT
    defaults = {}  # noqa: RUF012 - never mutated

    def __init__(self, change: Change, contract: bool = True) -> None:
        self._change = change
        self._contract = contract

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        return op.Conv(x, w, maybe(b))

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
        site = lift(graph.model, found.node)
        if site.group == 1 or site.node.doc_string:
            raise Declined("it is done", site.y)
        build = Builder(graph.model, f"{site.y}/wrong")
        made = self._change(build, site)
        for node in build.nodes:
            if node.op_type == "Conv":
                node.doc_string = "done"
        return made or record(build, site)

    def propose(self, graph: Graph, node: int, settings: Settings) -> Rewrite:
        if self._contract:
            return super().propose(graph, node, settings)
        return self.rewrite(graph, Match((node,), {}), settings)


def record(build: Builder, site: ConvSite, *also: int) -> Rewrite:
    nodes, tensors = tuple(build.nodes), tuple(build.initializers)
    removed = frozenset({site.index, *also})
    return Rewrite("wrong", site.y, Safety.EXACT, removed, site.index, nodes, tensors, "a Conv -> another")


def conv(build: Builder, site: ConvSite, weight: np.ndarray | None = None, output: str | None = "") -> str:
    """The site's Conv with another weight (default: a copy of its own) and output (default: the site's)."""
    name = build.constant(site.weight if weight is None else weight, "weight")
    return build.conv(site.node, site.x, name, site.bias_name, site.group, site.y if output == "" else output)


def unchanged(build: Builder, site: ConvSite) -> None:
    conv(build, site)


def drops_a_tap(build: Builder, site: ConvSite) -> None:
    weight = site.weight.copy()
    weight[0, 0, 0, 0] = 0
    conv(build, site, weight)


def swaps_two_channels(build: Builder, site: ConvSite) -> None:
    order = np.arange(site.m)
    order[[0, 1]] = [1, 0]
    conv(build, site, site.weight[order])


def flips_the_kernel(build: Builder, site: ConvSite) -> None:
    conv(build, site, site.weight[..., ::-1])


def is_almost_right(build: Builder, site: ConvSite) -> None:
    """Far below any tolerance, but declared EXACT."""
    conv(build, site, np.nextafter(site.weight, np.float32(9)))


def moves_the_padding(build: Builder, site: ConvSite) -> None:
    conv(build, site)
    (pads,) = [entry for entry in build.nodes[-1].attribute if entry.name == "pads"]
    pads.ints[:] = [0, 1, 2, 1]


def changes_the_type(build: Builder, site: ConvSite) -> None:
    build.node("Cast", [conv(build, site, output=None)], "half", site.y, to=TensorProto.FLOAT16)


def freezes_the_batch(build: Builder, site: ConvSite) -> None:
    build.reshape(conv(build, site, output=None), [2, site.m, 9, 8], "frozen", site.y)


def leaves_a_reader_without_its_tensor(build: Builder, site: ConvSite) -> Rewrite:
    conv(build, site)
    before = site.model.wiring.producer(site.x)
    assert before is not None
    return record(build, site, before)


def takes_a_taken_name(build: Builder, site: ConvSite) -> None:
    build.node("Neg", [conv(build, site, output=None)], "negated", "x_neg")
    build.node("Neg", ["x_neg"], "back", site.y)


def takes_a_taken_node_name(build: Builder, site: ConvSite) -> None:
    conv(build, site)
    build.nodes[-1].name = "relu"


def leaves_a_node_that_nobody_reads(build: Builder, site: ConvSite) -> None:
    build.node("Relu", [conv(build, site)], "unread")


def leaves_a_weight_that_nobody_reads(build: Builder, site: ConvSite) -> None:
    conv(build, site)
    build.constant(site.weight, "unread")


def makes_a_tensor_a_second_time(build: Builder, site: ConvSite) -> None:
    (behind,) = site.model.wiring.readers(site.y)
    conv(build, site)
    build.nodes.append(site.model.nodes[behind])


def names_by_chance(build: Builder, site: ConvSite) -> None:
    name = build.constant(site.weight, f"weight{np.random.default_rng().integers(1 << 30)}")  # noqa: NPY002, RUF100
    build.conv(site.node, site.x, name, site.bias_name, site.group, site.y)


def model() -> ModelProto:
    """x → Neg → Conv (grouped) → Relu → y, batch free, and a Neg of x as a second output."""
    grouped = grouped_conv_model(GroupedConv(pads=(1, 1, 1, 1), bias="conv", shapes="dynamic_batch"))
    (node,) = grouped.graph.node
    node.input[0], node.output[0] = "x_neg", "conv"
    before = helper.make_node("Neg", ["x"], ["x_neg"], name="neg")
    behind = helper.make_node("Relu", ["conv"], ["y"], name="relu")
    second = helper.make_node("Identity", ["x_neg"], ["z"], name="second")
    nodes = [before, node, behind, second]
    del grouped.graph.node[:]
    grouped.graph.node.extend(nodes)
    grouped.graph.value_info.append(helper.make_tensor_value_info("x_neg", TensorProto.FLOAT, ["N", 8, 9, 8]))
    grouped.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 8, 9, 8]))
    return grouped


FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
SIZES = [{"x": (batch, 8, 9, 8)} for batch in (2, 3)]


def test_the_funnel_lets_a_right_rewrite_through() -> None:
    passed = check(model(), Wrong(unchanged), becomes="Neg Conv/4 Relu Identity", safety=Safety.EXACT, sizes=SIZES)
    assert len(passed.rewrites) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drops_a_tap, "is off by"),
        (swaps_two_channels, "is off by"),
        (flips_the_kernel, "is off by"),
        (moves_the_padding, "is off by"),
        (is_almost_right, "not the same on integers"),
        (changes_the_type, "elem type|elem_type"),
        (freezes_the_batch, "reshape|Reshape"),
        (leaves_a_reader_without_its_tensor, "x_neg"),
        (takes_a_taken_name, "x_neg"),
        (takes_a_taken_node_name, "two nodes have one name"),
        (leaves_a_node_that_nobody_reads, "left behind"),
        (leaves_a_weight_that_nobody_reads, "left behind"),
        (makes_a_tensor_a_second_time, "SSA|is taken"),
        (names_by_chance, "other bytes the second time"),
    ],
)
@pytest.mark.parametrize("contract", [True, False], ids=["with the contract", "without"])
def test_the_funnel_stops_a_wrong_rewrite(change: Change, message: str, contract: bool) -> None:
    with pytest.raises(Exception, match=message):
        check(model(), Wrong(change, contract), sizes=SIZES)


@pytest.mark.parametrize("change", [leaves_a_reader_without_its_tensor, takes_a_taken_name])
def test_the_contract_of_passes_alone_stops_what_would_break_the_graph(change: Change) -> None:
    with pytest.raises(AssertionError, match="x_neg"):
        sweep(Model.load(model()), Step(Wrong(change)), {})


def tampered_with(change: Callable[[ModelProto], object]) -> ModelProto:
    after, _, _ = sweep(Model.load(model()), Step(Wrong(unchanged)), {})
    proto = after.to_proto()
    change(proto)
    return proto


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda after: setattr(after.graph.node[2], "doc_string", "changed"), "outside the rewrites changed"),
        (lambda after: after.graph.node.insert(0, after.graph.node.pop(1)), "x_neg"),
        (lambda after: after.graph.node.append(after.graph.node.pop(0)), "x_neg"),
        (lambda after: after.graph.initializer[0].float_data.append(0), "bias|float_data"),
        (lambda after: setattr(after.graph.initializer[0], "doc_string", "changed"), "initializer 'bias' changed"),
        (lambda after: setattr(after.graph.value_info[0], "doc_string", "changed"), "value_info 'x_neg' changed"),
        (lambda after: after.graph.value_info.add(name="nothing").type.CopyFrom(FLOAT), "value_info 'nothing'"),
        (lambda after: setattr(after, "producer_name", "another"), "interface"),
        (lambda after: setattr(after.graph.output[1], "name", "x_neg"), "interface|z"),
        (lambda after: after.graph.input[0].type.tensor_type.shape.dim[0].Clear(), "interface"),
        (lambda after: after.opset_import.add(domain="another", version=1), "interface"),
    ],
)
def test_changes_outside_the_rewrite_are_stopped(change: Callable[[ModelProto], object], message: str) -> None:
    before = model()
    removed = {before.graph.node[1].SerializeToString(deterministic=True)}
    check_graph(before, tampered_with(lambda after: None), removed)
    with pytest.raises(Exception, match=message):
        check_graph(before, tampered_with(change), removed)


def test_a_pass_that_never_ends_is_stopped() -> None:
    def change(build: Builder, site: ConvSite) -> None:
        conv(build, site)

    class Endless(Wrong):
        def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:
            made = super().rewrite(graph, found, settings)
            for node in made.added:
                node.doc_string = ""
            return made

    with pytest.raises(AssertionError, match="applies again"):
        check(model(), Endless(change), sizes=SIZES)
    check(model(), Endless(change), sizes=SIZES, again=True)


def test_a_pass_that_mutates_its_input_is_stopped() -> None:
    source = model()

    def change(build: Builder, site: ConvSite) -> None:
        conv(build, site)
        source.doc_string = "mutated"

    with pytest.raises(AssertionError, match="mutated its input"):
        check(source, Wrong(change), sizes=SIZES)


def test_expectations_are_compared() -> None:
    with pytest.raises(AssertionError, match="Conv/4"):
        check(model(), Wrong(unchanged), becomes="Neg Conv/2 Relu Identity", sizes=SIZES)
    with pytest.raises(AssertionError, match="ROUNDING"):
        check(model(), Wrong(unchanged), safety=Safety.ROUNDING, sizes=SIZES)


def test_a_blind_model_proves_nothing() -> None:
    blind = model()
    (weight,) = [tensor for tensor in blind.graph.initializer if tensor.name == "weight"]
    weight.CopyFrom(numpy_helper.from_array(np.zeros((12, 2, 3, 3), np.float32), "weight"))
    (bias,) = [tensor for tensor in blind.graph.initializer if tensor.name == "bias"]
    bias.CopyFrom(numpy_helper.from_array(np.ones(12, np.float32), "bias"))
    with pytest.raises(AssertionError, match="shows nothing"):
        check(blind, Wrong(unchanged), sizes=SIZES)


def test_the_funnel_wants_a_pass_to_apply_and_declines_wants_it_not_to() -> None:
    dense = grouped_conv_model(GroupedConv(groups=1))
    with pytest.raises(AssertionError, match=r"does not apply: .*It is done"):
        check(dense, Wrong(unchanged))
    declines(dense, Wrong(unchanged), "done")
    with pytest.raises(AssertionError, match="no reason says"):
        declines(dense, Wrong(unchanged), "another reason")
    with pytest.raises(AssertionError, match="applies:"):
        declines(model(), Wrong(unchanged), "done")
