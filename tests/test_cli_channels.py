"""`rewriter inspect --channels`: the channel components as tables and as JSON, and what refuses the picture."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

import rewriter
import rewriter.api
from channel_examples import network, survey_of, twice_stopped
from cli_runs import small_network
from graphs import model, node, value, weights
from models.zoo.refill import zoo_model, zoo_names
from rewriter.census import census, nchwc_block
from rewriter.channel_picture import channel_picture
from rewriter.channel_survey import why_slow
from rewriter.channels import Stop
from rewriter.cli import main
from rewriter.cli_channels import channel_blocks, channel_conclusion, component_table
from rewriter.errors import BadInput
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.report.text import Table
from rewriter.session import Runtime

Captured = pytest.CaptureFixture[str]
FAST = "com.microsoft.nchwc:Conv"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.onnx").write_bytes(network().SerializeToString())
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The text.


def test_a_row_for_each_component_and_one_for_those_that_are_alike() -> None:
    table = component_table(survey_of(network()), verbose=False)
    where = table.columns.index("where, and what stops it")
    assert table.columns[:where] == ("#", "component", "channels", "tensors", "births", "deaths", "links", "free")
    assert [row[:where] for row in table.rows] == [
        ("1", "0", "3", "1", "0", "1", "-", "no"),
        ("1", "1", "18", "1", "1", "1", "-", "yes"),
        ("2", "2 and 1 more", "2 x 8", "3", "1", "1", "2 groups of 4", "yes"),
        ("1", "3", "18", "3", "2", "3", "-", "yes"),
        ("1", "5", "2 x 5, 10", "3", "2", "0", "concat", "no"),
        ("1", "6", "10", "1", "0", "1", "-", "no"),
        ("1", "7", "4", "1", "1", "0", "-", "no"),
    ]
    said = [row[where] for row in table.rows]
    assert said[2] == "one.in to one.relu, born in one.in, die in one"
    assert said[3] == "one to sum, born in one and 1 more, die in two.in and 2 more"
    stop = "Softmax is not known to keep channels apart ('soft')"
    assert said[4] == f"left to both, born in left and 1 more. Stopped at both: {stop}"


def test_verbose_has_a_row_for_each_component_and_shows_every_band_and_stop() -> None:
    survey = survey_of(network())
    components, bands, stops, slow = (found for found in channel_blocks(survey, verbose=True))
    for found in (components, bands, stops, slow):
        assert isinstance(found, Table)
    assert [row[0] for row in components.rows] == [str(number) for number in range(8)]  # type: ignore[union-attr]
    assert ("3", "4", "18", "die in", "two.in, left, right") in bands.rows  # type: ignore[union-attr]
    assert len(stops.rows) == sum(len(component.stops) for component in survey.components) == 4  # type: ignore[union-attr]
    assert ("0", "x", "it is a graph input") in stops.rows  # type: ignore[union-attr]


def test_what_misses_the_fast_path_is_told_with_whether_its_component_is_free() -> None:
    survey = survey_of(network())
    [_, slow] = channel_blocks(survey, verbose=False)
    assert isinstance(slow, Table)
    assert slow.columns[-1] == "misses the fast path (blocks of 16 channels): why"
    assert slow.rows == (
        ("4", "1 and 1 more", "yes", "one.in and 3 more", "the 18 channels it reads are no multiple of 4"),
        ("2", "2 and 1 more", "yes", "one.groups and 1 more", "its groups have 4 channels, no multiple of 16"),
    )
    assert channel_conclusion(survey) == (
        "8 components | 4 free | 12 bands | "
        "6 of 10 convolutions off the fast path because of their channels, 6 in free components"
    )
    at_8 = survey_of(network(), 8).slow
    assert ("y", 6, "the 10 channels it reads are no multiple of 4") in [
        (conv.site, conv.component, conv.reason) for conv in at_8
    ]
    assert "6 in free" in channel_conclusion(survey_of(network(), 8)), "the Softmax keeps the other one from it"


def test_where_there_is_no_fast_path_nothing_misses_it() -> None:
    survey = survey_of(network(), 0)
    assert survey.slow == ()
    assert "no fast path" in str(channel_blocks(survey, verbose=False)[-1])
    assert channel_conclusion(survey) == "8 components | 4 free | 12 bands"


def test_a_model_without_channels_says_so(folder: Path, capsys: Captured) -> None:
    empty = model([node("Relu", ["x"], ["y"])], [value("x", [5])], [value("y", [5])])
    onnx.save(empty, "empty.onnx")
    assert main(["inspect", "empty.onnx", "--channels", "--picture", "empty.svg"]) == 0
    assert "0 of 0 convolutions" in capsys.readouterr().out or nchwc_block() == 0
    ElementTree.parse("empty.svg")


def test_links_of_one_kind_are_counted() -> None:
    rows = component_table(survey_of(zoo_model("shufflenet_v2_x1_0")), verbose=False).rows
    assert "concat, shuffle, pick (x2)" in {row[6] for row in rows}
    assert "13 groups of 8" in {row[6] for row in component_table(survey_of(zoo_model("regnet_y_400mf")), False).rows}


def test_those_that_are_stopped_alike_are_alike() -> None:
    rows = component_table(survey_of(twice_stopped()), verbose=False).rows
    assert [row[:2] for row in rows] == [
        ("1", "0"),
        ("2", "1 and 1 more"),
        ("2", "2 and 1 more"),
        ("2", "3 and 1 more"),
    ]


def test_equal_reasons_are_said_once_and_those_beyond_three_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = survey_of(network())
    stops = [Stop(f"t{at}", f"{what} ('t{at}')") for at, what in enumerate(["A", "A", "B", "C", "D", "E"])]
    monkeypatch.setattr(type(survey.components[0]), "stops", property(lambda _: tuple(stops)))
    said = component_table(survey, verbose=False).rows[0][-1]
    assert said.endswith("Stopped at t0: A ('t0'); t2: B ('t2'); t3: C ('t3'); and for 2 reasons more (-v)")


@pytest.mark.parametrize(
    ("c", "m", "group"),
    [
        *product((3, 6, 8, 15, 16, 18, 20, 58), (7, 16), (1,)),
        *((width, width, width) for width in (4, 6, 16, 18, 58)),
        *((2 * read, 2 * made, 2) for read, made in product((1, 2, 4, 8, 16, 24, 32), (1, 2, 8, 16, 24, 32))),
    ],
)
def test_onnx_runtime_agrees_on_what_misses_the_fast_path(c: int, m: int, group: int) -> None:
    """Within a chain that has the layout, as a node alone may be left out of it."""
    size = nchwc_block()
    if not size:
        pytest.skip("this machine has no fast path")
    proto = model(
        [node("Conv", ["x", "w"], ["y"], group=group)],
        [value("x", [1, c, 6, 6])],
        [value("y", [1, m, 6, 6])],
        [weights("w", m, c // group, 1, 1)],
        opset=13,
    )
    assert bool(why_slow(c, m, group, size)) == (census(proto, Runtime())[FAST] == 0)


# JSON.


def test_json_has_plain_types_and_every_name(folder: Path, capsys: Captured) -> None:
    assert main(["inspect", "net.onnx", "--channels", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "https://onnx-conv-rewriter/channels/1"
    assert found["model"]["path"] == "net.onnx"
    assert found["block"] == nchwc_block()
    assert [component["free"] for component in found["components"]].count(True) == 4
    grouped = found["components"][2]
    assert grouped == {
        "number": 2,
        "free": True,
        "bands": [
            {"number": 2, "channels": 8, "tensors": ["one.in"], "births": ["one.in"], "deaths": []},
            {"number": 3, "channels": 8, "tensors": ["one.groups", "one.relu"], "births": [], "deaths": ["one"]},
        ],
        "links": [
            {
                "kind": "groups",
                "node": "one.groups",
                "from": ["one.in"],
                "to": "one.groups",
                "groups": 2,
                "read": 4,
                "made": 4,
            }
        ],
        "stops": [],
    }
    assert found["components"][0]["stops"] == [{"tensor": "x", "reason": "it is a graph input"}]
    assert all(conv.keys() == {"site", "component", "reason"} for conv in found["slow"])


def test_orders_are_in_json_and_picks_apart() -> None:
    found = json.loads(json.dumps(survey_of(zoo_model("shufflenet_v2_x1_0")).to_dict()))
    shuffle = next(link for part in found["components"] for link in part["links"] if link["kind"] == "shuffle")
    assert shuffle["order"][:4] == [0, 58, 1, 59]
    assert {link["kind"] for link in found["picks"]} == {"pick"}
    assert len(found["picks"][0]["order"]) == 58


def test_from_python(folder: Path) -> None:
    for source in ("net.onnx", network(), network().SerializeToString()):
        survey = rewriter.inspect_channels(source)
        assert (len(survey.components), len(survey.free), survey.convolutions) == (8, 4, 10)
        assert survey.number_of("one.relu") == 2
        assert survey.number_of("soft, but not there") is None
        ElementTree.fromstring(rewriter.draw_channels(source))


def test_the_picture_is_written_whole_beside_the_text(folder: Path, capsys: Captured) -> None:
    assert main(["inspect", "net.onnx", "--channels", "--picture", "net.svg"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| saved net.svg")
    assert Path("net.svg").read_text(encoding="utf-8") == rewriter.draw_channels("net.onnx")
    assert main(["inspect", "net.onnx", "--channels", "--picture", "again.svg", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["convolutions"] == 10
    assert Path("again.svg").read_bytes() == Path("net.svg").read_bytes()


REFUSED = [
    (("--picture", "net.svg"), "--picture has no effect: add --channels"),
    (("--channels", "--picture", "net.png"), "the picture 'net.png' does not end in .svg"),
    (("--channels", "--picture", "gone/net.svg"), "the output folder 'gone' does not exist"),
    (("--channels", "--picture", "folder.svg"), "the output 'folder.svg' is a folder"),
    (("--channels", "--picture", "model.svg"), "the output 'model.svg' is the input model itself"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str
) -> None:
    Path("folder.svg").mkdir()
    os.link("net.onnx", "model.svg")
    before = sorted(folder.iterdir())

    def never(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(rewriter.api, "inspect_channels", never)
    assert main(["inspect", "net.onnx", *options]) == 2
    said = capsys.readouterr()
    assert says in said.err.replace("Error: The", "Error: the")
    assert said.out == ""
    assert sorted(folder.iterdir()) == before


def test_a_picture_that_fails_to_be_written_leaves_what_was_there(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("net.svg").write_text("earlier")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["inspect", "net.onnx", "--channels", "--picture", "net.svg"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert Path("net.svg").read_text() == "earlier"
    assert sorted(path.name for path in folder.iterdir()) == ["net.onnx", "net.svg"]


def test_a_bad_model_is_one_sentence(folder: Path, capsys: Captured) -> None:
    Path("text.onnx").write_text("no model")
    assert main(["inspect", "text.onnx", "--channels"]) == 2
    assert "'text.onnx' is not an ONNX model" in capsys.readouterr().err
    with pytest.raises(BadInput):
        rewriter.inspect_channels("text.onnx")


def test_text_is_plain_and_the_last_line_is_all_that_quiet_prints(folder: Path, capsys: Captured) -> None:
    assert main(["inspect", "net.onnx", "--channels"]) == 0
    long = capsys.readouterr().out
    assert long.isascii()
    assert main(["inspect", "net.onnx", "--channels", "-q"]) == 0
    assert capsys.readouterr().out == long.splitlines()[-1] + "\n"


def test_a_model_with_free_sizes_and_weights_that_come_in_late() -> None:
    """A Conv whose weight is computed has no width that is known: it is in no list, and stops its channels."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> net (float[N,16,H,W] x, float[18,16,1,1] w) => (float[N,4,H,W] y)
        { t = Conv (x, w) y = Conv (t, k) }"""
    )
    proto.graph.initializer.append(
        helper.make_tensor("k", TensorProto.FLOAT, [4, 18, 1, 1], [0.5] * 72),
    )
    survey = survey_of(proto)
    assert [conv.site for conv in survey.slow] == ["y"]
    assert [component.free for component in survey.components].count(True) == 0
    assert "stopped" in channel_picture(Graph(Model.load(proto)), survey, "late")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names())
def test_onnx_runtime_leaves_as_many_convolutions_of_the_zoo_off_the_fast_path(name: str) -> None:
    size = nchwc_block()
    if not size:
        pytest.skip("this machine has no fast path")
    proto = zoo_model(name)
    found = census(proto, Runtime())
    others = found["Conv"] + found["com.microsoft:FusedConv"]
    survey = survey_of(proto, size)
    if name in ("hf_conformer", "video_r2plus1d_18"):  # 1-D and 3-D: never there, whatever their channels
        assert (found[FAST], survey.slow) == (0, ())
    else:
        assert len(survey.slow) == others


def test_the_small_network_has_something_of_everything(folder: Path, capsys: Captured) -> None:
    onnx.save(small_network(), "small.onnx")
    assert main(["inspect", "small.onnx", "--channels", "-v", "--picture", "small.svg"]) == 0
    assert "groups of" in capsys.readouterr().out
