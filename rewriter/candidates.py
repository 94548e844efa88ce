"""Which rewrites there are to measure: what every pass offers at every convolution, and why others offer nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rewriter.base import Pass
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Applied, Step, ask, refusal
from rewriter.rule import Attempt, Declined, Settings


def candidates(
    graph: Graph, rules: Mapping[str, Pass], settings: Mapping[str, Settings]
) -> tuple[dict[str, list[Applied]], list[Attempt]]:
    """Every candidate rewrite by the output of the convolution it starts at, and the sites that were declined."""
    found: dict[str, list[Applied]] = {}
    declined: list[Attempt] = []
    for rule in rules.values():
        fixed = settings.get(rule.name, {})
        for node in rule.sites(graph):
            start = graph.model.nodes[node].output[0]
            try:
                variants = ({},) if fixed else rule.candidates(graph, node)
            except Declined as no:  # not asked with the defaults, which are for whoever measures nothing
                declined.append(refusal(graph, rule, node, no))
                continue
            if not variants:
                declined.append(_idle(rule, start))
            answers = [(variant, ask(graph, rule, node, {**fixed, **variant})) for variant in variants]
            made = [
                Applied(Step(rule, {**fixed, **variant}), answer)
                for variant, answer in answers
                if not isinstance(answer, Attempt)
            ]
            declined += [answer for _, answer in answers if isinstance(answer, Attempt)]
            if made:
                found.setdefault(start, []).extend(made)
    return _whole_forms(found, declined), declined


def fresh(applied: Sequence[Applied], model: Model) -> set[str]:
    """Outputs of the Convs that rewrites put in."""
    added = {name for done in applied for node in done.rewrite.added if node.op_type == "Conv" for name in node.output}
    return added & {name for node in model.nodes for name in node.output}


def onward(variants: Sequence[Applied], applied: Collection[Applied]) -> list[Applied]:
    """Without those that would undo a rewrite just made."""
    made_by = {done.step.rule.name for done in applied}
    taken = {done.step.rule.takes for done in applied} - {""}
    given = {done.step.rule.gives for done in applied} - {""}
    rules = [variant.step.rule for variant in variants]
    undoes = [rule.gives in taken or rule.takes in given or bool(rule.undoes & made_by) for rule in rules]
    return [variant for variant, back in zip(variants, undoes, strict=True) if not back]


def _idle(rule: Pass, start: str) -> Attempt:
    """The pass fits there and has no settings to measure."""
    reason = f"Nothing here is worth measuring for latency: ask for {rule.name} by name to have it anyway."
    return Attempt(rule.name, start, "not_worth_it", reason, matched=1)


def _whole_forms(found: Mapping[str, list[Applied]], declined: list[Attempt]) -> dict[str, list[Applied]]:
    """Where a pass replaces a form of several nodes as a whole, passes for one node of it wait for the result."""
    kept: dict[str, list[Applied]] = {}
    for start, options in found.items():
        whole = [option for option in options if option.step.rule.takes]
        kept[start] = whole or options
        if whole:
            first = whole[0].step.rule
            reason = f"It is one part of a {first.takes} form, which {first.name} replaces as a whole."
            parts = [option for option in options if not option.step.rule.takes]
            declined += [Attempt(part.step.rule.name, start, "not_worth_it", reason, matched=1) for part in parts]
    return kept
