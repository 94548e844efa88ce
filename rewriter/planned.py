"""Rewrites that were chosen for this very model before: made again from the record, with no search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rewriter.base import Pass
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Applied, Step, check_allowed, sweep
from rewriter.tuning import PlanEntry, PlanStep


def from_plan(
    model: Model, plan: PlanEntry, rules: Mapping[str, Pass], options: RunOptions
) -> tuple[Model, list[Applied]] | None:
    """The model with the plan's rewrites, and these in order; None where one of them is not made any more."""
    applied: list[Applied] = []
    for steps in _alike(plan):
        rule = rules.get(steps[0].pass_name)
        if rule is None:
            return None
        known = {step.site: step for step in steps}
        step = Step(rule, dict(steps[0].settings), frozenset(known))
        try:
            check_allowed([step], options.allow)
            rule.check({**rule.defaults, **step.settings})
        except (BadInput, ValueError, TypeError):  # a record from elsewhere may hold anything
            return None
        model, made, _ = sweep(model, step, options.input_shapes, options.runtime.provider)
        if {done.rewrite.site for done in made} != known.keys():
            return None
        applied += [
            replace(done, why=known[done.rewrite.site].why, sure=known[done.rewrite.site].sure) for done in made
        ]
    return model, applied


def _alike(plan: PlanEntry) -> Iterator[list[PlanStep]]:
    """Steps in a row of one pass with the same settings: one sweep makes them."""
    group: list[PlanStep] = []
    for step in plan.steps:
        same = group and (step.pass_name, step.settings) == (group[0].pass_name, group[0].settings)
        if group and not (same and all(step.site != other.site for other in group)):  # as in `remake`
            yield group
            group = []
        group.append(step)
    yield group
