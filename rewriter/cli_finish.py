"""What commands do before and behind their work: check where to write, write, say it, and give the exit code.

Nothing here imports ONNX at the top: `rewriter --help` must not wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rewriter.cli_errors import DIFFERENT, DONE, NOT_VERIFIED
from rewriter.cli_reports import (
    check_place,
    check_reports,
    failure_report,
    reports_ready,
    rewrite_report,
    write_reports,
)
from rewriter.cli_show import Voice
from rewriter.errors import BadInput, NotVerified
from rewriter.visible import visible

if TYPE_CHECKING:
    from rewriter.result import Result
    from rewriter.session import Runtime

CODES: Final = {
    "equivalent": DONE,
    "different": DIFFERENT,
    "approximate": NOT_VERIFIED,
    "not_verified": NOT_VERIFIED,
}
"""The exit code of each verdict."""


@contextlib.contextmanager
def reporting(command: str, model: Path, runtimes: Sequence[Runtime], reports: Sequence[Path]) -> Iterator[None]:
    """Where a check cannot even be made, the reports say so, too."""
    try:
        yield
    except NotVerified as error:
        write_reports(reports, failure_report(command, str(error), model, runtimes))
        raise


@dataclass(frozen=True)
class Also:
    """What a command writes besides a model."""

    reports: Sequence[Path] = ()
    certificate: Path | None = None
    repro: Path | None = None


def check_files(also: Also, models: Sequence[Path]) -> None:
    """Raise BadInput when something cannot be written where it shall be, besides the models."""
    check_reports(also.reports, models)
    if also.repro is not None:
        from rewriter.repro import check_folder

        check_folder(also.repro)
    certificate = also.certificate
    if certificate is None:
        return
    if certificate.suffix.lower() != ".json":
        raise BadInput(f"the certificate '{certificate}' does not end in .json.")
    check_place(certificate, "certificate", models)
    if any(certificate.resolve() == path.resolve() for path in also.reports):
        raise BadInput(f"the certificate '{certificate}' is also a report of this command: choose another name.")


def checked_output(model: Path, asked: Path | None, out: Path | None, also: Also) -> Path | None:
    """`out`, if a model can be written there and the rest where it goes: known before the work, not after it."""
    from rewriter import saving
    from rewriter.model import Model

    loaded = Model.load(model)
    target = out or asked
    if target is not None:
        saving.check_target(loaded, target)
    check_files(also, [model] if target is None else [model, target])
    return out


def finish(
    result: Result, out: Path | None, also: Also, voice: Voice, *, unwritten: str = "dry run, nothing written"
) -> int:
    """Write the model, if it may be written, and what else was asked for, then say it; no model on a dry run."""
    report = result.report
    code = DONE if report.accepted else CODES[report.verdict]
    fate = "nothing written"
    if code == DONE and out is None:
        fate = unwritten
    elif code == DONE and out is not None:
        report = report.model_copy(update={"after": report.after.model_copy(update={"path": str(out)})})
        fate = f"saved {out}" if report.changed else f"{out} is a byte-identical copy"
    content = rewrite_report(report, fate, voice.verbose)
    certified: dict[Path, bytes] = {}
    if code == DONE and also.certificate is not None:
        with voice.progress("certifying") as progress:
            certified[also.certificate] = result.certify(progress).to_bytes()
    with reports_ready(also.reports, content, certified):
        if code == DONE and out is not None:
            result.save(out)
    shown = []
    if also.repro is not None:
        with voice.progress("looking for a small reproduction") as progress:
            shown = [visible(result.reproduce(also.repro, progress).sentence)]
    refused = "there is one only of a model that passed its audit"
    blocks = certificate_blocks(also.certificate, certified, refused)
    voice.say([*content.blocks, *shown, *blocks], content.last)
    return code


def certificate_blocks(asked: Path | None, certified: Mapping[Path, bytes], why_not: str) -> list[str]:
    """A line on the certificate that was asked for, if any: that it was written, or the clause why it was not."""
    if asked is None:
        return []
    return [visible(f"Certificate: {asked}" if asked in certified else f"No certificate is written: {why_not}.")]
