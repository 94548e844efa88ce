"""The certificate as a record: everything that is needed to make an audit again, and what came of it.

It names its files by their hashes, and holds no time, no path and no date, so that the same audit of the same files on
the same machine gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from rewriter.certificate.digests import ArrayDigest, FileDigest
from rewriter.equivalence.consistency import contradiction
from rewriter.equivalence.records import Audit, AuditOptions, CrossAudit, Grade, Record, Verdict
from rewriter.options import Feeds, RunOptions, Tolerance
from rewriter.providers import Provider
from rewriter.session import Level, Runtime

SCHEMA: Final = "https://onnx-conv-rewriter/certificate/1"
"""Identifier of this layout; the number rises when a reader would have to change."""


class RuntimeRecord(Record):
    """What models ran on: `rewriter.Runtime` as plain data, with the user's own provider options."""

    provider: Provider
    threads: int = Field(ge=0)
    level: Level
    provider_options: dict[str, str]

    @classmethod
    def of(cls, runtime: Runtime) -> RuntimeRecord:
        return cls(
            provider=runtime.provider,
            threads=runtime.threads,
            level=runtime.level,
            provider_options=dict(sorted(runtime.provider_options)),
        )

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.provider, self.threads, self.level, tuple(self.provider_options.items()))


class ToleranceRecord(Record):
    """The error that the user would take; null is 0 where the other is given."""

    rtol: float | None
    atol: float | None


class Request(Record):
    """What was asked of the audit: with it, the files and the user's inputs, it can be made again."""

    runtimes: tuple[RuntimeRecord, ...] = Field(min_length=1)
    """One; or several, the first the reference, where providers were compared."""
    seed: int
    full: bool
    """With the float64 reference and the edges of the number range."""
    input_shapes: dict[str, tuple[int, ...]]
    ranges: dict[str, tuple[float, float]]
    """What generated inputs were drawn from, by input name; "" is every other one."""
    tolerances: dict[str, ToleranceRecord]
    approximated: dict[str, float]
    """Tensors of the rewritten model that only had to approximate, with the relative error allowed."""
    draws: int = Field(ge=AuditOptions().draws)
    """Integer draws of L2."""
    perturbed_regions: int = Field(ge=AuditOptions().perturbed_regions)
    """How many regions were perturbed, to see whether the outputs respond."""

    def audit_options(self, samples: Sequence[Feeds]) -> AuditOptions:
        """The same as the auditor takes it."""
        # Not by way of `run_options`: what these have no place for is not to be forgotten.
        return AuditOptions(
            runtime=self.runtimes[0].runtime,
            seed=self.seed,
            full=self.full,
            input_shapes=self.input_shapes,
            ranges=self.ranges,
            tolerances={name: Tolerance(found.rtol, found.atol) for name, found in self.tolerances.items()},
            samples=samples,
            approximated=self.approximated,
            draws=self.draws,
            perturbed_regions=self.perturbed_regions,
        )

    @property
    def run_options(self) -> RunOptions:
        """The same as commands take it, without the user's inputs."""
        return RunOptions(
            runtime=self.runtimes[0].runtime,
            seed=self.seed,
            full=self.full,
            input_shapes=self.input_shapes,
            ranges=self.ranges,
            tolerances={name: Tolerance(found.rtol, found.atol) for name, found in self.tolerances.items()},
        )


class Environment(Record):
    """What ran the audit: other versions and processors round otherwise, and must come to the same verdict."""

    rewriter: str
    onnx: str
    onnxruntime: str
    numpy: str
    processor: str
    """Its name, and a digest of its instruction sets."""


class Certificate(Record):
    """The record of one audit.  What contradicts itself is refused when it is read."""

    schema_id: Literal["https://onnx-conv-rewriter/certificate/1"] = Field(alias="schema")
    verdict: Verdict
    grade: Grade | None
    before: FileDigest
    """The original."""
    after: FileDigest | None
    """The rewritten model; null where one model was compared with itself on several providers."""
    request: Request
    inputs: tuple[dict[str, ArrayDigest], ...]
    """The inputs that were given, each a complete set by input name; the generated ones follow from the seed."""
    environment: Environment
    audit: Audit | CrossAudit
    """What was found: by region and level, by output, and the inputs (witnesses) it was found on."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = contradiction(self.audit) or self._mismatch()
        if problem:
            raise ValueError(problem)
        return self

    @property
    def audits(self) -> tuple[Audit, ...]:
        """The audit, or those of a comparison of providers."""
        return self.audit.audits if isinstance(self.audit, CrossAudit) else (self.audit,)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinities and NaN as strings."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"audit"})
        return plain | {"audit": self.audit.to_dict()}

    def to_bytes(self) -> bytes:
        """The file: JSON with sorted keys, the same for the same certificate."""
        return (json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    def _mismatch(self) -> str:
        """Where the parts of the certificate disagree with each other; empty if they do not."""
        if self.verdict != self.audit.verdict:
            return f"it says '{self.verdict}', and its audit '{self.audit.verdict}'"
        if self.grade != (self.audit.grade if isinstance(self.audit, Audit) else None):
            return f"its grade is '{self.grade}', which is not its audit's"
        if isinstance(self.audit, Audit) and (len(self.request.runtimes) > 1 or self.after is None):
            return "it has one audit, which takes two models and one provider"
        files = {self.before.sha256, self.after.sha256 if self.after else self.before.sha256}
        ran = {(entry.provider, entry.threads, entry.level) for entry in self.request.runtimes}
        for audit in self.audits:
            if not {audit.before_sha256, audit.after_sha256} <= files:
                return "its audit is of other files"
            if audit.seed != self.request.seed:
                return f"its audit has the seed {audit.seed}, and {self.request.seed} was asked for"
            if (audit.provider, audit.threads, audit.level) not in ran:
                return f"its audit ran on {audit.provider} in a way that was not asked for"
        one = isinstance(self.audit, Audit) and self.after is not None
        return "its audit is of other files" if one and not self._of_these_files() else ""

    def _of_these_files(self) -> bool:
        """Whether the first audit is of `before` and `after`, in this order."""
        found = self.audits[0].before_sha256, self.audits[0].after_sha256
        return self.after is not None and found == (self.before.sha256, self.after.sha256)
