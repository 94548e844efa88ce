"""A certificate's audit once more: on the same files, with the same inputs, seeds and options, to the same verdict?

On the processor and the versions that the certificate was made with, everything must come out the same to the last
bit.  Elsewhere the figures may differ, since kernels round differently; what is claimed may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewriter import equivalence
from rewriter.certificate.digests import FileDigest, file_digest, sample_digest
from rewriter.certificate.making import Progress, environment, recorded
from rewriter.certificate.records import Certificate, Request
from rewriter.equivalence.records import Audit, CrossAudit
from rewriter.errors import NotVerified, RewriterError
from rewriter.feeds import representative
from rewriter.model import Model
from rewriter.options import Feeds
from rewriter.providers import PROVIDERS
from rewriter.session import require_provider

_WORDS: Final = frozenset({"detail", "reason", "problem", "notes"})
"""Fields that hold sentences."""
_MEASURED: Final = frozenset({"bitwise", "blind", "figures", "own_error", "new_error", "within_tolerance"})
"""Fields that hold what was measured, besides all that are floating-point numbers on either side."""
_ASKED: Final = frozenset({"allowed_error"})
"""Floating-point numbers that were asked for."""
_SHOWN: Final = 3


@dataclass(frozen=True)
class Difference:
    """One thing that the certificate says and this run does not."""

    where: str
    said: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.where} is {self.said!r} in the certificate, and {self.found!r} here"


@dataclass(frozen=True)
class Replay:
    """What came of making a certificate's audit again."""

    certificate: Certificate
    again: Certificate | None
    """The certificate of this run; None where it could not be made: `problems` say why."""
    problems: tuple[str, ...] = ()
    """Why nothing could be run, a sentence each."""
    claims: tuple[Difference, ...] = ()
    """What the certificate claims and this run does not find; the verdict first."""
    figures: tuple[Difference, ...] = ()
    """Other figures, which is no contradiction where other kernels ran."""
    notes: tuple[str, ...] = ()
    """What else is not as it was, a sentence each."""

    @property
    def same(self) -> bool:
        """Whether the same audit came to the same verdict, and found all that the certificate claims."""
        return self.again is not None and not self.claims

    @property
    def exit_code(self) -> int:
        """0: the same, and equivalent; 1: the models differ, whatever the certificate says; 3: anything else."""
        if self.again is not None and self.again.verdict == "different":
            return 1
        return 0 if self.same and self.certificate.verdict == "equivalent" else 3

    @property
    def conclusion(self) -> str:
        """All of it in a sentence or two."""
        if self.again is None:
            return f"Not reproduced: {self.problems[0]}"
        was, now = _verdict(self.certificate), _verdict(self.again)
        if (self.certificate.verdict, self.certificate.grade) != (self.again.verdict, self.again.grade):
            return f"Not reproduced: the certificate says {was}, this run {now}: {self.again.audit.reason}"
        if self.claims:
            others = f" (and {len(self.claims) - 1} more)" if len(self.claims) > 1 else ""
            return f"Not reproduced: the verdict is again {now}, but {self.claims[0]}{others}."
        return f"Reproduced: {now}, on the same files with the same inputs. {self.again.audit.reason}"


def replay(
    certificate: Certificate,
    before: Model,
    after: Model | None,
    samples: Sequence[Feeds] = (),
    progress: Progress | None = None,
) -> Replay:
    """Make the certificate's audit again.  `samples` are the user's inputs, where it was made with some.

    Whatever keeps it from being made (other files, a provider or inputs that are missing) is in the result.
    """
    notes = tuple(_other_environment(certificate))
    problems = [*_other_files(certificate, before, after), *_missing_providers(certificate.request)]
    given, without = _inputs(certificate, before, samples)
    if problems or without:
        return Replay(certificate, None, (*problems, *without), notes=notes)
    try:
        again = _made_again(certificate.request, before, after, given, progress)
    except RewriterError as error:
        return Replay(certificate, None, (f"the audit could not be made here: {error}",), notes=notes)
    return _compared(certificate, again, notes)


def _made_again(
    request: Request, before: Model, after: Model | None, samples: Sequence[Feeds], progress: Progress | None
) -> Certificate:
    options = request.audit_options(samples)
    runtimes = [entry.runtime for entry in request.runtimes]
    found: Audit | CrossAudit
    if len(runtimes) > 1:
        models = [before] if after is None else [before, after]
        found = equivalence.cross_audit(models, runtimes, options, progress=progress)
    else:
        assert after is not None, "the certificate was checked when it was read"
        found = equivalence.audit(before, after, options, progress=progress)
    return recorded(found, before, after, request, samples)


def _compared(certificate: Certificate, again: Certificate, notes: tuple[str, ...]) -> Replay:
    claims: list[Difference] = []
    figures: list[Difference] = []
    words: list[Difference] = []
    alike = _same_kernels(certificate, again)
    for name in ("verdict", "grade"):
        if getattr(certificate, name) != getattr(again, name):
            claims.append(Difference(name, getattr(certificate, name), getattr(again, name)))
    for found in _differences("audit", certificate.audit.to_dict(), again.audit.to_dict()):
        kind = "claim" if alike else _kind(found)
        {"claim": claims, "figure": figures, "word": words}[kind].append(found)
    if figures:
        shown = "; ".join(map(str, figures[:_SHOWN]))
        notes += (f"{len(figures)} figures are others than in the certificate: {shown}.",)
    if words:
        notes += (f"{len(words)} sentences of the certificate read otherwise here.",)
    return Replay(certificate, again, (), tuple(claims), tuple(figures), notes)


def _same_kernels(certificate: Certificate, again: Certificate) -> bool:
    """Whether both audits ran the same code on the same kind of processor, so that nothing may differ."""
    runtimes = certificate.request.runtimes
    # Without a number of threads it is that of the machine's cores; a GPU adds in an order of its own.
    fixed = all(entry.threads > 0 and not PROVIDERS[entry.provider].takes_options for entry in runtimes)
    # Of a large model, a slow machine holds fewer runs against float64.
    held = _float64_runs(certificate) == _float64_runs(again)
    return fixed and held and certificate.environment == again.environment


def _float64_runs(certificate: Certificate) -> list[Any]:
    return [level.figures.get("float64_runs") for audit in certificate.audits for level in audit.levels]


def _differences(where: str, said: Any, found: Any) -> Iterator[Difference]:
    """The leaves in which two JSON values differ."""
    if isinstance(said, dict) and isinstance(found, dict):
        for key in sorted(said.keys() | found.keys()):
            yield from _differences(f"{where}.{key}", said.get(key), found.get(key))
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for index, (one, other) in enumerate(zip(said, found, strict=True)):
            yield from _differences(f"{where}[{index}]", one, other)
    elif said != found:
        yield Difference(where, said, found)


def _kind(found: Difference) -> str:
    """Whether it is a claim, a figure that was measured, or a word."""
    fields = [part.partition("[")[0] for part in found.where.split(".")]
    if fields[-1] in _WORDS:
        return "word"
    if _MEASURED & set(fields) or (fields[-1] not in _ASKED and _float(found.said) and _float(found.found)):
        return "figure"
    if fields[-1] == "outcome" and found.found == "pass" and found.said in ("not applicable", "not exact here"):
        return "figure"  # more was shown than the certificate claims
    return "claim"


def _float(value: Any) -> bool:
    return isinstance(value, float) or value in ("inf", "-inf", "nan")


def _other_files(certificate: Certificate, before: Model, after: Model | None) -> Iterator[str]:
    """What is wrong with the files given, a sentence each."""
    if after is None and certificate.after is not None:
        yield "the certificate is of two models: give the rewritten one, B, too."
        return
    if after is not None and certificate.after is None:
        yield "the certificate is of one model on several providers: leave B out."
        return
    given = [file_digest(model) for model in (before, after) if model is not None]
    wanted = [entry for entry in (certificate.before, certificate.after) if entry is not None]
    if len(given) == 2 and given == wanted[::-1] != wanted:
        yield "A and B are exchanged: the certificate's original is B, and its rewritten model A."
        return
    for name, role, found, said in zip("AB", ("original", "rewritten model"), given, wanted, strict=False):
        yield from _other_file(f"{name} is not the certificate's {role}", found, said)


def _other_file(what: str, found: FileDigest, said: FileDigest) -> Iterator[str]:
    if found.sha256 != said.sha256:
        yield f"{what}: its SHA-256 is {found.sha256}, and the certificate is of {said.sha256}."
        return
    for name in sorted(said.external.keys() | found.external.keys()):
        if said.external.get(name) != found.external.get(name):
            yield f"{what}: its external data '{name}' has other bytes."
    if found.bytes != said.bytes:
        yield f"{what}: it has {found.bytes} bytes, and the certificate says {said.bytes}."


def _missing_providers(request: Request) -> Iterator[str]:
    for entry in request.runtimes:
        try:
            require_provider(entry.runtime)
        except RewriterError as error:
            what = "" if isinstance(error, NotVerified) else " with these options"
            yield f"the audit ran on {entry.provider}{what}, which cannot be done here: {error}"


def _inputs(
    certificate: Certificate, before: Model, samples: Sequence[Feeds]
) -> tuple[Sequence[Feeds], tuple[str, ...]]:
    """The inputs to run with, and what is wrong with those given."""
    wanted = list(certificate.inputs)
    if not samples and wanted:
        try:  # an approximation is measured on inputs that are made up where none are given
            samples = [representative(before, certificate.request.run_options).feeds]
        except RewriterError:
            samples = []
        if [sample_digest(sample) for sample in samples] != wanted:
            count = f"{len(wanted)} sets of inputs" if len(wanted) > 1 else "inputs"
            return (), (f"the audit was made with {count} of the user's own: give them with --inputs.",)
    if samples and not wanted:
        return (), ("the audit was made without inputs of the user's own: leave --inputs out.",)
    if len(samples) != len(wanted):
        return (), (f"the audit was made with {len(wanted)} sets of inputs, and {len(samples)} are given.",)
    for number, (sample, said) in enumerate(zip(samples, wanted, strict=True), 1):
        found = sample_digest(sample)
        wrong = sorted(name for name in found.keys() | said.keys() if found.get(name) != said.get(name))
        if wrong:
            which = f"set {number} of the inputs given" if len(wanted) > 1 else "the inputs given"
            names = ", ".join(f"'{name}'" for name in wrong)
            return (), (f"{which} are not those of the certificate: other values, type or shape of {names}.",)
    return samples, ()


def _other_environment(certificate: Certificate) -> Iterator[str]:
    """What is not as it was when the certificate was made: a note each, no reason to refuse."""
    here = environment()
    called = {"rewriter": "rewriter", "onnx": "onnx", "onnxruntime": "ONNX Runtime", "numpy": "NumPy"}
    for name, title in called.items():
        was, now = getattr(certificate.environment, name), getattr(here, name)
        if was != now:
            yield f"The certificate was made with {title} {was}; this is {now}."
    if certificate.environment.processor != here.processor:
        yield f"The certificate was made on another processor, {certificate.environment.processor}."


def _verdict(certificate: Certificate) -> str:
    return certificate.verdict + (f" ({certificate.grade})" if certificate.grade else "")
