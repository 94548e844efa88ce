"""One model on two execution providers: does the second compute what the first does?

The file is the same, so nothing has to be proven about its graph; what is checked is how it is executed.  Every
distinct product with constant weights (Conv, FusedConv, MatMul, Gemm) is run by itself on both, on small integers, bit
for bit, and on activations captured inside the model, against the bound on rounding; the whole model is run on every
recipe of inputs, against the first provider's own error.  Where its outputs respond to nothing inside, all tensors are
compared instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from rewriter.bindings import Binding, find_bindings
from rewriter.constants import Array
from rewriter.equivalence.blind import measure_blindness
from rewriter.equivalence.cut import Runner, cut
from rewriter.equivalence.divergence import disagreement, divergence
from rewriter.equivalence.exact import LARGE, Exchange, compare_exactly
from rewriter.equivalence.fused import is_conv, is_default
from rewriter.equivalence.inputs import trials
from rewriter.equivalence.ladder import audit
from rewriter.equivalence.numeric import compare_on_activations
from rewriter.equivalence.parts import (
    Progress,
    captures,
    deployed_too,
    elements,
    entering,
    problem_of,
    silent,
    single_precision,
)
from rewriter.equivalence.precision import significand_bits
from rewriter.equivalence.records import (
    Audit,
    AuditOptions,
    CrossAudit,
    Grade,
    Level,
    LevelResult,
    RegionAudit,
    Verdict,
    passed,
)
from rewriter.equivalence.regions import Diff, Region, Side
from rewriter.equivalence.rounding import coarsest, rounding_of
from rewriter.equivalence.tolerances import data_notes
from rewriter.equivalence.verdict import region_verdict, weakest
from rewriter.equivalence.whole import Run, Whole, open_model
from rewriter.model import Model
from rewriter.session import Runtime, SessionFailed, require_provider, run

_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_DRAWS: Final = 4
"""A kernel is wrong on most integers or on none; what is looked for in a rewrite hides better, and gets more draws."""
_SLACK: Final = 8.0
_FEW_SAMPLES: Final = 4
"""Of the user's inputs, up to which the first provider's outputs on all of them are kept in memory."""
_PERTURBED: Final = 4
"""Products of which each is perturbed by itself, to see whether the outputs respond."""


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
    count = len(pairs) + len(crossings)
    agreed = "The audit agrees." if count == 1 else f"All {count} audits agree."
    reason = agreed if verdict == "equivalent" else f"On {where}: {weak.reason}"
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
        require_provider(runtime)
    with np.errstate(all="ignore"):  # infinity and NaN in weights are compared like any other value
        full = _crossed(model, first.for_audit(), second.for_audit(), options, tell)
        if not second.tf32 or full.verdict != "equivalent" or not single_precision(model):
            return full
        return deployed_too(full, _crossed(model, first.for_audit(), second.plain(), options, tell))


def _crossed(model: Model, first: Runtime, second: Runtime, options: AuditOptions, tell: Progress) -> Audit:
    asked = replace(options, runtime=first, draws=min(options.draws, _DRAWS))
    bindings = find_bindings(model, asked.input_shapes, (1, 3), vary_given=True)
    diffs = [Diff(model, model, (found.bound, found.bound)) for found in bindings]
    diff = diffs[0]
    regions = [_region(diff.before, index) for index in distinct_products(diff.before)]
    whole = Whole(model, model, first, captures(model, diff.before, regions), elsewhere=second)
    whole.tolerances = asked.tolerances
    whole.full = asked.full
    tell("runs of the original", 0, 1)
    large = any(elements(part, diff) > LARGE for part in regions)
    whole.run_original(trials(model, bindings, asked), defer=large or len(asked.samples) > _FEW_SAMPLES)
    refused = _refusal(model, second, whole.runs)
    if refused:
        return _not_run(model, (first, second), asked, whole, refused)
    ran = {run.binding for run in whole.runs}
    diffs = [found for index, found in enumerate(diffs) if index in ran or not index]
    records: list[RegionAudit] = []
    unit = 0.0
    for number, region in enumerate(regions):
        tell("operators", number, len(regions))
        record, rough = _operator(region, diffs, whole.runs, (first, second), asked)
        records.append(record)
        unit = max(unit, rough)
    tell("whole model", 0, 1)
    proven = all(record.verdict == "equivalent" for record in records) and _rounds(diff.before)
    products = max(map(_products, records), default=0)
    level, outputs = whole.compare(unit, products, proven=proven, tell=tell)
    tell("whole model", 1, 1)
    problem = problem_of(whole.witnesses)
    failed = level.outcome == "fail" and whole.runs
    where = divergence(diff.before, (first, second), whole.runs[0].feeds) if failed else ""
    hidden = ""
    if level.outcome == "pass" and _is_blind(diff.before, bindings[0], regions, whole.runs, first):
        unlike = disagreement(diff.before, (first, second), whole.runs[0].feeds, unit, products)
        what = "they cannot be compared inside" if unlike is None else unlike
        hidden = f"The outputs agree, but hardly respond to anything in the model, and {what}." if what else ""
    verdict, grade, reason = crossing_verdict(records, level, (first, second), problem, hidden)
    bare = _not_run(model, (first, second), asked, whole, reason)
    found = {"verdict": verdict, "grade": grade, "regions": tuple(records), "levels": (level,), "outputs": outputs}
    return bare.model_copy(update={**found, "notes": (*((where,) if where else ()), *data_notes(asked))})


def _refusal(model: Model, second: Runtime, runs: Sequence[Run]) -> str:
    """Why the model does not run on the second provider, which then says nothing about what it computes."""
    if not runs:
        return ""
    try:
        run(open_model(model, second), runs[0].feeds)
    except SessionFailed as error:
        return f"The model does not run on {second.provider}: {str(error).rstrip('. ')}."
    return ""


def _not_run(
    model: Model, runtimes: tuple[Runtime, Runtime], options: AuditOptions, whole: Whole, reason: str
) -> Audit:
    """The record of a crossing in which nothing was compared."""
    first, second = runtimes
    return Audit(
        verdict="not_verified",
        grade=None,
        reason=reason,
        regions=(),
        levels=(),
        outputs=(),
        witnesses=tuple(whole.witnesses),
        notes=(),
        before_sha256=model.sha256,
        after_sha256=model.sha256,
        provider=second.provider,
        threads=second.threads,
        level=second.level,
        seed=options.seed,
        provider_options=dict(second.provider_options),
        precision="tf32" if second.tf32 else "full",
        reference=first.provider,
    )


def distinct_products(side: Side) -> list[int]:
    """Nodes that multiply a run-time tensor by constant weights, one of each kind: operator, attributes, all shapes."""
    found: dict[bytes, int] = {}
    for index in sorted(side.runtime):
        node = side.model.nodes[index]
        default = is_default(node, side.functions) and node.op_type in _PRODUCTS
        if not (default or is_conv(node, side.functions)) or not node.output[0]:
            continue
        x, w, *rest = node.input
        residual = rest[1:]  # FusedConv's; all others are constants
        entering = [name for name in (x, *residual) if name and not side.constant(name)]
        if side.constant(x) or not side.constant(w) or not all(side.constant(name) for name in rest[:1] if name):
            continue
        if any(side.bound.shape(name) is None or name not in side.bound.types for name in entering):
            continue
        shapes = [(bool(name), side.bound.shape(name), name == x) for name in node.input]
        key = hashlib.sha256(repr((node.domain, node.op_type, shapes)).encode())
        key.update(bytes([side.bound.types[x].tensor_type.elem_type]))
        for entry in sorted(node.attribute, key=lambda attribute: attribute.name):
            key.update(entry.SerializeToString(deterministic=True))
        found.setdefault(key.digest(), index)
    return list(found.values())


def _region(side: Side, index: int) -> Region:
    node = side.model.nodes[index]
    entering = tuple(dict.fromkeys(name for name in node.input if name and not side.constant(name)))
    return Region((index,), (index,), entering, (node.output[0],))


def _rounds(side: Side) -> bool:
    """Whether anything in the model is floating point, so that outputs that are whole numbers may flip near ties."""
    types = side.bound.types
    made = [name for index in side.runtime for name in side.model.nodes[index].output if name in types]
    return any(significand_bits(types[name].tensor_type.elem_type) for name in made)


def _is_blind(side: Side, binding: Binding, regions: Sequence[Region], runs: Sequence[Run], runtime: Runtime) -> bool:
    """Whether no output responds to any of some products, or, without any, to any operator at all."""
    first = next((run for run in runs if run.binding == 0), None)
    nodes = regions or [_region(side, index) for index in sorted(side.runtime) if side.model.nodes[index].output[0]]
    if first is None or not nodes:
        return False
    step = max(1, len(regions) // _PERTURBED)
    chosen = range(0, len(regions), step)
    found = measure_blindness(side.model, binding.bound, nodes, first, chosen, runtime)
    seen = [hidden for hidden in found if hidden is not None]
    return bool(seen) and all(seen)


def _operator(
    region: Region, diffs: Sequence[Diff], runs: Sequence[Run], runtimes: tuple[Runtime, Runtime], options: AuditOptions
) -> tuple[RegionAudit, float]:
    """One operator by itself on both providers, and the unit roundoff that the coarser of them works in."""
    side = diffs[0].before
    types = {name: side.bound.types[name] for name in region.inputs}
    shapes = [{name: diff.before.bound.shape(name) for name in region.inputs} for diff in diffs]
    known = [{name: shape for name, shape in found.items() if shape is not None} for found in shapes]
    known = [found for found in known if len(found) == len(types)]
    part = cut(side, region.before, region, types, known)
    before, after = (Runner(part, runtime) for runtime in runtimes)
    sizes = tuple(elements(region, diff) for diff in diffs[: len(known)])
    nothing: list[dict[str, Array]] = [{} for _ in known]
    exchange = Exchange(before, after, types, known, nothing, runtimes[1], options.seed, options.draws, elements=sizes)
    same = passed("L1", "It is the same operator with the same weights.")
    exact = compare_exactly(exchange, moved=True)
    found = [entering(region, side, run) for run in runs if run.binding == 0]
    bounded = compare_on_activations(exchange, [feeds for feeds in found if len(feeds) == len(types)][:2], 0)
    levels = (same, exact, bounded)
    verdict, reason = region_verdict({level.level: level.outcome for level in levels}, None, None)
    if verdict == "equivalent" and exact.outcome != "pass" and not bounded.figures["certified"]:
        verdict, reason = "approximate", "As accurate as the first provider on real data (L3), but without a bound."
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
    hidden: str = "",
) -> tuple[Verdict, Grade | None, str]:
    """The verdict on one model on two providers.

    `problem` says why it ran on nothing on the first, `hidden` why outputs that agree show nothing.
    """
    first, second = (runtime.provider for runtime in runtimes)
    wrong = [record for record in operators if record.verdict == "different"]
    if wrong:
        subject = "1 operator computes" if len(wrong) == 1 else f"{len(wrong)} operators compute"
        first_wrong = f"first '{wrong[0].outputs[0]}': {wrong[0].reason}"
        return "different", None, f"{subject} something else on {second}, {first_wrong}"
    if problem:
        return "not_verified", None, f"ONNX Runtime could not run the model on {first}: {problem.rstrip('. ')}."
    if whole.outcome == "fail":
        ratio = whole.figures.get("worst")
        agreed = bool(operators) and all(record.verdict == "equivalent" for record in operators)
        if agreed and isinstance(ratio, float) and ratio <= _SLACK:
            reason = f"Every operator agrees, but the network amplifies rounding: {whole.detail}"
            return "approximate", None, reason
        return "different", None, whole.detail
    if whole.outcome != "pass":
        return "not_verified", None, f"No output of the whole model could be compared ({whole.detail})"
    if hidden:
        return "not_verified", None, hidden
    kinds = f"of {len(operators)} kinds of products"
    unsure = sum(record.verdict == "not_verified" for record in operators)
    if unsure:
        return "not_verified", None, f"{unsure} {kinds} could not be compared by themselves."
    loose = sum(record.verdict == "approximate" for record in operators)
    if loose:
        return "approximate", None, f"Every run agrees, but {loose} {kinds} have no bound to hold them to."
    exact, bounded = (_passed(operators, level) for level in ("L2", "L3"))
    reason = (
        f"On {second} the outputs are as accurate as on {first}; {kinds} {exact} are exact on integers, and {bounded} "
        "lie within the bound on rounding."
    )
    return "equivalent", "rounding", reason


def _passed(operators: Sequence[RegionAudit], name: Level) -> int:
    """How many passed a level; of L3, with a certified bound."""
    levels = [found for record in operators if (found := record.level(name)) and found.outcome == "pass"]
    return sum(found.figures.get("certified", True) is True for found in levels)
