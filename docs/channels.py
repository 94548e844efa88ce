"""Build docs/channels.md, the channel components of the zoo's models, from benchmarks/results/zoo_channels.json.

And two pictures of them in docs/pictures, drawn from the models; called by docs/build.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from models.zoo.refill import zoo_model
from rewriter.channel_picture import channel_picture
from rewriter.channel_survey import survey_channels
from rewriter.graph import Graph
from rewriter.model import Model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "zoo_channels.json"
PAGE = ROOT / "docs" / "channels.md"
FOLDER = ROOT / "docs" / "pictures"
DRAWN = {
    "regnet_y_400mf": "groups of 8 channels, and squeeze-and-excitation branches",
    "shufflenet_v2_x1_0": "58 channels, shuffles and halves of tensors",
}
"""The models with a picture, and what is to be seen."""
_BLOCK = 16
Report: TypeAlias = Mapping[str, Any]


def stale() -> list[str]:
    """A line for each file that is out of date."""
    said = "is not what benchmarks/results/zoo_channels.json and the models give: run python -m docs.build"
    return [
        f"{path.relative_to(ROOT).as_posix()} {said}"
        for path, text in wanted().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def write() -> None:
    """Bring the page and its pictures up to date."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in wanted().items():
        path.write_text(text, encoding="utf-8", newline="\n")


def wanted() -> dict[Path, str]:
    """The text of each file."""
    report: Report = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {PAGE: page(report), **{FOLDER / f"{name}.svg": picture(name) for name in DRAWN}}


def picture(name: str) -> str:
    """The picture of one model, for a machine with blocks of 16 channels."""
    graph = Graph(Model.load(zoo_model(name)))
    return channel_picture(graph, survey_channels(graph, _BLOCK), name)


def page(report: Report) -> str:
    """The page as Markdown."""
    return "\n".join(line for part in (_head, _table, _reasons, _pictures) for line in part(report)) + "\n"


def _head(report: Report) -> Iterator[str]:
    models = report["models"]
    total, free = (sum(row[key] for row in models) for key in ("components", "free"))
    yield "<!-- Built by docs/channels.py from benchmarks/results/zoo_channels.json: run make zoo-channels. -->"
    yield ""
    yield "# Channel components"
    yield ""
    yield "Channels cannot be added to one tensor alone, or put in another order: what is added to it, or joined with"
    yield "it, must follow. A *band* is a set of tensors with the same channels in the same places; a *component* is a"
    yield "set of bands that can only change together. Their channels are born in the rows of a convolution's weight"
    yield "and die in the columns of another's: they can be padded and permuted there, and nothing else of the model"
    yield "sees it, unless something *stops* the component. `rewriter inspect MODEL --channels` lists them; `--json`"
    yield "is for programs, `--picture OUT.svg` for the eye, `rewriter.inspect_channels` for Python."
    yield ""
    yield f"Of the {total} components of these {len(models)} exported models {free} are free. What is claimed holds for"
    yield "every input: an operator that is not known stops the channels that reach it."
    yield ""


def _table(report: Report) -> Iterator[str]:
    blocks = report["blocks"]
    yield "## Models"
    yield ""
    yield "The last columns count the convolutions that miss ONNX Runtime's fast path for their numbers of channels,"
    yield f"on machines with blocks of {blocks[0]} and of {blocks[1]} channels, and those of them in free components."
    yield ""
    heads = " | ".join(f"missed at {block} | of these free" for block in blocks)
    yield f"| model | bands | components | free | convolutions | {heads} |"
    yield f"|---|{'---:|' * (4 + 2 * len(blocks))}"
    for row in report["models"]:
        missed = [str(count) for pair in zip(row["slow"], row["slow_and_free"], strict=True) for count in pair]
        cells = [row["model"], *(str(row[key]) for key in ("bands", "components", "free", "convolutions")), *missed]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _reasons(report: Report) -> Iterator[str]:
    yield "## Why the others are not free"
    yield ""
    yield "How many components of a model each reason stops; one component may have several."
    yield ""
    yield "| model | components | stopped because |"
    yield "|---|---:|---|"
    for models, found in _alike(report):
        for at, stop in enumerate(found):
            reason = stop["reason"].replace("|", "\\|")
            yield f"| {', '.join(models) if at == 0 else ''} | {stop['components']} | {reason} |"
    yield ""


def _alike(report: Report) -> list[tuple[list[str], list[Report]]]:
    """Models with the same reasons together, in the order of the first ones."""
    found: dict[str, tuple[list[str], list[Report]]] = {}
    for row in report["models"]:
        found.setdefault(json.dumps(row["stops"]), ([], row["stops"]))[0].append(row["model"])
    return list(found.values())


def _pictures(_report: Report) -> Iterator[str]:
    yield "## Pictures"
    yield ""
    yield "A box is a run of operators whose results have the same channels, one colour for each component; stopped"
    yield f"ones are grey. A thick border and `!` mark what misses the fast path with blocks of {_BLOCK} channels."
    for name, what in DRAWN.items():
        yield ""
        yield f"{name}: {what}."
        yield ""
        yield f"![The channel components of {name}](pictures/{name}.svg)"
