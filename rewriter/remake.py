"""Make chosen rewrites again on the original, and audit what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace

from rewriter import equivalence
from rewriter.activations import Activations
from rewriter.equivalence import Audit, AuditOptions
from rewriter.equivalence.records import audit_options
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Applied, Step, replay, sweep

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total)."""


def remade(model: Model, applied: Sequence[Applied], options: RunOptions) -> tuple[Model, list[Applied]]:
    """The rewrites made again on the model, in order; those that rest on one that is not among them fall away."""
    again: list[Applied] = []
    for group in _alike(applied):
        rule, settings = group[0].step.rule, group[0].step.settings
        step = Step(rule, settings, frozenset(done.rewrite.site for done in group))
        captured = Activations(model, options.samples, options.runtime) if _measures(step, options) else None
        model, made, _ = sweep(model, step, options.input_shapes, activations=captured)
        known = {done.rewrite.site: done for done in group}
        again += [
            replace(entry, why=known[entry.rewrite.site].why, sure=known[entry.rewrite.site].sure) for entry in made
        ]
    return model, again


def _alike(applied: Iterable[Applied]) -> Iterator[list[Applied]]:
    """Runs of rewrites of one pass with one choice of settings, each site once: they are made in one sweep."""
    group: list[Applied] = []
    for done in applied:
        same = group and (done.step.rule, dict(done.step.settings)) == (
            group[0].step.rule,
            dict(group[0].step.settings),
        )
        if group and not (same and all(done.rewrite.site != other.rewrite.site for other in group)):
            yield group
            group = []
        group = [*group, done]
    if group:
        yield group


def approximates(step: Step) -> bool:
    """Whether what a step makes is an approximation."""
    return "approximate" in step.rule.needed({**step.rule.defaults, **step.settings})


def _measures(step: Step, options: RunOptions) -> bool:
    return bool(options.samples) and approximates(step)


def key(done: Applied) -> Hashable:
    """What stays the same of a rewrite when it is made again."""
    return done.step.rule.name, done.rewrite.site, frozenset(done.step.settings.items())


def made_by(done: Applied) -> set[str]:
    """Tensors that the rewrite's new nodes make."""
    return {name for node in done.rewrite.added for name in node.output}


def audit_rewritten(
    before: Model, after: Model, applied: Sequence[Applied], options: RunOptions, progress: Progress | None = None
) -> Audit:
    """The audit of a model with these rewrites in it, which L2 may make again in parts of the original."""
    return equivalence.audit(before, after, asked(options, applied), rerun=replay(applied), progress=progress)


def asked(options: RunOptions, applied: Sequence[Applied]) -> AuditOptions:
    """The options of the audit: the run's own, and the tensors that need only be approximated."""
    return replace(
        audit_options(options),
        approximated={
            name: done.rewrite.deviation.allowed
            for done in applied
            if done.rewrite.deviation is not None
            for name in made_by(done)
        },
    )
