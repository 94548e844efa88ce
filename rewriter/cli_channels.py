"""`inspect --channels`: tables of the channel components, their JSON, and their picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from rewriter import api, saving
from rewriter.channel_survey import ChannelSurvey, SlowConv
from rewriter.channels import Band, Component, Link, Stop
from rewriter.cli_show import Voice, show
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.report.record import file_record
from rewriter.report.text import Block, Table, alike, clause, counted, sites_text

SCHEMA = "https://onnx-conv-rewriter/channels/1"
"""Identifier of the layout of `inspect --channels --json`; the number rises when a reader would have to change."""
_MOST: Final = 3
"""So many different sizes, links or reasons are named, the rest counted."""


def inspect_channels(model: Path, options: RunOptions, picture: Path | None, as_json: bool, voice: Voice) -> None:
    """Follow the channels, write the picture if there is to be one, then say what was found."""
    loaded = Model.load(model)
    if picture is not None:
        check_picture(loaded, picture)
    with voice.progress("following the channels"):
        survey = api.inspect_channels(model, options)
        drawn = "" if picture is None else api.draw_channels(model, options)
    if picture is not None:
        saving.write_atomically(picture, drawn.encode())
    if as_json:
        show([], json.dumps(channel_inspection(loaded, survey), indent=2))
        return
    saved = "" if picture is None else f" | saved {picture}"
    voice.say(channel_blocks(survey, voice.verbose), channel_conclusion(survey) + saved)


def channel_inspection(model: Model, survey: ChannelSurvey) -> dict[str, Any]:
    """The JSON of `inspect --channels`: plain types, `schema, model` and those of `ChannelSurvey.to_dict`."""
    return {
        "schema": SCHEMA,
        "model": file_record(model, model.path).model_dump(mode="json"),
        **survey.to_dict(),
    }


def check_picture(model: Model, out: Path) -> None:
    """Raise BadInput when the picture cannot be written there: asked before the work, not after it."""
    if out.suffix.lower() != ".svg":
        raise BadInput(f"the picture '{out}' does not end in .svg, the only format there is.")
    saving.check_target(model, out)


def channel_blocks(survey: ChannelSurvey, verbose: bool) -> list[Block]:
    """The components, those that are alike together; then which convolutions want other numbers of channels."""
    blocks: list[Block] = []
    if survey.components:
        blocks.append(component_table(survey, verbose))
    if verbose:
        blocks += _every_band(survey) + _every_stop(survey)
    return blocks + fast_path_blocks(survey, verbose)


def component_table(survey: ChannelSurvey, verbose: bool) -> Table:
    """One row for each component, or for those that differ in names only."""
    groups: dict[tuple[str, ...], list[Component]] = {}
    for component in survey.components:
        key = (*_facts(survey, component), *(alike(stop.reason) for stop in _telling(component.stops)))
        groups.setdefault((*key, str(component.number)) if verbose else key, []).append(component)
    rows = tuple(
        (
            *([] if verbose else [str(len(found))]),
            sites_text([str(component.number) for component in found]),
            *_facts(survey, found[0]),
            _where(survey, found[0]),
        )
        for found in groups.values()
    )
    numbers = ("tensors", "births", "deaths")
    columns = ("component", "channels", *numbers, "links", "free", "where, and what stops it")
    return Table(columns if verbose else ("#", *columns), rows, frozenset({"#", *numbers}))


def _facts(survey: ChannelSurvey, component: Component) -> tuple[str, ...]:
    """Channels, number of tensors, births and deaths, links, and whether it is free."""
    births, deaths = _ends(survey, component)
    return (
        _counts((str(band.channels or "?") for band in component.bands), "{count} x {text}"),
        str(sum(len(band.tensors) for band in component.bands)),
        str(len(births)),
        str(len(deaths)),
        links_text(survey, component) or "-",
        "yes" if component.free else "no",
    )


def links_text(survey: ChannelSurvey, component: Component) -> str:
    """`13 groups of 8, concat (x2), pick (x4)`: what relates its bands, and what picks channels of it or for it."""
    picks = survey.picks_of.get(component.number, ())
    return _counts((link_text(survey, link) for link in (*component.links, *picks)), "{text} (x{count})")


def link_text(survey: ChannelSurvey, link: Link) -> str:
    """`concat`, `shuffle`, `pick`, or the groups of a convolution."""
    if link.kind != "groups":
        return link.kind
    read, made = survey.group_width(link)
    return f"{link.group} groups of {read}" + ("" if read == made else f" to {made}")


def _counts(texts: Iterable[str], several: str) -> str:
    """Equal texts counted, as `several` says, in the order of the first ones."""
    found = [text if count == 1 else several.format(count=count, text=text) for text, count in Counter(texts).items()]
    rest = len(found) - _MOST
    return ", ".join(found if rest <= 1 else [*found[:_MOST], f"{rest} more"])


def _where(survey: ChannelSurvey, component: Component) -> str:
    """From which tensor to which, where its channels are born and die, and the first stops."""
    tensors = [name for band in component.bands for name in band.tensors]
    births, deaths = _ends(survey, component)
    parts = [tensors[0] if len(tensors) == 1 else f"{tensors[0]} to {tensors[-1]}"]
    parts += [f"born in {sites_text(births)}"] if births else []
    parts += [f"die in {sites_text(deaths)}"] if deaths else []
    said = ", ".join(parts)
    stops = _telling(component.stops)
    if not stops:
        return said
    why = "; ".join(_stop_text(stop) for stop in stops[:_MOST])
    more = len(stops) - _MOST
    return f"{said}. Stopped at {why}" + (f"; and for {counted(more, 'reason')} more (-v)" if more > 0 else "")


def _stop_text(stop: Stop) -> str:
    return f"{stop.tensor}: {clause(stop.reason)}"


def _telling(stops: Sequence[Stop]) -> list[Stop]:
    """The first stop for each reason."""
    found: dict[str, Stop] = {}
    for stop in stops:
        found.setdefault(alike(stop.reason), stop)
    return list(found.values())


def _ends(survey: ChannelSurvey, component: Component) -> tuple[list[str], list[str]]:
    births = [name for band in component.bands for name in survey.named(band.births)]
    deaths = [name for band in component.bands for name in survey.named(band.deaths)]
    return births, list(dict.fromkeys(deaths))


def _every_band(survey: ChannelSurvey) -> list[Block]:
    """All bands with all names."""
    rows = tuple(
        (str(component.number), str(band.number), str(band.channels or "?"), what, ", ".join(names))
        for component in survey.components
        for band in component.bands
        for what, names in _names(survey, band)
        if names
    )
    return [Table(("component", "band", "channels", "what", "names"), rows, frozenset({"channels"}))] if rows else []


def _names(survey: ChannelSurvey, band: Band) -> list[tuple[str, list[str]]]:
    return [
        ("tensors", list(band.tensors)),
        ("born in", survey.named(band.births)),
        ("die in", survey.named(band.deaths)),
    ]


def _every_stop(survey: ChannelSurvey) -> list[Block]:
    rows = tuple(
        (str(component.number), stop.tensor, stop.reason) for component in survey.components for stop in component.stops
    )
    return [Table(("component", "stopped at", "why"), rows)] if rows else []


def fast_path_blocks(survey: ChannelSurvey, verbose: bool) -> list[Block]:
    """The convolutions that miss the fast path for their numbers of channels, and whether these may change."""
    if not survey.block:
        return [
            "This machine has no fast path for blocks of channels, so no number of channels is better than another."
        ]
    if not survey.slow:
        return [f"No convolution misses the fast path (blocks of {survey.block} channels) for its number of channels."]
    groups: dict[tuple[str, ...], list[SlowConv]] = {}
    for conv in survey.slow:
        key = (_state(survey, conv), conv.site if verbose else "", conv.reason)
        groups.setdefault(key, []).append(conv)
    rows = tuple(
        (
            str(len(found)),
            sites_text(list(dict.fromkeys("-" if conv.component is None else str(conv.component) for conv in found))),
            state,
            sites_text([conv.site for conv in found]),
            reason,
        )
        for (state, _, reason), found in groups.items()
    )
    why = f"misses the fast path (blocks of {survey.block} channels): why"
    return [Table(("#", "component", "free", "convolution", why), rows, frozenset({"#"}))]


def _state(survey: ChannelSurvey, conv: SlowConv) -> str:
    if conv.component is None:
        return "no"
    return "yes" if survey.components[conv.component].free else "no"


def channel_conclusion(survey: ChannelSurvey) -> str:
    """The last line of `inspect --channels`."""
    able = sum(_state(survey, conv) == "yes" for conv in survey.slow)
    parts = [
        counted(len(survey.components), "component"),
        f"{len(survey.free)} free",
        counted(len(survey.channels.bands), "band"),
    ]
    if survey.block:
        missing = f"{len(survey.slow)} of {counted(survey.convolutions, 'convolution')} off the fast path"
        parts.append(f"{missing} because of their channels" + (f", {able} in free components" if survey.slow else ""))
    return " | ".join(parts)
