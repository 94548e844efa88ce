"""The result of `optimize` and `rewrite`: a model, its report, and what can be done with both."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx

from rewriter import certificate, saving
from rewriter.certificate import Certificate
from rewriter.engine import Outcome, Progress, Refused, quiet
from rewriter.errors import Different, NotVerified
from rewriter.model import Model
from rewriter.objective import Objective
from rewriter.options import RunOptions
from rewriter.provenance import stamp
from rewriter.report.record import (
    Report,
    attempt_record,
    environment,
    file_record,
    kernel_records,
    timing_record,
    variant_records,
)
from rewriter.repro import Repro, write_repro


@dataclass(frozen=True)
class Result:
    """A rewritten model, the report on it, and what it was made from."""

    rewritten: Model
    report: Report
    source: Model
    options: RunOptions = RunOptions()  # noqa: RUF009 - frozen
    refused: Refused | None = None
    """What did not pass, if something did not: with all rewrites in it, some of which may be kept."""

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The result as a ModelProto of its own; external tensors stay references to their files."""
        return self.rewritten.to_proto()

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return self.report.changed

    @cached_property
    def certificate(self) -> Certificate:
        """The certificate of the model against its source; see `certify`."""
        return self.certify()

    def certify(self, progress: Progress = quiet) -> Certificate:
        """A certificate that whoever has the two files can replay, with an audit of exactly these files.

        One is made for it where the report's cannot be made again from the files.  Raises as `save`.
        """
        self._check_accepted("there is no certificate")
        return certificate.certify(self.source, self.rewritten, self.options, self.report.audit, progress)

    def reproduce(self, folder: str | Path, progress: Progress = quiet) -> Repro:
        """Show in a new folder what did not pass: two small models, inputs, and the command; nothing where all did.

        Raises BadInput when the folder is not empty or cannot be written.
        """
        if self.refused is None:
            return Repro(None, "", "There is nothing to reproduce: no rewrite was refused.")
        return write_repro(
            Path(folder), self.source, self.refused.model, self.refused.audit, self.options, progress=progress
        )

    def save(self, out: str | Path) -> None:
        """Write the model atomically, its external data beside it.

        Raises Different or NotVerified when the report's verdict is not one that may be written, BadInput when the
        place cannot be written.
        """
        self._check_accepted("nothing was written")
        saving.save(self.rewritten, Path(out))

    def _check_accepted(self, what: str) -> None:
        if self.report.verdict == "different":
            raise Different(f"{what}: {self.report.reason}")
        if not self.report.accepted:
            raise NotVerified(f"{what}: {self.report.reason}")


def result_of(
    command: str,
    source: Model,
    outcome: Outcome,
    options: RunOptions,
    begin: float,
    stamped: bool,
    objective: Objective = "latency",
) -> Result:
    """What a command came to that began at `begin` (of `time.perf_counter`); `stamped`: with what made it in it."""
    if outcome.changed and stamped:
        passes = [attempt.pass_name for attempt in outcome.attempts if attempt.outcome == "accepted"]
        written = stamp(outcome.model, passes, source)
        audit = None if outcome.audit is None else certificate.of_the_stamped(outcome.audit, written)
        outcome = replace(outcome, model=written, audit=audit)
    report = _report(command, source, outcome, options, begin, objective)
    return Result(outcome.model, report, source, options, outcome.refused)


def _report(
    command: str, source: Model, outcome: Outcome, options: RunOptions, begin: float, objective: Objective
) -> Report:
    inputs = outcome.inputs
    return Report(
        command=command,
        verdict=outcome.verdict,
        grade=outcome.grade,
        reason=outcome.reason,
        changed=outcome.changed,
        attempts=tuple(attempt_record(attempt) for attempt in outcome.attempts),
        timing=None if outcome.timing is None else timing_record(outcome.timing),
        audit=outcome.audit,
        before=file_record(source, source.path),
        after=file_record(outcome.model, None),
        inputs={} if inputs is None else inputs.shapes,
        chosen_shapes={} if inputs is None else dict(inputs.chosen),
        environment=environment(options.runtime),
        notes=outcome.notes,
        kernels=() if outcome.kernels is None else kernel_records(*outcome.kernels),
        variants=variant_records(outcome.variants),
        objective=objective,
        items_per_run=1 if inputs is None else inputs.batch,
        seconds=round(time.perf_counter() - begin, 3),
    )
