"""One model on two execution providers: does the second compute what the first does?

The file is the same, so nothing has to be proven about its graph; what is checked is how it is executed.  Every
distinct product with constant weights (Conv, MatMul, Gemm) is run by itself on both, on small integers, bit for bit,
and on activations captured inside the model, against the bound on rounding; the whole model is run on every recipe of
inputs, against the first provider's own error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from rewriter.bindings import find_bindings
from rewriter.equivalence.cut import Runner, cut
from rewriter.equivalence.divergence import divergence
from rewriter.equivalence.exact import LARGE, Exchange, compare_exactly
from rewriter.equivalence.inputs import trials
from rewriter.equivalence.ladder import audit
from rewriter.equivalence.numeric import compare_on_activations
from rewriter.equivalence.parts import Progress, captures, deployed_too, elements, entering, problem_of, silent
from rewriter.equivalence.records import (
    Audit,
    AuditOptions,
    CrossAudit,
    Grade,
    LevelResult,
    RegionAudit,
    Verdict,
    passed,
)
from rewriter.equivalence.regions import Diff, Region, Side
from rewriter.equivalence.rounding import coarsest, rounding_of
from rewriter.equivalence.verdict import region_verdict, weakest
from rewriter.equivalence.whole import Run, Whole
from rewriter.model import Model
from rewriter.session import Runtime, require_provider

_PRODUCTS: Final = frozenset({"Conv", "MatMul", "Gemm"})
_DRAWS: Final = 4
"""A kernel is wrong on most integers or on none; what is looked for in a rewrite hides better, and gets more draws."""
_SLACK: Final = 8.0


def cross_audit(
    models: Sequence[Model], runtimes: Sequence[Runtime], options: AuditOptions, *, progress: Progress | None = None
) -> CrossAudit:
    """One or two models on two or more providers, the first the reference; raises as `cross`."""
    pairs = [
        audit(models[0], after, replace(options, runtime=on), progress=progress)
        for after in models[1:]
        for on in runtimes
    ]
    first, *others = runtimes
    crossings = [cross(model, first, other, options, progress=progress) for model in models for other in others]
    verdict = weakest(found.verdict for found in (*pairs, *crossings))
    weak = next(found for found in (*pairs, *crossings) if found.verdict == verdict)
    where = f"{weak.provider} against {weak.reference}" if weak.reference else weak.provider
    reason = f"{len(pairs) + len(crossings)} audits agree." if verdict == "equivalent" else f"On {where}: {weak.reason}"
    return CrossAudit(verdict=verdict, reason=reason, pairs=tuple(pairs), crossings=tuple(crossings))


def cross(
    model: Model, first: Runtime, second: Runtime, options: AuditOptions, *, progress: Progress | None = None
) -> Audit:
    """Whether `model` computes on `second` what it computes on `first`; `options.runtime` is not used.

    In full precision, and where `second` computes in TF32 as deployed, once more so.  Raises NotVerified when a
    provider is missing, BadInput when an input shape given does not fit.
    """
    tell = progress or silent
    for runtime in (first, second):
        require_provider(runtime.provider)
    with np.errstate(all="ignore"):  # infinity and NaN in weights are compared like any other value
        full = _crossed(model, first.for_audit(), second.for_audit(), options, tell)
        if not second.tf32 or full.verdict != "equivalent":
            return full
        return deployed_too(full, _crossed(model, first.for_audit(), second.plain(), options, tell))


def _crossed(model: Model, first: Runtime, second: Runtime, options: AuditOptions, tell: Progress) -> Audit:
    asked = replace(options, runtime=first, draws=min(options.draws, _DRAWS))
    bindings = find_bindings(model, asked.input_shapes, (1, 3), vary_given=True)
    diff = Diff(model, model, (bindings[0].bound, bindings[0].bound))
    nodes = distinct_products(diff.before)
    regions = [_region(diff.before, index) for index in nodes]
    whole = Whole(model, model, first, captures(model, diff.before, regions), elsewhere=second)
    tell("runs of the original", 0, 1)
    whole.run_original(trials(model, bindings, asked), defer=any(elements(part, diff) > LARGE for part in regions))
    records: list[RegionAudit] = []
    unit = 0.0
    for number, region in enumerate(regions):
        tell("operators", number, len(regions))
        record, rough = _operator(region, diff, whole.runs, (first, second), asked)
        records.append(record)
        unit = max(unit, rough)
    tell("whole model", 0, 1)
    proven = all(record.verdict == "equivalent" for record in records)
    level, outputs = whole.compare(unit, max(map(_products, records), default=0), proven=proven)
    tell("whole model", 1, 1)
    problem = problem_of(whole.witnesses)
    failed = level.outcome == "fail" and whole.runs
    where = divergence(diff.before, (first, second), whole.runs[0].feeds) if failed else ""
    verdict, grade, reason = crossing_verdict(records, level, (first, second), problem)
    return Audit(
        verdict=verdict,
        grade=grade,
        reason=reason,
        regions=tuple(records),
        levels=(level,),
        outputs=outputs,
        witnesses=tuple(whole.witnesses),
        notes=(where,) if where else (),
        before_sha256=model.sha256,
        after_sha256=model.sha256,
        provider=second.provider,
        threads=second.threads,
        level=second.level,
        seed=asked.seed,
        provider_options=dict(second.provider_options),
        precision="tf32" if second.tf32 else "full",
        reference=first.provider,
    )


def distinct_products(side: Side) -> list[int]:
    """Nodes that multiply a run-time tensor by constant weights, one of each kind: operator, attributes, all shapes."""
    found: dict[bytes, int] = {}
    for index in sorted(side.runtime):
        node = side.model.nodes[index]
        if node.domain not in ("", "ai.onnx") or node.op_type not in _PRODUCTS:
            continue
        x, w, *rest = node.input
        types = side.bound.types
        if side.constant(x) or not side.constant(w) or not all(side.constant(name) for name in rest if name):
            continue
        if side.bound.shape(x) is None or x not in types or not node.output[0]:
            continue
        key = hashlib.sha256(repr((node.op_type, side.bound.shape(x), side.bound.shape(w), len(rest))).encode())
        key.update(bytes([types[x].tensor_type.elem_type]))
        for entry in sorted(node.attribute, key=lambda attribute: attribute.name):
            key.update(entry.SerializeToString(deterministic=True))
        found.setdefault(key.digest(), index)
    return list(found.values())


def _region(side: Side, index: int) -> Region:
    node = side.model.nodes[index]
    return Region((index,), (index,), (node.input[0],), (node.output[0],))


def _operator(
    region: Region, diff: Diff, runs: Sequence[Run], runtimes: tuple[Runtime, Runtime], options: AuditOptions
) -> tuple[RegionAudit, float]:
    """One operator by itself on both providers, and the unit roundoff that the coarser of them works in."""
    side = diff.before
    types = {name: side.bound.types[name] for name in region.inputs}
    shapes = [{name: side.bound.shape(name) or () for name in region.inputs}]
    part = cut(side, region.before, region, types, shapes)
    before, after = (Runner(part, runtime) for runtime in runtimes)
    count = elements(region, diff)
    exchange = Exchange(before, after, types, shapes, [{}], runtimes[1], options.seed, options.draws, elements=(count,))
    same = passed("L1", "It is the same operator with the same weights.")
    exact = compare_exactly(exchange, moved=True)
    captured = [feeds for run in runs if run.binding == 0 and (feeds := entering(region, side, run))][:2]
    bounded = compare_on_activations(exchange, captured, 0)
    levels = (same, exact, bounded)
    verdict, reason = region_verdict({level.level: level.outcome for level in levels}, None, None)
    refuted = next((level for level in levels if level.outcome == "fail"), None)
    kind = {side.model.nodes[region.before[0]].op_type: 1}
    record = RegionAudit(
        inputs=region.inputs,
        outputs=region.outputs,
        before=kind,
        after=kind,
        verdict=verdict,
        grade="rounding" if verdict == "equivalent" else None,
        levels=levels,
        blind=None,
        reason=refuted.detail if refuted else reason,
    )
    return record, coarsest(rounding_of(part, runtime) for runtime in runtimes).unit


def _products(record: RegionAudit) -> int:
    """Roundings behind one element of the operator, as its L3 counted them for both sides."""
    found = record.level("L3")
    stages = found.figures.get("stages") if found else None
    return int(stages) // 2 if isinstance(stages, (int, float)) else 0


def crossing_verdict(
    operators: Sequence[RegionAudit],
    whole: LevelResult,
    runtimes: tuple[Runtime, Runtime],
    problem: str,
) -> tuple[Verdict, Grade | None, str]:
    """The verdict on one model on two providers; `problem` says why it ran on nothing on the first."""
    first, second = (runtime.provider for runtime in runtimes)
    wrong = [record for record in operators if record.verdict == "different"]
    if wrong:
        name = f"'{wrong[0].outputs[0]}'"
        return (
            "different",
            None,
            f"{len(wrong)} operators compute something else on {second}, first {name}: {wrong[0].reason}",
        )
    if problem:
        return "not_verified", None, f"ONNX Runtime could not run the model on {first}: {problem.rstrip('. ')}."
    if whole.outcome == "fail":
        ratio = whole.figures.get("worst")
        mild = (
            isinstance(ratio, float)
            and ratio <= _SLACK
            and operators
            and all(record.verdict == "equivalent" for record in operators)
        )
        if mild:
            reason = f"Every operator agrees, but the network amplifies rounding: {whole.detail}"
            return "approximate", None, reason
        return "different", None, whole.detail
    if whole.outcome != "pass":
        return "not_verified", None, f"No output of the whole model could be compared ({whole.detail})"
    unsure = sum(record.verdict != "equivalent" for record in operators)
    if unsure:
        return (
            "not_verified",
            None,
            f"{unsure} of {len(operators)} kinds of products could not be compared by themselves.",
        )
    exact = sum(found.outcome == "pass" for record in operators if (found := record.level("L2")))
    reason = (
        f"On {second} the outputs are as accurate as on {first}; of {len(operators)} kinds of products {exact} are "
        "exact on integers, and all lie within the bound on rounding."
    )
    return "equivalent", "rounding", reason
