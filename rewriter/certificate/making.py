"""From an audit to its certificate."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import onnxruntime as ort

from rewriter import equivalence
from rewriter.certificate.digests import file_digest, sample_digest
from rewriter.certificate.records import SCHEMA, Certificate, Environment, Request, RuntimeRecord, ToleranceRecord
from rewriter.equivalence.records import Audit, AuditOptions, CrossAudit
from rewriter.exactness import processor
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import Feeds, RunOptions
from rewriter.provenance import tool_version
from rewriter.session import Runtime
from rewriter.wiring import used_names

Progress = Callable[[str, int, int], None]


def certify(
    before: Model,
    after: Model,
    options: RunOptions,
    found: Audit | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """The certificate of these two models: of the audit `found`, or of one made now where that cannot be replayed.

    The audit of a rewrite may apply the pass to other weights (L2); whoever has only the two files cannot do that
    again, and a certificate holds nothing else.
    """
    if found is None or not replayable(found, before, after):
        approximated = {} if found is None else _approximated(found, after)
        samples = _samples(found, before, options)
        asked = _request([options.runtime], options, approximated).audit_options(samples)
        found = equivalence.audit(before, after, asked, progress=progress)
    return certificate_of(found, before, after, options)


def of_the_stamped(found: Audit, after: Model) -> Audit:
    """The audit of a model as that of `after`, which has a stamp besides: entries of metadata, which audits ignore."""
    deployed = None if found.deployed is None else of_the_stamped(found.deployed, after)
    return found.model_copy(update={"after_sha256": after.sha256, "deployed": deployed})


def replayable(audit: Audit, before: Model, after: Model) -> bool:
    """Whether an audit is of exactly these files, and needed nothing but them."""
    levels = [level for region in audit.regions for level in region.levels]
    if audit.deployed is not None and not replayable(audit.deployed, before, after):
        return False
    same = (audit.before_sha256, audit.after_sha256) == (before.sha256, after.sha256)
    return same and not any(level.figures.get("rerun") for level in levels)


def certificate_of(
    audit: Audit | CrossAudit,
    before: Model,
    after: Model | None,
    options: RunOptions,
    runtimes: Sequence[Runtime] = (),
) -> Certificate:
    """The certificate of an audit that was made with these options; `runtimes` are those of a CrossAudit.

    Raises ValueError when the audit is not of these models and options, or not `replayable`, and BadInput when external
    data cannot be read.
    """
    approximated: dict[str, float] = {}
    if isinstance(audit, Audit):
        if after is None or not replayable(audit, before, after):
            raise ValueError("the audit is of other models, or cannot be made again from them: call `certify`")
        approximated = _approximated(audit, after)
    request = _request(runtimes or [options.runtime], options, approximated)
    return recorded(audit, before, after, request, _samples(audit, before, options))


def recorded(
    audit: Audit | CrossAudit, before: Model, after: Model | None, request: Request, samples: Sequence[Feeds]
) -> Certificate:
    """The certificate of an audit that was made as `request` says, on these samples; raises as `certificate_of`."""
    return Certificate(
        schema=SCHEMA,
        verdict=audit.verdict,
        grade=audit.grade if isinstance(audit, Audit) else None,
        before=file_digest(before),
        after=None if after is None else file_digest(after),
        request=request,
        inputs=tuple(sample_digest(sample) for sample in samples),
        environment=environment(),
        audit=_without_paths(audit, before, after),
    )


def environment() -> Environment:
    """The versions and the processor of this machine."""
    return Environment(
        rewriter=tool_version(),
        onnx=version("onnx"),
        onnxruntime=ort.__version__,  # whichever of its packages is installed
        numpy=version("numpy"),
        processor=processor(),
    )


def _request(runtimes: Sequence[Runtime], options: RunOptions, approximated: Mapping[str, float]) -> Request:
    default = AuditOptions()
    return Request(
        runtimes=tuple(RuntimeRecord.of(runtime) for runtime in runtimes),
        seed=options.seed,
        full=options.full,
        input_shapes={name: tuple(shape) for name, shape in options.input_shapes.items()},
        ranges=dict(options.ranges),
        tolerances={
            name: ToleranceRecord(rtol=found.rtol, atol=found.atol) for name, found in options.tolerances.items()
        },
        approximated=dict(approximated),
        draws=default.draws,
        perturbed_regions=default.perturbed_regions,
    )


def _samples(audit: Audit | CrossAudit | None, before: Model, options: RunOptions) -> Sequence[Feeds]:
    """The inputs given; where a rewrite that approximates was given none, those that its error was measured on."""
    audits = () if audit is None else audit.audits if isinstance(audit, CrossAudit) else (audit,)
    if options.samples or not any(region.allowed_error is not None for found in audits for region in found.regions):
        return options.samples
    return (representative(before, options).feeds,)


def _approximated(audit: Audit, after: Model) -> dict[str, float]:
    """What is computed inside the regions that only had to approximate, with the error allowed."""
    found: dict[str, float] = {}
    for region in audit.regions:
        if region.allowed_error is None:
            continue
        known, wanted = set(region.inputs), set(region.outputs)
        behind = [node for node in after.nodes if _spreads(known, used_names([node]), node.output)]
        inside = [node for node in reversed(behind) if _spreads(wanted, set(node.output), used_names([node]))]
        made = {name for node in inside for name in node.output if name}
        found |= dict.fromkeys(sorted(made), region.allowed_error)
    return found


def _spreads(known: set[str], near: Collection[str], far: Collection[str]) -> bool:
    """Whether any of the names near is known: those far are then known, too."""
    if known.isdisjoint(near):
        return False
    known.update(name for name in far if name)
    return True


def _without_paths(audit: Audit | CrossAudit, before: Model, after: Model | None) -> Audit | CrossAudit:
    """With names of the two files in place of their paths, which messages of ONNX Runtime may hold."""
    called = [(before, "the original"), *([] if after is None else [(after, "the rewritten model")])]
    names: dict[str, str] = {}
    for model, name in called:
        if model.path is not None:
            for path in (model.path, model.path.absolute(), model.path.resolve()):
                names.setdefault(str(path), name)
        if model.folder is not None:
            for folder in (model.folder, model.folder.resolve()):
                names.setdefault(f"{folder}/", "")
    if not names:
        return audit
    # A bare name such as `x` may stand for anything; one with a folder or a suffix may not.
    longest = sorted((text for text in names if "/" in text or "." in text), key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<![\w./-]){re.escape(text)}" for text in longest))
    plain = _replaced(audit.to_dict(), lambda text: pattern.sub(lambda found: names[found.group()], text))
    return type(audit).model_validate(plain)


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _replaced(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, change) for entry in value]
    return value
