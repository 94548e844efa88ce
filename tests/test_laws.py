"""Laws that hold for every pass and every model: a pass comes through the funnel or says why it does not apply."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import get_args

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from branch_models import BRANCHED, EXACT_ON_INTEGERS, branch_models
from channel_models import EXACT, WIDENED, channel_models
from funnel import Sizes, check, check_leftovers, declines
from layout_models import PAIRED, layout_models
from models.grouped import GroupedConv, grouped_conv_model
from models.grouped_spec import Form, Weights
from models.resnext import ResNeXt, ResNeXtForm, resnext_model
from models.sample import draw_spec
from ranked_models import RANKED, ranked_models
from rewriter import Pass, Safety
from rewriter.engine import rewrite
from rewriter.errors import BadInput
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Step, ask, merge, parse_settings, sweep
from rewriter.providers import PROVIDERS, Provider
from rewriter.registry import all_passes
from rewriter.rule import Attempt, Declined, Rewrite, Settings
from separable_models import separable_models
from small_networks import networks
from stacked_models import APART, stacked_models
from transposed_models import TRANSPOSED, transposed_models

# What each pass is tried with besides its defaults; the block keeps the tests the same on every machine.
SETTINGS: dict[str, tuple[Settings, ...]] = {
    "absorb-shuffle": ({}, {"way": "gather"}, {"way": "late"}),
    "align-concat": ({"block": 4}, {"way": "pieces"}, {"way": "columns"}, {"way": "repeat"}),
    "cancel-layout-pairs": ({},),
    "conv1d-to-conv2d": ({}, {"axis": "h"}),
    "conv3d-to-conv2d": ({}, {"kind": "temporal"}),
    "dense-to-grouped": ({}, {"shuffle": "none"}),
    "depthwise-sum-to-grouped": ({}, {"shuffle": "gather"}, {"shuffle": "reshape"}, {"shuffle": "producer"}),
    "expand-gate": ({}, {"multiple": 0}, {"multiple": 8}),
    "fold-affine": ({},),
    "fuse-conv-activation": ({},),
    "fuse-separable": ({}, {"border": "exact"}),
    "grouped-to-dense": ({},),
    "grouped-to-depthwise-sum": ({}, {"reduce": "first"}, {"reduce": "last"}),
    "merge-multiplier": ({}, {"order": "shuffle"}),
    "merge-split-groups": ({}, {"fill": "groups"}, {"parallel": True}),
    "merge-transposed": ({},),
    "pad-channels": ({"block": 8}, {"block": 16}, {"block": 8, "multiple": 8}),
    "reduce-mean-to-global-pool": ({},),
    "regroup": ({"block": 8}, {"block": 16}, {"groups": 1}, {"groups": 2}),
    "regroup-transposed": ({}, {"groups": 2}),
    "split-groups": ({},),
    "split-multiplier": ({}, {"order": "shuffle"}),
    "split-separable": ({}, {"form": "depthwise"}, {"form": "pointwise"}, {"form": "spatial"}),
    "split-transposed": ({},),
    "sum-of-stack": ({},),
}
ELSEWHERE = APART | BRANCHED | PAIRED | RANKED | TRANSPOSED | WIDENED  # passes that have models of their own
RANK = [Safety.EXACT, Safety.FINITE, Safety.ROUNDING, Safety.APPROXIMATE]


@dataclass(frozen=True)
class Small:
    """A small model, and the shapes to run it at."""

    name: str
    bytes: bytes
    sizes: tuple[Sizes, ...]
    integers: bool = True
    """Whether its values stay exact on integers."""


def shapes(spec: GroupedConv) -> tuple[Sizes, ...]:
    batches = (spec.batch,) if spec.shapes == "static" else (1, 3)
    middle = [(n, spec.channels_in, *spec.spatial) for n in batches]
    return tuple({"x": (n, *rest, c) if spec.layout == "nhwc" else (n, c, *rest)} for n, c, *rest in middle)


@cache
def small_models() -> dict[str, Small]:
    return {small.name: small for small in _small_models()}


def _small_models() -> Iterator[Small]:
    for form in get_args(ResNeXtForm):
        spec = ResNeXt(form, batch=None, image=16, blocks=(1, 1), width=8, groups=4, classes=10)
        name = f"resnext {form}"
        model = resnext_model(spec).SerializeToString(deterministic=True)
        yield Small(name, model, ({"input": (1, 3, 16, 16)}, {"input": (3, 3, 16, 16)}), integers=False)
    for form in get_args(Form):
        for seed in range(8):
            drawn = draw_spec(random.Random(seed), form)
            model = grouped_conv_model(drawn).SerializeToString(deterministic=True)
            yield Small(f"{form} {seed}", model, shapes(drawn))
    for name, proto in separable_models().items():
        yield Small(name, proto.SerializeToString(deterministic=True), ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 7, 9)}))
    for name, proto in stacked_models().items():
        sizes: tuple[Sizes, ...] = ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 7, 9)})
        yield Small(name, proto.SerializeToString(deterministic=True), sizes, integers=name != "attention")
    for name, proto in branch_models().items():
        sizes = ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 7, 9)})
        yield Small(name, proto.SerializeToString(deterministic=True), sizes, integers=name in EXACT_ON_INTEGERS)
    for name, proto in transposed_models().items():
        sizes = ({"x": (1, 8, 7, 9)}, {"x": (3, 8, 7, 9)})
        yield Small(name, proto.SerializeToString(deterministic=True), sizes)
    for name, (proto, sizes) in (ranked_models() | layout_models()).items():
        yield Small(name, proto.SerializeToString(deterministic=True), sizes)
    for name, (proto, sizes) in channel_models().items():
        yield Small(name, proto.SerializeToString(deterministic=True), sizes, integers=name in EXACT)
    for name, (proto, side) in networks().items():
        sizes = ({"input": (2, 3, side, side)},)
        yield Small(name, proto.SerializeToString(deterministic=True), sizes, integers=False)


NAMES = [f"resnext {form}" for form in get_args(ResNeXtForm)]
NAMES += [f"{form} {seed}" for form in get_args(Form) for seed in range(8)]
NAMES += list(separable_models())
NAMES += list(stacked_models())
NAMES += list(branch_models())
NAMES += list(transposed_models())
NAMES += list(ranked_models() | layout_models())
NAMES += list(channel_models())
NAMES += list(networks())
CASES = [(name, settings) for name, variants in SETTINGS.items() for settings in variants]


def test_every_pass_and_every_model_is_tried() -> None:
    assert SETTINGS.keys() == all_passes().keys()
    assert list(small_models()) == NAMES


@pytest.mark.parametrize(("rule", "settings"), CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_comes_through_the_funnel_or_says_why_not(name: str, rule: str, settings: Settings) -> None:
    small = small_models()[name]
    _, applied, _ = sweep(Model.load(small.bytes), Step(all_passes()[rule], settings), {})
    if not applied and not list(all_passes()[rule].sites(Graph(Model.load(small.bytes)))):
        return  # no operator that the pass could end at: there is nothing to give a reason for
    if not applied:
        declines(small.bytes, rule, "", settings)
        return
    passed = check(small.bytes, rule, settings, sizes=small.sizes, integers=small.integers)
    weakest = RANK.index(all_passes()[rule].safety)
    assert all(RANK.index(made.safety) <= weakest for made in passed.rewrites), "weaker than the pass declares"
    assert all(made.pass_name == rule for made in passed.rewrites)
    assert all(" -> " in made.summary for made in passed.rewrites)


@pytest.mark.parametrize(("rule", "settings"), [case for case in CASES if case[0] not in ELSEWHERE], ids=str)
@pytest.mark.parametrize("weights", ["constant", "identity", "cast"])
def test_one_rewrite_alone_leaves_nothing_behind(weights: Weights, rule: str, settings: Settings) -> None:
    """`sweep` clears up what several rewrites leave together; each clears up after itself."""
    form: Form = "depthwise_sum" if rule == "depthwise-sum-to-grouped" else "grouped"
    spec = GroupedConv(form, groups=8, out_per_group=2, weights=weights, order="interleaved", shapes="dynamic")
    if rule == "fuse-separable":  # a shuffle would stand between the two
        spec = replace(spec, order="contiguous")
    proto = before_it(grouped_conv_model(spec), weights)
    if rule == "fuse-conv-activation":
        end_in_relu(proto)
    if rule == "split-separable":
        fill_with_ones(proto)
    model = Model.load(proto)
    (node,) = [node for node in all_passes()[rule].sites(Graph(model)) if model.nodes[node].input[1] == "weight"]
    answer = ask(Graph(model), all_passes()[rule], node, settings)
    assert not isinstance(answer, Attempt), answer.reason
    check_leftovers(proto, model.splice(merge([answer])).to_proto())


@pytest.mark.parametrize("rule", sorted(ELSEWHERE))
def test_one_rewrite_alone_leaves_nothing_behind_in_a_stack(rule: str) -> None:
    """The same of passes for several branches, each on the models that it applies to."""
    made = []
    several = stacked_models() | branch_models() | transposed_models()
    elsewhere = ranked_models() | layout_models() | channel_models()
    for proto in [*several.values(), *(model for model, _ in elsewhere.values())]:
        model = Model.load(proto)
        for node in all_passes()[rule].sites(Graph(model)):
            answer = ask(Graph(model), all_passes()[rule], node, SETTINGS[rule][0])
            if isinstance(answer, Rewrite):
                check_leftovers(proto, model.splice(merge([answer])).to_proto())
                made.append(answer)
    assert made


def fill_with_ones(model: ModelProto) -> None:
    """Make every weight one of rank 1."""
    values = [entry.t for node in model.graph.node for entry in node.attribute if entry.HasField("t")]
    for tensor in [*model.graph.initializer, *values]:
        if len(tensor.dims) > 2:
            ones = np.ones(tensor.dims, helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(numpy_helper.from_array(ones, tensor.name))


def end_in_relu(model: ModelProto) -> None:
    """Put a Relu behind the node that makes the model's output."""
    name = model.graph.output[0].name
    (last,) = [node for node in model.graph.node if name in node.output]
    last.output[0] = f"{name}.sum"
    model.graph.node.add(op_type="Relu", name="relu", input=[f"{name}.sum"], output=[name])


def before_it(model: ModelProto, weights: Weights) -> ModelProto:
    """The model with a dense convolution before, its weight of the same kind, where a shuffle can go."""
    first = grouped_conv_model(GroupedConv(groups=1, in_per_group=16, out_per_group=16, kernel=(1, 1), weights=weights))
    for node in first.graph.node:
        node.name = f"first.{node.name}"
        node.input[:] = [name if name == "x" else f"first.{name}" for name in node.input]
        node.output[:] = ["first.y" if name == "y" else f"first.{name}" for name in node.output]
    for tensor in first.graph.initializer:
        tensor.name = f"first.{tensor.name}"
    for node in model.graph.node:
        node.input[:] = ["first.y" if name == "x" else name for name in node.input]
    both = ModelProto()
    both.CopyFrom(model)
    del both.graph.node[:]
    both.graph.node.extend([*first.graph.node, *model.graph.node])
    both.graph.initializer.extend(first.graph.initializer)
    return both


def test_every_pass_applies_somewhere_and_declines_somewhere() -> None:
    for name, variants in SETTINGS.items():
        results: set[bool] = set()
        for small, settings in product(small_models().values(), variants):
            if len(results) < 2:
                results.add(bool(sweep(Model.load(small.bytes), Step(all_passes()[name], settings), {})[1]))
        assert results == {False, True}, name


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("rule", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_is_a_proposal_or_a_reason(name: str, rule: str, provider: Provider) -> None:
    """And the same proposal wherever it is asked for: only what is worth measuring depends on the provider."""
    graph = Graph(Model.load(small_models()[name].bytes), provider=provider)
    elsewhere = [replace(graph, provider=other) for other in PROVIDERS if other != provider]
    made = all_passes()[rule]
    for node in made.sites(graph):
        try:
            candidates = made.candidates(graph, node)
        except Declined:
            continue
        assert len(candidates) == len({str(settings) for settings in candidates})
        for settings in candidates:
            answer = ask(graph, made, node, settings)
            assert answer.site
            assert not isinstance(answer, Attempt) or answer.reason.endswith(".")
            if isinstance(answer, Rewrite):
                assert all(ask(other, made, node, settings) == answer for other in elsewhere)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("resnext")])
def test_passes_one_after_another_keep_what_each_keeps(name: str) -> None:
    """Each in turn on the result of the ones before: the funnel holds at every step, and so does there and back."""
    small = small_models()[name]
    model = small.bytes
    seen = []
    for rule, settings in [
        ("depthwise-sum-to-grouped", {}),
        ("grouped-to-depthwise-sum", {}),
        ("depthwise-sum-to-grouped", {}),
        ("regroup", {"groups": 2}),
        ("grouped-to-depthwise-sum", {}),
    ]:
        assert isinstance(settings, dict)
        _, applied, _ = sweep(Model.load(model), Step(all_passes()[rule], settings), {})
        if applied:
            passed = check(model, rule, settings, sizes=small.sizes, integers=False)
            model = passed.after.SerializeToString(deterministic=True)
            seen.append((rule, len(applied)))
    if name == "resnext split_concat":
        assert seen == []
        return
    there_and_back = [("grouped-to-depthwise-sum", 2), ("depthwise-sum-to-grouped", 2)]
    last = [("regroup", 2), ("grouped-to-depthwise-sum", 2)]
    first = [("depthwise-sum-to-grouped", 2)] if name == "resnext depthwise_sum" else []
    assert seen == first + there_and_back + last


def test_grouped_and_depthwise_sum_become_each_other() -> None:
    """The two forms of one network are rewritten into each other, weights and biases to the last bit."""
    forms = {form: small_models()[f"resnext {form}"] for form in ("grouped", "depthwise_sum")}
    back = check(forms["depthwise_sum"].bytes, "depthwise-sum-to-grouped", sizes=forms["grouped"].sizes, integers=False)
    there = check(forms["grouped"].bytes, "grouped-to-depthwise-sum", sizes=forms["grouped"].sizes, integers=False)
    assert back.safeties == there.safeties == {Safety.EXACT}
    original = Model.load(forms["grouped"].bytes).to_proto()
    assert [(node.op_type, node.attribute) for node in back.after.graph.node] == [
        (node.op_type, node.attribute) for node in original.graph.node
    ]
    weights = [{t.raw_data for t in proto.graph.initializer} for proto in (back.after, original)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("rule", all_passes().values(), ids=lambda rule: rule.name)
def test_a_pass_documents_itself(rule: Pass) -> None:
    module = inspect.getmodule(type(rule))
    assert module is not None
    text = module.__doc__ or ""
    assert text.startswith(f"{rule.name}: ")
    for part in ("y", "Conditions:", "What `optimize` measures:", "Safety:", "Source:"):
        assert part in text, f"{rule.name} does not say its {part}"
    assert rule.safety.name in text
    for key in rule.defaults:
        assert f"`{key}`" in text, f"{rule.name} does not document its setting {key}"
    assert module.__name__.rpartition(".")[2] == rule.name.replace("-", "_")
    assert vars(rule) == {}, "passes keep no state"


STRINGS = [(rule, key) for rule in all_passes().values() for key, value in rule.defaults.items() if type(value) is str]


@pytest.mark.parametrize(("rule", "key"), STRINGS, ids=lambda part: getattr(part, "name", part))
def test_a_word_that_is_none_of_a_setting_s_is_refused_before_any_work(rule: Pass, key: str) -> None:
    """And every word that is refused by is one that the docstring has."""
    with pytest.raises(BadInput) as refused:
        rule.check({**rule.defaults, key: "bogus"})
    said = str(refused.value)
    assert f"{rule.name}.{key}" in said
    assert "'bogus'" in said
    words = re.findall(r"[\w-]+", re.split("must be one of |is none of ", said)[-1])
    assert str(rule.defaults[key]) in words
    documented = inspect.getmodule(type(rule)).__doc__ or ""
    for word in words:
        rule.check({**rule.defaults, key: word})
        assert word in documented
    original = small_models()["grouped 0"].bytes
    with pytest.raises(BadInput, match="bogus"):
        rewrite(Model.load(original), [Step(rule, {key: "bogus"})], RunOptions(allow=rule.needs))


@pytest.mark.parametrize("name", ["regroup", "regroup-transposed"])
def test_two_ways_to_say_how_many_groups_are_refused(name: str) -> None:
    rule = all_passes()[name]
    with pytest.raises(BadInput, match=rf"both {name}\.factor and {name}\.groups are set: set one\."):
        rule.check({**rule.defaults, "factor": 2, "groups": 2})


def test_settings_are_those_a_pass_has() -> None:
    known = all_passes()
    chosen = parse_settings(known, ["regroup.factor=2", "depthwise-sum-to-grouped.shuffle=gather"])
    assert chosen == {"regroup": {"factor": 2}, "depthwise-sum-to-grouped": {"shuffle": "gather"}}
    for wrong, says in [
        ("regroup.width=2", "has no setting 'width'; it has: factor, groups, block"),
        ("regroup.factor=two", "'two' is no whole number"),
        ("unknown.factor=2", "there is no pass 'unknown'"),
        ("factor=2", "not of the form pass.key=value"),
        ("regroup.factor", "not of the form pass.key=value"),
        ("grouped-to-depthwise-sum.factor=2", "it has: reduce"),
    ]:
        with pytest.raises(Exception, match=says):
            parse_settings(known, [wrong])
