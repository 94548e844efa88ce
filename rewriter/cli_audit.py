"""The command `rewriter audit`: its options, what it prints, and the exit code that is its verdict.

Nothing here imports ONNX at the top: `rewriter --help` must not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rewriter import cli_data
from rewriter import cli_options as given
from rewriter.cli_finish import CODES, Also, certificate_blocks, check_files, reporting
from rewriter.cli_reports import audit_report, cross_report, failure_report, replay_report, write_reports
from rewriter.cli_show import Voice
from rewriter.errors import BadInput
from rewriter.visible import visible

if TYPE_CHECKING:
    from rewriter.certificate import Replay
    from rewriter.model import Model
    from rewriter.report.content import Content
    from rewriter.session import Runtime

_WITH_REPLAY: Final = frozenset(
    {"before", "after", "replay", "inputs", "inputs_dir", "data_loader", "certificate", "report", "quiet", "verbose"}
)
"""What --replay leaves to say; the certificate says the rest."""


def audit(
    context: typer.Context,
    before: Annotated[Path, typer.Argument(metavar="A", show_default=False, help="The original ONNX file.")],
    after: Annotated[
        Path | None,
        typer.Argument(
            metavar="B", show_default=False, help="The file to judge against it; may be left out with two providers."
        ),
    ] = None,
    fast: given.FastOption = False,
    provider: given.ProvidersOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.ThreadsOption = 1,
    inputs: cli_data.InputsOption = None,
    inputs_dir: cli_data.InputsDirOption = None,
    data_loader: cli_data.DataLoaderOption = "",
    val_range: cli_data.RangesOption = None,
    rtol: cli_data.RtolOption = None,
    atol: cli_data.AtolOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    certificate: given.CertificateOption = None,
    replay: given.ReplayOption = None,
    repro: given.ReproOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Decide whether two models compute the same, or one model on two providers.

    Whoever made the second. The exit code is the verdict: 0 equivalent; 1 different; 3 not verified, or
    approximate: every run agreed, but the agreement is not proven. With --provider given twice, B is judged against A
    on each provider, and each model on the second provider against itself on the first. With --replay, 0 says that the
    audit came out as the certificate has it, and that this is equivalent.
    """
    voice = Voice(quiet, verbose)
    runtimes, options = given.audit_options(provider, provider_option, threads, input_shape, seed, ort_level)
    files = [before] if after is None else [before, after]
    also = Also(report or (), certificate, repro)
    check_files(also, files)
    data = cli_data.Data(inputs, inputs_dir, data_loader, val_range, rtol, atol, full=not fast)
    if replay is not None:
        return _replayed(context, replay, files, data, also, voice)
    if len(runtimes) == 1 and after is None:
        raise BadInput("there is nothing to compare: give a second model, or --provider twice (cpu and cuda).")
    if len(runtimes) > 1 and repro is not None:
        raise BadInput("--repro is for audits on one provider: give the one on which the models differ.")
    options = cli_data.with_data(options, data, before)
    from rewriter import api
    from rewriter.model import Model

    models = [Model.load(path) for path in files]
    content: Content
    shown: list[str] = []
    with reporting("audit", before, runtimes, report or ()), voice.progress("comparing the models") as progress:
        if len(runtimes) > 1:
            crossed = api.cross_audit(files, runtimes, options, progress=progress)
            content, verdict = cross_report(crossed, models, runtimes, verbose), crossed.verdict
            certified = api.certify(crossed, before, after, options, runtimes=runtimes) if certificate else None
        else:
            found = api.audit(before, files[1], options, progress=progress)
            content, verdict = audit_report(found, models[0], models[1], options.runtime, verbose), found.verdict
            certified = api.certify(found, before, after, options) if certificate else None
            if repro is not None:
                shown = [visible(api.reproduce(found, before, files[1], repro, options, progress=progress).sentence)]
    written = {} if certificate is None or certified is None else {certificate: certified.to_bytes()}
    write_reports(report or (), content, written)
    blocks = certificate_blocks(certificate, written, "")  # whatever the verdict, an audit has one
    voice.say([*content.blocks, *shown, *blocks], content.last)
    return CODES[verdict]


def _replayed(
    context: typer.Context,
    recorded: Path,
    files: Sequence[Path],
    data: cli_data.Data,
    also: Also,
    voice: Voice,
) -> int:
    """`audit --replay`: the certificate's audit once more, with nothing but the user's inputs from the command line."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in _WITH_REPLAY:
            raise BadInput(f"{parameter.opts[0]} has no effect with --replay: the certificate says how to audit.")
    certificate = also.certificate
    if certificate is not None and certificate.resolve() == recorded.resolve():
        raise BadInput(f"the certificate '{certificate}' is the one to replay: choose another name.")
    from rewriter import api
    from rewriter.certificate import load_certificate
    from rewriter.model import Model

    known = load_certificate(recorded)
    models = [Model.load(path) for path in files]
    samples = cli_data.samples_given(data, files[0])
    runtimes = [entry.runtime for entry in known.request.runtimes]
    with reporting("audit", files[0], runtimes, also.reports), voice.progress("comparing the models") as progress:
        found = api.replay(known, files[0], files[1] if len(files) > 1 else None, samples, progress=progress)
    made = _replay_content(found, models, runtimes, files[0], voice.verbose)
    content = replay_report(made, found.same, found.conclusion, found.notes)
    written = {} if certificate is None or found.again is None else {certificate: found.again.to_bytes()}
    write_reports(also.reports, content, written)
    blocks = certificate_blocks(certificate, written, "the audit could not be made again")
    voice.say([*content.blocks, *blocks], content.last)
    return found.exit_code


def _replay_content(
    found: Replay, models: Sequence[Model], runtimes: Sequence[Runtime], first: Path, verbose: bool
) -> Content:
    """The report on the audit that was made again, or on why it could not be made."""
    if found.again is None:
        return failure_report("audit", " ".join(found.problems), first, runtimes)
    from rewriter.equivalence import CrossAudit

    audited = found.again.audit
    if isinstance(audited, CrossAudit):
        return cross_report(audited, models, runtimes, verbose)
    return audit_report(audited, models[0], models[1], runtimes[0], verbose)
