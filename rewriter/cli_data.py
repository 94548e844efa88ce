"""The options for inputs and outputs of the user's own: files, scripts, ranges, tolerances; and what they become.

Nothing here imports ONNX at the top: `rewriter --help` must not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rewriter.options import Feeds, RunOptions

InputsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--inputs",
        metavar="X.npz",
        help="Your own inputs to run with: arrays by input name, or NAME/0, NAME/1, ... for several samples; may be "
        "repeated.",
    ),
]
InputsDirOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--inputs-dir",
        metavar="DIR",
        help="A folder of your own inputs: .npz files, or test_data_set_*/input_*.pb; may be repeated.",
    ),
]
DataLoaderOption = Annotated[
    str,
    typer.Option(
        "--data-loader",
        metavar="FILE.py[:FUNCTION]",
        show_default=False,
        help="A Python script of yours, which is run: its function (load_data unless you say) returns or yields dicts "
        "of arrays by input name.",
    ),
]
RangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--val-range",
        metavar="[NAME:]LOW,HIGH",
        help="What generated inputs are drawn from, for all inputs or one; may be repeated.",
    ),
]
RtolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rtol",
        metavar="[OUTPUT:]V",
        help="The relative error that you would take, for all outputs or one: reported for each output, it never "
        "decides; may be repeated.",
    ),
]
AtolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--atol",
        metavar="[OUTPUT:]V",
        help="The absolute error, likewise; where only one of them is given, the other is 1e-5.",
    ),
]


@dataclass(frozen=True)
class Data:
    """What the options say of what an audit looks at, as given."""

    inputs: Sequence[Path] | None = None
    inputs_dir: Sequence[Path] | None = None
    data_loader: str = ""
    val_range: Sequence[str] | None = None
    rtol: Sequence[str] | None = None
    atol: Sequence[str] | None = None
    full: bool = False


def with_data(options: RunOptions, data: Data, model: Path) -> RunOptions:
    """The options with the user's own inputs, ranges and tolerances; runs the user's script, if there is one.

    Raises BadInput naming what is wrong, or does not fit the model.
    """
    from dataclasses import replace

    from rewriter.feeds import check_names
    from rewriter.model import Model
    from rewriter.options import parse_ranges, parse_tolerances

    ranges, tolerances = parse_ranges(data.val_range or ()), parse_tolerances(data.rtol or (), data.atol or ())
    options = replace(options, ranges=ranges, tolerances=tolerances, full=data.full)
    check_names(Model.load(model), options)
    return replace(options, samples=samples_given(data, model))


def samples_given(data: Data, model: Path) -> Sequence[Feeds]:
    """The user's own inputs for a model; raises BadInput when one does not fit it."""
    if not (data.inputs or data.inputs_dir or data.data_loader):
        return ()
    from rewriter import api

    files, folders = data.inputs or (), data.inputs_dir or ()
    return api.load_samples(model, files=files, folders=folders, data_loader=data.data_loader)
