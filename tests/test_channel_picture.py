"""Pictures of channel components, and docs/channels.md: nothing covers anything, nothing is missing or out of date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import zoo_channels as campaign
from channel_examples import attention, network
from docs import channels as docs
from models.zoo.refill import zoo_model, zoo_names
from rewriter.channel_picture import channel_picture
from rewriter.channel_pieces import pieces_of
from rewriter.channel_survey import survey_channels
from rewriter.graph import Graph
from rewriter.model import Model

SVG = "{http://www.w3.org/2000/svg}"
SMALL_ZOO = ("mobilenet_v2", "regnet_y_400mf_dynamo", "shufflenet_v2_x1_0")
"""The rest of the zoo is looked at, too, but not by everybody at every run."""
ZOO = [name if name in SMALL_ZOO else pytest.param(name, marks=pytest.mark.slow) for name in zoo_names()]


def rects(root: ElementTree.Element) -> Iterator[tuple[str, float, float, float, float]]:
    """Style, left, top, right and bottom of each box, as placed."""
    [group] = root.findall(f"{SVG}g")
    x, y = (float(word) for word in re.findall(r"[\d.]+", group.get("transform", "")))
    for rect in group.iter(f"{SVG}rect"):
        left, top, wide, high = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
        yield rect.get("class", ""), x + left, y + top, x + left + wide, y + top + high


def points(path: str) -> list[tuple[float, float]]:
    """Points along an arrow: of its straight parts and its curves."""
    found: list[tuple[float, float]] = []
    for letter, numbers in re.findall(r"([MVHC]) ([-\d. ]+)", path):
        to = [float(number) for number in numbers.split()]
        if letter == "M":
            found.append((to[0], to[1]))
            continue
        x, y = found[-1]
        steps = [step / 20 for step in range(1, 21)]
        if letter == "C":
            across, down = np.array([x, *to[::2]]), np.array([y, *to[1::2]])
            for t in steps:
                parts = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
                found.append((float(parts @ across), float(parts @ down)))
        else:
            end = (x, to[0]) if letter == "V" else (to[0], y)
            found += [(x + t * (end[0] - x), y + t * (end[1] - y)) for t in steps]
    return found


@pytest.mark.parametrize("name", [*SMALL_ZOO, "timm_dpn68", "timm_mixnet_s", "hf_conformer"])
def test_nothing_in_a_picture_covers_anything_else(name: str) -> None:
    graph = Graph(Model.load(zoo_model(name)))
    text = channel_picture(graph, survey_channels(graph, 16), name)
    root = ElementTree.fromstring(text)
    _, _, width, height = (float(word) for word in root.get("viewBox", "").split())
    placed = [place for _, *place in rects(root)]
    assert len(placed) >= 20
    for left, top, right, bottom in placed:
        assert min(left, top) >= 0
        assert right <= width
        assert bottom <= height
    for (a, b, c, d), (e, f, g, h) in combinations(placed, 2):
        assert c <= e or g <= a or d <= f or h <= b
    [group] = root.findall(f"{SVG}g")
    x, y = (float(word) for word in re.findall(r"[\d.]+", group.get("transform", "")))
    for path in group.iter(f"{SVG}path"):
        if path.get("class") != "edge":
            continue
        way = points(path.get("d", ""))
        for at_x, at_y in way:
            assert 0 <= x + at_x <= width
            assert 0 <= y + at_y <= height
        for left, top, right, bottom in placed:
            assert not [p for p in way if left < x + p[0] < right and top < y + p[1] < bottom - 0.1]
    for foreign in ("href", "@import", "url(", "<script", "<image", "<foreignObject"):
        assert foreign not in text


def test_free_components_have_a_colour_and_stopped_ones_are_dashed() -> None:
    graph = Graph(Model.load(network()))
    root = ElementTree.fromstring(channel_picture(graph, survey_channels(graph, 16), "net"))
    text = {"".join(entry.itertext()) for entry in root.iter(f"{SVG}text")}
    assert {"net: 8 channel components, 4 of them free, in 12 bands", "#0: it is a graph input"} <= text
    styles = [style for style, *_ in rects(root)]
    assert styles.count("h2 slow") == 2, "both bands of the first block: the grouped Conv, and what reads 18 channels"
    assert styles[0] == "stopped"
    assert "Conv 3×3 in 2 !, Relu" in text
    assert "prefers-color-scheme: dark" in ElementTree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("name", [*SMALL_ZOO, "attention"])
def test_every_node_is_in_one_box_and_no_two_boxes_read_each_other(name: str) -> None:
    graph = Graph(Model.load(attention() if name == "attention" else zoo_model(name)))
    survey = survey_channels(graph, 16)
    pieces, piece_of = pieces_of(graph, survey)
    assert sorted(index for piece in pieces for index in piece.nodes) == sorted(piece_of)
    assert {conv for conv, made in enumerate(graph.model.nodes) if made.op_type == "Conv"} <= piece_of.keys()
    for piece in pieces:
        assert all(pieces[other].row < piece.row for other in piece.reads)
    for index, at in piece_of.items():
        for read in graph.model.nodes[index].input:
            maker = graph.model.wiring.producer(read)
            if maker in piece_of and piece_of[maker] != at:
                assert piece_of[maker] in pieces[at].reads


def test_a_run_never_goes_around_another_component() -> None:
    """`one` and `sum` have the same channels, and the second block is between them."""
    graph = Graph(Model.load(network()))
    pieces, _ = pieces_of(graph, survey_channels(graph, 16))
    runs = [[graph.model.nodes[index].output[0] for index in piece.nodes] for piece in pieces]
    assert ["one"] in runs
    assert ["two", "sum"] in runs
    assert ["one.groups", "one.relu"] in runs
    graph = Graph(Model.load(attention()))
    pieces, _ = pieces_of(graph, survey_channels(graph, 16))
    runs = [[graph.model.nodes[index].output[0] for index in piece.nodes] for piece in pieces]
    assert ["weighted"] in runs, "its weights come from `first`"
    assert ["second", "again"] in runs


def test_names_that_xml_cannot_hold_are_shown_and_long_ones_cut() -> None:
    proto = network()
    odd = "<&'\"\x1b[31m\u202e" + "x" * 200
    for entry in proto.graph.node:
        for at, name in enumerate(entry.output):
            entry.output[at] = odd if name == "y" else name
    proto.graph.output[0].name = odd
    graph = Graph(Model.load(proto))
    text = channel_picture(graph, survey_channels(graph, 16), "a\x00b<c>")
    root = ElementTree.fromstring(text)
    assert "\x1b" not in text
    assert "<&'\"\\x1b[31m\\u202exxx" in "".join(root.itertext())
    shown = [entry.text or "" for entry in root.iter(f"{SVG}text")]
    assert any(line.startswith("a\\x00b<c>: 8 channel components") for line in shown)
    assert max(map(len, shown)) <= 150


# The page.


@pytest.mark.parametrize("name", ZOO)
def test_the_page_counts_what_is_found(name: str) -> None:
    rows = {row["model"]: row for row in json.loads(docs.RESULTS.read_text(encoding="utf-8"))["models"]}
    assert rows[name] == campaign.facts(name), "run make zoo-channels"


def test_the_page_is_of_the_whole_zoo_and_up_to_date() -> None:
    report = json.loads(docs.RESULTS.read_text(encoding="utf-8"))
    assert [row["model"] for row in report["models"]] == zoo_names()
    assert report["blocks"] == list(campaign.BLOCKS)
    assert docs.stale() == []


def test_a_page_or_picture_that_is_edited_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RESULTS", "PAGE", "FOLDER"):
        there = getattr(docs, name)
        monkeypatch.setattr(docs, name, tmp_path / there.relative_to(docs.ROOT))
        (tmp_path / there.relative_to(docs.ROOT)).parent.mkdir(parents=True, exist_ok=True)
    report = json.loads((docs.ROOT / "benchmarks/results/zoo_channels.json").read_text(encoding="utf-8"))
    docs.RESULTS.write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    docs.write()
    assert docs.stale() == []
    picture = docs.FOLDER / "regnet_y_400mf.svg"
    picture.write_text(picture.read_text(encoding="utf-8").replace("#1:", "#2:"), encoding="utf-8")
    report["models"][0]["free"] += 1
    docs.RESULTS.write_text(json.dumps(report), encoding="utf-8")
    said = "is not what benchmarks/results/zoo_channels.json and the models give: run python -m docs.build"
    assert docs.stale() == [f"docs/channels.md {said}", f"docs/pictures/regnet_y_400mf.svg {said}"]


def test_a_reason_loses_its_names_and_nothing_else() -> None:
    assert campaign.plain("Softmax is not known to keep channels apart ('soft')") == (
        "Softmax is not known to keep channels apart"
    )
    assert campaign.plain("'y' is a graph output") == "'…' is a graph output"
