"""The command line: each command turns its options into one call of the Python API and prints what came of it.

The exit codes are in `rewriter.cli_errors`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter import cli_options as given
from rewriter.cli_errors import BAD_INPUT, DIFFERENT, DONE, NOT_VERIFIED, guarded
from rewriter.cli_reports import (
    audit_report,
    bench_report,
    check_reports,
    cross_report,
    failure_report,
    reports_ready,
    write_reports,
)
from rewriter.cli_show import Voice, columns, show
from rewriter.errors import BadInput, NotVerified

if TYPE_CHECKING:
    from rewriter.api import Result
    from rewriter.options import RunOptions
    from rewriter.session import Runtime

_CODES = {"equivalent": DONE, "different": DIFFERENT, "approximate": NOT_VERIFIED, "not_verified": NOT_VERIFIED}

# Plain help text: the same in a terminal and in a file, and no wait for rich.
app = typer.Typer(
    name="rewriter",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, whatever happens."""
    return guarded(app, list(sys.argv[1:] if arguments is None else arguments))


@contextlib.contextmanager
def _reporting(command: str, model: Path, runtimes: Sequence[Runtime], reports: Sequence[Path]) -> Iterator[None]:
    """Where a check cannot even be made, the reports say so, too."""
    try:
        yield
    except NotVerified as error:
        write_reports(reports, failure_report(command, str(error), model, runtimes))
        raise


@app.callback(invoke_without_command=True)
def rewriter(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> int:
    """Rewrite the convolutions of an ONNX model into faster equivalent forms, and prove that nothing else changed.

    Exit codes: 0 done (verified, or equivalent); 1 different, nothing written; 2 bad usage or bad input file;
    3 could not be verified, nothing written; 4 internal error; 130 interrupted.
    """
    if version:
        show([], f"rewriter {_version()}")
        raise typer.Exit(DONE)
    if context.invoked_subcommand is None:
        show([], context.get_help())
        raise typer.Exit(BAD_INPUT)
    return DONE


@app.command()
def optimize(
    model: given.ModelArgument,
    output: given.OutOption = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PASS", help="Try only this pass; repeatable.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="PASS", help="Leave this pass out; may be repeated.")
    ] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="Time to spend, audits included.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write OUT.")] = False,
    allow: given.AllowOption = None,
    provider: given.ProviderOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.ThreadsOption = 1,
    inputs: given.InputsOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Rewrite what is faster on this machine, proven equivalent.

    Each candidate is timed in its place in the model; the model with those that are faster beyond noise is audited and
    timed as a whole. When nothing helps, OUT is a byte-identical copy of MODEL.
    """
    voice = Voice(quiet, verbose)
    options = _options(provider, provider_option, threads, inputs, input_shape, seed, ort_level, allow)
    given.check_budget(budget)
    out = _checked_output(model, output, None if dry_run else output or given.default_output(model), report)
    from rewriter import api

    where = [options.runtime]
    with _reporting("optimize", model, where, report or ()), voice.progress("reading the model") as progress:
        result = api.optimize(model, options, only=only or (), skip=skip or (), budget=budget, progress=progress)
    return _finish(result, out, report, voice)


@app.command()
def rewrite(
    model: given.ModelArgument,
    passes: Annotated[
        list[str],
        typer.Option("--pass", metavar="NAME", show_default=False, help="A pass to apply; repeatable, in order."),
    ],
    output: given.OutOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PASS.KEY=VALUE", help="A setting of a pass (see `rewriter passes NAME`)."),
    ] = None,
    allow: given.AllowOption = None,
    provider: given.ProviderOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.ThreadsOption = 1,
    inputs: given.InputsOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Apply exactly the named passes, proven equivalent.

    They are applied wherever they match, and the result is audited before it is written; nothing is timed.
    Where no pass matches, OUT is a byte-identical copy of MODEL, and the reasons are printed.
    """
    voice = Voice(quiet, verbose)
    options = _options(provider, provider_option, threads, inputs, input_shape, seed, ort_level, allow)
    out = _checked_output(model, output, output or given.default_output(model), report)
    from rewriter import api
    from rewriter.propose import parse_settings
    from rewriter.registry import all_passes

    chosen = parse_settings(all_passes(), settings or ())
    for name in chosen:
        if name not in passes:
            raise BadInput(f"--set {name}.{next(iter(chosen[name]))} has no effect: add --pass {name}.")
    with _reporting("rewrite", model, [options.runtime], report or ()), voice.progress("reading the model") as progress:
        result = api.rewrite(model, passes, options, settings=chosen, progress=progress)
    return _finish(result, out, report, voice)


@app.command()
def inspect(
    model: given.ModelArgument,
    channels: Annotated[
        bool, typer.Option("--channels", help="List the channel components instead: what must be padded together.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="OUT.svg", help="With --channels: draw them, too.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    input_shape: given.ShapesOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """List every convolution, and what each pass would do to it.

    Form, group, sizes and cost of each, and why a pass does not apply to it; changes nothing. With --channels: which
    tensors' channels can only be padded or permuted together, and what stops that.
    """
    voice = Voice(quiet, verbose)
    from rewriter.options import RunOptions, parse_shapes

    options = RunOptions(input_shapes=parse_shapes(input_shape or ()))
    if channels:
        from rewriter.cli_channels import inspect_channels

        given.silence()  # ONNX Runtime is asked for its fast path
        inspect_channels(model, options, picture, as_json, voice)
        return DONE
    if picture is not None:
        raise BadInput("--picture has no effect: add --channels, which it draws.")
    from rewriter import api
    from rewriter.cli_inspect import inspection, survey_blocks, survey_conclusion
    from rewriter.model import Model
    from rewriter.propose import unreachable_sites

    with voice.progress("looking at the convolutions"):
        loaded = Model.load(model)
        sites, unreachable = api.inspect(model, options), unreachable_sites(loaded)
    if as_json:
        show([], json.dumps(inspection(loaded, sites, unreachable), indent=2))
        return DONE
    voice.say(survey_blocks(sites, unreachable, verbose), survey_conclusion(sites, unreachable))
    return DONE


@app.command()
def audit(
    before: Annotated[Path, typer.Argument(metavar="A", show_default=False, help="The original ONNX file.")],
    after: Annotated[
        Path | None,
        typer.Argument(
            metavar="B", show_default=False, help="The file to judge against it; may be left out with two providers."
        ),
    ] = None,
    provider: given.ProvidersOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.ThreadsOption = 1,
    inputs: given.InputsOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Decide whether two models compute the same, or one model on two providers.

    Whoever made the second. The exit code is the verdict: 0 equivalent; 1 different; 3 not verified, or
    approximate: every run agreed, but the agreement is not proven. With --provider given twice, B is judged against A
    on each provider, and each model on the second provider against itself on the first.
    """
    voice = Voice(quiet, verbose)
    runtimes, options = given.audit_options(provider, provider_option, threads, inputs, input_shape, seed, ort_level)
    files = [before] if after is None else [before, after]
    if len(runtimes) == 1 and after is None:
        raise BadInput("there is nothing to compare: give a second model, or --provider twice (cpu and cuda).")
    check_reports(report or (), files)
    from rewriter import api
    from rewriter.model import Model
    from rewriter.report import text_audit as text

    models = [Model.load(path) for path in files]
    with _reporting("audit", before, runtimes, report or ()), voice.progress("comparing the models") as progress:
        if len(runtimes) > 1:
            crossed = api.cross_audit(files, runtimes, options, progress=progress)
            write_reports(report or (), cross_report(crossed, models, runtimes))
            voice.say(text.cross_blocks(crossed, verbose), text.cross_conclusion(crossed))
            return _CODES[crossed.verdict]
        found = api.audit(before, files[1], options, progress=progress)
    write_reports(report or (), audit_report(found, models[0], models[1], options.runtime))
    voice.say(text.audit_blocks(found, verbose), text.audit_conclusion(found))
    return _CODES[found.verdict]


@app.command()
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="A [B...]", show_default=False, help="A model to time; or others, against the first."),
    ],
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="Time to spend at most.")] = 20.0,
    provider: given.ProviderOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.ThreadsOption = 1,
    inputs: given.InputsOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Time a model, or others against the first.

    Paired, interleaved, on the same inputs, with intervals. Whether they compute the same is not judged here;
    `rewriter audit` does that. On cuda, inputs and outputs stay on the device, and its clocks are noted.
    """
    voice = Voice(quiet, verbose)
    options = _options(provider, provider_option, threads, inputs, input_shape, seed, ort_level)
    given.check_budget(budget)
    check_reports(report or (), models)
    from rewriter import api
    from rewriter.model import Model
    from rewriter.report import text_audit as text

    loaded = [Model.load(model) for model in models]
    where = [options.runtime]
    with _reporting("bench", models[0], where, report or ()), voice.progress("loading the models") as progress:
        found = api.bench(list(models), options, budget=budget, progress=progress)
    write_reports(report or (), bench_report(found, loaded, options.runtime))
    if isinstance(found, list):
        voice.say(text.bench_blocks(found), text.bench_conclusion(found))
    else:
        voice.say(text.latency_blocks(found), text.latency_conclusion(found))
    return DONE


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="The pass to explain.")] = None,
) -> int:
    """List the passes, or explain one.

    Its equation, conditions, safety and settings.
    """
    from rewriter.cli_inspect import needed, pass_blocks, pass_table
    from rewriter.registry import all_passes, pass_named

    if name is None:
        show([pass_table(all_passes())], "`rewriter passes NAME` explains one.")
    else:
        rule = pass_named(name)
        show(pass_blocks(rule), " ".join(filter(None, (f"rewriter rewrite MODEL --pass {name}", needed(rule)))))
    return DONE


@app.command()
def doctor(
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Also tools that are not needed, but are used beside this one.")
    ] = False,
) -> int:
    """Say what this machine offers.

    Versions, processor, providers and why one is missing, the fast path.
    """
    from rewriter.doctor import examine

    given.silence()
    facts = examine(columns(), tools=verbose)
    width = max(len(fact.what) for fact in facts)
    show([], "\n".join(f"{fact.what:{width}}  {fact.found}" for fact in facts))
    return DONE


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnx-conv-rewriter")
    except PackageNotFoundError:
        return "of a source tree that is not installed"


def _options(
    provider: Sequence[str],
    provider_option: Sequence[str] | None,
    threads: int,
    inputs: Sequence[Path] | None,
    input_shape: Sequence[str] | None,
    seed: int,
    ort_level: given.Level,
    allow: Sequence[str] | None = None,
) -> RunOptions:
    """The shared options as a record, and ONNX Runtime told to print nothing by itself."""
    given.silence()
    one = given.one_provider(provider)
    return given.run_options(one, provider_option, threads, inputs, input_shape, seed, ort_level, allow)


def _checked_output(model: Path, asked: Path | None, out: Path | None, report: Sequence[Path] | None) -> Path | None:
    """`out`, if a model can be written there and the reports where they go: known before the work, not after it."""
    from rewriter import saving
    from rewriter.model import Model

    loaded = Model.load(model)
    target = out or asked
    if target is not None:
        saving.check_target(loaded, target)
    check_reports(report or (), [model] if target is None else [model, target])
    return out


def _finish(result: Result, out: Path | None, reports: Sequence[Path] | None, voice: Voice) -> int:
    """Write the model, if it may be written, and the reports, then say it; `out` is None on a dry run."""
    from rewriter.report.text import conclusion, report_blocks

    report = result.report
    code = DONE if report.accepted else _CODES[report.verdict]
    fate = "nothing written"
    if code == DONE and out is None:
        fate = "dry run, nothing written"
    elif code == DONE and out is not None:
        report = report.model_copy(update={"after": report.after.model_copy(update={"path": str(out)})})
        fate = f"saved {out}" if report.changed else f"{out} is a byte-identical copy"
    content: dict[str, Any] = report.to_dict()
    with reports_ready(reports or (), content):
        if code == DONE and out is not None:
            result.save(out)
    voice.say(report_blocks(report, voice.verbose), conclusion(report, fate))
    return code
