"""The options that commands share, each with its help sentence, and what their values become.

Nothing here imports ONNX at the top: `rewriter --help` must not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_args

import typer

from rewriter.errors import BadInput
from rewriter.objective import Objective

if TYPE_CHECKING:
    from rewriter.options import RunOptions
    from rewriter.session import Runtime

Provider = Literal["cpu", "cuda"]
Level = Literal["disable", "basic", "extended", "layout", "all"]


class ProviderName(StrEnum):
    """The same names, for options given several times: typer takes no list of Literals."""

    CPU = "cpu"
    CUDA = "cuda"


ON_CPU: Final = [ProviderName.CPU]
"""The default, never mutated."""

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help="The ONNX file to work on.")]
# Lists, of which commands that run on one provider take one: typer would silently drop all but the last.
ProviderOption = Annotated[
    list[ProviderName],
    typer.Option("--provider", help="Where the model runs; never silently replaced by another."),
]
ProvidersOption = Annotated[
    list[ProviderName],
    typer.Option("--provider", help="Where the models run; given twice, the second is judged against the first."),
]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option",
        metavar="KEY=VALUE",
        help="An option of the cuda provider, such as use_tf32=0, or enable_cuda_graph=1 to time replays of a captured "
        "CUDA graph; may be repeated.",
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option("--threads", min=0, max=1024, help="Threads inside an operator; 0 leaves the number to ONNX Runtime."),
]
OwnThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=0,
        max=1024,
        show_default="1, or 0 for throughput",
        help="Threads inside an operator; 0 leaves the number to ONNX Runtime.",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        max=1_000_000,
        metavar="N",
        show_default="1, or 8 for throughput",
        help="What a batch size that the model leaves open is taken as for timing.",
    ),
]
ObjectiveOption = Annotated[
    Objective,
    typer.Option(
        "--objective", help="What gets better; size and memory only where the model does not get slower by it."
    ),
]
ShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        help="The shape of an input with unknown dimensions; may be repeated. Without it they are chosen and named.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn at random.")]
LevelOption = Annotated[
    Level, typer.Option("--ort-level", help="ONNX Runtime's graph optimization level that you deploy with.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="WHAT",
        help="contrib-ops: also make operators that only ONNX Runtime has; approximate: also what has an error that "
        "a setting allows. May be repeated.",
    ),
]
ReportOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write a report there: .json, .md (Markdown), .xml (JUnit) or .txt; may be repeated.",
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        metavar="C.json",
        show_default=False,
        help="Also write a certificate there: hashes of both files, options, seeds and every finding, to be replayed.",
    ),
]
ReplayOption = Annotated[
    Path | None,
    typer.Option(
        "--replay",
        metavar="C.json",
        show_default=False,
        help="Make the audit of this certificate again, with its own options, and say whether it comes out the same.",
    ),
]
FastOption = Annotated[
    bool,
    typer.Option("--fast", help="Leave out what takes longest: the float64 reference (L4) and the edge battery (L5)."),
]
FullOption = Annotated[
    bool,
    typer.Option("--full-audit", help="Audit with the float64 reference (L4) and the edge battery (L5), too."),
]
ReproOption = Annotated[
    Path | None,
    typer.Option(
        "--repro",
        metavar="DIR",
        show_default=False,
        help="Where the models are not found equivalent, show that in a new folder: two small models, inputs, the "
        "command.",
    ),
]
UnstampedOption = Annotated[
    bool,
    typer.Option("--no-provenance", help="Leave the entries rewriter.* out of OUT's metadata, the only addition."),
]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print only the last line, the result.")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Print everything that was considered, and tracebacks of bugs.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        show_default=False,
        help="The file to write; MODEL.rewritten.onnx beside MODEL by default, never MODEL itself.",
    ),
]


def silence() -> None:
    """Tell ONNX Runtime to print nothing by itself."""
    # NumPy first: where ONNX Runtime's extension loads it, Ctrl-C becomes an ImportError that hides what it was.
    import numpy  # noqa: F401

    from rewriter import logs

    logs.silence()


def one_provider(names: Sequence[str]) -> Provider:
    """The one provider that a command runs on; raises BadInput for several."""
    if len(names) > 1:
        raise BadInput("--provider is given more than once: only rewriter audit takes several providers.")
    return _providers(names)[0]


def _providers(names: Sequence[str]) -> list[Provider]:
    return [known for name in names for known in get_args(Provider) if known == name]


def audit_options(
    names: Sequence[str],
    provider_option: Sequence[str] | None,
    threads: int,
    input_shape: Sequence[str] | None,
    seed: int,
    ort_level: Level,
) -> tuple[list[Runtime], RunOptions]:
    """The runtimes of an audit, one per provider, and its options as a record with the first of them.

    Options of providers go to those that take any.  Raises BadInput naming what is wrong.
    """
    silence()
    from dataclasses import replace

    from rewriter.providers import PROVIDERS

    providers = _providers(names)
    for provider in providers:
        if providers.count(provider) > 1:
            raise BadInput(f"--provider {provider} is given twice: a provider is compared with another one.")
    able = next((provider for provider in providers if PROVIDERS[provider].takes_options), providers[0])
    options = run_options(able, provider_option, threads, input_shape, seed, ort_level)
    runtimes = [
        replace(
            options.runtime,
            provider=provider,
            provider_options=options.runtime.provider_options if PROVIDERS[provider].takes_options else (),
        )
        for provider in providers
    ]
    return runtimes, replace(options, runtime=runtimes[0])


def run_options(
    provider: Provider,
    provider_option: Sequence[str] | None,
    threads: int,
    input_shape: Sequence[str] | None,
    seed: int,
    ort_level: Level,
    allow: Sequence[str] | None = None,
    batch: int | None = None,
) -> RunOptions:
    """The options as one record; raises BadInput naming the one that is wrong."""
    from rewriter.options import RunOptions, parse_shapes
    from rewriter.providers import PROVIDERS
    from rewriter.session import Runtime

    pairs = provider_options(provider_option or ())
    if pairs and not PROVIDERS[provider].takes_options:
        # ONNX Runtime accepts any option for its CPU provider, and ignores it.
        raise BadInput(
            f"--provider-option {pairs[0][0]} has no effect on the {provider} provider, which has no options."
        )
    return RunOptions(
        runtime=Runtime(provider, threads, ort_level, pairs),
        input_shapes=parse_shapes(input_shape or ()),
        seed=seed,
        allow=frozenset(allow or ()),
        batch=batch,
    )


def provider_options(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`key=value` texts as pairs; raises BadInput for another form, and for a key given twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"--provider-option {text} is not of the form key=value.")
        if key in pairs:
            raise BadInput(f"--provider-option {key} is given twice: as {pairs[key]} and as {value}.")
        pairs[key] = value
    return tuple(pairs.items())


def check_budget(seconds: float) -> float:
    """The budget, if it is a positive number of seconds; raises BadInput otherwise."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise BadInput(f"--budget {seconds:g} is no positive number of seconds.")
    return seconds


def default_output(model: Path) -> Path:
    """`folder/net.rewritten.onnx` for `folder/net.onnx`."""
    return model.with_name(f"{model.stem}.rewritten.onnx")
