"""Propose rewrites: ask a pass at every site, and apply the proposals that do not get in each other's way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from rewriter.activations import Activations
from rewriter.base import Pass
from rewriter.delimit import closure
from rewriter.errors import BadInput
from rewriter.graph import Graph
from rewriter.model import Edit, Model
from rewriter.options import PERMITS
from rewriter.providers import Provider
from rewriter.rule import Attempt, Declined, Rewrite, Setting, Settings
from rewriter.wiring import subgraphs

_CONVS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Step:
    """One pass with its settings, at all sites or at those named."""

    rule: Pass
    settings: Settings = field(default_factory=dict)
    sites: frozenset[str] | None = None


def label(step: Step) -> str:
    """The pass and what of its settings is no number: `align-concat (pieces)`."""
    ways = [str(value) for value in step.settings.values() if isinstance(value, str)]
    return f"{step.rule.name} ({', '.join(ways)})" if ways else step.rule.name


@dataclass(frozen=True)
class Applied:
    """A rewrite that is in the model: which step made it, and the record of it."""

    step: Step
    rewrite: Rewrite
    why: str = ""
    """The measurement that chose it; empty where it was asked for."""
    sure: bool = True
    """False where the measurement in context did not clear the noise, so that only the whole model can decide."""
    parts: tuple[Applied, ...] = ()
    """Of a candidate that is several rewrites at once: these, none of which was faster by itself."""


def ask(graph: Graph, rule: Pass, node: int, settings: Settings) -> Rewrite | Attempt:
    """The pass's rewrite at a node, or the attempt that says why not."""
    try:
        return rule.propose(graph, node, settings)
    except Declined as no:
        return refusal(graph, rule, node, no)


def refusal(graph: Graph, rule: Pass, node: int, no: Declined) -> Attempt:
    """The attempt that says why the pass has nothing to do with a node."""
    site = graph.model.nodes[node].output[0]
    return Attempt(rule.name, site, "declined", _sentence(no.reason), no.where, no.matched)


def check_allowed(steps: Iterable[Step], allow: Collection[str]) -> None:
    """Raise BadInput for the first pass that lacks what it needs: whoever names it wants it."""
    for step in steps:
        rule = step.rule
        for name in sorted(rule.needed({**rule.defaults, **step.settings}) - set(allow)):
            raise BadInput(
                f"the pass {rule.name} needs --allow {name} (from Python: RunOptions(allow=frozenset({{'{name}'}}))), "
                f"because {PERMITS[name]}."
            )


def forbidden(graph: Graph, rule: Pass, allow: Collection[str]) -> list[Attempt]:
    """What the pass says at every site while it lacks what it needs; empty when it is all allowed."""
    missing = sorted(rule.needs - set(allow))
    if not missing:
        return []
    options = " ".join(f"--allow {name}" for name in missing)
    no = Declined(f"{PERMITS[missing[0]]}: it is made only with {options}")
    return [refusal(graph, rule, node, no) for node in rule.sites(graph)]


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:] + ("" if reason.endswith((".", "!", "?")) else ".")


def sweep(
    model: Model,
    step: Step,
    given: Mapping[str, tuple[int, ...]],
    provider: Provider = "cpu",
    activations: Activations | None = None,
) -> tuple[Model, list[Applied], list[Attempt]]:
    """Apply one step wherever it matches; the same on every `provider`, which only words the reasons not to.

    Proposals whose regions overlap are made again on the result of the first; a site is asked until it is settled.
    """
    applied: list[Applied] = []
    attempts: list[Attempt] = []
    waiting: set[str] | None = None
    while True:
        graph = Graph(model, given, provider, activations)
        chosen: list[Rewrite] = []
        late: set[str] = set()
        for node in step.rule.sites(graph):
            start = model.nodes[node].output[0]
            if waiting is not None and start not in waiting:
                continue
            answer = ask(graph, step.rule, node, step.settings)
            if isinstance(answer, Attempt):
                attempts.append(answer)
            elif step.sites is not None and answer.site not in step.sites:
                continue
            elif any(overlap(answer, other) for other in chosen):
                late.add(start)
            else:
                chosen.append(answer)
        model = model.splice(combine(model, chosen))
        applied += [Applied(step, made) for made in chosen]
        if not late or not chosen:
            return model, applied, attempts
        waiting = late


def overlap(one: Rewrite, other: Rewrite) -> bool:
    """Whether two rewrites of one model cannot be applied together: common nodes, or a new name in both."""
    return bool(one.removed & other.removed) or bool(_new_names(one) & _new_names(other))


def _new_names(rewrite: Rewrite) -> set[str]:
    return {name for node in rewrite.added for name in node.output} | {tensor.name for tensor in rewrite.initializers}


def combine(model: Model, rewrites: Sequence[Rewrite]) -> Edit:
    """One edit for rewrites of one model that do not overlap, and for what they leave unread only together.

    Two convolutions may share a Constant node or shape arithmetic: neither rewrite may remove it, both of them must.
    """
    edit = merge(rewrites)
    needed = {name for nodes in edit.inserted.values() for node in nodes for name in node.input}
    return replace(edit, removed=closure(model, edit.removed, needed))


def merge(rewrites: Sequence[Rewrite]) -> Edit:
    """One edit for rewrites that do not overlap."""
    inserted: dict[int, tuple[onnx.NodeProto, ...]] = {}
    for made in rewrites:
        for place, nodes in made.inserted.items():
            inserted[place] = inserted.get(place, ()) + nodes
    removed = frozenset().union(*(made.removed for made in rewrites))
    tensors = tuple(tensor for made in rewrites for tensor in made.initializers)
    imports = tuple(dict.fromkeys(entry for made in rewrites for entry in made.imports))
    return Edit(removed, inserted, tensors, imports)


def replay(applied: Sequence[Applied]) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """A function that makes the same rewrites in a model cut out around some of them, whatever its weights."""

    def again(part: onnx.ModelProto) -> onnx.ModelProto:
        model = Model.load(part)
        for done in applied:
            names = {name for node in model.nodes for name in node.output}
            if done.rewrite.site in names:
                step = Step(done.step.rule, done.step.settings, frozenset([done.rewrite.site]))
                model, _, _ = sweep(model, step, {})
        return model.to_proto()

    return again


def unreachable_sites(model: Model) -> list[Attempt]:
    """Convolutions that no pass is asked about, each with the reason: those in subgraphs and model-local functions."""
    found = [
        Attempt(
            "", node.name, "declined", f"This {node.op_type} has no output: it computes nothing, the model is invalid."
        )
        for node in model.nodes
        if node.op_type in _CONVS and not node.output
    ]
    found += [
        Attempt("", name, "declined", f"It is inside the subgraph of {owner}; only the main graph is rewritten.")
        for node in model.nodes
        for owner, name in _inner_convs(node)
    ]
    for function in model.skeleton.functions:
        found += [
            Attempt(
                "",
                node.output[0],
                "declined",
                f"It is inside the function {function.name}; only the main graph is rewritten.",
            )
            for node in function.node
            if node.op_type in _CONVS and node.output
        ]
    return found


def _inner_convs(node: onnx.NodeProto) -> list[tuple[str, str]]:
    found = []
    for graph in subgraphs(node):
        for inner in graph.node:
            if inner.op_type in _CONVS and inner.output:
                found.append((f"{node.op_type} '{node.output[0]}'", inner.output[0]))
            found += _inner_convs(inner)
    return found


def parse_settings(known: Mapping[str, Pass], assignments: Sequence[str]) -> dict[str, Settings]:
    """`pass.key=value` texts as settings by pass name; raises BadInput naming what is wrong with one."""
    chosen: dict[str, dict[str, int | str | bool | float]] = {}
    for text in assignments:
        target, equals, value = text.partition("=")
        name, dot, key = target.rpartition(".")
        if not equals or not dot:
            raise BadInput(f"--set {text} is not of the form pass.key=value.")
        if name not in known:
            raise BadInput(f"--set {text}: there is no pass '{name}'; there are: {', '.join(known)}.")
        defaults = known[name].defaults
        if key not in defaults:
            keys = ", ".join(defaults) or "none"
            raise BadInput(f"--set {text}: pass '{name}' has no setting '{key}'; it has: {keys}.")
        if key in chosen.get(name, {}):
            raise BadInput(f"--set {text}: {target} is set twice.")
        chosen.setdefault(name, {})[key] = _setting(text, value, type(defaults[key]))
    return dict(chosen)


def _setting(text: str, value: str, kind: type[Setting]) -> Setting:
    """A value of the type that the default has; whole numbers are sizes and counts, and never negative."""
    if kind is str:
        return value
    if kind is bool:
        if value not in ("true", "false"):
            raise BadInput(f"--set {text}: '{value}' is neither true nor false.")
        return value == "true"
    try:
        number = kind(value)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise BadInput(f"--set {text}: '{value}' is no {what}.") from None
    if kind is int and int(number) < 0:
        raise BadInput(f"--set {text}: {value} is negative; it must be 0 or more.")
    return number
