"""The options that commands share, each with its help sentence, and what their values become.

Nothing here imports ONNX at the top: `rewriter --help` must not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rewriter.errors import BadInput

if TYPE_CHECKING:
    from rewriter.options import RunOptions

Provider = Literal["cpu", "cuda"]
Level = Literal["disable", "basic", "extended", "layout", "all"]

_RUN = "How the model is run"
_OUTPUT = "What is written and shown"

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help="The ONNX file to work on.")]
ProviderOption = Annotated[
    Provider, typer.Option("--provider", help="Where the model runs; never silently replaced by another.")
]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option("--provider-option", metavar="KEY=VALUE", help="An option of the cuda provider; may be repeated."),
]
ThreadsOption = Annotated[
    int,
    typer.Option("--threads", min=0, max=1024, help="Threads inside an operator; 0 leaves the number to ONNX Runtime."),
]
InputsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--inputs",
        metavar="X.npz",
        help="Your own inputs, arrays by input name, to run with; may be repeated.",
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
ReportOption = Annotated[
    list[Path] | None,
    typer.Option("--report", metavar="R.json", help="Also write a JSON report there; may be repeated."),
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


def run_options(
    provider: Provider,
    provider_option: Sequence[str] | None,
    threads: int,
    inputs: Sequence[Path] | None,
    input_shape: Sequence[str] | None,
    seed: int,
    ort_level: Level,
) -> RunOptions:
    """The options as one record; raises BadInput naming the one that is wrong."""
    from rewriter.options import RunOptions, load_samples, parse_shapes
    from rewriter.session import Runtime

    pairs = provider_options(provider_option or ())
    if pairs and provider == "cpu":
        # ONNX Runtime accepts any option for its CPU provider, and ignores it.
        raise BadInput(f"--provider-option {pairs[0][0]} has no effect on the cpu provider, which has no options.")
    return RunOptions(
        runtime=Runtime(provider, threads, ort_level, pairs),
        input_shapes=parse_shapes(input_shape or ()),
        samples=tuple(sample for path in inputs or () for sample in load_samples(path)),
        seed=seed,
    )


def provider_options(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`key=value` texts as pairs; raises BadInput for another form."""
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"--provider-option {text} is not of the form key=value.")
        pairs.append((key, value))
    return tuple(pairs)


def check_budget(seconds: float) -> float:
    """The budget, if it is a positive number of seconds; raises BadInput otherwise."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise BadInput(f"--budget {seconds:g} is no positive number of seconds.")
    return seconds


def default_output(model: Path) -> Path:
    """`folder/net.rewritten.onnx` for `folder/net.onnx`."""
    return model.with_name(f"{model.stem}.rewritten.onnx")
