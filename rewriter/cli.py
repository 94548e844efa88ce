"""The command line: each command turns its options into one call of the Python API and prints what came of it.

The exit codes are in `rewriter.cli_errors`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewriter import cli_data
from rewriter import cli_options as given
from rewriter.cli_audit import audit
from rewriter.cli_errors import BAD_INPUT, DONE, INTERRUPTED, guarded
from rewriter.cli_finish import Also, checked_output, finish, reporting
from rewriter.cli_records import records
from rewriter.cli_reports import bench_report, check_reports, write_reports
from rewriter.cli_show import Voice, columns, show
from rewriter.cli_stop import stoppable
from rewriter.errors import BadInput

if TYPE_CHECKING:
    from rewriter.options import RunOptions

# Plain help text: the same in a terminal and in a file, and no wait for rich.
app = typer.Typer(
    name="rewriter",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)


app.add_typer(records)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, whatever happens."""
    return guarded(app, list(sys.argv[1:] if arguments is None else arguments))


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
    objective: given.ObjectiveOption = "latency",
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="Time to spend, audits included.")] = 60.0,
    records_file: Annotated[
        Path | None,
        typer.Option("--records", metavar="FILE", help="Keep what is measured there, not in your cache folder."),
    ] = None,
    no_records: Annotated[
        bool, typer.Option("--no-records", help="Measure everything anew, and keep nothing for the next time.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write OUT.")] = False,
    full_audit: given.FullOption = False,
    unstamped: given.UnstampedOption = False,
    allow: given.AllowOption = None,
    provider: given.ProviderOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.OwnThreadsOption = None,
    batch: given.BatchOption = None,
    inputs: cli_data.InputsOption = None,
    inputs_dir: cli_data.InputsDirOption = None,
    data_loader: cli_data.DataLoaderOption = "",
    val_range: cli_data.RangesOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    certificate: given.CertificateOption = None,
    repro: given.ReproOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Rewrite what is faster on this machine, proven equivalent.

    Each candidate is timed in its place in the model; the model with those that are faster beyond noise is audited and
    timed as a whole. When nothing helps, OUT is a byte-identical copy of MODEL. Ctrl-C ends the search, and takes the
    best so far; a second one gives up.
    """
    voice = Voice(quiet, verbose)
    if threads is None:  # all cores, where it is about what the machine can do
        threads = 0 if objective == "throughput" else 1
    options = _options(provider, provider_option, threads, input_shape, seed, ort_level, allow, batch)
    given.check_budget(budget)
    if records_file is not None and no_records:
        raise BadInput("--records and --no-records exclude each other.")
    others = [model, *([output] if output else []), *(report or ())]
    if records_file is not None and any(records_file.resolve() == other.resolve() for other in others):
        raise BadInput(f"--records {records_file} is also a model or a report of this command: name another file.")
    target = None if dry_run else output or given.default_output(model)
    also = Also(report or (), certificate, repro)
    out = checked_output(model, output, target, also)
    data = cli_data.Data(inputs, inputs_dir, data_loader, val_range, full=full_audit)
    options = cli_data.with_data(options, data, model)
    from rewriter import api

    where = [options.runtime]
    with (
        stoppable() as stop,
        reporting("optimize", model, where, report or ()),
        voice.progress("reading the model", budget) as progress,
    ):
        result = api.optimize(
            model,
            options,
            only=only or (),
            skip=skip or (),
            budget=budget,
            stamped=not unstamped,
            records=records_file or not no_records,
            objective=objective,
            progress=progress,
            stop=stop,
        )
    if stop() and not result.report.changed:
        finish(result, None, also, voice, unwritten="interrupted, nothing written")
        return INTERRUPTED
    return finish(result, out, also, voice)


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
    full_audit: given.FullOption = False,
    unstamped: given.UnstampedOption = False,
    allow: given.AllowOption = None,
    provider: given.ProviderOption = given.ON_CPU,
    provider_option: given.ProviderOptions = None,
    threads: given.ThreadsOption = 1,
    inputs: cli_data.InputsOption = None,
    inputs_dir: cli_data.InputsDirOption = None,
    data_loader: cli_data.DataLoaderOption = "",
    val_range: cli_data.RangesOption = None,
    input_shape: given.ShapesOption = None,
    seed: given.SeedOption = 0,
    ort_level: given.LevelOption = "all",
    report: given.ReportOption = None,
    certificate: given.CertificateOption = None,
    repro: given.ReproOption = None,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
) -> int:
    """Apply exactly the named passes, proven equivalent.

    They are applied wherever they match, and the result is audited before it is written; nothing is timed.
    Where no pass matches, OUT is a byte-identical copy of MODEL, and the reasons are printed.
    """
    voice = Voice(quiet, verbose)
    options = _options(provider, provider_option, threads, input_shape, seed, ort_level, allow)
    also = Also(report or (), certificate, repro)
    out = checked_output(model, output, output or given.default_output(model), also)
    data = cli_data.Data(inputs, inputs_dir, data_loader, val_range, full=full_audit)
    options = cli_data.with_data(options, data, model)
    from rewriter import api
    from rewriter.propose import parse_settings
    from rewriter.registry import all_passes

    chosen = parse_settings(all_passes(), settings or ())
    for name in chosen:
        if name not in passes:
            raise BadInput(f"--set {name}.{next(iter(chosen[name]))} has no effect: add --pass {name}.")
    with reporting("rewrite", model, [options.runtime], report or ()), voice.progress("reading the model") as progress:
        result = api.rewrite(model, passes, options, settings=chosen, stamped=not unstamped, progress=progress)
    return finish(result, out, also, voice)


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


app.command()(audit)


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
    batch: given.BatchOption = None,
    inputs: cli_data.InputsOption = None,
    inputs_dir: cli_data.InputsDirOption = None,
    data_loader: cli_data.DataLoaderOption = "",
    val_range: cli_data.RangesOption = None,
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
    options = _options(provider, provider_option, threads, input_shape, seed, ort_level, batch=batch)
    given.check_budget(budget)
    check_reports(report or (), models)
    options = cli_data.with_data(options, cli_data.Data(inputs, inputs_dir, data_loader, val_range), models[0])
    from rewriter import api
    from rewriter.model import Model

    loaded = [Model.load(model) for model in models]
    where = [options.runtime]
    with reporting("bench", models[0], where, report or ()), voice.progress("loading the models") as progress:
        found = api.bench(list(models), options, budget=budget, progress=progress)
    content = bench_report(found, loaded, options.runtime)
    write_reports(report or (), content)
    voice.say(content.blocks, content.last)
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
    input_shape: Sequence[str] | None,
    seed: int,
    ort_level: given.Level,
    allow: Sequence[str] | None = None,
    batch: int | None = None,
) -> RunOptions:
    """The shared options as a record, and ONNX Runtime told to print nothing by itself."""
    given.silence()
    one = given.one_provider(provider)
    return given.run_options(one, provider_option, threads, input_shape, seed, ort_level, allow, batch)
