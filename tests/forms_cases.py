"""Runs the table form × form: one conversion on one random model, and everything that must hold of it.

Used by tests/test_forms.py on a few models and by benchmarks/forms.py on many.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import numpy as np
from onnx import ModelProto

import rewriter
from forms_draws import Case
from forms_known import FORMS
from forms_recognise import Form, recognised
from forms_table import RANK, Conversion, No, Pass, conversions
from funnel import LEVELS, run
from models.emit import Array
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Safety
from twins import feeds

_GRADES = {"bitwise": Safety.EXACT, "exact": Safety.EXACT, "finite": Safety.FINITE, "rounding": Safety.ROUNDING}
_TRIES = 20
_ALLOWED = frozenset({"contrib-ops"})


class Failed(Exception):
    """A conversion does not hold on a model; the message says what and by how much."""


@dataclass(frozen=True)
class Converted:
    """A model that came through: what it became, the safety its passes declared, and the audit's grade."""

    model: ModelProto
    safety: Safety
    grade: Safety
    reason: str


def case_of(source: str, number: int, fits: Iterable[object] = ()) -> Case:
    """The random model of a form with that number; further draws of the same seed until it fits."""
    rng = Random(zlib.crc32(f"{source} {number}".encode()))
    while True:
        case = FORMS[source].draw(rng)
        if all(check(case) for check in fits):  # type: ignore[operator]
            return case


def convert(conversion: Conversion, number: int) -> Converted:
    """One case of a conversion; raises Failed with what does not hold."""
    case = case_of(conversion.source, number, conversion.fits)
    _in_form(case.model, conversion.source, case.head)
    made = audited(case, conversion.passes)
    _in_form(made.model, conversion.target, case.head)
    allowed = max(conversion.safety, Safety.ROUNDING if case.combines else Safety.EXACT, key=RANK.index)
    if RANK.index(made.safety) > RANK.index(allowed):
        raise Failed(f"it is {allowed.name} by the table, and {made.safety.name} by its passes")
    if RANK.index(made.grade) > RANK.index(max(allowed, conversion.graded or allowed, key=RANK.index)):
        raise Failed(f"it is {allowed.name} by the table, and {made.grade.name} by the audit: {made.reason}")
    if allowed is not Safety.ROUNDING:
        same_bits(case, conversion.passes)
    return made


def audited(case: Case, passes: Iterable[Pass]) -> Converted:
    """The model after the passes, each of which must apply, shown equivalent."""
    chain = list(passes)
    options = rewriter.RunOptions(input_shapes=case.shapes, allow=_ALLOWED)
    settings = {step.name: step.settings for step in chain}
    result = rewriter.rewrite(case.model, [step.name for step in chain], options, settings=settings)
    report = result.report
    accepted = [attempt for attempt in report.attempts if attempt.outcome == "accepted"]
    for step in chain:
        if not any(attempt.pass_name == step.name for attempt in accepted):
            reasons = {attempt.reason for attempt in report.attempts if attempt.pass_name == step.name}
            raise Failed(f"{step} made nothing that stayed: {' '.join(sorted(reasons))}")
    if report.verdict != "equivalent" or report.grade is None:
        raise Failed(f"the verdict is {report.verdict}: {report.reason}")
    safety = max((Safety[attempt.details["safety"]] for attempt in accepted), key=RANK.index)
    return Converted(result.model, safety, _GRADES[report.grade], report.reason)


def same_bits(case: Case, passes: Iterable[Pass]) -> None:
    """On integers, before and after agree to the last bit, at every level of ONNX Runtime's optimizer."""
    after = Model.load(case.twin)
    for step in passes:
        after, applied, attempts = sweep(after, Step(pass_named(step.name), step.settings), case.shapes)
        if not applied:
            raise Failed(f"{step} declines with integer weights: {' '.join(attempt.reason for attempt in attempts)}")
    inputs = _telling(case)
    rewritten = after.to_proto()
    for level in LEVELS:
        first, second = run(case.twin, inputs, level), run(rewritten, inputs, level)
        for name, expected in first.items():
            if not np.array_equal(expected, second[name]) or expected.dtype != second[name].dtype:
                raise Failed(f"'{name}' differs on integers at level {level}")


def _telling(case: Case) -> dict[str, Array]:
    """Integer inputs of the twin for which no output is zero all over, as one behind a Relu may be."""
    for seed in range(_TRIES):
        inputs = feeds(case.twin, case.shapes, integers=True, seed=seed)
        if all(value.any() for value in run(case.twin, inputs, "disable").values()):
            return inputs
    raise Failed(f"its outputs are 0 for {_TRIES} integer inputs: that shows nothing")


def back_again(source: str, target: str, number: int) -> None:
    """There and back: the same form, and the same weights bit for bit; raises Failed."""
    chains = conversions()
    there, back = chains[source, target], chains[target, source]
    case = case_of(source, number, there.fits)
    middle = audited(case, there.passes)
    end = audited(Case(middle.model, case.twin, case.shapes), back.passes)
    _in_form(end.model, source)
    if weights(end.model) != weights(case.model):
        raise Failed(f"through {target} the weights do not come back to the last bit")


def weights(model: ModelProto) -> list[bytes]:
    """The weight of every convolution."""
    return sorted(conv.weight.tobytes() for conv in Form(model).convs)


def refuses(source: str, no: No, number: int) -> None:
    """The pass that the sentence is about applies nowhere in a model of the form, and says so; raises Failed."""
    assert no.tried is not None
    case = case_of(source, number)
    step = Step(pass_named(no.tried.name), no.tried.settings)
    _, applied, attempts = sweep(Model.load(case.model), step, case.shapes)
    if applied:
        raise Failed(f"{no.tried} applies: {applied[0].rewrite.summary}")
    if not any(re.search(no.says, attempt.reason) for attempt in attempts):
        raise Failed(f"{no.tried} does not say '{no.says}': {' '.join(attempt.reason for attempt in attempts)}")


def _in_form(model: ModelProto, name: str, head: str = "") -> None:
    reason = recognised(model, FORMS[name].is_one, head)
    if reason:
        raise Failed(f"it is not {name}: {reason}")
